"Distillation where it is hard: half precision, padded heads, odd models, kills, several processes"
import json, os, subprocess, sys

import pytest, torch
from transformers import (AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, Qwen2Config, TrainerCallback, TrainingArguments)

from cotkd.cache import TeacherCache, fingerprint, supervised_hidden, write_cache
from cotkd.data import InputError
from cotkd.distill import KDConfig, KDTrainer, distill, validate
from cotkd.losses import DIVERGENCES, fused_kd_loss, kd_loss
from cotkd.models import check_head, load_lm, read_head
from cotkd.prompt import KDCollator, encode
from cotkd.toy import make_toy

TINY = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)


def tiny(config, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope='module')
def tokenizer(): return load_lm('toy-teacher')[1]


@pytest.fixture(scope='module')
def rows(): return make_toy(['web_of_lies', 'navigate'], 40, seed=5)


def trainer(student, teacher, tokenizer, rows, out, config=KDConfig(batch_size=8), callbacks=None, dev=0, **args):
    args = TrainingArguments(str(out), per_device_train_batch_size=config.batch_size, learning_rate=1e-3, logging_steps=1, report_to='none',
                             use_cpu=True, disable_tqdm=True, **{'save_strategy': 'no', 'max_steps': 3} | args)
    return KDTrainer(student, args, [encode(r, tokenizer) for r in rows], teacher=teacher, vocab=len(tokenizer), config=config, callbacks=callbacks, dev=dev)


def losses(t): return [e['loss'] for e in t.state.log_history if 'loss' in e]


# --- the loss

def pair(seed, N=64, V=500, Hs=32, Ht=48, off=1.):
    "Hidden states and heads of a teacher, and of a student that is `off` away from it"
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)
    t, U = r(N, Ht), r(V, Ht) * Ht**-.5 * 3
    W = U[:, :Hs] + off * r(V, Hs) * .1
    return t[:, :Hs].contiguous(), W, torch.cat([t[:, :Hs], t[:, Hs:] * off * .1], 1), U


@pytest.mark.parametrize('name', list(DIVERGENCES))
@pytest.mark.parametrize('off', [1., .05])
def test_bfloat16_keeps_the_gradient(name, off):
    h, W, t, U = (x.bfloat16() for x in pair(1, off=off))
    exact = h.double().requires_grad_()
    want = kd_loss(exact @ W.double().T, t.double() @ U.double().T, divergence=name)
    want.backward()
    h.requires_grad_()
    got = fused_kd_loss(h, W, t, U, divergence=name)
    got.backward()
    if off < 1 and name == 'forward_kl': assert want < .006  # the student is close: the hard case
    assert abs(got.item() / want.item() - 1) < 1e-4
    assert (h.grad - exact.grad).norm() / exact.grad.norm() < 5e-3


@pytest.mark.parametrize('name', list(DIVERGENCES))
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_student_equal_to_its_teacher_has_no_loss(name, dtype):
    h, W, *_ = pair(2, V=1500)
    W, h = torch.cat([W, 9 * torch.randn(128, 32)]).to(dtype), h.to(dtype)  # the last rows are padding, and loud
    assert fused_kd_loss(h, W[:1564], h, W, vocab=1500, divergence=name).abs() < 1e-6
    assert kd_loss((h @ W.T)[:, :1500], (h @ W.T)[:, :1500], divergence=name).abs() < 1e-6


def test_weights_cross_entropy_and_autocast():
    h, W, t, U = pair(3)
    h.requires_grad_()
    labels, weights = torch.randint(0, 500, (64,)), torch.rand(64)
    options = dict(temperature=2., labels=labels, ce_weight=.3, t_squared=True)
    got, want = fused_kd_loss(h, W, t, U, weights=weights, **options), kd_loss(h @ W.T, t @ U.T, weights, **options)
    z = h.double() @ W.double().T
    p, q = ((x / 2).softmax(-1) for x in (t.double() @ U.double().T, z))
    by_hand = .7 * 4 * (p * (p / q).log()).sum(-1) + .3 * torch.nn.functional.cross_entropy(z, labels, reduction='none')
    by_hand = (by_hand * weights).sum() / weights.sum()
    for loss in (got, want):
        assert abs(loss.item() / by_hand.item() - 1) < 1e-5
        assert torch.allclose(*(torch.autograd.grad(x, h, retain_graph=True)[0] for x in (loss, by_hand.float())), rtol=1e-4, atol=1e-6)
    with torch.autocast('cpu', torch.bfloat16): low = fused_kd_loss(h, W, t, U)
    assert abs(low.item() / fused_kd_loss(h, W, t, U).item() - 1) < .02


