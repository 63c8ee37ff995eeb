"What `plan` says beside what a real run takes, and beside arithmetic by hand"
import gzip
import json
import math
import re
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

from cotkd.bbh import bbh_benchmark
from cotkd.cache import write_cache
from cotkd.data import HUB_FILE, HUB_ID
from cotkd.distill import distill
from cotkd.evaluate import Asking
from cotkd.experiment import FROM_PAPER, PRESETS, Experiment, needed_bytes
from cotkd.files import InputError, read_lines
from cotkd.models import load_lm, load_tokenizer
from cotkd.plan import (ANSWERS, BBH_BYTES, DOWNLOAD, GPUS, ROWS, Workload, activation_bytes,
                        advise, arm_lengths, asking_bytes, asking_seconds, checkpointed_bytes,
                        disk_table, find_config, find_gpu, find_questions, find_writer, get_card,
                        hub_row, hub_tokens, measure, parameters, plan, prompt_bytes, read_widths,
                        rows_at_once, steps_table)
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
        with (FlopCounterMode(display=False, custom_mapping=product) as flops,
              patch('cotkd.trainer._START', 0)):  # at most 5% padding: a plan has none
            cost = distill(load_lm(experiment.student)[0], load_lm(experiment.teacher)[0],
                           tokenizer, read_lines(experiment.data),
                           tmp_path_factory.mktemp('run')/'out', mode='cot', config=config)
    finally:
        hook.remove()
    return cost, flops.get_total_flops(), seen


def test_parameters(experiment):
    for name in (experiment.teacher, experiment.student):
        real, table = load_lm(name)[0], parameters(measure(find_config(name), torch.float32, 0))
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


@pytest.mark.parametrize('gpu', [False, True])
def test_checkpointed_activations(gpu):
    "A layer keeps its input; what one keeps as it is computed again comes on top"
    config = LlamaConfig(hidden_size=96, intermediate_size=288, **SHAPE)
    model = AutoModelForCausalLM.from_config(config).train()
    # only this kind of checkpoint hands its inputs to the hooks
    model.activation_checkpointing_enable(dict(use_reentrant=True))
    real = kept_bytes(model, 256, 2 if gpu else 1, gpu)
    w = read_widths(config)
    single = LlamaConfig(hidden_size=96, intermediate_size=288, **SHAPE | dict(num_hidden_layers=1))
    one = activation_bytes(single, 256, gpu) - 256 * 8 * 96  # without the last norm
    others = 2 * 3 * w.matrices * gpu  # autocast's copies, which may be there until backward
    found = checkpointed_bytes(config, 256, gpu)
    assert found == pytest.approx(real + one + others, rel=.01)
    assert found < .5 * activation_bytes(config, 256, gpu)


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


PAIRS = [name for name, preset in PRESETS.items() if preset.data != 'toy']
CARDS = {'H100': 'H100', 'A100': 'A100-80GB', 'A100-40GB': 'A100-40GB', '4090': 'RTX-4090'}


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args):
        raise AssertionError('a plan went to the network')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


@pytest.mark.parametrize('preset', PAIRS)
def test_a_plan_needs_no_network_and_no_model(preset, offline):
    start = time.process_time()
    for said, card in CARDS.items():
        planned = plan(PRESETS[preset], said)
        text = str(planned)
        first, *lines = text.splitlines()
        assert max(map(len, text.splitlines())) <= 100
        assert re.match(rf'On one {card}: [\d.]+ to [\d.]+ hours, [\d.]+ of \d+ GB of memory, '
                        r'[\d.]+ GB of disk\. It (fits|does not fit)\.$', first), first
        need, size = planned.steps['GB of memory']['in all'], GPUS[card].memory
        assert ('It fits.' in first) == (need <= size) == ('would fit' not in lines[0])
    assert time.process_time() - start < 20
    assert planned.arms.loc['updates'].unique().tolist() == [20_000]
    assert planned.memory.cached['sum'] < planned.memory.live['sum']
    taught = planned.arms[['kd', 'kd_cot']]
    assert (taught.loc['hours cached'] < taught.loc['hours live']).all()
    for shown in (text, planned._repr_html_()):
        for word in ('assumed', 'memory of training, GB', 'hours live', 'FLOPs cached', 'size of',
                     'in all', 'downloaded'):
            assert word in shown


