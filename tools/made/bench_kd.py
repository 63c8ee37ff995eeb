"""How fast and how large is white-box KD here, beside its peers? All in one process, on the same inputs, agreeing on the loss first.

    pip install trl==1.16.0 && pip install --no-deps liger-kernel==0.8.5       # the peers; one that is missing is left out
    python tests/bench_kd.py op                                                # the loss alone: hidden states to gradients
    python tests/bench_kd.py op --shape 8192 151936 2048 4096 --dtype bfloat16 --device cuda
    python tests/bench_kd.py step --model DIR --data FILE.jsonl                # whole updates: a model and a student cut out of it
"""
import argparse, ctypes, gc, json, platform, tempfile, threading, time
from pathlib import Path

import datasets, pandas as pd, psutil, torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from cotkd.cache import TeacherCache, write_cache
from cotkd.data import load_cot
from cotkd.distill import KDConfig, KDTrainer
from cotkd.losses import fused_kd_loss
import cotkd.losses as losses
from cotkd.models import drop_layers, load_lm
from cotkd.prompt import KDCollator, encode

STUDENT_LAYERS = [0, 1, 2, 8, 9, 10, 11, 19, 20, 21, 22, 24, 27, 28, 29]  # of SmolLM2-135M's 30


class Peak:
    "Most memory in use inside the block, beyond what was in use before it, in bytes"
    def __init__(self, device): self.cuda = device == 'cuda'

    def __enter__(self):
        gc.collect()
        if self.cuda: torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); self.before = torch.cuda.memory_allocated(); return self
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        self.process, self.running = psutil.Process(), True
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch); self.thread.start()
        return self

    def _watch(self):
        while self.running: self.most = max(self.most, self.process.memory_info().rss); time.sleep(.002)

    def __exit__(self, *_):
        if self.cuda: self.bytes = torch.cuda.max_memory_allocated() - self.before; return
        self.running = False; self.thread.join(); self.bytes = self.most - self.before


def seconds(f, device, repeats): # best of several
    best = float('inf')
    for _ in range(repeats):
        start = time.perf_counter(); f()
        if device == 'cuda': torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


# --- the op

def naive(h, W, t, U):
    p, q = (t @ U.T).float().log_softmax(-1), (h @ W.T).float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def trl(h, W, t, U):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    return ChunkedDivergenceFunction.apply(h, W, None, t, U, None, 0.)[0].mean()


def liger(h, W, t, U):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0., weight_soft_loss=1., beta=0., compiled=h.is_cuda)
    return loss(h, W, t, U, torch.zeros(len(h), dtype=torch.long, device=h.device))


def patched(name, other): # the fused loss with one of its parts exchanged
    mine = getattr(losses, name)
    def loss(h, *rest):
        setattr(losses, name, other(len(h)) if name == '_push' else other)
        try: return fused_kd_loss(h, *rest)
        finally: setattr(losses, name, mine)
    return loss


def compiled(): return patched('_value_and_grad', torch.compile(losses._value_and_grad, dynamic=True)) # the arithmetic between the products


def filtered(bound): # backward products without columns whose gradient is below `bound` everywhere; the mean of their rows stands in for them
    def push_for(N):
        def push(G, hidden, head, grad_hidden, grad_head, grad_bias):
            keep = (G.abs().amax(0) >= bound / N).nonzero()[:, 0]
            kept, rows = G[:, keep], head[keep]
            left_out = (head.sum(0) - rows.sum(0)) / max(len(head) - len(keep), 1)
            grad_hidden += kept @ rows - kept.sum(1, keepdim=True) * left_out # each row of G sums to zero
            grad_head.index_add_(0, keep, kept.T @ hidden)
        return push
    return patched('_push', push_for)


def products(h, W, t, U): # the matrix products that cannot be avoided, and nothing else
    s = [(a, slice(a, a + 512)) for a in range(0, len(h), 512)]
    z, x, gh, gW = h.new_empty(512, len(W)), h.new_empty(512, len(W)), torch.empty_like(h), torch.zeros_like(W)
    def run():
        for a, rows in s:
            n = len(h[rows])
            torch.mm(h[rows], W.T, out=z[:n]); torch.mm(t[rows], U.T, out=x[:n])
            torch.mm(z[:n], W, out=gh[rows]); gW.addmm_(z[:n].T, h[rows])
    return run


