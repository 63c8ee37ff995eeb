"What `plan` says beside what a real run takes: parameters, tokens, operations, memory, cache"
import json
import socket
import time
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from cotkd.cache import write_cache
from cotkd.data import HUB_ID
from cotkd.distill import distill
from cotkd.experiment import FROM_PAPER, PRESETS, Experiment
from cotkd.files import InputError, read_lines
from cotkd.models import load_lm, skeleton
from cotkd.plan import (HUB_TOKENS, activation_bytes, arm_lengths, find_config, find_gpu,
                        parameters, plan)
from cotkd.toy import make_toy
from cotkd.trainer import KDConfig, with_adapters


def close(value):
    return pytest.approx(value, rel=.1)


def nbytes(tensors):
    return sum(x.numel() * x.itemsize for x in tensors)


def models_of(config, rank):
    return pytest.param((config, rank), id=f'{config.model_type}-rank{rank}')


SHAPE = dict(vocab_size=2064, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope='module', params=[models_of(LlamaConfig, 0), models_of(Qwen2Config, 8)])
def experiment(request, tmp_path_factory):
    "A random teacher and student on disk, and 16 rows; all weights trained, or adapters"
    folder, tokenizer = tmp_path_factory.mktemp('pair'), load_lm('toy-student', 'cpu')[1]
    config, rank = request.param
    for name, width, tied in (('teacher', 128, False), ('student', 96, True)):
        shape = dict(hidden_size=width, intermediate_size=3 * width, tie_word_embeddings=tied)
        model = AutoModelForCausalLM.from_config(config(**SHAPE, **shape))
        model.save_pretrained(folder/name)
        tokenizer.save_pretrained(folder/name)
    rows = make_toy(['web_of_lies'], 16)
    (folder/'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return Experiment(str(folder/'teacher'), str(folder/'student'), str(folder/'rows.jsonl'),
                      rows=16, epochs=2., batch_size=8, lora_rank=rank)


@pytest.fixture(scope='module')
def run(experiment, tmp_path_factory):
    "A real distillation of the KD+CoT arm: its cost, its products, and bytes at an update"
    seen = {}

    def look(optimizer, args, kwargs):
        trained = [p for group in optimizer.param_groups for p in group['params']]
        state = [x for values in optimizer.state.values() for x in values.values()
                 if torch.is_tensor(x) and x.ndim]
        seen.update({'trained': nbytes(trained), 'gradients': nbytes(p.grad for p in trained),
                     'optimizer state': nbytes(state)})

    tokenizer = load_lm(experiment.teacher, 'cpu')[1]
    hook = register_optimizer_step_post_hook(look)
    config = KDConfig(batch_size=8, epochs=experiment.epochs, lora_rank=experiment.lora_rank)
    product = {torch.ops.aten.addmm_: lambda out, a, b, *_, **__: 2 * a[0] * a[1] * b[1]}
    try:
        with FlopCounterMode(display=False, custom_mapping=product) as flops:
            cost = distill(load_lm(experiment.student)[0], load_lm(experiment.teacher)[0],
                           tokenizer, read_lines(experiment.data),
                           tmp_path_factory.mktemp('run')/'out', mode='cot', config=config)
    finally:
        hook.remove()
    return cost, flops.get_total_flops(), seen


def test_parameters(experiment):
    for name in (experiment.teacher, experiment.student):
        real, table = load_lm(name)[0], parameters(skeleton(find_config(name)))
        total = table['body'] + table['embedding'] + table['head']
        assert real.num_parameters() == total == table['trained']
        assert table['head'] == real.get_output_embeddings().weight.numel()
    assert table['embedding'] == 0  # the student's head is its embedding


def test_tokens_and_operations(experiment, run):
    cost, flops, _ = run
    arm = plan(experiment).arms.kd_cot
    names = ('updates', 'examples', 'tokens', 'supervised tokens', 'FLOPs live')
    counted = [cost[name] for name in ('updates', 'examples', 'tokens', 'supervised_tokens',
                                       'flops')]
    assert [arm[name] for name in names] == pytest.approx(counted)
    assert arm['FLOPs live'] == close(flops)


def test_memory_of_training(experiment, run):
    seen, memory = run[2], 1e9 * plan(experiment).memory
    teacher = load_lm(experiment.teacher)[0]
    for part in ('gradients', 'optimizer state'):
        assert memory.live[part] == memory.cached[part] == close(seen[part]), part
    weights = nbytes(load_lm(experiment.student)[0].parameters())
    adapters = seen['trained'] if experiment.lora_rank else 0
    assert memory.live['student weights'] == close(weights + adapters)
    assert memory.live['teacher weights'] == close(nbytes(teacher.parameters()))
    head = teacher.get_output_embeddings().weight
    assert memory.cached['teacher weights'] == close(head.nbytes)
    parts = memory.drop(index='sum').sum()
    assert memory.loc['sum'].tolist() == pytest.approx(parts.tolist())


# --- activations

