"""How fast and how large is white-box KD here, beside its peers?

    pip install trl==1.16.0                         # the peers; one that is missing is left out
    pip install --no-deps liger-kernel==0.8.5
    python tools/made/bench_kd.py op                # the loss alone: hidden states to gradients
    python tools/made/bench_kd.py op --shape 8192 151936 2048 4096 --dtype bfloat16 --device cuda
    python tools/made/bench_kd.py step --model DIR --data FILE.jsonl

`step` times whole updates of a model and a student cut out of it. All in one process, on the same
inputs, agreeing on the loss first. With --json the figures are added to a file, such as
cotkd/results/bench_kd.jsonl.
"""
import argparse
import ctypes
import gc
import json
import platform
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd
import psutil
import torch
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainingArguments

import cotkd.losses as losses
from cotkd.cache import TeacherCache, write_cache
from cotkd.data import load_cot
from cotkd.losses import fused_kd_loss
from cotkd.models import drop_layers, load_lm
from cotkd.prompt import KDCollator, encode
from cotkd.trainer import KDConfig, KDTrainer

STUDENT_LAYERS = [0, 1, 2, 8, 9, 10, 11, 19, 20, 21, 22, 24, 27, 28, 29]  # of SmolLM2-135M's 30


class PeakCuda:
    "Most memory in use inside the block, beyond what was in use before it, in bytes"

    def __enter__(self):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_):
        self.bytes = torch.cuda.max_memory_allocated() - self.before


class PeakCPU:
    "The same of this process, which a thread looks at every 2 ms"

    def __enter__(self):
        gc.collect()
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        self.process = psutil.Process()
        self.running = True
        self.before = self.process.memory_info().rss
        self.most = self.before
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while self.running:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(.002)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()
        self.bytes = self.most - self.before


def peak_memory(device):
    return PeakCuda() if device == 'cuda' else PeakCPU()


def best_seconds(function, device, repeats):
    "Of several calls"
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device == 'cuda':
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


# --- the loss alone: student's hidden states h and head W, teacher's t and U

def naive(h, W, t, U):
    log_p = (t @ U.T).float().log_softmax(-1)
    log_q = (h @ W.T).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def trl(h, W, t, U):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    return ChunkedDivergenceFunction.apply(h, W, None, t, U, None, 0.)[0].mean()


def liger(h, W, t, U):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0., weight_soft_loss=1., beta=0.,
                                   compiled=h.is_cuda)
    labels = torch.zeros(len(h), dtype=torch.long, device=h.device)
    return loss(h, W, t, U, labels)


def exchanged(name, make_other):
    "The fused loss with one of its parts exchanged; `make_other`: positions -> the other part"
    def loss(h, W, t, U):
        ours = getattr(losses, name)
        setattr(losses, name, make_other(len(h)))
        try:
            return fused_kd_loss(h, W, t, U)
        finally:
            setattr(losses, name, ours)
    return loss


def compiled():
    "With the arithmetic between the products compiled"
    other = torch.compile(losses._value_and_grad, dynamic=True)
    return exchanged('_value_and_grad', lambda n: other)


def filtered(bound):
    """Without columns in the backward products whose gradient is below `bound` everywhere; the mean
    of their rows stands in for them, since each row of G sums to zero"""
    def make_push(n):
        def push(G, side, rows, gradients):
            keep = (G.abs().amax(0) >= bound / n).nonzero()[:, 0]
            kept = G[:, keep]
            head = side.head[keep]
            others = max(len(side.head) - len(keep), 1)
            left_out = (side.head.sum(0) - head.sum(0)) / others
            gradients.hidden[rows] += kept @ head - kept.sum(1, keepdim=True) * left_out
            gradients.head.index_add_(0, keep, kept.T @ side.hidden[rows])
        return push
    return exchanged('_push', make_push)


def products(h, W, t, U, size=512):
    "A function: the matrix products that cannot be avoided, and nothing else"
    student = h.new_empty(size, len(W))
    teacher = h.new_empty(size, len(W))
    grad_h = torch.empty_like(h)
    grad_W = torch.zeros_like(W)

    def run():
        for start in range(0, len(h), size):
            rows = slice(start, start + size)
            n = len(h[rows])
            torch.mm(h[rows], W.T, out=student[:n])
            torch.mm(t[rows], U.T, out=teacher[:n])
            torch.mm(student[:n], W, out=grad_h[rows])
            grad_W.addmm_(student[:n].T, h[rows])
    return run


