"A whole training: killed anywhere, it ends in the same student; the best one is kept."
import json
import os
import signal
import weakref
from pathlib import Path

import pytest
import torch
from families import tokenizer
from processes import call
from training import EIGHT, equal, save_teacher, small_student, small_teacher, toy_rows
from transformers import Trainer, TrainerCallback

import cotkd.distill as module
from cotkd.cache import TeacherCache, write_cache
from cotkd.distill import distill, validate
from cotkd.files import InputError
from cotkd.models import load_lm
from cotkd.trainer import KDConfig, KDTrainer, with_adapters

@pytest.fixture(scope='module')
def rows():
    return toy_rows()


def train(out, rank=0, callbacks=(), **kwargs):
    "Twelve updates, with a look at eight held-out rows and a checkpoint after every third"
    trainer = dict(save_strategy='steps', save_steps=3, eval_steps=3, max_steps=12)
    config = KDConfig(batch_size=8, lr=1e-3, lora_rank=rank, trainer=trainer)
    return distill(small_student(), small_teacher(), tokenizer(), toy_rows(), out,
                   config=config, dev=8, callbacks=callbacks, **kwargs)


def record(out):
    return json.loads((Path(out)/'distill.json').read_text())


def same_student(a, b):
    return equal(load_lm(a)[0], load_lm(b)[0])


class Die(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(out, rank, step, moment):
    "At one update, or while that update's checkpoint is written"
    if moment == 'update':
        return train(out, rank, [Die(step)])
    save = Trainer._save_rng_state

    def save_and_die(self, folder):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, folder)

    Trainer._save_rng_state = save_and_die
    train(out, rank)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Rank -> a training that nobody stopped"
    folder = tmp_path_factory.mktemp('whole')

    def whole(rank):
        train(folder/f'{rank}', rank)  # a finished one returns at once
        return folder/f'{rank}'

    return whole


@pytest.mark.parametrize('rank, kills', [
    (0, [(2, 'update'), (6, 'saving'), (8, 'update')]),
    (4, [(6, 'saving'), (7, 'update')])], ids=['all weights', 'adapters'])
def test_kills_leave_the_same_student(rank, kills, whole, tmp_path):
    for step, moment in kills:
        ended = call(train_and_die, tmp_path/'killed', rank, step, moment)
        assert ended.codes == [-signal.SIGKILL], ended.said[-3000:]
        assert 'cost' not in record(tmp_path/'killed')
    train(tmp_path/'killed', rank)
    assert same_student(tmp_path/'killed', whole(rank))
    wanted, killed = record(whole(rank)), record(tmp_path/'killed')
    assert killed['validation'] == wanted['validation']
    assert killed['recipe'] == wanted['recipe']
    assert not list((tmp_path/'killed').glob('checkpoint-*'))


class Looks(TrainerCallback):
    "The updates after which the held-out rows were read"

    def __init__(self):
        self.after = []

    def on_evaluate(self, args, state, control, **kwargs):
        self.after.append(state.global_step)