def test_rows_of_cot_collection_are_as_long_as_the_hub_says():
    # 1,837,928 rows: 2,066,735,763 bytes with five columns, 1,501,266,259 with two of them
    row = hub_row()
    assert sum(row.values()) == pytest.approx(1124.49 - 20 - 18, abs=.1)
    assert row['source'] + row['target'] == pytest.approx(816.83 - 8, abs=.1)
    # what the file has beyond that is JSON: keys, indents, and characters that are escaped
    assert 120 < DOWNLOAD / ROWS - sum(row.values()) - 18 < 200
    # "Q: ", "\nA: Let's think step by step.\n"; " So the answer is ."; the last token
    tokens, supervised = hub_tokens('cot')
    assert tokens == pytest.approx((3 + 30 + 19 + sum(row.values())) / 4.2 + 1, abs=.1)
    assert supervised == pytest.approx((19 + 278 + 37) / 4.2 + 1, abs=.2)
    direct = hub_tokens('direct')  # "Q: ", "\nA:"; " "
    assert direct == pytest.approx(((3 + 3 + 1 + 808.8) / 4.2 + 1, 38 / 4.2 + 1), abs=.1)
    short, source = arm_lengths(replace(PRESETS['paper-qwen'], max_tokens=128))
    assert short['kd_cot'].tokens == short['kd_cot'].longest == 128  # longer ones are left out
    assert 'assumed' in source


def test_the_hubs_file_is_measured_once_it_is_here(cot_data, tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants
    experiment = replace(PRESETS['paper-qwen'], teacher='toy-teacher', student='toy-student')
    place = tmp_path/'datasets--kaist-ai--CoT-Collection'
    (place/'refs').mkdir(parents=True)
    (place/'refs/main').write_text('0' * 40)
    file = place/'snapshots'/('0' * 40)/HUB_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes((cot_data/'CoT_collection_en.sample.json').read_bytes())
    assert 'assumed' in arm_lengths(experiment)[1]
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path/'arrow')
    found, source = arm_lengths(experiment)
    assert source == 'measured on 140 rows'
    same = arm_lengths(replace(experiment, data=str(file)))
    assert (found, source) == same
    # a tokenizer that is not here cannot measure them
    assert 'assumed' in arm_lengths(PRESETS['paper-qwen'])[1]


# --- asking

@pytest.mark.parametrize('mode, shots', BBH_BYTES)
def test_prompts_of_bbh(mode, shots, bbh_dir):
    assert BBH_BYTES[mode, shots] == prompt_bytes(bbh_benchmark(bbh_dir), mode, shots)


def test_answers_are_as_long_as_those_of_codex(bbh_dir):
    path = bbh_dir/'golden'/'codex_cot_14_tasks.jsonl.gz'
    if not path.is_file():
        pytest.skip(f'no outputs of Codex in {path.parent}')
    tasks = {}
    with gzip.open(path, 'rt', encoding='utf-8') as file:
        for row in map(json.loads, file):
            tasks.setdefault(row['task'], []).append(len(row['prediction'].encode()))
    sizes = [size for task in tasks.values() for size in task]
    longest = [max(task[i:i + 64]) for task in tasks.values() for i in range(0, len(task), 64)]
    mean, most = sum(sizes) / len(sizes), sum(longest) / len(longest)
    assert most / mean == pytest.approx(ANSWERS['cot'].longest / ANSWERS['cot'].mean, rel=.1)
    assert 2.5 < mean / ANSWERS['cot'].mean < 3.5  # bytes a token: names and numbers


