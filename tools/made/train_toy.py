"""Train the embedded toy models from scratch, on generated problems only.

    python tools/made/train_toy.py tokenizer    # once: the byte-level BPE tokenizer of both models
    python tools/made/train_toy.py teacher      # evaluated families, with rationales and directly
    python tools/made/train_toy.py student      # sibling families only: new to what is evaluated
    python tools/made/train_toy.py direct       # a control: the student, taught answers alone

On several cores this is the fastest (1.65 times on two), as models as small as these use a second
thread badly:

    OMP_NUM_THREADS=1 torchrun --nproc_per_node N tools/made/train_toy.py NAME

The first three write cotkd/assets/toy-NAME/; the control is not kept. Logs go to
cotkd/results/training-NAME.jsonl. A killed run continues from its last checkpoint in
runs/train-toy-NAME/. Recipe and seed are the constants below. Where COTKD_BBH is set, generated
problems that equal one of its items are left out.
"""
import argparse
import json
import math
import os
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cotkd.bbh import load_bbh
from cotkd.prompt import KDCollator, encode, format_example
from cotkd.toy import MIX, SIBLINGS, make_toy

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT/'cotkd/assets'
SEED = 20251
VOCAB = 2048
CONTEXT = 1024
BATCH = 16  # rows per update
MICRO = 4  # rows that go through the model at once
CHUNK = 100  # updates whose rows are generated together
MUON_LR = .01
ADAMW_LR = 2e-3
# direct: share of rows answered without a rationale; one mean over all tokens of an update keeps
# them from drowning the rest
RECIPES = {
    'teacher': dict(tasks=MIX, direct=.1, updates=5000, hidden_size=128, intermediate_size=384,
                    num_hidden_layers=4, num_attention_heads=4),
    'student': dict(tasks=SIBLINGS, direct=.1, updates=4000, hidden_size=96,
                    intermediate_size=288, num_hidden_layers=4, num_attention_heads=3),
    'direct': dict(tasks=MIX, direct=1., updates=3000),
}
SIZES = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')


def bbh_sources():
    if 'COTKD_BBH' not in os.environ:
        return frozenset()
    return frozenset(item['input'] for items in load_bbh().values() for item in items)


def train_tokenizer():
    rows = make_toy(MIX, 24_000, seed=SEED, exclude=bbh_sources())
    texts = (''.join(format_example(row['source'], row['target'], row['rationale']).values())
             for row in rows)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=['<|pad|>', '<|end|>'],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<|end|>',
                                        pad_token='<|pad|>', model_max_length=CONTEXT)
    for name in ('teacher', 'student'):
        tokenizer.save_pretrained(ASSETS/f'toy-{name}')


def batches(tokenizer, tasks, direct, chunk):
    "The updates of one chunk: each a list of micro-batches of similar length"
    rng = random.Random(SEED + chunk)
    rows = make_toy(tasks, BATCH * CHUNK, seed=SEED + 1 + chunk, exclude=bbh_sources())
    encoded = [encode(row, tokenizer, 'direct' if rng.random() < direct else 'cot')
               for row in rows]
    collate = KDCollator(tokenizer.pad_token_id)
    for i in range(0, len(encoded), BATCH):
        update = sorted(encoded[i:i+BATCH], key=lambda e: len(e['input_ids']))
        yield [collate(update[j:j+MICRO]) for j in range(0, BATCH, MICRO)]


def supervised_logits(model, batch):
    "-> logits (N, V) and labels (N,) at the supervised positions, and where these are (B, T - 1)"
    # right padding and causal attention: no real token can see a padded one, so no mask is needed
    hidden = model.model(input_ids=batch['input_ids']).last_hidden_state[:, :-1]
    labels = batch['labels'][:, 1:]
    on = labels != -100
    return model.lm_head(hidden[on]), labels[on], on


def share(update, rank, world):
    "The micro-batches of one process: dealt out to and fro, so that each gets short and long ones"
    mine = (rank, 2 * world - 1 - rank)
    return [batch for i, batch in enumerate(update) if i % (2 * world) in mine]


class SummedLoss(torch.nn.Module):
    "Cross-entropy over a batch; a module, so that accelerate can spread it over processes"

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        logits, labels, _ = supervised_logits(self.model, batch)
        return torch.nn.functional.cross_entropy(logits, labels, reduction='sum')


