"""Train the embedded toy models from scratch, on generated problems only.

    python tools/train_toy.py tokenizer               # once: the byte-level BPE tokenizer both models share
    python tools/train_toy.py teacher                 # the evaluated families, with rationales and directly
    python tools/train_toy.py student                 # the sibling families only: pre-trained, but new to what is evaluated
    python tools/train_toy.py direct                  # a control: the base student, taught right answers without rationales

On several cores, `OMP_NUM_THREADS=1 torchrun --nproc_per_node N tools/train_toy.py NAME` is the fastest (1.65 times on two):
models as small as these use a second thread badly.

The first three write cotkd/assets/toy-NAME/; the control is not kept. Logs go to cotkd/results/training-NAME.jsonl. A killed
run continues from its last checkpoint in runs/train-toy-NAME/. Recipe and seed are the constants below. Where COTKD_BBH is
set, generated problems that equal one of its items are left out.
"""
import json, math, os, random, sys, time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cotkd.bbh import load_bbh
from cotkd.prompt import KDCollator, encode, format_example
from cotkd.toy import MIX, SIBLINGS, make_toy

ROOT = Path(__file__).parent.parent
SEED, VOCAB, CONTEXT = 20251, 2048, 1024
BATCH, MICRO, CHUNK = 16, 4, 100  # rows per update; rows that go through the model at once; updates whose rows are generated together
# direct: share of rows answered without a rationale; one mean over all tokens of an update keeps them from drowning the rest
RECIPES = {
    'teacher': dict(tasks=MIX, direct=.1, updates=5000, hidden_size=128, intermediate_size=384,
                    num_hidden_layers=4, num_attention_heads=4),
    'student': dict(tasks=SIBLINGS, direct=.1, updates=4000, hidden_size=96, intermediate_size=288,
                    num_hidden_layers=4, num_attention_heads=3),
    'direct': dict(tasks=MIX, direct=1., updates=3000),
}
MUON_LR, ADAMW_LR = .01, 2e-3


def bbh_sources():
    return frozenset(e['input'] for items in load_bbh().values() for e in items) if 'COTKD_BBH' in os.environ else frozenset()


def train_tokenizer():
    rows = make_toy(MIX, 24_000, seed=SEED, exclude=bbh_sources())
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator((''.join(format_example(r['source'], r['target'], r['rationale']).values()) for r in rows),
                            trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=['<|pad|>', '<|end|>'],
                                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<|end|>', pad_token='<|pad|>', model_max_length=CONTEXT)
    for name in ('teacher', 'student'): tokenizer.save_pretrained(ROOT/'cotkd/assets'/f'toy-{name}')


def batches(tokenizer, tasks, direct, chunk):
    "The updates of one chunk: each a list of micro-batches of similar length, so that little is padded"
    rng = random.Random(SEED + chunk)
    rows = make_toy(tasks, BATCH * CHUNK, seed=SEED + 1 + chunk, exclude=bbh_sources())
    encoded = [encode(r, tokenizer, 'direct' if rng.random() < direct else 'cot') for r in rows]
    collate = KDCollator(tokenizer.pad_token_id)
    for i in range(0, len(encoded), BATCH):
        update = sorted(encoded[i:i+BATCH], key=lambda e: len(e['input_ids']))
        yield [collate(update[j:j+MICRO]) for j in range(0, BATCH, MICRO)]


def logits_at_supervised(model, batch):
    # right padding and causal attention: no real token can see a padded one, so no mask is needed
    hidden = model.model(input_ids=batch['input_ids']).last_hidden_state[:, :-1]
    labels = batch['labels'][:, 1:]
    return model.lm_head(hidden[labels != -100]), labels[labels != -100], labels != -100


def share(update, rank, world):
    "The micro-batches of one process: dealt out to and fro, so that each gets short and long ones"
    return [b for i, b in enumerate(update) if i % (2 * world) in (rank, 2 * world - 1 - rank)]


class SummedLoss(torch.nn.Module):
    "Cross-entropy over the supervised tokens of a batch; a module, so that accelerate can spread it over processes"
    def __init__(self, model): super().__init__(); self.model = model

    def forward(self, batch):
        logits, labels, _ = logits_at_supervised(self.model, batch)
        return torch.nn.functional.cross_entropy(logits, labels, reduction='sum')


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for weight matrices (Jordan et al. 2024): tracking three objects took it less than
    half of AdamW's tokens. `torch.optim.Muon` iterates in bfloat16, which processors without it emulate, many times slower."""
    def __init__(self, params, lr, momentum=.95): super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}  # matrices of one shape, the longer side last, are iterated on together
            for p in group['params']:
                m = self.state[p].setdefault('momentum', torch.zeros_like(p)).lerp_(p.grad, 1 - group['momentum'])
                update = p.grad.lerp(m, group['momentum'])
                tall = len(update) > len(update.T)
                alike.setdefault((tall, *update.shape), []).append((p, update.T if tall else update))
            for (tall, rows, columns), pairs in alike.items():
                x = torch.stack([update for _, update in pairs])
                x /= x.norm(dim=(1, 2), keepdim=True) + 1e-7
                for _ in range(5):  # Newton-Schulz, with Jordan's coefficients
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                for (p, _), update in zip(pairs, x):
                    p.add_(update.T if tall else update, alpha=-group['lr'] * max(1, rows / columns) ** .5)