def inputs(shape, dtype, device, file):
    if file: return [x.to(device, dtype) for x in torch.load(file, weights_only=True).values()]
    N, V, Hs, Ht = shape
    g = torch.Generator().manual_seed(0)
    r = lambda *s: torch.randn(*s, generator=g)
    return [x.to(device, dtype) for x in (r(N, Hs), r(V, Hs) * Hs**-.5, r(N, Ht), r(V, Ht) * Ht**-.5)]


def bench_op(args):
    h, W, t, U = inputs(args.shape, getattr(torch, args.dtype), args.device, args.inputs)
    h.requires_grad_(); W.requires_grad_()
    N, (V, Hs), Ht = len(h), W.shape, U.shape[1]
    flops = 2*N*V*(Hs + Ht) + 4*N*V*Hs
    with torch.no_grad(): floor = seconds(products(h.detach(), W.detach(), t, U), args.device, args.repeats + 1)
    want, rows = None, []
    peers = dict(naive=naive, cotkd=fused_kd_loss, trl=trl, liger=liger) | ({'cotkd, compiled': compiled()} if args.compile else {}) | \
            {f'cotkd, filtered at {bound:g}': filtered(bound) for bound in args.filter}
    for name, f in peers.items():
        def step():
            h.grad = W.grad = None
            loss = f(h, W, t, U); loss.backward()
            return loss
        h.grad = W.grad = None
        try:
            with Peak(args.device) as peak: loss = step()
        except (ImportError, torch.OutOfMemoryError) as e: print(f'{name} left out: {str(e).splitlines()[0]}'); continue
        got = [loss.item(), h.grad.double(), W.grad.double()]
        want = want or got
        off = [abs(got[0] / want[0] - 1), *((a - b).norm() / b.norm() for a, b in zip(got[1:], want[1:]))]
        best = seconds(step, args.device, args.repeats)
        rows.append(dict(what='op', implementation=name, seconds=best, of_products=floor / best, tflops=flops / best / 1e12,
                         peak_gb=(peak.bytes - h.nbytes - W.nbytes) / 2**30, loss=got[0], hidden_error=float(off[1]), head_error=float(off[2]),
                         inputs='real' if args.inputs else 'random', shape=[N, V, Hs, Ht],
                         dtype=args.dtype, device=args.device))
        print(rows[-1], flush=True)
    return rows


# --- the whole update

class Clock(TrainerCallback):
    def on_step_end(self, *_, **kw): self.ends = [*getattr(self, 'ends', []), time.perf_counter()]


class InOrder: # the rows as they come, so that every trainer has the same rows in every update
    def _get_train_sampler(self, dataset=None): return SequentialSampler(self.train_dataset)


class Ours(InOrder, KDTrainer): pass


def trl_trainers():
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    class Theirs(InOrder, GKDTrainer): pass

    class TheirLossOurBatches(InOrder, KDTrainer):
        def train(self): return Trainer.train(self)
        def compute_loss(self, model, batch, **kw):
            with torch.no_grad(): teacher = self.teacher(batch['input_ids']).logits
            return GKDTrainer.generalized_jsd_loss(model(batch['input_ids']).logits[:, :-1], teacher[:, :-1], labels=batch['labels'][:, 1:], beta=0.)
    return GKDConfig, Theirs, TheirLossOurBatches


def whole_batch(examples): # padded to the longest, as TRL's own collator does
    batch = KDCollator()(examples)
    lengths = torch.tensor([len(e['input_ids']) for e in examples])
    return dict(input_ids=batch['input_ids'], labels=batch['labels'], attention_mask=(torch.arange(lengths.max()) < lengths[:, None]).long())