def orthogonal(x):
    "Newton-Schulz on matrices (n, rows, columns), rows <= columns, with Jordan's coefficients"
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for weight matrices (Jordan et al. 2024).

    Tracking three objects took it less than half of AdamW's tokens. `torch.optim.Muon` iterates in
    bfloat16, which processors without it emulate, many times slower."""

    def __init__(self, params, lr, momentum=.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    def direction(self, p, momentum):
        state = self.state[p].setdefault('momentum', torch.zeros_like(p))
        state.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state, momentum)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}  # matrices of one shape, the longer side last, are iterated on together
            for p in group['params']:
                update = self.direction(p, group['momentum'])
                rows, columns = update.shape
                tall = rows > columns
                wide = update.T if tall else update
                alike.setdefault((tall, rows, columns), []).append((p, wide))
            for (tall, rows, columns), pairs in alike.items():
                size = group['lr'] * max(1, rows / columns) ** .5
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                for (p, _), update in zip(pairs, updates):
                    p.add_(update.T if tall else update, alpha=-size)


@torch.no_grad()
def add_induction_heads(model, heads=2, embedding=.5, sharpness=7., match=2.):
    """Start with heads that copy (Olsson et al. 2022).

    In the first layer they bring along the token before, in the second they look where this token
    stood before and predict what followed it. From random weights such heads form after millions of
    tokens; set by hand, as initial values like any other, they spare the models that wait (cf.
    Trockman & Kolter 2023)."""
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    width = model.config.hidden_size
    size = first.head_dim
    half = size // 2
    theta = model.config.rope_parameters['rope_theta']
    angle = theta ** (-torch.arange(half) / half)  # by which a pair turns per position
    # these turn so little that they compare content, wherever it stands
    slow = [i for i in range(size) if i % half >= 6]
    # else what is trained soon drowns it
    model.get_input_embeddings().weight *= embedding / model.config.initializer_range
    model.model.norm.weight.fill_(.25)  # and the tied head stays moderate
    before = torch.linalg.qr(torch.randn(width, width)).Q
    current = torch.linalg.qr(torch.randn(width, width)).Q
    for i in range(heads):
        h = slice(i * size, (i + 1) * size)
        # rotary embeddings turn these two vectors onto each other one position apart
        first.k_proj.bias[h] = sharpness * torch.cat([torch.ones(half), torch.zeros(half)])
        first.q_proj.bias[h] = sharpness * torch.cat([angle.cos(), -angle.sin()])
        first.v_proj.weight[h] = current[h]
        first.o_proj.weight[:, h] = embedding * before[:, h]
        second.q_proj.weight[h] = 0
        second.k_proj.weight[h] = 0
        second.q_proj.weight[h][slow] = match * current[h][:len(slow)]
        second.k_proj.weight[h][slow] = match * before[:, h].T[:len(slow)]
        second.v_proj.weight[h] = current[h]
        second.o_proj.weight[:, h] = embedding * current[h].T


@torch.no_grad()
def exact(model, tokenizer, task, mode, n=100):
    "Percent of held-out rows of which greedy decoding would write exactly the text"
    rows = make_toy([task], n, seed=SEED, heldout=True, exclude=bbh_sources())
    encoded = [encode(row, tokenizer, mode) for row in rows]
    batch = KDCollator(tokenizer.pad_token_id)(encoded)
    logits, labels, supervised = supervised_logits(model, batch)
    wrong = torch.zeros(supervised.shape, dtype=torch.bool)
    wrong[supervised] = logits.argmax(-1) != labels
    return 100 * (~wrong.any(1)).float().mean().item()


def make_model(name, tokenizer):
    "The control goes on from the base student; the others begin with induction heads"
    if name == 'direct':
        return LlamaForCausalLM.from_pretrained(ASSETS/'toy-student', dtype=torch.float32)
    sizes = {key: RECIPES[name][key] for key in SIZES}
    config = LlamaConfig(
        vocab_size=VOCAB, attention_bias=True, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, num_key_value_heads=sizes['num_attention_heads'],
        rope_parameters=dict(rope_type='default', rope_theta=1e6), **sizes)
    model = LlamaForCausalLM(config)
    add_induction_heads(model)
    return model


def make_optimizers(model, updates):
    "Muon for the matrices, AdamW for the rest, and a schedule for each"
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = set(matrices)
    others = [p for p in model.parameters() if p not in known]
    optimizers = [Muon(matrices, MUON_LR),
                  torch.optim.AdamW(others, ADAMW_LR, betas=(.9, .98), weight_decay=0,
                                    fused=True)]

    def shape(step):
        "100 updates of warm-up, then a cosine down to 2%"
        cosine = .5 * (1 + math.cos(math.pi * step / updates))
        return min(1, (step + 1) / 100) * (.02 + .98 * cosine)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, shape) for optimizer in optimizers]
    return [*optimizers, *schedules]


@dataclass
class Training:
    "A model on its way; `step`, `tokens` and `seconds` are those of all starts together"
    name: str
    model: object
    tokenizer: object
    stepped: list  # optimizers and schedules
    accelerator: Accelerator
    step: int = 0
    tokens: int = 0
    seconds: float = 0
    started: float = field(default_factory=time.time)

    def __post_init__(self):
        self.recipe = RECIPES[self.name]
        self.rank = self.accelerator.process_index
        self.checkpoint = ROOT/f'runs/train-toy-{self.name}/last.pt'
        self.log = ROOT/f'cotkd/results/training-{self.name}.jsonl'
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)

    @property
    def parts(self):
        return [self.model, *self.stepped]

    def time_spent(self):
        return self.seconds + time.time() - self.started

    def write(self, line, how='a'):
        with self.log.open(how) as file:
            file.write(json.dumps(line) + '\n')

    def load(self):
        "Go on from the checkpoint, or begin the log"
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            for part, old in zip(self.parts, state['parts']):
                part.load_state_dict(old)
            self.step = state['step']
            self.tokens = state['tokens']
            self.seconds = state['seconds']
        elif self.rank == 0:
            self.write(dict(seed=SEED, batch=BATCH, muon_lr=MUON_LR, adamw_lr=ADAMW_LR,
                            parameters=self.model.num_parameters(), **self.recipe), 'w')

    def save(self):
        state = dict(parts=[part.state_dict() for part in self.parts], step=self.step,
                     tokens=self.tokens, seconds=self.time_spent())
        part = self.checkpoint.with_suffix('.tmp')
        torch.save(state, part)
        os.replace(part, self.checkpoint)


def scores(training):
    "Percent of each family, every 1000 updates and at the end"
    recipe = training.recipe
    if training.step % 1000 and training.step != recipe['updates']:
        return {}
    modes = ('direct',) if recipe['direct'] == 1 else ('cot', 'direct')
    return {f'{task}/{mode}': round(exact(training.model, training.tokenizer, task, mode))
            for task in dict.fromkeys(recipe['tasks']) for mode in modes}


def make_update(training, loss, update):
    "Forward, backward, step; -> the loss, in this process's parts"
    accelerator = training.accelerator
    world = accelerator.num_processes
    supervised = sum((batch['labels'][:, 1:] != -100).sum() for batch in update)
    mine = share(update, training.rank, world)
    parts = []
    for batch in mine:
        with nullcontext() if batch is mine[-1] else accelerator.no_sync(loss):
            part = loss(batch) / supervised
            accelerator.backward(part * world)  # gradients are averaged over processes
        parts.append(part.detach())
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.)
    for each in training.stepped:
        each.step()
    training.model.zero_grad()
    return parts


def train_chunk(training, loss):
    "-> mean loss of an update"
    recipe = training.recipe
    pad = training.tokenizer.pad_token_id
    total = torch.zeros(())
    chunk = training.step // CHUNK
    for update in batches(training.tokenizer, recipe['tasks'], recipe['direct'], chunk):
        for part in make_update(training, loss, update):
            total += part
        training.tokens += sum(int((batch['input_ids'] != pad).sum()) for batch in update)
        training.step += 1
    return training.accelerator.reduce(total, 'sum').item() / CHUNK


def train(name):
    torch.manual_seed(SEED)
    torch.set_flush_denormal(True)
    accelerator = Accelerator(cpu=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ASSETS/'toy-student')
    model = make_model(name, tokenizer)
    updates = RECIPES[name]['updates']
    training = Training(name, model, tokenizer, make_optimizers(model, updates), accelerator)
    training.load()
    loss = accelerator.prepare(SummedLoss(model))
    while training.step < updates:
        mean = train_chunk(training, loss)
        if training.rank == 0:
            training.write(dict(step=training.step, tokens=training.tokens,
                                seconds=round(training.time_spent()), loss=round(mean, 4),
                                **scores(training)))
            training.save()
    if training.rank == 0 and name != 'direct':
        # half the bytes; loaded as float32
        model.to(torch.bfloat16).save_pretrained(ASSETS/f'toy-{name}')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=('tokenizer', *RECIPES))
    name = parser.parse_args().name
    if name == 'tokenizer':
        train_tokenizer()
    else:
        train(name)


if __name__ == '__main__':
    main()