def find_inputs(args):
    "h, W, t, U"
    dtype = getattr(torch, args.dtype)
    if args.inputs:
        found = torch.load(args.inputs, weights_only=True).values()
        return [x.to(args.device, dtype) for x in found]
    N, V, Hs, Ht = args.shape
    generator = torch.Generator().manual_seed(0)
    found = []
    for width in (Hs, Ht):
        found.append(torch.randn(N, width, generator=generator))
        found.append(torch.randn(V, width, generator=generator) * width**-.5)
    return [x.to(args.device, dtype) for x in found]


def find_losses(args):
    "Name -> a function of h, W, t, U; the first is the measure of the others"
    found = dict(naive=naive, cotkd=fused_kd_loss, trl=trl, liger=liger)
    if args.compile:
        found['cotkd, compiled'] = compiled()
    for bound in args.filter:
        found[f'cotkd, filtered at {bound:g}'] = filtered(bound)
    return found


def one_step(loss, tensors):
    "-> a function: loss and gradients"
    h, W, t, U = tensors

    def step():
        h.grad = W.grad = None
        value = loss(h, W, t, U)
        value.backward()
        return value
    return step


def measure_loss(name, loss, tensors, args):
    "-> a row for the results, and the gradients of h and W"
    h, W = tensors[:2]
    step = one_step(loss, tensors)
    h.grad = W.grad = None
    with peak_memory(args.device) as peak:
        value = step().item()
    gradients = [h.grad.double(), W.grad.double()]
    row = dict(what='op', implementation=name,
               seconds=best_seconds(step, args.device, args.repeats),
               peak_gb=(peak.bytes - h.nbytes - W.nbytes) / 2**30, loss=value)
    return row, gradients


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def bench_op(args):
    tensors = find_inputs(args)
    plain = [x.detach() for x in tensors]
    h, W = [x.requires_grad_() for x in tensors[:2]]
    shape = [*h.shape[:1], *W.shape, tensors[3].shape[1]]
    N, V, Hs, Ht = shape
    flops = 2 * N * V * (Hs + Ht) + 4 * N * V * Hs
    floor = best_seconds(products(*plain), args.device, args.repeats + 1)
    wanted = None
    rows = []
    for name, loss in find_losses(args).items():
        try:
            row, gradients = measure_loss(name, loss, tensors, args)
        except (ImportError, torch.OutOfMemoryError) as error:
            print(f'{name} left out: {str(error).splitlines()[0]}')
            continue
        wanted = wanted or gradients
        row |= dict(of_products=floor / row['seconds'], tflops=flops / row['seconds'] / 1e12,
                    hidden_error=relative_error(gradients[0], wanted[0]),
                    head_error=relative_error(gradients[1], wanted[1]),
                    inputs='real' if args.inputs else 'random', shape=shape, dtype=args.dtype,
                    device=args.device)
        rows.append(row)
        print(row, flush=True)
    return rows


# --- the whole update

class Clock(TrainerCallback):
    "When each update ended"

    def __init__(self):
        self.ends = []

    def on_step_end(self, *_, **kwargs):
        self.ends.append(time.perf_counter())


class InOrder:
    "The rows as they come, so that every trainer has the same rows in every update"

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)


class Ours(InOrder, KDTrainer):
    pass


@dataclass
class Setup:
    "What all trainers are given"
    teacher: object
    tokenizer: object
    encoded: list
    cache: TeacherCache
    common: dict  # `TrainingArguments`
    rows: int  # of an update

    def arguments(self):
        return TrainingArguments(tempfile.mkdtemp(), **self.common)

    def ours(self, kind, student, teacher):
        vocab = len(self.teacher.get_output_embeddings().weight)
        return kind(student, self.arguments(), self.encoded, teacher=teacher, vocab=vocab,
                    config=KDConfig(batch_size=self.rows))


def make_setup(args):
    torch.manual_seed(0)
    data = load_cot(args.data).shuffle(seed=0).select(range(args.rows * args.updates))
    teacher, tokenizer = load_lm(args.model, args.device)
    encoded = [encode(row, tokenizer) for row in data]
    cache = TeacherCache(write_cache(args.model, data, Path(tempfile.mkdtemp())/'cache'))
    common = dict(per_device_train_batch_size=args.rows, max_steps=args.updates,
                  learning_rate=1e-5, logging_steps=1, report_to='none', save_strategy='no',
                  use_cpu=args.device == 'cpu', disable_tqdm=True)
    return Setup(teacher, tokenizer, encoded, cache, common, args.rows)


def live(setup, student):
    return setup.ours(Ours, student, setup.teacher)


def cached(setup, student):
    return setup.ours(Ours, student, setup.cache)


