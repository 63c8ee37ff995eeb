"What `plan` says beside what a real run takes: parameters, tokens, operations, memory, cache"
import json, socket, time
from itertools import product

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from cotkd.cache import write_cache
from cotkd.data import InputError
from cotkd.distill import KDConfig, _with_adapters, distill
from cotkd.experiment import MODES, PRESETS, Experiment, _pair, activation_bytes, parameters, plan, skeleton
from cotkd.models import load_lm
from cotkd.toy import make_toy

close = lambda value: pytest.approx(value, rel=.1)
numbers = lambda parameters: sum(p.numel() * p.itemsize for p in parameters)


@pytest.fixture(scope='module', params=product((LlamaConfig, Qwen2Config), (0, 8)), ids=lambda p: f'{p[0].model_type}-rank{p[1]}')
def experiment(request, tmp_path_factory):
    "A random teacher and student on disk, and 16 rows; all weights trained, or adapters"
    folder, tokenizer, (config, rank) = tmp_path_factory.mktemp('pair'), load_lm('toy-student', 'cpu')[1], request.param
    shape = dict(vocab_size=2064, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
    for name, width, tied in (('teacher', 128, False), ('student', 96, True)):
        AutoModelForCausalLM.from_config(config(hidden_size=width, intermediate_size=3 * width, tie_word_embeddings=tied, **shape)).save_pretrained(folder/name)
        tokenizer.save_pretrained(folder/name)
    (folder/'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in make_toy(['web_of_lies'], 16)))
    return Experiment(str(folder/'teacher'), str(folder/'student'), str(folder/'rows.jsonl'), rows=16, epochs=2., batch_size=8, lora_rank=rank)


def rows_of(experiment):
    with open(experiment.data) as file: return [json.loads(line) for line in file]


@pytest.fixture(scope='module')
def run(experiment, tmp_path_factory):
    "A real distillation of the KD+CoT arm: its cost, its products (those of attention left out, as in the plan), and bytes at an update"
    seen = {}
    def look(optimizer, args, kwargs):
        trained = [p for g in optimizer.param_groups for p in g['params']]
        state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.ndim]
        seen.update({'trained': numbers(trained), 'gradients': numbers(p.grad for p in trained), 'optimizer state': numbers(state)})
    (_, tokenizer), hook = load_lm(experiment.teacher, 'cpu'), register_optimizer_step_post_hook(look)
    config = KDConfig(batch_size=8, epochs=experiment.epochs, lora_rank=experiment.lora_rank)
    try:
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: lambda out, a, b, *_, **__: 2 * a[0] * a[1] * b[1]}) as flops:
            cost = distill(load_lm(experiment.student)[0], load_lm(experiment.teacher)[0], tokenizer, rows_of(experiment),
                           tmp_path_factory.mktemp('run')/'out', 'cot', config)
    finally: hook.remove()
    return cost, flops.get_total_flops(), seen


def test_parameters(experiment):
    for name in (experiment.teacher, experiment.student):
        real, table = load_lm(name)[0], parameters(skeleton(name))
        assert real.num_parameters() == table['body'] + table['embedding'] + table['head'] == table['trained']
        assert table['head'] == real.get_output_embeddings().weight.numel()
    assert table['embedding'] == 0  # the student's head is its embedding


def test_tokens_and_operations(experiment, run):
    cost, flops, _ = run
    arm = plan(experiment).arms.kd_cot
    assert [arm[k] for k in ('updates', 'examples', 'tokens', 'supervised tokens', 'FLOPs live')] == \
        pytest.approx([cost[k] for k in ('updates', 'examples', 'tokens', 'supervised_tokens', 'flops')])
    assert arm['FLOPs live'] == close(flops)


def test_memory_of_training(experiment, run):
    seen, memory, teacher = run[2], 1e9 * plan(experiment).memory, load_lm(experiment.teacher)[0]
    for part in ('gradients', 'optimizer state'): assert memory.live[part] == memory.cached[part] == close(seen[part]), part
    assert memory.live['student weights'] == close(numbers(load_lm(experiment.student)[0].parameters()) + (seen['trained'] if experiment.lora_rank else 0))
    assert memory.live['teacher weights'] == close(numbers(teacher.parameters()))
    assert memory.cached['teacher weights'] == close(teacher.get_output_embeddings().weight.nbytes)
    assert memory.loc['sum'].tolist() == pytest.approx(memory.drop(index='sum').sum().tolist())


@pytest.mark.parametrize('gpu', [None, 'H100'])
def test_activations(experiment, gpu):
    real, rank = load_lm(experiment.student, 'cpu')[0], experiment.lora_rank
    if gpu and rank: real = real.to(torch.bfloat16)  # as `load_lm` would load it on a GPU
    if rank: real = _with_adapters(real, rank)
    with torch.autocast('cpu', torch.bfloat16, enabled=bool(gpu)):
        assert activation_bytes(_pair(experiment, gpu)[1], 256) == close(activation_bytes(real.train(), 256, rows=2 if gpu else 1))


@pytest.mark.parametrize('arm', MODES)
def test_cache(experiment, arm, tmp_path):
    write_cache(experiment.teacher, rows_of(experiment), tmp_path/'cache', MODES[arm])
    size = sum(p.stat().st_size for p in (tmp_path/'cache').iterdir())
    assert 1e9 * plan(experiment).arms[arm]['cache, GB'] == close(size)


@pytest.mark.parametrize('preset', [name for name in PRESETS if name != 'toy'])
def test_the_papers_pairs_need_no_network(preset, monkeypatch):
    def refuse(*args): raise AssertionError('a plan went to the network')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    start = time.perf_counter()
    planned = plan(PRESETS[preset], 'H100')
    assert time.perf_counter() - start < 10
    assert planned.arms.loc['updates'].tolist() == [20_000, 20_000]
    assert (planned.arms.loc['hours cached'] < planned.arms.loc['hours live']).all()
    assert planned.memory.cached['sum'] < planned.memory.live['sum']
    for text in (str(planned), planned._repr_html_()):
        for word in ('H100', 'assumed', 'memory, GB', 'hours live', 'FLOPs cached', 'lower bound'): assert word in text


def test_what_cannot_be_planned_is_said():
    with pytest.raises(InputError, match="'A1000' is unknown.*A100-80GB.*H200"): plan(PRESETS['toy'], 'A1000')
    with pytest.raises(InputError, match="'no/such/model'"): plan(Experiment(teacher='no/such/model'))
    assert 'does not fit' in str(plan(PRESETS['qwen1.5'], 'L4'))
    assert 'hours' not in str(plan(PRESETS['toy']).arms)