def test_a_frozen_head_gets_no_gradient_and_is_not_paid_for():
    h, W, t, U = pair(4)
    h.requires_grad_()
    fused_kd_loss(h, W, t, U).backward()
    frozen = h.grad.clone()
    h.grad = None
    fused_kd_loss(h, W.requires_grad_(), t, U).backward()
    assert torch.equal(frozen, h.grad) and W.grad is not None


@pytest.mark.parametrize('config', [CohereConfig(**TINY, logit_scale=.25), GraniteConfig(**TINY, logits_scaling=4.),
                                    Gemma2Config(**TINY, head_dim=8, final_logit_softcapping=3.)], ids=lambda c: c.model_type)
def test_scaled_and_capped_logits_are_those_of_the_model(config, tokenizer, rows, tmp_path):
    config.vocab_size = len(tokenizer)
    student, teacher = tiny(config), tiny(config, seed=1)
    for m in (student, teacher): m.get_output_embeddings().weight.data *= 20
    t = trainer(student, teacher, tokenizer, rows[:4], tmp_path, KDConfig(batch_size=4), max_steps=1)
    t.train()
    batch = KDCollator()([encode(r, tokenizer) for r in rows[:4]])
    on = batch['labels'][:, 1:] != -100
    fresh = tiny(config)
    fresh.get_output_embeddings().weight.data *= 20
    with torch.no_grad(): want = kd_loss(fresh(batch['input_ids']).logits[:, :-1], teacher(batch['input_ids']).logits[:, :-1], on)
    assert losses(t)[0] == pytest.approx(want.item(), rel=1e-4)


def test_a_model_with_another_head_is_refused():
    odd = tiny(LlamaConfig(**TINY, vocab_size=64))
    forward = odd.forward
    odd.forward = lambda *a, **k: (out := forward(*a, **k)).__class__(logits=out.logits * 2)
    with pytest.raises(InputError, match='cannot be distilled'): check_head(odd)
    with pytest.raises(InputError, match='plain linear'):
        from peft import LoraConfig, get_peft_model
        read_head(get_peft_model(tiny(LlamaConfig(**TINY, vocab_size=64)), LoraConfig(target_modules=['lm_head'])))


# --- the trainer

@pytest.mark.parametrize('teacher, student', [
    (Qwen2Config(**TINY, vocab_size=152_064), Qwen2Config(**TINY, vocab_size=151_936, tie_word_embeddings=True)),
    (LlamaConfig(**TINY, vocab_size=2048), LlamaConfig(**TINY, vocab_size=2048)),
    (LlamaConfig(**TINY, vocab_size=2048), LlamaConfig(**TINY, vocab_size=2112, tie_word_embeddings=True)),
], ids=['qwen2, padded, tied', 'llama, untied', 'llama, tied'])
def test_pairs_train_and_the_loss_falls(teacher, student, tokenizer, rows, tmp_path):
    student = tiny(student, 1)
    t = trainer(student, tiny(teacher), tokenizer, rows[:8], tmp_path, max_steps=5)
    t.train()
    assert losses(t)[-1] < losses(t)[0]
    assert student(torch.tensor([[1, 2]])).logits.shape[1] == 2  # an ordinary model again


def test_adapters_are_trained_and_merged(tokenizer, rows, tmp_path):
    student, teacher = load_lm('toy-student')[0], load_lm('toy-teacher')[0]
    before = {k: v.clone() for k, v in student.state_dict().items()}
    distill(student, teacher, tokenizer, rows, tmp_path/'lora', 'cot', KDConfig(batch_size=8, lora_rank=4))
    after = load_lm(tmp_path/'lora')[0].state_dict()
    assert before.keys() == after.keys()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all('_proj' in k for k in changed)  # neither norms nor embeddings nor head
    assert not list((tmp_path/'lora').glob('adapter*'))


class StopAt(TrainerCallback):
    def __init__(self, step): self.step = step
    def on_step_end(self, args, state, control, **kw): control.should_training_stop |= state.global_step == self.step