def whole_batch(examples):
    "Padded to the longest, as TRL's own collator does"
    batch = KDCollator()(examples)
    lengths = torch.tensor([len(e['input_ids']) for e in examples])
    mask = torch.arange(lengths.max()) < lengths[:, None]
    return dict(input_ids=batch['input_ids'], labels=batch['labels'], attention_mask=mask.long())


def trl_trainer(setup, student):
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Theirs(InOrder, GKDTrainer):
        pass

    config = GKDConfig(tempfile.mkdtemp(), lmbda=0., beta=0., bf16=False,
                       gradient_checkpointing=False, **setup.common)
    return Theirs(student, setup.teacher, config,
                  train_dataset=datasets.Dataset.from_list(setup.encoded),
                  data_collator=whole_batch, processing_class=setup.tokenizer)


def trl_loss(setup, student):
    from trl.experimental.gkd import GKDTrainer

    class TheirLossOurBatches(InOrder, KDTrainer):
        def compute_loss(self, model, batch, **kwargs):
            with torch.no_grad():
                teacher = setup.teacher(batch['input_ids']).logits
            logits = model.student(batch['input_ids']).logits
            return GKDTrainer.generalized_jsd_loss(logits[:, :-1], teacher[:, :-1],
                                                   labels=batch['labels'][:, 1:], beta=0.)

    return setup.ours(TheirLossOurBatches, student, setup.teacher)


TRAINERS = {'cotkd, live': live, 'cotkd, from the cache': cached, 'trl GKDTrainer': trl_trainer,
            "trl's loss, cotkd's batches": trl_loss}


def measure_updates(name, trainer, args):
    "The first update is not timed"
    clock = Clock()
    trainer.add_callback(clock)
    with peak_memory(args.device) as peak:
        trainer.train()
    found = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    spent = clock.ends[-1] - clock.ends[0]
    updates = args.updates - 1
    return dict(what='step', implementation=name, rows_per_second=args.rows * updates / spent,
                peak_gb=peak.bytes / 2**30, first_loss=found[0], last_loss=found[-1],
                rows=args.rows, updates=updates, model=Path(args.model).name)


def bench_step(args):
    setup = make_setup(args)
    rows = []
    for name, make_trainer in TRAINERS.items():
        try:
            trainer = make_trainer(setup, drop_layers(setup.teacher, STUDENT_LAYERS))
        except ImportError as error:
            print(f'{name} left out: {error}')
            continue
        rows.append(measure_updates(name, trainer, args))
        print(rows[-1], flush=True)
        del trainer
    return rows


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('op', 'step'))
    parser.add_argument('--shape', type=int, nargs=4, metavar=('N', 'V', 'HS', 'HT'),
                        default=(1024, 151_936, 896, 1536), help='of the op')
    parser.add_argument('--inputs', help='hidden states and heads of real models instead of '
                        'random ones: a torch file of four tensors')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--compile', action='store_true', help='also the op with torch.compile')
    parser.add_argument('--filter', type=float, nargs='+', default=[], metavar='BOUND',
                        help='also the op (float32) without negligible columns')
    parser.add_argument('--repeats', type=int, default=3,
                        help='timed runs of the op, of which the best counts')
    parser.add_argument('--model', help='directory of the teacher (SmolLM2-135M)')
    parser.add_argument('--data', help='rows with rationales')
    parser.add_argument('--rows', type=int, default=8, help='per update')
    parser.add_argument('--updates', type=int, default=13, help='the first is not timed')
    parser.add_argument('--json', help='append the figures to this file')
    args = parser.parse_args()
    if args.what == 'step' and not (args.model and args.data):
        parser.error('step needs --model and --data')
    return args


def find_machine(device):
    if device == 'cuda':
        return torch.cuda.get_device_name()
    return f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'


def show(rows, what):
    "How many times faster each is than each peer"
    table = pd.DataFrame(rows).set_index('implementation')
    speed = 1 / table.seconds if what == 'op' else table.rows_per_second
    for name in table.index:
        if not name.startswith('cotkd'):
            table[f'x {name}'] = speed / speed[name]
    print(table.drop(columns=['what', 'machine', 'torch']).T.to_string())


def main():
    args = read_options()
    rows = bench_op(args) if args.what == 'op' else bench_step(args)
    about = dict(machine=find_machine(args.device), torch=torch.__version__)
    rows = [row | about for row in rows]
    show(rows, args.what)
    if args.json:
        with open(args.json, 'a') as file:
            file.writelines(json.dumps(row) + '\n' for row in rows)


if __name__ == '__main__':
    main()