def test_a_torn_checkpoint_is_passed_over(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_finish', lambda *args: None)  # as if killed just before the end
    train(tmp_path/'killed')
    monkeypatch.undo()
    newest = max((tmp_path/'killed').glob('checkpoint-*'), key=lambda p: int(p.name[11:]))
    (newest/'trainer_state.json').write_text('{"torn')
    looks = Looks()
    train(tmp_path/'killed', callbacks=[looks])
    assert same_student(tmp_path/'killed', whole(0))
    assert looks.after == [int(newest.name[11:])]  # not once more at the checkpoint before


def test_another_training_is_refused(rows, tmp_path):
    distill(small_student(), small_teacher(), tokenizer(), rows[:16], tmp_path/'kd', config=EIGHT)
    with pytest.raises(InputError, match='rows'):
        distill(small_student(), small_teacher(), tokenizer(), rows[1:17], tmp_path/'kd',
                config=EIGHT)
    with pytest.raises(InputError, match='lr'):
        distill(small_student(), small_teacher(), tokenizer(), rows[:16], tmp_path/'kd',
                config=KDConfig(batch_size=8, lr=5e-3))
    with pytest.raises(InputError, match='leave some to train on'):
        distill(small_student(), small_teacher(), tokenizer(), rows[:8], tmp_path/'out', dev=8,
                config=EIGHT)
    assert not (tmp_path/'out').exists()  # so that a corrected call finds nothing in its way


def test_adapters_are_trained_and_merged(rows, tmp_path):
    distill(small_student(), small_teacher(), tokenizer(), rows, tmp_path/'lora',
            config=KDConfig(batch_size=8, lora_rank=4))
    before = small_student().state_dict()
    after = load_lm(tmp_path/'lora')[0].state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all('_proj' in name for name in changed)  # neither norms nor embeddings nor head
    # nothing that would say they are adapters
    assert not [*(tmp_path/'lora').glob('adapter*'), *(tmp_path/'lora').glob('README*')]


def test_a_directory_of_adapters_is_a_student(rows, tmp_path):
    "Merged on loading, all weights are trained; the base is not touched"
    from peft import LoraConfig, get_peft_model
    small_student().save_pretrained(tmp_path/'base')
    tokenizer().save_pretrained(tmp_path/'base')
    config = LoraConfig(r=2, target_modules='all-linear', init_lora_weights=False)
    adapted = get_peft_model(small_student(), config)
    adapted.peft_config['default'].base_model_name_or_path = str(tmp_path/'base')
    adapted.save_pretrained(tmp_path/'adapters')
    student = load_lm(tmp_path/'adapters')[0]
    assert all(p.requires_grad for p in student.parameters())
    assert not equal(student, small_student())
    distill(student, small_teacher(), tokenizer(), rows[:16], tmp_path/'out', config=EIGHT)
    assert not same_student(tmp_path/'out', tmp_path/'adapters')


def test_the_text_alone_needs_no_teacher(rows, tmp_path):
    config = KDConfig(batch_size=8, lr=1e-3, ce_weight=1.)
    cost = distill(small_student(), None, tokenizer(), rows, tmp_path/'sft', config=config, dev=8)
    found = record(tmp_path/'sft')['validation']
    assert cost['updates'] == 4
    assert 'kl' not in found['best']
    assert found['best']['nll'] < found['start']['nll']
    with pytest.raises(InputError, match='no teacher'):
        distill(small_student(), None, tokenizer(), rows, tmp_path/'kd', config=EIGHT)


class Spoil(TrainerCallback):
    "Shakes the student at update 7, so that it is never again as good as at update 6"

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 7:
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p.add_(.3 * torch.randn_like(p))


@pytest.mark.parametrize('rank', [0, 4], ids=['all weights', 'adapters'])
def test_the_best_student_on_held_out_rows_is_kept(rank, rows, tmp_path):
    train(tmp_path/'out', rank, [Spoil()])
    said = record(tmp_path/'out')['validation']
    assert [said[look]['step'] for look in ('start', 'best', 'last')] == [0, 6, 12]
    assert said['best']['kl'] < min(said['start']['kl'], said['last']['kl'])
    kept = validate(load_lm(tmp_path/'out')[0], small_teacher(), tokenizer(), rows[-8:])
    best = {name: x for name, x in said['best'].items() if name != 'step'}
    assert kept == pytest.approx(best, rel=1e-4)


class Remember(TrainerCallback):
    "The trained weights of the last update"

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 12:
            self.last = {name.removeprefix('student.'): x.detach().clone()
                         for name, x in model.named_parameters() if x.requires_grad}


@pytest.mark.parametrize('rank', [0, 4], ids=['all weights', 'adapters'])
def test_the_student_of_the_last_update_is_kept_beside_the_best(rank, rows, tmp_path):
    seen = Remember()
    train(tmp_path/'out', rank, [Spoil(), seen], keep_last=True)
    said = record(tmp_path/'out')['validation']
    for place, look in (('out', 'best'), ('out/last', 'last')):
        found = validate(load_lm(tmp_path/place)[0], small_teacher(), load_lm(tmp_path/place)[1],
                         rows[-8:])
        assert found['kl'] == pytest.approx(said[look]['kl'], rel=1e-4)
    last = load_lm(tmp_path/'out/last')[0].state_dict()
    if rank:
        adapted = with_adapters(small_student(), rank)
        adapted.load_state_dict(seen.last, strict=False)
        seen.last = adapted.merge_and_unload().state_dict()  # by peft itself
    assert all(torch.equal(last[name], x) for name, x in seen.last.items())


def test_where_the_last_student_is_the_best_there_is_one(tmp_path):
    train(tmp_path/'out', keep_last=True)
    assert record(tmp_path/'out')['validation']['best']['step'] == 12
    assert not (tmp_path/'out/last').exists()


def test_a_cache_is_as_good_as_its_teacher(rows, tmp_path):
    cache = TeacherCache(write_cache(save_teacher(tmp_path), rows, tmp_path/'cache'))
    for name, teacher in dict(live=small_teacher(), cached=cache).items():
        distill(small_student(), teacher, tokenizer(), rows, tmp_path/name, config=EIGHT, dev=8)
    live, cached = [record(tmp_path/name)['validation'] for name in ('live', 'cached')]
    assert cached['last'] == pytest.approx(live['last'], rel=1e-5)


def test_settings_of_transformers_reach_the_trainer(rows, tmp_path):
    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.seen = args.lr_scheduler_type

    look = Look()
    settings = dict(gradient_checkpointing=True, lr_scheduler_type='cosine')
    distill(small_student(), small_teacher(), tokenizer(), rows, tmp_path/'plain', config=EIGHT)
    distill(small_student(), small_teacher(), tokenizer(), rows, tmp_path/'out', callbacks=[look],
            config=KDConfig(batch_size=8, trainer=settings))
    assert look.seen == 'cosine'
    plain, checkpointed = [load_lm(tmp_path/name)[0] for name in ('plain', 'out')]
    for a, b in zip(plain.parameters(), checkpointed.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_curves_for_tensorboard(rows, tmp_path):
    "Nats, the held-out rows, tokens a second and memory, each at every update"
    reading = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    settings = dict(report_to='tensorboard', logging_steps=1, max_steps=3, eval_steps=1,
                    save_steps=1)
    distill(small_student(), small_teacher(), tokenizer(), rows, tmp_path/'kd', dev=8,
            config=KDConfig(batch_size=8, trainer=settings))
    events = reading.EventAccumulator(str(next(tmp_path.rglob('events.out.tfevents*'))))
    events.Reload()
    for name in 'train/loss', 'train/tokens_per_second', 'train/memory_gb', 'eval/kl':
        values = [event.value for event in events.Scalars(name)]
        assert len(values) >= 3 and all(x > 0 for x in values), name
    log = [json.loads(line) for line in (tmp_path/'kd/log.jsonl').read_text().splitlines()]
    nats = [line['loss'] for line in log if 'loss' in line]
    assert nats == pytest.approx([event.value for event in events.Scalars('train/loss')])
    assert not any('memory_gb' in line for line in log)  # the same command, the same bytes


def test_a_finished_trainer_leaves_nothing_in_memory(rows, tmp_path, monkeypatch):
    "The next student needs the memory at once"
    seen = []

    class Watched(KDTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(weakref.ref(self))

    monkeypatch.setattr(module, 'KDTrainer', Watched)
    distill(small_student(), small_teacher(), tokenizer(), rows[:8], tmp_path/'out', config=EIGHT)
    assert seen[0]() is None