def test_questions_are_sampled_and_short_prefixes_are_read_each_time():
    experiment = replace(PRESETS['paper-qwen'], limit=200)
    found = find_questions(experiment, Asking('cot', 3, limit=200))
    assert sum(found.counts) == 24 * 200 + 187 + 146 + 178
    assert found.shared == pytest.approx(77_191 / 27 / 3.3)
    alone = find_questions(experiment, Asking('cot', 0))
    assert alone.shared == 0 and len(alone.counts) == 27 and sum(alone.counts) == 6511
    assert alone.own == pytest.approx((2_060_261 / 6511 + 2_399 / 27) / 3.3)
    with pytest.raises(InputError, match='shots=5'):
        find_questions(experiment, Asking('cot', 5))


def test_asking_by_hand():
    "Qwen 1.8B on an A100: 24 layers of width 2,048, 1.53 billion weights read for each token"
    card, preset = GPUS['A100-80GB'], PRESETS['paper-qwen']
    writer = find_writer(preset.student, preset, card)
    assert writer.kv == 2 * 24 * 2048 * 2  # keys and values, bfloat16
    assert writer.read == 2 * (1_214_498_816 + 311_164_928)
    assert writer.memory == writer.read + 2 * 311_164_928  # the embedding is there, and not read
    asking = Asking('cot', 3, temperature=.2, max_new_tokens=512)
    questions = find_questions(preset, asking)
    shared, own = 77_191 / 27 / 3.3, 2_060_261 / 6511 / 3.3
    assert rows_at_once(writer, questions, 512, card, asking) == 64  # 64 · 608 · 196,608 < 53e9
    batches = 24 * 4 + 3 * 3  # 24 tasks of 250 questions; 187, 146, 178
    reading = (27 * shared + 6511 * own) * 2 * 1_214_498_816 / (312e12 * .4)
    kv = 196_608 * (shared + 64 * 195 / 355 * (own + 97.5))
    step = max((writer.read + kv) / 2e12, 24 * 5e-4)
    assert step == 24 * 5e-4  # Python is slower than the card's memory
    by_hand = reading + batches * 355 * step
    assert asking_seconds(writer, questions, asking, card) == pytest.approx(by_hand)
    slow = replace(card, bandwidth=.1)
    by_hand = reading + batches * 355 * (writer.read + kv) / 1e11
    assert asking_seconds(writer, questions, asking, slow) == pytest.approx(by_hand)
    need = writer.memory + 196_608 * (shared + 64 * (own + 512)) + 64 * 151_936 * 30
    assert asking_bytes(writer, questions, asking, card) == pytest.approx(need)


def test_fewer_rows_where_keys_and_values_are_many():
    preset = PRESETS['paper-tinyllama']
    card = GPUS['A100-40GB']
    writer = find_writer(preset.teacher, preset, card)
    asking = Asking('cot', 3)
    questions = find_questions(preset, asking)
    a_row = 2 * 40 * 5120 * 2 * (questions.own + 512)
    rows = rows_at_once(writer, questions, 512, card, asking)
    assert rows == .7 * (40e9 - writer.memory) // a_row < 64
    assert rows_at_once(writer, questions, 512, GPUS['RTX-4090'], asking) == 1  # no room at all
    assert asking_bytes(writer, questions, asking, card) < 40e9
    shared = replace(asking, kv_memory=5 * a_row / 1e9 + 1e-6)  # a card with other work on it
    assert rows_at_once(writer, questions, 512, card, shared) == 5


# --- training, by hand