def test_a_stopped_training_goes_on_exactly(tokenizer, rows, tmp_path):
    def run(out, callbacks=None, resume=None):  # 5 updates an epoch; stops in the middle of the second
        t = trainer(load_lm('toy-student')[0], load_lm('toy-teacher')[0], tokenizer, rows, out, callbacks=callbacks, max_steps=15,
                    save_strategy='steps', save_steps=7)
        t.train(resume_from_checkpoint=resume)
        return t
    whole = run(tmp_path/'whole')
    run(tmp_path/'stopped', [StopAt(8)])
    again = run(tmp_path/'stopped', resume=str(tmp_path/'stopped/checkpoint-7'))
    assert losses(again)[-8:] == losses(whole)[-8:]
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters()))


def test_a_torn_checkpoint_is_passed_over(tokenizer, rows, tmp_path, monkeypatch):
    import cotkd.distill as d
    def run(out, resume=True): return distill(load_lm('toy-student')[0], load_lm('toy-teacher')[0], tokenizer, rows, out, 'cot', KDConfig(batch_size=4), resume=resume)
    arguments = d._arguments
    def often(*a): args = arguments(*a); args.save_steps, args.save_total_limit = 3, None; return args
    monkeypatch.setattr(d, '_arguments', often)
    run(tmp_path/'whole')
    monkeypatch.setattr(d, '_finish', lambda *a: None)  # as if killed just before the end
    run(tmp_path/'killed')
    monkeypatch.undo()
    (tmp_path/'killed/checkpoint-9/trainer_state.json').write_text('{"torn')
    with pytest.raises(InputError, match='--resume'): run(tmp_path/'killed', resume=False)
    run(tmp_path/'killed')
    assert all(torch.equal(a, b) for a, b in zip(*(load_lm(tmp_path/n)[0].parameters() for n in ('whole', 'killed'))))
    assert not list((tmp_path/'killed').glob('checkpoint-*'))
    with pytest.raises(InputError, match='rows'): distill(None, None, tokenizer, rows[1:], tmp_path/'whole', 'cot', KDConfig(batch_size=4))


def test_a_finished_trainer_leaves_nothing_in_memory(tokenizer, rows, tmp_path, monkeypatch):
    import weakref
    import cotkd.distill as d
    seen = []
    class Watch(KDTrainer):
        def __init__(self, *a, **k): super().__init__(*a, **k); seen.append(weakref.ref(self))
    monkeypatch.setattr(d, 'KDTrainer', Watch)
    distill(load_lm('toy-student')[0], load_lm('toy-teacher')[0], tokenizer, rows[:8], tmp_path/'out', 'cot', KDConfig(batch_size=8))
    assert seen[0]() is None


def test_a_longer_teacher_vocabulary_is_cut_and_weights_fit_a_cache(rows, tmp_path):
    teacher, tokenizer = load_lm('toy-teacher')
    tokenizer.add_tokens(['extra'])  # of the teacher alone
    distill(load_lm('toy-student')[0], teacher, tokenizer, rows[:8], tmp_path/'out', 'cot', KDConfig(batch_size=8), vocab=len(tokenizer) - 1)
    plain = load_lm('toy-teacher')[1]
    cache = TeacherCache(write_cache('toy-teacher', rows[:8], tmp_path/'cache'))
    only_answers = KDConfig(batch_size=8, rationale_weight=0.)
    live, cached = (trainer(load_lm('toy-student')[0], t, plain, rows[:8], tmp_path, only_answers, max_steps=2) for t in (teacher, cache))
    live.train(); cached.train()
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)


def test_wrong_arguments_are_refused(tokenizer, rows, tmp_path):
    student, teacher = load_lm('toy-student')[0], load_lm('toy-teacher')[0]
    with pytest.raises(InputError, match='gradient_accumulation_steps is 2'):
        trainer(student, teacher, tokenizer, rows, tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="'kl'"): KDConfig(divergence='kl')
    cache = TeacherCache(write_cache('toy-teacher', rows[:4], tmp_path/'cache'))
    with pytest.raises(InputError, match='4 rows to train on do not fill one update of 8'): trainer(student, teacher, tokenizer, rows[:4], tmp_path)
    with pytest.raises(InputError, match='leave some to train on'): distill(student, teacher, tokenizer, rows[:8], tmp_path/'out', dev=8, config=KDConfig(batch_size=8))
    assert not (tmp_path/'out').exists()  # so that a corrected call finds nothing in its way
    with pytest.raises(InputError, match='40 rows, but a cache of 4'): trainer(student, cache, tokenizer, rows, tmp_path)


# --- held-out rows

