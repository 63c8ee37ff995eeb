"""Choose the learning rate of each arm of the `toy` preset on held-out toy problems; BBH is not looked at.

    python tools/lr_grid.py kd 1e-3 2e-3 4e-3 8e-3
    python tools/lr_grid.py kd_cot 1e-3 2e-3 4e-3 8e-3

Trains the whole preset at each learning rate and adds a line to cotkd/results/lr_grid.jsonl: accuracy in percent on problems
that are neither trained on nor among those `cotkd run` scores, under the prompt the arm was trained for.
"""
import json, sys
from pathlib import Path

from cotkd.bbh import evaluate
from cotkd.distill import KDConfig, distill
from cotkd.experiment import MODES, PRESETS, benchmark_items, training_rows
from cotkd.models import load_lm
from cotkd.toy import EVALUATED, make_toy

ROOT, PER_TASK = Path(__file__).parent.parent, 60


def main(arm, *rates):
    toy = PRESETS['toy']
    _, test = benchmark_items(toy, bbh=False)
    taken = frozenset(e['input'] for items in test.values() for e in items)
    dev = make_toy(EVALUATED, PER_TASK * len(EVALUATED), seed=2, heldout=True, exclude=taken)
    items = {t: [dict(input=r['source'], target=r['target']) for r in dev if r['task'] == t] for t in EVALUATED}
    (teacher, tokenizer), (rows, _) = load_lm(toy.teacher), training_rows(toy, {})
    for rate in map(float, rates):
        out, (student, _) = ROOT/f'runs/lr-grid/{arm}-{rate:g}', load_lm(toy.student)
        distill(student, teacher, tokenizer, rows, out, MODES[arm], KDConfig(lr=rate, batch_size=toy.batch_size))
        scores = evaluate(student.eval(), tokenizer, items, out=out/'dev', arm=arm, model_name=out.name, mode=MODES[arm], benchmark='toy',
                          max_new_tokens=toy.max_new_tokens if MODES[arm] == 'cot' else None)
        line = dict(arm=arm, lr=rate, rows=toy.rows, per_task=PER_TASK, **{r['task']: round(100 * r['correct'] / r['n'], 1) for r in scores})
        with (ROOT/'cotkd/results/lr_grid.jsonl').open('a') as f: f.write(json.dumps(line) + '\n')


if __name__ == '__main__':
    if len(sys.argv) < 3 or sys.argv[1] not in MODES: sys.exit(__doc__)
    main(*sys.argv[1:])
