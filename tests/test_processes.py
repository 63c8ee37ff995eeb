"Training in two processes: copies of a student, shards of a student, the command line"
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import launchers
import psutil
import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from families import StopAtSave, make, tokenizer
from pairs import make_pair
from processes import finish
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training import (losses, make_trainer, save_teacher, small_student, small_teacher,
                      toy_rows)
from transformers import TrainerCallback

from cotkd import experiment, trainer
from cotkd.bbh import bbh_benchmark
from cotkd.cache import TeacherCache, write_cache
from cotkd.cli import main
from cotkd.distill import distill
from cotkd.experiment import PRESETS
from cotkd.files import read_json, read_lines
from cotkd.models import load_lm
from cotkd.prompt import KDCollator, encode
from cotkd.trainer import Distiller, KDConfig

UPDATES = 6
ROWS_OF_UPDATE = 8


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    "Of the rows that all processes read"
    folder = tmp_path_factory.mktemp('rows')
    return write_cache(save_teacher(folder), toy_rows(), folder/'cache')


# --- a copy of the student in each process

def train_live_and_cached(cache, out):
    "Losses of the updates, and of the held-out rows, under both kinds of teacher"
    world = int(os.environ.get('WORLD_SIZE', 1))
    config = KDConfig(batch_size=ROWS_OF_UPDATE // world, micro_tokens=250)
    seen = {}
    for name, teacher in dict(live=small_teacher(), cached=TeacherCache(cache)).items():
        learner = make_trainer(small_student(), teacher, toy_rows(), 'out', config,
                               max_steps=UPDATES, dev=5)
        learner.train()
        seen[name] = dict(losses=losses(learner), held_out=learner.evaluate())
    if learner.is_world_process_zero():
        torch.save(seen, out)


def test_two_processes_do_the_same_as_one(cache, tmp_path):
    train_live_and_cached(cache, tmp_path/'one')
    finish(train_live_and_cached, cache, tmp_path/'two', processes=2)
    one, two = torch.load(tmp_path/'one'), torch.load(tmp_path/'two')
    for teacher in ('live', 'cached'):
        a, b = one[teacher], two[teacher]
        assert len(a['losses']) == UPDATES
        assert b['losses'] == pytest.approx(a['losses'], rel=1e-5)
        # of a few tokens, after all updates
        assert b['held_out'] == pytest.approx(a['held_out'], rel=1e-4)
    assert one['cached']['losses'] == pytest.approx(one['live']['losses'], rel=1e-5)


# --- shards of the student in each process

def read_update(update, encoded, teacher, share, rank):
    "What this process has of an update: every share-th row"
    first = update * ROWS_OF_UPDATE
    places = [i % len(encoded) for i in range(first, first + ROWS_OF_UPDATE)][rank::share]
    rows = [encoded[i] for i in places]
    if isinstance(teacher, TeacherCache):
        rows = [dict(row, teacher_hidden=teacher[i]) for row, i in zip(rows, places)]
    return KDCollator()(rows)


def learn(distiller, encoded, share=1):
    "Losses of plain updates, without any trainer; gradients are averaged over `share` processes"
    rank = dist.get_rank() if share > 1 else 0
    optimizer = torch.optim.AdamW(distiller.student.parameters(), lr=1e-3)
    found = []
    for update in range(UPDATES):
        batch = read_update(update, encoded, distiller.known[0], share, rank)
        mine = batch['weights'][:, 1:].sum()
        tokens = mine.clone()
        if share > 1:
            dist.all_reduce(tokens)
        loss = distiller(batch) * mine / tokens
        optimizer.zero_grad()
        (loss * share).backward()
        optimizer.step()
        whole = loss.detach().clone()
        if share > 1:
            dist.all_reduce(whole)
        found.append(whole.item())
    return found


def shard(distiller):
    "As `accelerate` does: the layers that the student names, then what is left"
    layers = [module for module in distiller.modules()
              if type(module).__name__ in distiller._no_split_modules]
    assert len(layers) == distiller.config.num_hidden_layers
    for layer in layers:
        fully_shard(layer)
    fully_shard(distiller)
    assert all(isinstance(p, DTensor) for p in distiller.parameters())
    return distiller


def train_in_shards(cache):
    "Under `fully_shard`, tied and untied, the losses are those of one process"
    dist.init_process_group('gloo')
    encoded = [encode(row, tokenizer()) for row in toy_rows()]

    def distiller(teacher, tied):
        student = make('llama_tied' if tied else 'llama', 2)
        return Distiller(student, teacher, len(tokenizer()))

    for tied in (False, True):
        for teacher in (small_teacher(), TeacherCache(cache)):
            one = learn(distiller(teacher, tied), encoded)
            two = learn(shard(distiller(teacher, tied)), encoded, share=2)
            assert one[-1] < one[0]
            assert two == pytest.approx(one, rel=1e-5)
    dist.destroy_process_group()


def test_shards_give_the_same_losses(cache):
    finish(train_in_shards, cache, processes=2)


# --- the whole training as `accelerate launch` shards it

SMALL = KDConfig(batch_size=ROWS_OF_UPDATE, micro_tokens=250,
                 trainer=dict(logging_steps=1, save_steps=2))


def take_for_gpus():
    "`accelerate` shards on GPUs only: let it take these processes for some"
    begin = AcceleratorState.__init__

    def begin_on_gpus(self, *args, **kwargs):
        if not AcceleratorState._shared_state:
            PartialState._shared_state['distributed_type'] = DistributedType.MULTI_GPU
        begin(self, *args, **kwargs)

    AcceleratorState.__init__ = begin_on_gpus


class Gathered(TrainerCallback):
    "The student's weights after the last update, gathered from all processes"

    def on_train_end(self, args, state, control, model=None, **kwargs):
        student = model.student
        assert all(isinstance(p, DTensor) for p in student.parameters())
        self.weights = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True))


