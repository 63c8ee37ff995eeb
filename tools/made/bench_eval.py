"""How fast are few-shot questions of BIG-Bench-Hard answered, beside lm-evaluation-harness?

    pip install -c constraints.txt -e ".[dev]"                # brings the harness
    python tools/made/bench_eval.py --model DIR --bbh DIR

SmolLM2-135M, greedy, three examples, float32. In one process, with the same model, prompts, stop
string and token limit; then both texts are compared, and where they part, the distance between the
two likeliest tokens is looked at. With --json the figures are added to a file, such as
cotkd/results/bench_eval.jsonl.
"""
import argparse
import json
import platform
import tempfile
import time
from dataclasses import dataclass

import pandas as pd
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from cotkd.bbh import SCORERS, Benchmark, bbh_benchmark
from cotkd.evaluate import Asking, Subject, evaluate, sample_rows
from cotkd.generate import shared_length
from cotkd.models import load_lm
from cotkd.names import model_identity
from cotkd.records import read_predictions

SHOTS = 3
STOP = SCORERS['official'].stops['cot']


@dataclass
class Setup:
    "What both implementations are given"
    model: object
    tokenizer: object
    benchmark: Benchmark
    subject: Subject
    items: int  # questions of each task
    max_new_tokens: int
    prompts: dict  # (task, row) -> text


def make_setup(args):
    model, tokenizer = load_lm(args.model)
    benchmark = bbh_benchmark(args.bbh, args.tasks)
    prompts = {}
    for task, rows in benchmark.items.items():
        for i in sample_rows(task, len(rows), args.items):
            prompts[task, i] = benchmark.prompt(task, rows[i]['input'], shots=SHOTS)
    subject = Subject('student', 'bench', model_identity(args.model))
    return Setup(model, tokenizer, benchmark, subject, args.items, args.max_new_tokens, prompts)


def ask_theirs(setup, batch_size):
    "Texts of the harness's own `generate_until`, all tasks in one call, as it runs them"
    harness = HFLM(pretrained=setup.model, tokenizer=setup.tokenizer, batch_size=batch_size)
    settings = dict(until=list(STOP), do_sample=False, max_gen_toks=setup.max_new_tokens)
    asked = [Instance(request_type='generate_until', doc={}, arguments=(prompt, settings), idx=i)
             for i, prompt in enumerate(setup.prompts.values())]
    return dict(zip(setup.prompts, harness.generate_until(asked, disable_tqdm=True)))


def ask_ours(setup, batch_size):
    "Texts of `evaluate`, as `cotkd eval` runs it: files written, answers scored"
    asking = Asking(shots=SHOTS, limit=setup.items, batch_size=batch_size,
                    max_new_tokens=setup.max_new_tokens)
    texts = {}
    with tempfile.TemporaryDirectory() as out:
        results = evaluate(setup.model, setup.tokenizer, setup.benchmark, setup.subject, asking,
                           out=out, progress=False)
        for row in results:
            for i, line in read_predictions(out, row).items():
                texts[row['task'], i] = line['text']
    return texts


IMPLEMENTATIONS = {'cotkd': ask_ours, 'lm-evaluation-harness': ask_theirs}


def margin(setup, prompt, ours, theirs):
    "Where two texts part: how many tokens in, and the distance of the two likeliest logits there"
    a = setup.tokenizer(prompt + ours)['input_ids']
    b = setup.tokenizer(prompt + theirs)['input_ids']
    before = len(setup.tokenizer(prompt)['input_ids'])
    at = min(len(a), len(b))
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            at = i
            break
    with torch.inference_mode():
        logits = setup.model(torch.tensor([a[:at]]), logits_to_keep=1).logits[0, -1]
    top = logits.topk(2).values
    return dict(tokens=at - before, margin=float(top[0] - top[1]))


def count_read(setup):
    "Tokens of all prompts, as they are and with the shared part of each task read once"
    by_task = {}
    for (task, _), prompt in setup.prompts.items():
        by_task.setdefault(task, []).append(setup.tokenizer(prompt)['input_ids'])
    whole = once = 0
    for rows in by_task.values():
        tokens = sum(map(len, rows))
        whole += tokens
        once += tokens - shared_length(rows) * (len(rows) - 1)
    print(f'{len(setup.prompts)} prompts of {whole:,} tokens; {once:,} with the shared part of '
          f'each task read once: {whole / once:.1f} times fewer to read')
    return {'cotkd': once, 'lm-evaluation-harness': whole}


def measure(setup, name, batch_size):
    "-> the texts of one implementation, and what it took"
    start = time.perf_counter()
    texts = IMPLEMENTATIONS[name](setup, batch_size)
    seconds = time.perf_counter() - start
    written = sum(len(setup.tokenizer(text)['input_ids']) for text in texts.values())
    row = dict(what='eval', implementation=name, batch_size=batch_size, seconds=seconds,
               items=len(setup.prompts), written_tokens=written)
    print(row, flush=True)
    return texts, row


def compare(setup, texts, rows):
    "Both at their fastest: how much faster, and which texts differ"
    best = {}
    for name in IMPLEMENTATIONS:
        best[name] = min((row for row in rows if row['implementation'] == name),
                         key=lambda row: row['seconds'])
    ours, theirs = (texts[name, row['batch_size']] for name, row in best.items())
    differ = []
    for (task, i), prompt in setup.prompts.items():
        both = (ours[task, i], theirs[task, i])
        if both[0] != both[1]:
            differ.append(dict(task=task, index=i, **margin(setup, prompt, *both)))
    between = 0
    for (name, _), found in texts.items():
        if name == 'cotkd':
            between += sum(found[key] != ours[key] for key in setup.prompts)
    speedup = best['lm-evaluation-harness']['seconds'] / best['cotkd']['seconds']
    return dict(what='comparison', items=len(setup.prompts), speedup=speedup,
                identical=len(setup.prompts) - len(differ), differ=differ,
                differ_between_our_batch_sizes=between)


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help='directory of the model (SmolLM2-135M)')
    parser.add_argument('--bbh', help='directory of BIG-Bench-Hard (default: COTKD_BBH)')
    parser.add_argument('--tasks', default='date_understanding,navigate,web_of_lies')
    parser.add_argument('--items', type=int, default=24, help='of each task')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[1, 8, 16])
    parser.add_argument('--max-new-tokens', type=int, default=256)
    parser.add_argument('--json', help='append the figures to this file')
    return parser.parse_args()


def main():
    args = read_options()
    setup = make_setup(args)
    read = count_read(setup)
    about = dict(tasks=args.tasks, max_new_tokens=args.max_new_tokens,
                 dtype=str(setup.model.dtype).removeprefix('torch.'),
                 machine=f'{platform.machine()}, {torch.get_num_threads()} threads',
                 torch=torch.__version__)
    texts = {}
    rows = []
    for size in args.batch_sizes:
        for name in IMPLEMENTATIONS:
            texts[name, size], row = measure(setup, name, size)
            rows.append(row | dict(read_tokens=read[name]) | about)
    table = pd.DataFrame(rows).pivot(index='batch_size', columns='implementation',
                                     values='seconds')
    rows.append(compare(setup, texts, rows))
    print(table.round(1).to_string(), rows[-1], sep='\n')
    if args.json:
        with open(args.json, 'a') as file:
            file.writelines(json.dumps(row) + '\n' for row in rows)


if __name__ == '__main__':
    main()
