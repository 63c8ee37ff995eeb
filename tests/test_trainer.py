"One update: odd heads, padded vocabularies, a teacher from its cache, a training that stopped."
from dataclasses import replace

import pytest
import torch
from families import tokenizer
from training import (EIGHT, TINY, equal, losses, make_trainer, save_teacher, small_student,
                      small_teacher, tiny, toy_rows)
from transformers import (CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, Qwen2Config,
                          TrainerCallback)

from cotkd.cache import TeacherCache, write_cache
from cotkd.distill import distill
from cotkd.files import InputError
from cotkd.losses import kd_loss
from cotkd.models import check_head, read_head
from cotkd.prompt import ANSWER, QUESTION, KDCollator, encode
from cotkd.trainer import KDConfig, own_texts

SCALED = [CohereConfig(**TINY, logit_scale=.25), GraniteConfig(**TINY, logits_scaling=4.),
          Gemma2Config(**TINY, head_dim=8, final_logit_softcapping=3.)]
PAIRS = {
    'qwen2, padded, tied': (
        Qwen2Config(**TINY, vocab_size=152_064),
        Qwen2Config(**TINY, vocab_size=151_936, tie_word_embeddings=True)),
    'llama, untied': (
        LlamaConfig(**TINY, vocab_size=2048),
        LlamaConfig(**TINY, vocab_size=2048)),
    'llama, tied': (
        LlamaConfig(**TINY, vocab_size=2048),
        LlamaConfig(**TINY, vocab_size=2112, tie_word_embeddings=True))}


@pytest.fixture(scope='module')
def rows():
    return toy_rows()


def loud(config, seed=0):
    model = tiny(config, seed)
    model.get_output_embeddings().weight.data *= 20
    return model


@pytest.mark.parametrize('config', SCALED, ids=lambda config: config.model_type)
def test_scaled_and_capped_logits_are_those_of_the_model(config, rows, tmp_path):
    config.vocab_size = len(tokenizer())
    teacher = loud(config, 1)
    trainer = make_trainer(loud(config), teacher, rows[:4], tmp_path, KDConfig(batch_size=4),
                           max_steps=1)
    trainer.train()
    batch = KDCollator()([encode(row, tokenizer()) for row in rows[:4]])
    supervised = batch['labels'][:, 1:] != -100
    with torch.no_grad():
        z, t = [model(batch['input_ids']).logits[:, :-1] for model in (loud(config), teacher)]
    assert losses(trainer)[0] == pytest.approx(kd_loss(z, t, supervised).item(), rel=1e-4)


def test_a_model_with_another_head_is_refused():
    from peft import LoraConfig, get_peft_model
    odd = tiny(LlamaConfig(**TINY, vocab_size=64))
    forward = odd.forward

    def doubled(*args, **kwargs):
        out = forward(*args, **kwargs)
        return type(out)(logits=out.logits * 2)

    odd.forward = doubled
    with pytest.raises(InputError, match='cannot be distilled'):
        check_head(odd)
    adapted = get_peft_model(tiny(LlamaConfig(**TINY, vocab_size=64)),
                             LoraConfig(target_modules=['lm_head']))
    with pytest.raises(InputError, match='plain linear'):
        read_head(adapted)


@pytest.mark.parametrize('name', list(PAIRS))
def test_pairs_train_and_the_loss_falls(name, rows, tmp_path):
    teacher, student = [tiny(config, seed) for seed, config in enumerate(PAIRS[name])]
    trainer = make_trainer(student, teacher, rows[:8], tmp_path, max_steps=5)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert student(torch.tensor([[1, 2]])).logits.shape[1] == 2  # an ordinary model still


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.parametrize('lmbda', [0., .5])
def test_a_stopped_training_goes_on_exactly(lmbda, rows, tmp_path):
    "Five updates an epoch; it stops in the middle of the second"
    def run(out, callbacks=None, resume=None):
        config = replace(EIGHT, lmbda=lmbda)
        trainer = make_trainer(small_student(), small_teacher(), rows, out, config, callbacks,
                               max_steps=9, save_strategy='steps', save_steps=6)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path/'whole')
    run(tmp_path/'stopped', [StopAt(7)])
    again = run(tmp_path/'stopped', resume=str(tmp_path/'stopped/checkpoint-6'))
    assert losses(again)[-3:] == losses(whole)[-3:]
    assert equal(again.model.student, whole.model.student)


