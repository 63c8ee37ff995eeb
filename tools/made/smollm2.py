"""Real models on a CPU: SmolLM2-135M teaches a student made of 15 of its 30 layers.

    python tools/made/smollm2.py --model DIR       # SmolLM2-135M-Instruct

COTKD_DATA names the directory of rationales. On human-written rationales, once without and once
with them. Both arms read the same rows in the same updates; the student that is closest to the
teacher on held-out rows is kept. Stopped, the same command continues. Writes
cotkd/results/smollm2_kd.jsonl: the curve of each arm, then each model's nats per token on the
held-out rows.
"""
import argparse
import os
from pathlib import Path

from cotkd.arms import choose_arms
from cotkd.data import load_cot
from cotkd.distill import distill, validate
from cotkd.files import read_lines, write_lines
from cotkd.models import load_lm
from cotkd.trainer import KDConfig

ROOT = Path(__file__).resolve().parents[2]
ARMS = choose_arms('kd,kd_cot')
LAYERS = '0-2,8-11,19-22,24,27-29'  # which break the model least
BATCH = 8


def some_rows(folder, name, n):
    return list(load_cot(folder/name).shuffle(seed=0).take(n))


def train(args, arm, rows, held_out):
    "Train the student of one arm; -> lines: its curve and its cost"
    teacher, tokenizer = load_lm(args.model)
    student, _ = load_lm(f'{args.model}[{LAYERS}]')
    out = Path(args.out)/arm.name
    config = KDConfig(lr=args.lr, batch_size=BATCH, trainer=dict(eval_steps=.1, save_steps=.1))
    cost = distill(student, teacher, tokenizer, rows + held_out, out, mode=arm.mode,
                   config=config, dev=len(held_out))
    lines = [dict(what='curve', arm=arm.name, **line) for line in read_lines(out/'log.jsonl')]
    lines.append(dict(what='cost', arm=arm.name, **cost, layers=LAYERS, lr=args.lr,
                      batch_size=BATCH, rows=len(rows), held_out=len(held_out)))
    return lines


def measure(args, held_out):
    "Lines: teacher, untrained student and each arm on the held-out rows, in both layouts"
    teacher, tokenizer = load_lm(args.model)
    names = dict(teacher=args.model, student=f'{args.model}[{LAYERS}]')
    names |= {arm.name: Path(args.out)/arm.name for arm in ARMS}
    lines = []
    for name, place in names.items():
        model, _ = load_lm(place)
        for mode in [arm.mode for arm in ARMS]:
            found = validate(model, teacher, tokenizer, held_out, mode)
            lines.append(dict(what='held out', arm=name, mode=mode, **found))
    return lines


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help='directory of the teacher')
    parser.add_argument('--rows', type=int, default=480, help=f'to train on, {BATCH} an update')
    parser.add_argument('--dev', type=int, default=64, help='held-out rows, of cot_dev.jsonl')
    parser.add_argument('--lr', type=float, default=5e-4)
    parser.add_argument('--out', default='runs/smollm2', help='where the students go')
    parser.add_argument('--json', default=ROOT/'cotkd/results/smollm2_kd.jsonl',
                        help='where the figures go')
    args = parser.parse_args()
    if not os.environ.get('COTKD_DATA'):
        parser.error('COTKD_DATA is not set: expected the directory of cot_train.jsonl and '
                     'cot_dev.jsonl')
    return args


def main():
    args = read_options()
    folder = Path(os.environ['COTKD_DATA'])
    rows = some_rows(folder, 'cot_train.jsonl', args.rows)
    held_out = some_rows(folder, 'cot_dev.jsonl', args.dev)
    lines = []
    for arm in ARMS:
        lines += train(args, arm, rows, held_out)
    write_lines(args.json, lines + measure(args, held_out))


if __name__ == '__main__':
    main()
