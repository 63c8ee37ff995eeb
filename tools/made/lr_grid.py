"""Choose the learning rate of each arm of the `toy` preset on held-out toy problems.

    python tools/made/lr_grid.py kd 1e-3 2e-3 4e-3 8e-3
    python tools/made/lr_grid.py kd_cot 1e-3 2e-3 4e-3 8e-3

BBH is not looked at. Trains the whole preset at each learning rate and adds a line to
cotkd/results/lr_grid.jsonl: accuracy in percent on problems that are neither trained on nor among
those `cotkd run` scores, under the prompt the arm was trained for.
"""
import argparse
import json
from dataclasses import replace
from pathlib import Path

from cotkd.arms import ARMS, cross_entropy_share
from cotkd.bbh import find_benchmark, toy_benchmark
from cotkd.distill import distill
from cotkd.evaluate import Asking, Subject, evaluate
from cotkd.experiment import PRESETS, training_rows
from cotkd.models import load_lm
from cotkd.toy import EVALUATED, make_toy
from cotkd.trainer import KDConfig

ROOT = Path(__file__).resolve().parents[2]
PER_TASK = 60


def dev_benchmark(experiment):
    "Held-out toy problems that `cotkd run` does not ask"
    asked = toy_benchmark(experiment.heldout).items
    taken = frozenset(item['input'] for items in asked.values() for item in items)
    rows = make_toy(EVALUATED, PER_TASK * len(EVALUATED), seed=2, heldout=True, exclude=taken)
    items = {task: [] for task in EVALUATED}
    for row in rows:
        items[row['task']].append(dict(input=row['source'], target=row['target']))
    return replace(find_benchmark('toy'), items=items)


def train(experiment, arm, rate, rows, out):
    "-> the student and its tokenizer"
    teacher, tokenizer = load_lm(experiment.teacher)
    student, _ = load_lm(experiment.student)
    config = KDConfig(lr=rate, batch_size=experiment.batch_size,
                      ce_weight=cross_entropy_share(arm.loss))
    distill(student, teacher if arm.needs_teacher else None, tokenizer, rows, out,
            mode=arm.mode, config=config)
    return load_lm(out)


def score(experiment, arm, model, tokenizer, out):
    "Percent right of each task"
    room = experiment.max_new_tokens if arm.asked == 'cot' else None
    results = evaluate(model, tokenizer, dev_benchmark(experiment), Subject(arm.name, out.name),
                       Asking(mode=arm.asked, max_new_tokens=room), out=out/'dev')
    return {row['task']: round(100 * row['correct'] / row['n'], 1) for row in results}


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('arm', choices=[arm.name for arm in ARMS.values() if arm.trained])
    parser.add_argument('rates', type=float, nargs='+', help='learning rates')
    parser.add_argument('--rows', type=int, default=PRESETS['toy'].rows, help='to train on')
    parser.add_argument('--json', default=ROOT/'cotkd/results/lr_grid.jsonl',
                        help='append the figures to this file')
    parser.add_argument('--out', type=Path, default=ROOT/'runs/lr-grid',
                        help='where the students go')
    return parser.parse_args()


def main():
    args = read_options()
    arm = ARMS[args.arm]
    toy = replace(PRESETS['toy'], rows=args.rows)
    rows, _ = training_rows(toy, find_benchmark('toy'))
    for rate in args.rates:
        out = args.out/f'{arm.name}-{rate:g}'
        model, tokenizer = train(toy, arm, rate, rows, out)
        scores = score(toy, arm, model, tokenizer, out)
        line = dict(arm=arm.name, lr=rate, rows=toy.rows, per_task=PER_TASK, **scores)
        with open(args.json, 'a') as file:
            file.write(json.dumps(line) + '\n')


if __name__ == '__main__':
    main()