def kept_bytes(model, tokens, rows, gpu):
    "What autograd really keeps of a forward pass, weights aside but not copies of them"
    body = model.get_decoder()
    own = {w.untyped_storage()._cdata for w in [*body.parameters(), *body.buffers()]}
    kept = {}

    def keep(x):
        kept[x.untyped_storage()._cdata] = x
        return x

    def dropout(x, p, training, inplace):  # the mask in one byte a number, as on a GPU
        return torch.native_dropout(x, p, training)[0]

    ids = dict(input_ids=torch.zeros(1, tokens, dtype=torch.long),
               position_ids=torch.arange(tokens)[None] % (tokens // rows))
    with torch.autocast('cpu', torch.bfloat16, enabled=gpu), \
            saved_tensors_hooks(keep, lambda x: x), patch('torch.nn.functional.dropout', dropout):
        body(**ids, use_cache=False)
    return sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in own)


@pytest.mark.parametrize('gpu', [False, True])
@pytest.mark.parametrize('rank', [0, 8])
@pytest.mark.parametrize('config, heads, groups', [(LlamaConfig, 4, 2), (Qwen2Config, 4, 4),
                                                   (LlamaConfig, 8, 2)])
def test_activations(config, heads, groups, rank, gpu):
    shape = SHAPE | dict(num_attention_heads=heads, num_key_value_heads=groups)
    config = config(hidden_size=96, intermediate_size=288, **shape)
    model = AutoModelForCausalLM.from_config(config)
    if gpu and rank:
        model = model.to(torch.bfloat16)  # as `load_lm` would load it on a GPU
    if rank:
        model = with_adapters(model, rank)
    real = kept_bytes(model.train(), 256, 2 if gpu else 1, gpu)  # packed rows have a mask
    assert activation_bytes(config, 256, gpu, rank) == pytest.approx(real, rel=.05)


FAKE = {  # bytes that PyTorch's fake tensors gave for 4,096 tokens in bfloat16 autocast
    'qwen1.5': 14_485_864_832, 'paper-llama2-7b': 32_500_351_488,
    'paper-tinyllama': 13_092_241_760, 'smollm2': 3_448_226_112, 'qwen2.5': 8_378_696_064}


@pytest.mark.parametrize('preset', FAKE)
def test_activations_of_the_presets(preset):
    experiment = PRESETS[preset]
    config = find_config(experiment.student)
    ours = activation_bytes(config, 4096, True, experiment.lora_rank)
    assert ours == pytest.approx(FAKE[preset], rel=2e-3)


# --- the rest

@pytest.mark.parametrize('arm, mode', [('kd', 'direct'), ('kd_cot', 'cot')])
def test_cache(experiment, arm, mode, tmp_path):
    write_cache(experiment.teacher, read_lines(experiment.data), tmp_path/'cache', mode)
    size = sum(path.stat().st_size for path in (tmp_path/'cache').iterdir())
    assert 1e9 * plan(experiment).arms[arm]['cache, GB'] == close(size)


def test_the_text_alone_has_no_teacher(experiment):
    both = plan(replace(experiment, arms='kd_cot,sft_cot'))
    assert [*both.memory] == ['live', 'cached', 'no teacher']
    assert both.memory['no teacher']['teacher weights'] == 0
    assert both.arms.sft_cot['cache, GB'] == 0
    assert both.arms.sft_cot['FLOPs live'] == both.arms.sft_cot['FLOPs cached']
    assert both.arms.sft_cot['FLOPs live'] < both.arms.kd_cot['FLOPs cached']
    alone = plan(replace(experiment, arms='sft'))
    assert [*alone.memory] == ['no teacher'] and 'fits' in alone.notes


@pytest.mark.parametrize('preset', ['paper-llama2-7b', 'smollm2'])
def test_the_papers_pairs_need_no_network(preset, monkeypatch):
    def refuse(*args):
        raise AssertionError('a plan went to the network')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    start = time.perf_counter()
    planned = plan(PRESETS[preset], 'H100')
    assert time.perf_counter() - start < 10
    assert planned.arms.loc['updates'].tolist() == [20_000, 20_000]
    assert (planned.arms.loc['hours cached'] < planned.arms.loc['hours live']).all()
    assert planned.memory.cached['sum'] < planned.memory.live['sum']
    for text in (str(planned), planned._repr_html_()):
        for word in ('H100', 'assumed', 'memory, GB', 'hours live', 'FLOPs cached',
                     'size of the file'):
            assert word in text


def test_rows_of_cot_collection_are_as_long_as_its_file_says():
    a_row = 2.36e9 / 1_837_928 - 140  # bytes, without those that are JSON
    tokens, supervised = HUB_TOKENS['cot']
    assert tokens == pytest.approx(a_row / 4.2 + 14, rel=.01)
    assert supervised < HUB_TOKENS['direct'][0] < tokens
    short, _ = arm_lengths(replace(PRESETS['paper-qwen'], max_tokens=128))
    assert short['kd_cot'].tokens == short['kd_cot'].longest == 128  # longer ones are left out


def test_the_card_itself():
    assert find_gpu('NVIDIA A100-SXM4-40GB', 42.4) == 'A100-40GB'
    assert find_gpu('NVIDIA A100 80GB PCIe', 85) == 'A100-80GB'
    assert find_gpu('NVIDIA H100 80GB HBM3', 85) == 'H100'
    assert find_gpu('NVIDIA GeForce RTX 4090', 25) == 'RTX-4090'
    for other in ('NVIDIA A10', 'Tesla V100-SXM2-16GB', 'NVIDIA B200', 'NVIDIA L4000',
                  'NVIDIA GeForce RTX 3090'):
        assert find_gpu(other, 24) is None, other


def test_what_cannot_be_planned_is_said():
    with pytest.raises(InputError, match="'A1000' is unknown.*A100-80GB.*H200"):
        plan(PRESETS['toy'], 'A1000')
    with pytest.raises(InputError, match="'/no/such/model'"):
        plan(Experiment(teacher='/no/such/model'))
    assert 'does not fit' in str(plan(PRESETS['qwen1.5'], 'L4'))
    assert 'hours' not in str(plan(PRESETS['toy']).arms)
    assert FROM_PAPER['data'] == HUB_ID  # written there once more, since `data` is heavy