def distil_in_shards(told, out):
    "Stopped at a checkpoint and continued; what is saved is whole"
    os.environ.update(told)
    take_for_gpus()
    with pytest.raises(KeyboardInterrupt):
        distill(small_student(), small_teacher(), tokenizer(), toy_rows(), out, config=SMALL,
                callbacks=[StopAtSave(2)])
    dist.barrier()
    seen = Gathered()
    distill(small_student(), small_teacher(), tokenizer(), toy_rows(), out, config=SMALL,
            callbacks=[seen])
    saved = load_lm(out)[0].state_dict()
    assert saved.keys() == seen.weights.keys()
    assert all(torch.equal(saved[name], x) for name, x in seen.weights.items())


def log_of(out):
    return [line['loss'] for line in read_lines(out/'log.jsonl')]


def apart(a, b):
    "Distance of two models' weights"
    left, right = a.state_dict(), b.state_dict()
    return sum((left[name] - right[name]).square().sum() for name in left).sqrt().item()


def test_fsdp2_trains_goes_on_and_saves_a_whole_student(tmp_path):
    "With the settings that `cotkd launch-config` writes; the student's head is its embedding"
    assert small_student().config.tie_word_embeddings
    main(['launch-config', 'fsdp2', '--processes', '2', '--out', str(tmp_path/'fsdp2.yaml')])
    told = launchers.environment(['--config_file', str(tmp_path/'fsdp2.yaml'), 'cotkd'])
    finish(distil_in_shards, told, tmp_path/'two', processes=2)
    distill(small_student(), small_teacher(), tokenizer(), toy_rows(), tmp_path/'one', config=SMALL)
    one, two = log_of(tmp_path/'one'), log_of(tmp_path/'two')
    assert len(one) == 5 and two == pytest.approx(one, rel=1e-4)
    students = [load_lm(tmp_path/name)[0] for name in ('one', 'two')]
    assert apart(*students) < .01 * apart(students[0], small_student())


# --- one process slower than the other

def distil_with_a_slow_one(out):
    "The second reads the best checkpoint long after the first has saved the student"
    read = trainer.load_student

    def read_slowly(student, directory):
        time.sleep(2 * int(os.environ['RANK']))
        read(student, directory)

    trainer.load_student = read_slowly
    config = replace(SMALL, trainer=dict(eval_steps=2, save_steps=2))
    distill(small_student(), small_teacher(), tokenizer(), toy_rows(), out, dev=8, config=config)


def test_checkpoints_stay_until_all_have_read_them(tmp_path):
    finish(distil_with_a_slow_one, tmp_path/'out', processes=2)
    assert (tmp_path/'out/model.safetensors').exists()
    assert not [*tmp_path.glob('out/checkpoint-*')]


# --- the command line

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
            '--no-python', 'cotkd']