def test_hours_of_training_by_hand():
    preset, card = PRESETS['paper-qwen'], GPUS['A100-80GB']
    planned = plan(preset, 'A100')
    tokens, supervised = hub_tokens('direct')
    student, teacher = 1_214_498_816, 6_476_664_832
    update = 8 * (tokens * 6 * student + supervised * (6 * 311_164_928 + 2 * 622_329_856))
    seconds = 20_000 * (update / (312e12 * .4) + 44 * 1_836_828_672 / 2e12)
    seconds += 20 * 12 * 1_836_828_672 / 1e9  # checkpoints, to the disk
    looks = 21 * 500 * 2 * (tokens * student + supervised * (2 * 311_164_928 + 622_329_856))
    seconds += looks / (312e12 * .4)
    assert planned.steps.hours['train kd'] == pytest.approx(seconds / 3600)
    reading = 16_500 * tokens * 2 * teacher / (312e12 * .4)
    assert planned.steps.hours['teacher reads the rows, direct'] == pytest.approx(reading / 3600)
    assert planned.arms.kd['hours cached'] == pytest.approx((seconds + reading) / 3600)
    assert planned.steps.hours.drop('in all').sum() == pytest.approx(planned.steps.hours['in all'])


def test_small_models_wait_for_python():
    hours = [plan(PRESETS['smollm2'], gpu).steps.hours['train kd'] for gpu in ('H100', 'B200')]
    started = 20_000 * 2 * 20 * 5e-4 / 3600  # updates, both passes, layers
    assert started < hours[1] <= hours[0] < 1.3 * started


def test_seeds_train_and_ask_again():
    one, three = (plan(PRESETS['qwen2.5'], 'H100', seeds) for seeds in (1, 3))
    for name in one.steps.index.drop('in all'):
        times = 3 if name in ('train kd', 'train kd_cot', 'ask kd', 'ask kd_cot') else 1
        assert three.steps.hours[name] == pytest.approx(times * one.steps.hours[name]), name
    more = three.disk.GB['sum'] - one.disk.GB['sum']
    assert more == pytest.approx(4 * 8 * 494_032_768 / 1e9)  # four students more, best and last


# --- disk

def test_disk_by_hand():
    disk = plan(PRESETS['paper-qwen'], 'H100').disk.GB
    teacher, student = 7_721_324_544, 1_836_828_672
    supervised = hub_tokens('cot')[1]
    by_hand = {
        'models, downloaded': 2 * (teacher + student),
        'CoT-Collection, downloaded': 2.36e9,
        'cache of the teacher, cot': (16_500 * supervised + 151_936) * 4096 * 2,
        'student in training, checkpoints': 3 * 12 * student,
        'other students': 3 * 4 * student}  # the other best one, and both last ones
    for name, size in by_hand.items():
        assert 1e9 * disk[name] == pytest.approx(size, rel=1e-5), name
    assert disk.drop('sum').sum() == pytest.approx(disk['sum'])


def test_disk_is_what_a_run_asks_for(experiment, tmp_path):
    rows = read_lines(experiment.data)
    needed = needed_bytes(experiment, tmp_path/'run', rows, load_tokenizer(experiment.teacher), 2)
    disk = disk_table(experiment, Workload(experiment, None).teacher,
                      arm_lengths(experiment)[0], seeds=2)
    assert disk['sum'] == pytest.approx(needed, rel=1e-3)  # of models on disk nothing is downloaded


def test_layers_of_one_model_are_one_download():
    disk = plan(PRESETS['smollm2'], 'H100').disk.GB
    assert 1e9 * disk['models, downloaded'] == 2 * 134_515_008


# --- what fits

@pytest.mark.parametrize('preset, gpu', [('paper-qwen', '4090'), ('paper-llama2-7b', 'A100-40GB'),
                                         ('paper-tinyllama', '4090'), ('qwen2.5', 'T4')])
def test_what_would_fit_does(preset, gpu):
    "Advice is followed, and computed anew"
    work = Workload(PRESETS[preset], get_card(gpu)[1])
    steps = steps_table(work)
    advice = advise(work, steps)
    assert advice
    for line in advice:
        names, _, would = line.partition(': ')
        settings = re.findall(r'--set (\w+)=(\d+)[^()]* \((\d+) GB\)', would)
        for name, value, said in settings if ' and ' not in would else []:
            changed = Workload(replace(work.experiment, **{name: int(value)}), work.card)
            now = steps_table(changed)['GB of memory'][names.split('; ')[0]]
            assert round(now) == int(said) and now <= work.card.memory
        if 'larger card' in would:
            card = find_gpu(re.search(r'larger card: (\S+)', would)[1])
            assert steps['GB of memory'][names.split('; ')[0]] <= GPUS[card].memory


