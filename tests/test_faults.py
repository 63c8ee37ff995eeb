"What goes wrong while it runs: it stops there, says so, and loses nothing"
import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from families import StopAtSave, make, tokenizer
from torch.utils.flop_counter import FlopCounterMode
from training import small_student, small_teacher, toy_rows
from transformers import AutoConfig, TrainerCallback, TrainerState

from cotkd import models
from cotkd.bbh import Benchmark
from cotkd.cache import TeacherCache, write_cache
from cotkd.cli import main
from cotkd.data import load_cot
from cotkd.distill import Clock, distill, last_checkpoint, training_arguments, validate
from cotkd.evaluate import Asking, Subject, evaluate
from cotkd.experiment import Experiment, check_pair
from cotkd.files import InputError, data_files, file_digest, launched, write_lines
from cotkd.models import check_finite, count_parameters, load_lm
from cotkd.toy import make_toy
from cotkd.trainer import KDConfig, SeededSampler, can_pack

ROWS = make_toy(['web_of_lies'], 32, seed=1)


class Spoil(TrainerCallback):
    "Makes a weight of the student no number, before an update"

    def __init__(self, update, value=float('nan')):
        self.update, self.value = update, value

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.update:
            next(model.student.parameters()).data.view(-1)[0] = self.value


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('rank', [0, 4])
def test_a_training_stops_at_the_update_where_it_is_lost(value, rank, tmp_path):
    "The last checkpoint stays; continued without the accident, it ends as one that had none"
    def train(out, *callbacks):
        config = KDConfig(batch_size=4, lr=.01, lora_rank=rank, trainer=dict(save_steps=2))
        distill(make('llama', 2), make('llama', 1), tokenizer(), ROWS, out, config=config,
                callbacks=callbacks)
        return load_lm(out)[0].state_dict()

    with pytest.raises(InputError, match='update 6: the loss is'):
        train(tmp_path/'kd', Spoil(5, value))
    assert last_checkpoint(tmp_path/'kd').endswith('checkpoint-4')
    again, unbroken = train(tmp_path/'kd'), train(tmp_path/'whole')
    assert all(torch.equal(again[name], unbroken[name]) for name in unbroken)


def test_a_learning_rate_that_explodes(tmp_path):
    config = KDConfig(batch_size=4, lr=1e30)
    with pytest.raises(InputError, match='smaller --lr|NaN or infinity'):
        distill(make('gpt2', 2), make('gpt2', 1), tokenizer(), ROWS, tmp_path, config=config)
    assert not (tmp_path/'model.safetensors').exists()


def spoiled():
    teacher = make('llama', 1)
    teacher.model.layers[0].mlp.up_proj.weight.data[0, 0] = float('nan')
    return teacher


def test_a_teacher_that_computes_no_numbers_is_refused(tmp_path):
    "When it is read, when a cache is written of it, and when it is measured"
    spoiled().save_pretrained(tmp_path/'teacher')
    tokenizer().save_pretrained(tmp_path/'teacher')
    with pytest.raises(InputError, match='holds NaN or infinity, first in model.layers.0.mlp.up'):
        load_lm(tmp_path/'teacher')
    with pytest.raises(InputError, match='NaN'):
        write_cache(str(tmp_path/'teacher'), ROWS, tmp_path/'cache')
    with pytest.raises(InputError, match='kl is nan'):
        validate(make('llama', 2), spoiled(), tokenizer(), ROWS[:4])
    with pytest.raises(InputError, match='update 1: the loss is nan'):
        distill(make('llama', 2), spoiled(), tokenizer(), ROWS, tmp_path/'kd',
                config=KDConfig(batch_size=4))


def test_a_cache_that_holds_none_is_refused(tmp_path):
    "One that was written before anybody looked"
    from safetensors.torch import load_file, save_file
    where = write_cache('toy-teacher', ROWS[:4], tmp_path/'cache')
    path = next(where.glob('hidden-*'))
    tensors = load_file(path)
    tensors['hidden'][0, 0] = float('nan')
    save_file(tensors, tmp_path/'new.safetensors')
    path.unlink()
    name = f"hidden-00000.{file_digest(tmp_path/'new.safetensors')[:16]}.safetensors"
    shutil.move(tmp_path/'new.safetensors', where/name)
    with pytest.raises(InputError, match='NaN or infinite'):
        TeacherCache(where)[0]


def test_finite_is_finite():
    check_finite(make('llama'), 'm')


@pytest.mark.parametrize('left_over', [
    dict(WORLD_SIZE=2), dict(WORLD_SIZE=2, RANK=0), dict(SLURM_NTASKS=4, SLURM_PROCID=1),
    dict(WORLD_SIZE=2, RANK=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=29511)])