@torch.no_grad()
def add_induction_heads(model):
    """Start with heads that copy: in the first layer they bring along the token before, in the second they look where this token
    stood before and predict what followed it (Olsson et al. 2022). From random weights such heads form after millions of
    tokens; set by hand, as initial values like any other, they spare the models that wait (cf. Trockman & Kolter 2023)."""
    heads, embedding, sharpness, match = 2, .5, 7., 2.
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    width, size, half = model.config.hidden_size, first.head_dim, first.head_dim // 2
    angle = model.config.rope_parameters['rope_theta'] ** (-torch.arange(half) / half)  # by which a pair of dimensions turns per position
    slow = [i for i in range(size) if i % half >= 6]  # these turn so little that they compare content, wherever it stands
    model.get_input_embeddings().weight *= embedding / model.config.initializer_range  # else what is trained soon drowns it
    model.model.norm.weight.fill_(.25)  # and the tied head stays moderate
    before = torch.linalg.qr(torch.randn(width, width)).Q
    current = torch.linalg.qr(torch.randn(width, width)).Q
    for h in (slice(i * size, (i + 1) * size) for i in range(heads)):
        # rotary embeddings turn these two vectors onto each other one position apart
        first.k_proj.bias[h] = sharpness * torch.cat([torch.ones(half), torch.zeros(half)])
        first.q_proj.bias[h] = sharpness * torch.cat([angle.cos(), -angle.sin()])
        first.v_proj.weight[h] = current[h]
        first.o_proj.weight[:, h] = embedding * before[:, h]
        second.q_proj.weight[h] = second.k_proj.weight[h] = 0
        second.q_proj.weight[h][slow] = match * current[h][:len(slow)]
        second.k_proj.weight[h][slow] = match * before[:, h].T[:len(slow)]
        second.v_proj.weight[h] = current[h]
        second.o_proj.weight[:, h] = embedding * current[h].T


@torch.no_grad()
def exact(model, tokenizer, task, mode, n=100):
    "Share of held-out rows whose supervised tokens are all predicted: greedy decoding would write exactly this text"
    rows = make_toy([task], n, seed=SEED, heldout=True, exclude=bbh_sources())
    batch = KDCollator(tokenizer.pad_token_id)([encode(r, tokenizer, mode) for r in rows])
    logits, labels, supervised = logits_at_supervised(model, batch)
    wrong = torch.zeros(supervised.shape, dtype=torch.bool)
    wrong[supervised] = logits.argmax(-1) != labels
    return 100 * (~wrong.any(1)).float().mean().item()