def distil_command(folder, *more):
    rows = folder/'rows.jsonl'
    rows.write_text(''.join(json.dumps(row) + '\n' for row in toy_rows()))
    return ['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', '--rationales',
            '--data', str(rows), '--out', str(folder/'out'), '--lr', '1e-3', *more]


def test_the_command_line_in_two_processes(tmp_path):
    distil, out = distil_command(tmp_path), tmp_path/'out'
    finish(main, distil, processes=2)
    # 40 rows, 8 at a time over both
    assert read_json(out/'distill.json')['cost']['updates'] == 5
    written = (out/'model.safetensors').stat().st_mtime_ns
    assert not main(distil)  # there is nothing left to do
    assert (out/'model.safetensors').stat().st_mtime_ns == written


def test_a_worker_that_dies_takes_the_others_down(tmp_path):
    distil = distil_command(tmp_path, '--epochs', '200')
    with (tmp_path/'said').open('w') as said:
        parent = psutil.Popen([*TORCHRUN, *distil], stderr=said)
    try:
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob('out/checkpoint-*')):  # until it trains
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(.2)
        workers = parent.children()
        workers[-1].kill()
        assert parent.wait(timeout=60)
        assert not psutil.wait_procs(workers, timeout=1)[1]  # none is left
    finally:
        for process in (*parent.children(recursive=True), parent) if parent.is_running() else ():
            process.kill()
    assert 'Signal 9 (SIGKILL)' in (tmp_path/'said').read_text()


# --- a preset, as `accelerate launch` starts it

QUICK = dict(arms='kd_cot', rows=24, dev=.02, epochs=1, kd_cot_lr=1e-3, limit=1, max_new_tokens=4,
             also='')
TASKS = 'navigate,geometric_shapes,snarks'
FEW_TASKS = f'''
import sys
from cotkd import cli, experiment
from cotkd.bbh import bbh_benchmark
experiment.bbh_benchmark = lambda source: bbh_benchmark(source, {TASKS!r})
sys.exit(cli.main(sys.argv[1:]))
'''


def test_a_preset_in_two_processes_gives_the_results_of_one(cot_data, bbh_dir, tmp_path,
                                                            monkeypatch):
    "Three tasks, three examples; only the identity of what was trained differs"
    monkeypatch.chdir(tmp_path)
    pair = make_pair('paper-tinyllama', PRESETS['paper-tinyllama'], tmp_path, cot_data)
    settings = pair | QUICK | dict(data=cot_data/'cot_mini.jsonl')
    settings = [f'{name}={x}' for name, x in settings.items()]
    run = ['run', 'paper-tinyllama', '--set', *settings, '--out']
    main(['launch-config', 'ddp', '--processes', '2', '--out', 'ddp.yaml'])
    (tmp_path/'few.py').write_text(FEW_TASKS)
    launch = ['accelerate', 'launch', '--config_file', 'ddp.yaml', 'few.py']
    done = subprocess.run([*launch, *run, 'two'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-10_000:]
    assert 'table, figure and answers side by side' in done.stdout
    monkeypatch.setattr(experiment, 'bbh_benchmark', lambda _: bbh_benchmark(bbh_dir, TASKS))
    main([*run, 'one'])
    one, two = (read_lines(tmp_path/f'{name}/results.jsonl') for name in ('one', 'two'))
    assert {row['arm'] for row in one} == {'teacher', 'student', 'kd_cot'}
    assert {row['shots'] for row in one} == {3} and len({row['task'] for row in one}) == 3
    assert sum(row['n'] for row in one) == len(one)
    for a, b in zip(one, two, strict=True):
        if a['arm'] == 'kd_cot':  # trained, in another order of additions
            assert len({a.pop('weights'), b.pop('weights'), a['start']}) == 3
        assert a == b
    for arm in ('teacher', 'student'):
        answers = [*(tmp_path/'one/predictions'/arm).rglob('*.jsonl')]
        assert len(answers) == sum(row['arm'] == arm for row in one)
        for path in answers:
            other = tmp_path/'two'/path.relative_to(tmp_path/'one')
            assert path.read_bytes() == other.read_bytes(), path
    students = [load_lm(tmp_path/f'{name}/models/kd_cot-0')[0] for name in ('one', 'two')]
    assert apart(*students) < 1e-3 * apart(students[0], load_lm(pair['student'])[0])