def test_one_process_is_one_whatever_a_job_manager_left_behind(left_over, monkeypatch, tmp_path):
    for name, x in left_over.items():
        monkeypatch.setenv(name, str(x))
    assert launched() == (0, 1)
    assert training_arguments(tmp_path, KDConfig(batch_size=3)).per_device_train_batch_size == 3
    where = write_cache('toy-teacher', ROWS[:4], tmp_path/'cache')
    assert len(TeacherCache(where)) == 4  # whole, not a share


def test_rows_that_were_put_aside_are_no_data(tmp_path):
    "A student and its leftovers beside the data, and the same command again"
    bad = dict(ROWS[0], rationale='')
    write_lines(tmp_path/'rows.jsonl', [*ROWS[:8], bad])
    for again in range(2):
        rows = load_cot(tmp_path, quarantine=tmp_path/'student.quarantine.jsonl')
        assert len(rows) == 8
        assert [path.name for path in data_files(tmp_path)] == ['rows.jsonl']
    assert (tmp_path/'student.quarantine.jsonl').read_text().count('\n') == 1


def test_seconds_are_those_of_all_sittings(tmp_path, monkeypatch):
    "An hour before the first stop, and what came after"
    def train(*callbacks):
        config = KDConfig(batch_size=4, trainer=dict(save_steps=2))
        return distill(small_student(), small_teacher(), tokenizer(), toy_rows()[:24],
                       tmp_path, config=config, callbacks=callbacks)

    with monkeypatch.context() as first:
        first.setattr(Clock, 'state', lambda self: dict(args=dict(seconds=3600.), attributes={}))
        with pytest.raises(KeyboardInterrupt):
            train(StopAtSave(2))
    assert 3600 < train()['seconds'] < 3700


def test_each_seed_has_orders_of_its_own():
    "In no epoch is it that of another seed in another epoch"
    orders = {}
    for seed in range(6):
        sampler = SeededSampler(50, seed)
        for epoch in range(6):
            sampler.set_epoch(epoch)
            orders[tuple(sampler)] = seed, epoch
    assert len(orders) == 36


@pytest.mark.parametrize('name, more', [
    ('qwen3', {}), ('qwen3_moe', dict(num_experts=8, num_experts_per_tok=2)),
    ('mixtral', dict(num_local_experts=8, num_experts_per_tok=2))])
def test_operations_are_those_of_the_experts_a_token_meets(name, more):
    "Twice the parameters that are met, as torch counts a pass of the body, without attention"
    model = make(name, hidden_size=64, num_hidden_layers=3, **more)
    model.config._experts_implementation = 'eager'
    tokens = 64
    with torch.no_grad(), FlopCounterMode(display=False) as count:
        model.model(torch.arange(tokens)[None], use_cache=False)
    found = 2 * count_parameters(model).body * tokens
    assert found == pytest.approx(count.get_total_flops(), rel=.15)


def test_a_disk_that_is_too_small_is_said_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match='GB are free'):
        distill(small_student(), small_teacher(), tokenizer(), toy_rows(), tmp_path/'kd',
                config=KDConfig(batch_size=4))
    assert not (tmp_path/'kd').exists()


@pytest.mark.parametrize('error, said', [
    (OSError(28, 'No space left on device', 'kd/model.safetensors'), 'No space left on device'),
    (OSError(30, 'Read-only file system', 'out'), 'Read-only file system'),
    (RuntimeError('PytorchStreamWriter failed writing file data/3'), 'No space left on device'),
    (MemoryError(), 'out of memory: answering takes less with kv_memory'),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 'out of memory'),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nSee'), '2.00 GiB.)')])