def test_what_does_not_fit_is_named():
    text = str(plan(PRESETS['paper-tinyllama'], '4090'))
    assert 'teacher reads the rows, cot' in text.splitlines()[1]  # 26 GB of weights
    assert 'no setting' in text and 'V100-32GB' in text
    assert '--gradient_checkpointing (' in text and '--set lora_rank=32 (' in text
    text = str(plan(PRESETS['paper-llama2-7b'], 'A100-40GB'))
    assert '--set lora_rank' not in text  # it has adapters
    # a single pass over the rows keeps no cache: it is what one could add
    once = replace(PRESETS['qwen2.5'], epochs=1., dev=0., also='')
    assert 'cotkd cache' in str(plan(once, 'L4'))


def test_the_card_that_is_meant():
    for said in ('4090', 'RTX-4090', 'rtx4090', 'RTX 4090', 'NVIDIA GeForce RTX 4090'):
        assert find_gpu(said) == 'RTX-4090'
    for said in ('h100', 'H100', 'NVIDIA H100 80GB HBM3', 'H100-SXM5', 'h100sxm'):
        assert find_gpu(said) == 'H100'
    assert find_gpu('NVIDIA H100 PCIe') == find_gpu('h100-pcie') == 'H100-PCIe'
    assert find_gpu('NVIDIA H100 NVL', 99.9) == 'H100-NVL'
    assert find_gpu('A100') == find_gpu('NVIDIA A100 80GB PCIe') == 'A100-80GB'
    assert find_gpu('NVIDIA A100-SXM4-40GB', 42.4) == find_gpu('a100 40') == 'A100-40GB'
    assert find_gpu('Tesla V100-SXM2-16GB') == find_gpu('Tesla V100-SXM2', 17) == 'V100-16GB'
    assert find_gpu('Tesla T4', 16) == 'T4' and find_gpu('NVIDIA A10', 24) == 'A10'
    for key in GPUS:
        assert find_gpu(key) == key
    for other in ('NVIDIA A10G', 'NVIDIA GH200 480GB', 'NVIDIA L4000', 'NVIDIA L40', 'RTX 4080',
                  'NVIDIA GeForce RTX 4090 Laptop GPU', 'NVIDIA A100-SXM4-40GB MIG 1g.5gb', ''):
        assert find_gpu(other) is None, other


def test_half_precision_is_that_of_the_card():
    models = {gpu: Workload(PRESETS['qwen2.5'], GPUS[gpu]).teacher.dtype for gpu in ('T4', 'L4')}
    assert models == {'T4': torch.float16, 'L4': torch.bfloat16}
    wide = plan(replace(PRESETS['qwen2.5'], dtype='float32'), 'H100')
    assert wide.memory.live['teacher weights'] == pytest.approx(4 * 7.6156, abs=.001)
    assert 'float32 is several times as slow' in ' '.join(str(wide).split())
    with pytest.raises(InputError, match="'int8'"):
        plan(replace(PRESETS['qwen2.5'], dtype='int8'), 'H100')


def test_what_cannot_be_planned_is_said():
    with pytest.raises(InputError, match="'A1000' is unknown.*A100-80GB.*H200"):
        plan(PRESETS['toy'], 'A1000')
    with pytest.raises(InputError, match="'/no/such/model'"):
        plan(Experiment(teacher='/no/such/model'))
    assert 'does not fit' in str(plan(PRESETS['qwen1.5'], 'L4'))
    toy = plan(PRESETS['toy'])
    assert 'hours' not in str(toy.arms) and 'hours' not in toy.steps
    assert not math.isnan(toy.steps['GB of memory']['in all'])
    assert FROM_PAPER['data'] == HUB_ID  # written there once more, since `data` is heavy