class Spoil(TrainerCallback):
    "Shakes the student at update 11, so that it is never again as good as at update 10"
    def on_step_end(self, args, state, control, model=None, **kw):
        if state.global_step == 11:
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad: p.add_(.1 * torch.randn_like(p))


def test_the_best_student_on_held_out_rows_is_kept(tokenizer, rows, tmp_path):
    "All weights and adapters, live and from a cache"
    cache, teacher = TeacherCache(write_cache('toy-teacher', rows, tmp_path/'cache')), load_lm('toy-teacher')[0]
    for name, source, rank in (('full', teacher, 0), ('cached', cache, 0), ('adapters', cache, 4)):
        config = KDConfig(lr=1e-3, batch_size=8, lora_rank=rank, trainer=dict(max_steps=20, eval_steps=5, save_steps=5))
        distill(load_lm('toy-student')[0], source, tokenizer, rows, tmp_path/name, config=config, dev=8, callbacks=[Spoil()])
        said = json.loads((tmp_path/name/'distill.json').read_text())['validation']
        assert [said[k]['step'] for k in ('start', 'best', 'last')] == [0, 10, 20] and said['best']['kl'] < said['start']['kl'] and said['best']['kl'] < said['last']['kl']
        kept = validate(load_lm(tmp_path/name)[0], teacher, tokenizer, rows[-8:])
        assert kept == pytest.approx({k: v for k, v in said['best'].items() if k != 'step'}, rel=1e-4), name
    assert said['start']['kl'] == pytest.approx(validate(load_lm('toy-student')[0], teacher, tokenizer, rows[-8:])['kl'], rel=1e-5)


def test_settings_of_transformers_reach_the_trainer(tokenizer, rows, tmp_path):
    from transformers import TrainerCallback
    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kw): self.seen = args.lr_scheduler_type, model.is_gradient_checkpointing
    plain = distill(load_lm('toy-student')[0], load_lm('toy-teacher')[0], tokenizer, rows, tmp_path/'plain', config=KDConfig(batch_size=8))
    look, config = Look(), KDConfig(batch_size=8, trainer=dict(gradient_checkpointing=True, lr_scheduler_type='cosine'))
    distill(load_lm('toy-student')[0], load_lm('toy-teacher')[0], tokenizer, rows, tmp_path/'out', config=config, callbacks=[look])
    assert look.seen == ('cosine', True)
    for a, b in zip(*(load_lm(tmp_path/name)[0].parameters() for name in ('plain', 'out'))): assert torch.allclose(a, b, atol=1e-6)


KILLED = '''
import json, os, random, signal, sys, threading
import cotkd.distill as d
from cotkd.models import load_lm
from transformers import TrainerCallback
rows, folder = json.load(open(sys.argv[1])), sys.argv[2]
UPDATES, EVERY = 60, 4

class Die(TrainerCallback):  # at that update, or a moment later: perhaps while a checkpoint is written
    def __init__(self, step, wait): self.step, self.wait = step, wait
    def on_step_end(self, args, state, control, **kw):
        if state.global_step == self.step: threading.Timer(self.wait, os.kill, (os.getpid(), signal.SIGKILL)).start() if self.wait else os.kill(os.getpid(), signal.SIGKILL)

def train(out, rank, die=None):  # in a process of its own -> whether it was killed
    if not (pid := os.fork()):
        (teacher, tokenizer), (student, _) = load_lm('toy-teacher'), load_lm('toy-student')
        config = d.KDConfig(batch_size=4, epochs=8, lora_rank=rank, trainer=dict(save_strategy='steps', save_steps=EVERY, eval_steps=EVERY, max_steps=UPDATES))
        d.distill(student, teacher, tokenizer, rows, out, config=config, dev=8, callbacks=[die] if die else [])
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0

for rank in (0, 4):
    dice, whole, out = random.Random(rank), f'{folder}/whole-{rank}', f'{folder}/killed-{rank}'
    assert not train(whole, rank)
    for step in sorted(dice.sample(range(1, UPDATES), 10)):
        killed = train(out, rank, Die(step, dice.choice([0, dice.uniform(0, .05)])))
        print(rank, 'killed at', step, sorted(name for name in os.listdir(out) if name.startswith('checkpoint')), flush=True)
        assert killed
    assert not train(out, rank)
'''


