"""How fast are few-shot questions of BIG-Bench-Hard answered here, beside lm-evaluation-harness? In one process, with the same model, prompts,
stop string and token limit; then both texts are compared, and where they part, the distance between the two tokens is looked at.

    pip install -c constraints.txt -e ".[dev]"                                     # brings the harness
    python tests/bench_eval.py --model DIR --bbh DIR                               # SmolLM2-135M, greedy, 3-shot, float32
"""
import argparse, json, platform, tempfile, time
from pathlib import Path

import pandas as pd, torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from cotkd.bbh import STOPS, evaluate, few_shot_prompt, load_bbh, prediction_path, sample_rows
from cotkd.generate import shared_length
from cotkd.models import load_lm

STOP = STOPS['official']['cot']


def theirs(model, tokenizer, items, prompts, batch_size, args):
    "Texts of the harness's own `generate_until` for Hugging Face models, all tasks in one call, as it runs them"
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    settings = dict(until=list(STOP), do_sample=False, max_gen_toks=args.max_new_tokens)
    asked = [Instance(request_type='generate_until', doc={}, arguments=(p, settings), idx=i) for i, p in enumerate(prompts.values())]
    return dict(zip(prompts, harness.generate_until(asked, disable_tqdm=True)))


def ours(model, tokenizer, items, prompts, batch_size, args):
    "Texts of `evaluate`, as `cotkd eval` runs it: files written, answers scored"
    with tempfile.TemporaryDirectory() as out:
        results = evaluate(model, tokenizer, items, out=out, arm='student', model_name='bench', shots=3, limit=args.items, source=args.bbh,
                           max_new_tokens=args.max_new_tokens, batch_size=batch_size, progress=False)
        lines = {r['task']: map(json.loads, prediction_path(out, r).read_text().splitlines()) for r in results}
        return {(task, line['index']): line['text'] for task in lines for line in lines[task]}


def margin(model, tokenizer, prompt, a, b):
    "Where two continuations of a prompt part: how many tokens in, and the distance of the two likeliest logits there"
    read = lambda text: tokenizer(prompt + text)['input_ids']
    rows = [read(a), read(b)]
    at = next((i for i, (x, y) in enumerate(zip(*rows)) if x != y), min(map(len, rows)))
    with torch.inference_mode(): top = model(torch.tensor([rows[0][:at]]), logits_to_keep=1).logits[0, -1].topk(2).values
    return dict(tokens=at - len(read('')), margin=float(top[0] - top[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help='directory of the model (SmolLM2-135M)')
    parser.add_argument('--bbh', help='directory of BIG-Bench-Hard (default: COTKD_BBH)')
    parser.add_argument('--tasks', default='date_understanding,navigate,web_of_lies'); parser.add_argument('--items', type=int, default=24, help='of each task')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[1, 8, 16]); parser.add_argument('--max-new-tokens', type=int, default=256)
    parser.add_argument('--json', help='append the figures to this file, one JSON object a line')
    args = parser.parse_args()
    items = load_bbh(args.bbh, args.tasks)
    prompts = {(t, i): few_shot_prompt(t, rows[i]['input'], source=args.bbh) for t, rows in items.items() for i in sample_rows(t, len(rows), args.items)}
    model, tokenizer = load_lm(args.model)
    model.eval()
    ids = {t: [tokenizer(p)['input_ids'] for (task, _), p in prompts.items() if task == t] for t in items}
    whole = sum(len(r) for rows in ids.values() for r in rows)
    once = sum(sum(map(len, rows)) - shared_length(rows)*(len(rows) - 1) for rows in ids.values())
    print(f'{len(prompts)} prompts of {whole:,} tokens; {once:,} with the shared part of each task read once: {whole/once:.1f} times fewer to read')
    texts, rows = {}, []
    for size in args.batch_sizes:
        for name, answer in [('cotkd', ours), ('lm-evaluation-harness', theirs)]:
            start = time.perf_counter()
            texts[name, size] = answer(model, tokenizer, items, prompts, size, args)
            seconds, written = time.perf_counter() - start, sum(len(tokenizer(t)['input_ids']) for t in texts[name, size].values())
            rows.append(dict(what='eval', implementation=name, batch_size=size, seconds=seconds, items=len(prompts), written_tokens=written, read_tokens=once if name == 'cotkd' else whole,
                             tasks=args.tasks, max_new_tokens=args.max_new_tokens, dtype=str(model.dtype)[6:], machine=f'{platform.machine()}, {torch.get_num_threads()} threads', torch=torch.__version__))
            print({k: rows[-1][k] for k in ('implementation', 'batch_size', 'seconds', 'written_tokens')}, flush=True)
    best = {name: min((r for r in rows if r['implementation'] == name), key=lambda r: r['seconds']) for name in ('cotkd', 'lm-evaluation-harness')}
    a, b = (texts[name, r['batch_size']] for name, r in best.items())
    differ = {key: margin(model, tokenizer, prompts[key], a[key], b[key]) for key in prompts if a[key] != b[key]}
    own = {size: sum(texts['cotkd', size][k] != a[k] for k in prompts) for size in args.batch_sizes}
    rows.append(dict(what='comparison', items=len(prompts), speedup=best['lm-evaluation-harness']['seconds']/best['cotkd']['seconds'], identical=len(prompts) - len(differ),
                     differ=[dict(task=t, index=i, **d) for (t, i), d in differ.items()], differ_between_our_batch_sizes=sum(own.values())))
    print(pd.DataFrame(rows[:-1]).pivot(index='batch_size', columns='implementation', values='seconds').round(1).to_string(), rows[-1], sep='\n')
    if args.json:
        with Path(args.json).open('a') as file: file.writelines(json.dumps(r) + '\n' for r in rows)


if __name__ == '__main__': main()