def bench_step(args):
    torch.manual_seed(0)
    data = load_cot(args.data).shuffle(seed=0).select(range(args.rows * args.updates))
    teacher, tokenizer = load_lm(args.model, args.device)
    encoded = [encode(r, tokenizer) for r in data]
    cache = TeacherCache(write_cache(args.model, data, Path(tempfile.mkdtemp())/'cache'))
    vocab, rows = teacher.get_output_embeddings().weight.shape[0], []
    common = dict(per_device_train_batch_size=args.rows, max_steps=args.updates, learning_rate=1e-5, logging_steps=1, report_to='none', save_strategy='no',
                  use_cpu=args.device == 'cpu', disable_tqdm=True)
    def trainers():
        out = tempfile.mkdtemp()
        ours = dict(encoded=encoded, vocab=vocab, config=KDConfig(batch_size=args.rows))
        yield 'cotkd, live', lambda student: Ours(student, TrainingArguments(out, **common), teacher=teacher, **ours)
        yield 'cotkd, from the cache', lambda student: Ours(student, TrainingArguments(out, **common), teacher=cache, **ours)
        try: GKDConfig, Theirs, Fed = trl_trainers()
        except ImportError as e: return print(f'trl left out: {e}')
        yield 'trl GKDTrainer', lambda student: Theirs(student, teacher, GKDConfig(out, lmbda=0., beta=0., bf16=False, gradient_checkpointing=False, **common),
            train_dataset=datasets.Dataset.from_list(encoded), data_collator=whole_batch, processing_class=tokenizer)
        yield "trl's loss, cotkd's batches", lambda student: Fed(student, TrainingArguments(out, **common), teacher=teacher, **ours)
    for name, make in trainers():
        trainer, clock = make(drop_layers(teacher, STUDENT_LAYERS)), Clock()
        trainer.add_callback(clock)
        with Peak(args.device) as peak: trainer.train()
        losses = [e['loss'] for e in trainer.state.log_history if 'loss' in e]
        spent = clock.ends[-1] - clock.ends[0]
        rows.append(dict(what='step', implementation=name, rows_per_second=args.rows * (args.updates - 1) / spent, peak_gb=peak.bytes / 2**30,
                         first_loss=losses[0], last_loss=losses[-1], rows=args.rows, updates=args.updates - 1, model=Path(args.model).name))
        print(rows[-1], flush=True)
        del trainer
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('op', 'step'))
    parser.add_argument('--shape', type=int, nargs=4, metavar=('N', 'V', 'HS', 'HT'), default=(1024, 151_936, 896, 1536), help='of the op')
    parser.add_argument('--inputs', help='hidden states and heads of real models instead of random ones: a torch file of four tensors')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16')); parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--compile', action='store_true', help='also time the op with torch.compile')
    parser.add_argument('--filter', type=float, nargs='+', default=[], metavar='BOUND', help='also time the op (float32) without negligible columns')
    parser.add_argument('--repeats', type=int, default=3, help='timed runs of the op, of which the best counts')
    parser.add_argument('--model', help='directory of the teacher (SmolLM2-135M)'); parser.add_argument('--data', help='rows with rationales')
    parser.add_argument('--rows', type=int, default=8, help='per update'); parser.add_argument('--updates', type=int, default=13, help='the first is not timed')
    parser.add_argument('--json', help='append the figures to this file, one JSON object a line')
    args = parser.parse_args()
    machine = dict(machine=torch.cuda.get_device_name() if args.device == 'cuda' else f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads',
                   torch=torch.__version__)
    rows = [dict(r, **machine) for r in (bench_op if args.what == 'op' else bench_step)(args)]
    table = pd.DataFrame(rows).set_index('implementation')
    speed = 1 / table.seconds if args.what == 'op' else table.rows_per_second
    for peer in [n for n in table.index if not n.startswith('cotkd')]: table[f'x {peer}'] = speed / speed[peer]
    print(table.drop(columns=['what', 'machine', 'torch']).T.to_string())
    if args.json:
        with open(args.json, 'a') as file: file.writelines(json.dumps(r) + '\n' for r in rows)


if __name__ == '__main__': main()