def test_trouble_with_the_machine_is_one_line(error, said, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise error
    monkeypatch.setattr('cotkd.records.load_results', fails)
    assert main(['gains', 'x']) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and lines[0].endswith('cotkd gains x')


def test_a_log_is_json(tmp_path):
    "No NaN, which other readers of JSON refuse"
    distill(small_student(), small_teacher(), tokenizer(), toy_rows()[:8], tmp_path,
            config=KDConfig(batch_size=4))

    def refuse(x):
        raise AssertionError(x)

    for line in (tmp_path/'log.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def half_of_forward_kl(d, p, q):
    return .5 * (p * d - p + q), .5 * (q - p)


def test_a_divergence_of_ones_own_trains(tmp_path):
    "Half the loss of the one that it is half of"
    logged = {}
    for name, divergence in dict(whole='forward_kl', half=half_of_forward_kl).items():
        config = KDConfig(batch_size=4, divergence=divergence, trainer=dict(logging_steps=1))
        distill(make('llama', 2), make('llama', 1), tokenizer(), ROWS[:8], tmp_path/name,
                config=config)
        logged[name] = json.loads((tmp_path/name/'log.jsonl').read_text().splitlines()[0])['loss']
    assert logged['half'] == pytest.approx(logged['whole'] / 2, rel=1e-6)


WIDE = AutoConfig.for_model('llama', hidden_size=512)
NARROW = AutoConfig.for_model('llama', hidden_size=128)


@pytest.mark.parametrize('has_bfloat16, chosen', [(True, 'bfloat16'), (False, 'float16')])
def test_a_gpu_computes_in_what_it_has(has_bfloat16, chosen, monkeypatch):
    "A V100 and a T4 have no bfloat16"
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda emulated=True: has_bfloat16)
    assert models.choose_precision(NARROW) == models.choose_precision(WIDE) == chosen
    assert models.choose_precision(WIDE, 'float32') == 'float32'
    assert models.PRECISIONS[chosen] == {dict(bfloat16='bf16', float16='fp16')[chosen]: True}


@pytest.mark.parametrize('instructions, wide', [
    ({}, 'float32'), (dict(avx512_bf16=True), 'bfloat16'), (dict(amx_bf16=True), 'bfloat16')])
def test_a_cpu_computes_wide_models_in_bfloat16_where_it_can(instructions, wide, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: instructions)
    assert models.choose_precision(WIDE, device='cpu') == wide
    assert models.choose_precision(NARROW, device='cpu') == 'float32'


@pytest.mark.parametrize('dtype', ['float16', 'half', ''])
def test_a_precision_that_there_is_not_is_refused(dtype):
    with pytest.raises(InputError, match=f'dtype {dtype!r} is unknown|float16 on a CPU'):
        models.choose_precision(WIDE, dtype, 'cpu')


def test_a_model_is_read_in_the_precision_that_is_named():
    assert models.load_lm('toy-student')[0].dtype == torch.float32
    assert models.load_lm('toy-student', dtype='bfloat16')[0].dtype == torch.bfloat16


@pytest.mark.parametrize('attn', ['nonsense', 'flash_attention_2'])
def test_an_attention_that_there_is_not_is_found_before_a_model_is_read(attn, monkeypatch):
    "flash-attn is not installed here, and its kernels are for GPUs"
    monkeypatch.setattr(models, '_load_weights', None)
    with pytest.raises(InputError, match=f'attn is .{attn}.*toy-student'):
        models.load_lm('toy-student', attn=attn)
    with pytest.raises(InputError, match=f'attn is .{attn}.*toy-teacher'):
        check_pair(Experiment(attn=attn))
    check_pair(Experiment(attn='eager'))


def test_a_training_in_bfloat16_goes_on_in_it_and_is_another_one(tmp_path):
    costs = {}
    for dtype in 'float32', 'bfloat16':
        config = KDConfig(batch_size=4, dtype=dtype, trainer=dict(logging_steps=1))
        distill(make('llama', 2), make('llama', 1), tokenizer(), ROWS[:8], tmp_path/dtype,
                config=config)
        log = (tmp_path/dtype/'log.jsonl').read_text().splitlines()
        costs[dtype] = [json.loads(line)['loss'] for line in log]
        assert models.load_lm(tmp_path/dtype)[0].dtype == torch.float32  # the weights are whole
    assert costs['bfloat16'] != costs['float32']
    assert costs['bfloat16'] == pytest.approx(costs['float32'], rel=.02)
    for begun, other in ('float32', 'bfloat16'), ('bfloat16', 'float32'):
        config = KDConfig(batch_size=4, dtype=other, trainer=dict(logging_steps=1))
        with pytest.raises(InputError, match='dtype'):
            distill(make('llama', 2), make('llama', 1), tokenizer(), ROWS[:8], tmp_path/begun,
                    config=config)


def test_where_rows_cannot_be_packed_it_is_said(monkeypatch, caplog):
    monkeypatch.setattr('cotkd.trainer.packs', lambda model: False)
    monkeypatch.setattr(logging.getLogger('transformers'), 'propagate', True)
    assert not can_pack([make('llama')], torch.device('cuda'))
    assert 'padded micro-batches' in caplog.text or caplog.records == []
    assert can_pack([], torch.device('cuda')) and not can_pack([], torch.device('cpu'))


@pytest.mark.parametrize('rows, updates', [(400, 100), (32, 8)])
def test_checkpoints_are_a_share_of_the_training(rows, updates, tmp_path):
    "A twentieth of it, however long it is: one of a big model takes minutes and gigabytes"
    args = training_arguments(tmp_path, KDConfig(batch_size=4))
    state = TrainerState(max_steps=updates)
    state.compute_steps(args, updates)
    assert state.save_steps == max(1, -(-updates // 20))


def test_an_answer_that_the_context_cuts_off_is_counted(tmp_path):
    "It has less room than was asked for, and uses it up"
    model = make('llama', max_position_embeddings=40, eos_token_id=None)
    items = [dict(input='Is 3 odd?', target='Yes')]
    tokens = tokenizer()
    one = Benchmark('one', items={'odd': items})
    result, = evaluate(model, tokens, one, Subject('a', 'm', 'w'),
                       Asking(mode='cot', max_new_tokens=500), out=tmp_path, progress=False)
    assert result['truncated'] == 1