def test_ten_kills_leave_the_same_student(rows, tmp_path):
    (tmp_path/'rows.json').write_text(json.dumps(rows))
    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path/'rows.json'), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('killed at') == 20
    for rank in (0, 4):
        whole, killed = (load_lm(tmp_path/f'{name}-{rank}')[0].state_dict() for name in ('whole', 'killed'))
        assert all(torch.equal(whole[k], killed[k]) for k in whole)
        whole, killed = (json.loads((tmp_path/f'{name}-{rank}/distill.json').read_text())['validation'] for name in ('whole', 'killed'))
        assert whole == killed


# --- the cache

def test_cached_and_live_training_are_the_same(tokenizer, rows, tmp_path):
    cache = TeacherCache(write_cache('toy-teacher', rows, tmp_path/'cache'))
    live, cached = (trainer(load_lm('toy-student')[0], t, tokenizer, rows, tmp_path, max_steps=50) for t in (load_lm('toy-teacher')[0], cache))
    live.train(); cached.train()
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)


KILLS = '''
import json, os, random, signal, sys, time
import cotkd.cache as c
rows, whole, killed = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
c.FILE_BYTES = 1 << 13  # many small files

def write(out):  # in a process of its own
    if pid := os.fork(): return pid
    c.write_cache('toy-teacher', rows, out)
    os._exit(0)

start = time.time()
assert os.waitpid(write(whole), 0)[1] == 0
seconds, dice, kills = time.time() - start, random.Random(0), 0
while kills < 20:
    pid = write(killed)
    time.sleep(dice.uniform(.2, 1) * seconds)
    os.kill(pid, signal.SIGKILL)
    if os.waitpid(pid, 0)[1] == signal.SIGKILL: kills += 1
    files = sorted(name for name in (os.listdir(killed) if os.path.isdir(killed) else []) if name.startswith('hidden') and not name.endswith('tmp'))
    print('killed with', len(files), 'files there')
    for name in dice.sample(files, len(files) * 2 // 3): os.remove(os.path.join(killed, name))  # so that there is work left for the next
assert os.waitpid(write(killed), 0)[1] == 0
'''