def train(name):
    torch.manual_seed(SEED)
    torch.set_flush_denormal(True)
    recipe = dict(RECIPES[name])
    tasks, direct, updates = (recipe.pop(k) for k in ('tasks', 'direct', 'updates'))
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT/'cotkd/assets/toy-student')
    if name == 'direct': model = LlamaForCausalLM.from_pretrained(ROOT/'cotkd/assets/toy-student', dtype=torch.float32)
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, attention_bias=True, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, num_key_value_heads=recipe['num_attention_heads'],
            rope_parameters=dict(rope_type='default', rope_theta=1e6), **recipe))
        add_induction_heads(model)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = Muon(matrices, MUON_LR), torch.optim.AdamW(others, ADAMW_LR, betas=(.9, .98), weight_decay=0, fused=True)
    shape = lambda s: min(1, (s + 1) / 100) * (.02 + .98 * .5 * (1 + math.cos(math.pi * s / updates)))
    stepped = [*optimizers, *(torch.optim.lr_scheduler.LambdaLR(o, shape) for o in optimizers)]
    checkpoint, log = ROOT/f'runs/train-toy-{name}/last.pt', ROOT/f'cotkd/results/training-{name}.jsonl'
    for file in (checkpoint, log): file.parent.mkdir(parents=True, exist_ok=True)
    step = tokens = seconds = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        for part, old in zip([model, *stepped], state['parts']): part.load_state_dict(old)
        step, tokens, seconds = state['step'], state['tokens'], state['seconds']
    elif rank == 0: log.write_text(json.dumps(dict(seed=SEED, batch=BATCH, muon_lr=MUON_LR, adamw_lr=ADAMW_LR, parameters=model.num_parameters(), **RECIPES[name])) + '\n')
    start, loss = time.time() - seconds, accelerator.prepare(SummedLoss(model))
    while step < updates:
        total = torch.zeros(())
        for update in batches(tokenizer, tasks, direct, step // CHUNK):
            supervised, mine = sum((b['labels'][:, 1:] != -100).sum() for b in update), share(update, rank, world)
            for batch in mine:
                with nullcontext() if batch is mine[-1] else accelerator.no_sync(loss):
                    part = loss(batch) / supervised
                    accelerator.backward(part * world)  # gradients are averaged over processes
                total += part.detach()
            tokens += sum(int((b['input_ids'] != tokenizer.pad_token_id).sum()) for b in update)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            for part in stepped: part.step()
            model.zero_grad(); step += 1
        total = accelerator.reduce(total, 'sum').item()
        if rank: continue
        modes = ('direct',) if direct == 1 else ('cot', 'direct')
        right = {f'{t}/{m}': round(exact(model, tokenizer, t, m)) for t in dict.fromkeys(tasks) for m in modes} if step % 1000 == 0 or step == updates else {}
        with log.open('a') as f:
            f.write(json.dumps(dict(step=step, tokens=tokens, seconds=round(time.time() - start), loss=round(total / CHUNK, 4), **right)) + '\n')
        torch.save(dict(parts=[part.state_dict() for part in (model, *stepped)], step=step, tokens=tokens, seconds=time.time() - start),
                   checkpoint.with_suffix('.tmp'))
        os.replace(checkpoint.with_suffix('.tmp'), checkpoint)
    if rank == 0 and name != 'direct': model.to(torch.bfloat16).save_pretrained(ROOT/'cotkd/assets'/f'toy-{name}')  # half the bytes; loaded as fp32


if __name__ == '__main__':
    if sys.argv[1:] == ['tokenizer']: train_tokenizer()
    elif sys.argv[1:] in ([name] for name in RECIPES): train(sys.argv[1])
    else: sys.exit(__doc__)