@pytest.mark.parametrize('weight, rate', [
    (1., 1e-3),
    (0., 1e-4),  # so few tokens: at 1e-3 rounding grows to 2e-5 of a loss
], ids=['all tokens', 'answers alone'])
def test_cached_and_live_training_are_the_same(weight, rate, rows, tmp_path):
    config = KDConfig(batch_size=8, rationale_weight=weight)
    cache = TeacherCache(write_cache(save_teacher(tmp_path), rows, tmp_path/'cache'))
    found = []
    for teacher in (small_teacher(), cache):
        trainer = make_trainer(small_student(), teacher, rows, tmp_path, config, max_steps=20,
                               learning_rate=rate)
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=5e-6)


def test_a_compiled_student_trains_the_same(rows, tmp_path):
    "Traced, forward and backward; kernels take longer to build and say the same"
    cache = TeacherCache(write_cache(save_teacher(tmp_path), rows[:8], tmp_path/'cache'))
    found = []
    for backend in (None, 'aot_eager'):
        student = tiny(PAIRS['llama, untied'][1])
        trainer = make_trainer(student, cache, rows[:8], tmp_path, max_steps=2,
                               torch_compile=backend is not None, torch_compile_backend=backend)
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_wrong_arguments_are_refused(rows, tmp_path):
    cache = TeacherCache(write_cache(save_teacher(tmp_path), rows[:4], tmp_path/'cache'))
    with pytest.raises(InputError, match='gradient_accumulation_steps is 2'):
        make_trainer(small_student(), small_teacher(), rows, tmp_path,
                     gradient_accumulation_steps=2)
    with pytest.raises(InputError, match='4 rows to train on do not fill one update of 8'):
        make_trainer(small_student(), small_teacher(), rows[:4], tmp_path)
    with pytest.raises(InputError, match='40 rows, but a cache of 4'):
        make_trainer(small_student(), cache, rows, tmp_path)
    with pytest.raises(InputError, match="'kl'"):
        KDConfig(divergence='kl')


# --- texts that the student writes

def test_what_a_student_writes(rows):
    "The same questions; each text ends once, or fills the room"
    encoded = [encode(row, tokenizer()) for row in rows[:8]]
    student = small_student()
    own = own_texts(student, encoded)
    room = max(sum(span != QUESTION for span in e['spans']) for e in encoded)
    for given, written in zip(encoded, own, strict=True):
        n = given['spans'].count(QUESTION)
        text = written['input_ids'][n:]
        assert written['input_ids'][:n] == given['input_ids'][:n]
        assert written['spans'] == [QUESTION] * n + [ANSWER] * len(text)
        end = tokenizer().eos_token_id
        assert (text.count(end), text[-1] == end) in [(1, True), (0, False)]
        assert len(text) == room or text[-1] == end
    assert own != own_texts(student, encoded)  # sampled


def test_a_share_of_its_own_texts(rows):
    "None: bit for bit the rows alone; all: other losses, from the same questions"
    found = {}
    for lmbda in (None, 0., 1.):
        config = EIGHT if lmbda is None else replace(EIGHT, lmbda=lmbda)
        trainer = make_trainer(small_student(), small_teacher(), rows, 'out', config, max_steps=3)
        trainer.train()
        found[lmbda] = trainer
    assert losses(found[None]) == losses(found[0.])
    assert equal(found[None].model.student, found[0.].model.student)
    assert not equal(found[0.].model.student, found[1.].model.student)


def test_its_own_texts_are_learned_from_whatever_a_rationale_weighs(rows):
    trainer = make_trainer(small_student(), small_teacher(), rows, 'out',
                           replace(EIGHT, lmbda=1., rationale_weight=0.), max_steps=3)
    trainer.train()
    assert not equal(trainer.model.student, small_student())


@pytest.mark.parametrize('settings, why', [
    (dict(lmbda=1.5), 'a share from 0 to 1'), (dict(lmbda=.5, ce_weight=.5), 'leave one of them')])
def test_shares_that_make_no_sense(settings, why):
    with pytest.raises(InputError, match=why):
        KDConfig(**settings)


def test_a_cache_cannot_grade_what_is_written_later(rows, tmp_path):
    cache = TeacherCache(write_cache(save_teacher(tmp_path), rows, tmp_path/'cache'))
    for teacher in (cache, None):
        with pytest.raises(InputError, match='by the teacher itself'):
            distill(small_student(), teacher, tokenizer(), rows, tmp_path/'out',
                    config=replace(EIGHT, lmbda=.5))
    assert not (tmp_path/'out').exists()