def test_twenty_kills_leave_the_same_cache(rows, tmp_path):
    (tmp_path/'rows.json').write_text(json.dumps(rows))
    done = subprocess.run([sys.executable, '-c', KILLS, *(str(tmp_path/n) for n in ('rows.json', 'whole', 'killed'))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    content = lambda out: {p.name: p.read_bytes() for p in out.iterdir() if '.tmp' not in p.name}  # ours, and safetensors' own .tmpXXXXXX
    assert content(tmp_path/'killed') == content(tmp_path/'whole')
    there = {int(line.split()[2]) for line in done.stdout.splitlines() if line.startswith('killed with')}
    assert len(there) > 3 and len(content(tmp_path/'whole')) > 20  # they were killed at different places


def test_a_flipped_byte_in_any_file_is_named(rows, tmp_path):
    cache = write_cache('toy-teacher', rows[:6], tmp_path/'cache')
    for path in sorted(cache.iterdir()):
        whole = path.read_bytes()
        for place in (9, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
            with pytest.raises(InputError, match=path.name): TeacherCache(cache)
        path.write_bytes(whole)
    assert len(TeacherCache(cache)) == 6


def test_a_cache_of_something_else_is_refused(tokenizer, rows, tmp_path):
    cache = TeacherCache(write_cache('toy-teacher', rows[:4], tmp_path/'cache', 'direct'))
    other = load_lm('toy-student')[1]
    other.add_tokens(['extra'])
    for arguments, words in ((('toy-student', tokenizer, rows[:4], 'direct'), 'teacher of it'), (('toy-teacher', tokenizer, rows[:5], 'direct'), 'rows of it'),
                             (('toy-teacher', tokenizer, rows[:4], 'cot'), 'mode, prompt of it'), (('toy-teacher', other, rows[:4], 'direct'), 'tokenizer of it')):
        with pytest.raises(InputError, match=words): cache.check(fingerprint(*arguments))
    cache.check(fingerprint('toy-teacher', tokenizer, rows[:4], 'direct'))


# --- several processes

DISTILL = '''
import sys
from cotkd.cli import main
sys.exit(main(['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', '--data', sys.argv[2], '--rationales', '--out', sys.argv[3], '--lr', '1e-3']))
'''

MANY = '''
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_kd import *
tokenizer, rows = load_lm('toy-teacher')[1], make_toy(['web_of_lies', 'navigate'], 40, seed=5)
world, seen = int(os.environ.get('WORLD_SIZE', 1)), {}
for name, teacher in (('live', load_lm('toy-teacher')[0]), ('cached', TeacherCache(sys.argv[2]))):
    t = trainer(load_lm('toy-student')[0], teacher, tokenizer, rows, 'out', KDConfig(batch_size=8 // world, micro_tokens=250), max_steps=20, dev=5)
    t.train()
    seen[name] = dict(losses=losses(t), held_out=t.evaluate())
if t.is_world_process_zero(): torch.save(seen, sys.argv[3])
'''

SHARDED = '''
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from types import MethodType
from test_kd import *
dist.init_process_group('gloo')
tokenizer, rows, rank = load_lm('toy-teacher')[1], make_toy(['web_of_lies', 'navigate'], 40, seed=5), dist.get_rank()
teacher, cache = load_lm('toy-teacher')[0], TeacherCache(sys.argv[2])
def forward(self, batch, hidden): return fused_kd_loss(supervised_hidden(self, batch), read_head(self).weight, hidden, teacher.lm_head.weight)

def curve(student, cached, share):  # losses of 20 updates of 8 rows; in each process every `share`-th row of an update
    student.forward, optimizer, losses = MethodType(forward, student), torch.optim.AdamW(student.parameters(), lr=1e-3), []
    for update in range(20):
        mine = [(update * 8 + i) % 40 for i in range(8)][rank if share > 1 else 0::share]
        batch = KDCollator()([encode(rows[i], tokenizer) | (dict(teacher_hidden=cache[i]) if cached else {}) for i in mine])
        with torch.no_grad(): hidden = batch.pop('teacher_hidden', None) if cached else supervised_hidden(teacher, batch)
        tokens = torch.tensor(float(len(hidden)))
        if share > 1: dist.all_reduce(tokens)
        loss = student(batch, hidden) * len(hidden) / tokens  # a process's share in the mean over all tokens
        optimizer.zero_grad(); (loss * share).backward(); optimizer.step()  # times the processes, for gradients are averaged
        whole = loss.detach().clone()
        if share > 1: dist.all_reduce(whole)
        losses.append(whole.item())
    return losses

for tie in (False, True):
    def student():
        s = load_lm('toy-student')[0]
        if tie: s.lm_head.weight = s.model.embed_tokens.weight
        return s
    for cached in (False, True):
        one, shards = curve(student(), cached, 1), student()
        for layer in shards.model.layers: fully_shard(layer)
        fully_shard(shards)
        assert all(isinstance(p, DTensor) for p in shards.parameters())
        two = curve(shards, cached, 2)
        assert one[-1] < one[0] and two == pytest.approx(one, rel=1e-5), (tie, cached, one, two)
dist.destroy_process_group()
'''


def in_processes(script, n, *args):
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(n), '--master_port', '0', '--standalone', script, here, *map(str, args)],
                          capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope='module')
def forty(tmp_path_factory):
    "A cache of the forty rows that the scripts read"
    return write_cache('toy-teacher', make_toy(['web_of_lies', 'navigate'], 40, seed=5), tmp_path_factory.mktemp('forty')/'cache')


def test_two_processes_do_the_same_as_one(forty, tmp_path):
    (tmp_path/'many.py').write_text(MANY)
    for n in (1, 2): in_processes(tmp_path/'many.py', n, forty, tmp_path/f'{n}.pt')
    one, two = (torch.load(tmp_path/f'{n}.pt') for n in (1, 2))
    for teacher in ('live', 'cached'):
        a, b = one[teacher], two[teacher]
        assert len(a['losses']) == 20 and b['losses'] == pytest.approx(a['losses'], rel=1e-5)
        assert b['held_out'] == pytest.approx(a['held_out'], rel=1e-5)
    assert one['cached']['losses'] == pytest.approx(one['live']['losses'], rel=1e-5)


def test_sharded_parameters_give_the_same_losses(forty, tmp_path):
    (tmp_path/'sharded.py').write_text(SHARDED)
    in_processes(tmp_path/'sharded.py', 2, forty)


def test_the_command_line_in_two_processes(rows, tmp_path):
    (tmp_path/'distill.py').write_text(DISTILL)
    (tmp_path/'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    for _ in range(2): in_processes(tmp_path/'distill.py', 2, tmp_path/'rows.jsonl', tmp_path/'out')  # the second time there is nothing to do
    assert json.loads((tmp_path/'out/distill.json').read_text())['cost']['updates'] == 5  # 40 rows, 8 at a time over both
    load_lm(tmp_path/'out')
