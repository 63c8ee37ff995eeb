"""Give every arm of a preset the learning rate that is best on held-out training problems.

    python tools/made/tune.py toy --arms kd,kd_cot --rates 2e-3 4e-3 8e-3
    python tools/made/tune.py smollm2 --arms kd_cot,sft_cot --rates 1e-4 3e-4 \\
        --held-out cot_dev.jsonl --set student=DIR teacher=DIR data=cot_train.jsonl rows=300

Trains each arm at each rate, one seed, on the rows of the preset, and asks it problems that are
neither trained on nor scored by `cotkd run`: generated ones for toy rows, rows of --held-out for
others. BBH is not looked at. Can be stopped; the same command continues. Adds a line for each arm
and rate to cotkd/results/PRESET_grid.jsonl: accuracy in percent of each task, under the prompt the
arm was trained for. Prints the rates to take.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cotkd.arms import choose_arms, find_arm
from cotkd.bbh import Benchmark, find_benchmark, toy_benchmark
from cotkd.data import load_cot
from cotkd.experiment import PRESETS, configure, run
from cotkd.files import read_lines, write_lines
from cotkd.records import read_results
from cotkd.toy import EVALUATED, make_toy

from collect import RESULTS

PER_TASK = 60  # generated problems of each family
ROWS = 300  # of a file


def generated_problems(experiment):
    "Toy problems that `cotkd run` does not ask"
    asked = toy_benchmark(experiment.heldout).items
    taken = frozenset(item['input'] for items in asked.values() for item in items)
    rows = make_toy(EVALUATED, PER_TASK * len(EVALUATED), seed=2, heldout=True, exclude=taken)
    items = {task: [] for task in EVALUATED}
    for row in rows:
        items[row['task']].append(dict(input=row['source'], target=row['target']))
    return replace(find_benchmark('toy'), items=items)


def held_out_rows(path):
    "A seeded sample, as one task"
    rows = load_cot(path).shuffle(seed=0).select(range(ROWS))
    items = [dict(input=row['source'], target=row['target']) for row in rows]
    return Benchmark('held_out', 'Held-out rows', items=dict(rows=items))


def train_and_ask(experiment, rate, benchmark, out):
    "{arm: {task: percent}}"
    tried = replace(experiment, kd_lr=rate, kd_cot_lr=rate, lrs='', shots=0, other_prompt=1)
    run(tried, out/f'{rate:g}', benchmark, workers=0)
    found = {arm.name: {} for arm in choose_arms(experiment.arms)}
    for row in read_results(out/f'{rate:g}'):
        if row['arm'] in found and row['mode'] == find_arm(row['arm']).asked:
            found[row['arm']][row['task']] = round(100 * row['correct'] / row['n'], 1)
    return found


def keep(lines, grid):
    "In place of what was found before at the same rate"
    def key(line):
        return line['arm'], line['lr'], line['rows']

    new, old = {key(line) for line in lines}, read_lines(grid) if grid.exists() else []
    write_lines(grid, [line for line in old if key(line) not in new] + lines)


def best_rates(lines, arms):
    "arm -> rate of the highest mean over tasks, the lower one of two alike"
    grid = pd.DataFrame(lines)
    grid['mean'] = grid.drop(columns=['arm', 'lr', 'rows', 'per_task']).mean(axis=1)
    grid = grid.sort_values(['mean', 'lr'], ascending=[False, True]).drop_duplicates('arm')
    return grid.set_index('arm').lr.reindex([arm.name for arm in arms]).to_dict()


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('preset', choices=PRESETS)
    parser.add_argument('--arms', help='default: those of the preset')
    parser.add_argument('--rates', type=float, nargs='+', required=True, help='learning rates')
    parser.add_argument('--set', nargs='+', default=[], help='settings of the preset')
    parser.add_argument('--held-out', help='file of rows to ask, where they are not generated')
    parser.add_argument('--json', type=Path, help='the lines go here')
    parser.add_argument('--out', type=Path, default=Path('runs/tune'), help='where the runs go')
    args = parser.parse_args()
    settings = dict(part.split('=', 1) for part in args.set)
    args.json = args.json or RESULTS/f'{args.preset}_grid.jsonl'
    args.experiment = configure(args.preset, settings | (dict(arms=args.arms) if args.arms else {}))
    if args.experiment.data != 'toy' and not args.held_out:
        parser.error(f'{args.preset} trains on {args.experiment.data}: name a file of rows to ask '
                     '(--held-out)')
    return args


def main():
    args = read_options()
    experiment = args.experiment
    if experiment.data == 'toy':
        benchmark, per_task = generated_problems(experiment), PER_TASK
    else:
        benchmark, per_task = held_out_rows(args.held_out), ROWS
    for rate in args.rates:
        found = train_and_ask(experiment, rate, benchmark, args.out/args.preset)
        keep([dict(arm=arm, lr=rate, rows=experiment.rows, per_task=per_task, **scores)
              for arm, scores in found.items()], args.json)
    rates = best_rates(read_lines(args.json), choose_arms(experiment.arms))
    print('lrs=' + ','.join(f'{arm}={rate:g}' for arm, rate in rates.items()))


if __name__ == '__main__':
    main()
