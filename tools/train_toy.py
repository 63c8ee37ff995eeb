"""Train the embedded toy models from scratch, on generated problems only.

    python tools/train_toy.py tokenizer               # once: the byte-level BPE tokenizer both models share
    python tools/train_toy.py teacher                 # the evaluated families, with rationales and directly
    python tools/train_toy.py student                 # the sibling families only: pre-trained, but new to what is evaluated
    python tools/train_toy.py direct                  # a control: the base student, taught right answers without rationales to convergence

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
from cotkd.toy import MIX, SIBLINGS, TOY_TASKS, make_toy

ROOT = Path(__file__).parent.parent
SEED, VOCAB, CONTEXT = 20251, 2048, 1024
BATCH, MICRO, CHUNK = 32, 4, 100  # rows per update; rows that go through the model at once; updates whose rows are generated together
# direct: share of rows answered without a rationale; one mean over all tokens of an update keeps them from drowning the rest
RECIPES = {
    'teacher': dict(tasks=MIX, direct=.1, updates=3000, lr=2e-3, hidden_size=128, intermediate_size=384,
                    num_hidden_layers=4, num_attention_heads=4),
    'student': dict(tasks=SIBLINGS, direct=.1, updates=1500, lr=2e-3, hidden_size=96, intermediate_size=288,
                    num_hidden_layers=4, num_attention_heads=3),
    'direct': dict(tasks=MIX, direct=1., updates=2000, lr=1e-3),
}


def bbh_sources():
    return frozenset(e['input'] for items in load_bbh().values() for e in items) if 'COTKD_BBH' in os.environ else frozenset()


def train_tokenizer():
    rows = make_toy(list(TOY_TASKS), 24_000, seed=SEED, exclude=bbh_sources())
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
    tasks, direct, updates, peak = (recipe.pop(k) for k in ('tasks', 'direct', 'updates', 'lr'))
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT/'cotkd/assets/toy-student')
    if name == 'direct': model = LlamaForCausalLM.from_pretrained(ROOT/'cotkd/assets/toy-student', dtype=torch.float32)
    else: model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None,
                                               eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **recipe))
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(.9, .98), weight_decay=.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 100) * (.02 + .98 * .5 * (1 + math.cos(math.pi * s / updates))))
    checkpoint, log = ROOT/f'runs/train-toy-{name}/last.pt', ROOT/f'cotkd/results/training-{name}.jsonl'
    for file in (checkpoint, log): file.parent.mkdir(parents=True, exist_ok=True)
    step = tokens = seconds = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state['model']); optimizer.load_state_dict(state['optimizer']); schedule.load_state_dict(state['schedule'])
        step, tokens, seconds = state['step'], state['tokens'], state['seconds']
    elif rank == 0: log.write_text(json.dumps(dict(seed=SEED, batch=BATCH, parameters=model.num_parameters(), **RECIPES[name])) + '\n')
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
            tokens += sum(int(b['attention_mask'].sum()) for b in update)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            optimizer.step(); schedule.step(); optimizer.zero_grad(); step += 1
        total = accelerator.reduce(total, 'sum').item()
        if rank: continue
        modes = ('direct',) if direct == 1 else ('cot', 'direct')
        right = {f'{t}/{m}': round(exact(model, tokenizer, t, m)) for t in dict.fromkeys(tasks) for m in modes} if step % 500 == 0 else {}
        with log.open('a') as f:
            f.write(json.dumps(dict(step=step, tokens=tokens, seconds=round(time.time() - start), loss=round(total / CHUNK, 4), **right)) + '\n')
        torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), schedule=schedule.state_dict(), step=step, tokens=tokens,
                        seconds=time.time() - start), checkpoint.with_suffix('.tmp'))
        os.replace(checkpoint.with_suffix('.tmp'), checkpoint)
    if rank == 0 and name != 'direct': model.to(torch.bfloat16).save_pretrained(ROOT/'cotkd/assets'/f'toy-{name}')  # half the bytes; loaded as fp32


if __name__ == '__main__':
    if sys.argv[1:] == ['tokenizer']: train_tokenizer()
    elif sys.argv[1:] in ([name] for name in RECIPES): train(sys.argv[1])
    else: sys.exit(__doc__)
