"""Real models on a CPU: SmolLM2-135M teaches a student made of 15 of its 30 layers, on human-written rationales, once without
and once with them. Both arms read the same rows in the same updates; the student that is closest to the teacher on held-out rows is kept.

    python tools/smollm2.py --model DIR                # SmolLM2-135M-Instruct; the rationales are found through COTKD_DATA
                                                       # stopped, the same command continues

Writes cotkd/results/smollm2_kd.jsonl: the curve of each arm, then each model's nats per token on the held-out rows.
"""
import argparse, json, os
from pathlib import Path

from cotkd.data import load_cot
from cotkd.distill import KDConfig, distill, validate
from cotkd.experiment import MODES
from cotkd.models import load_lm

LAYERS = '0-2,8-11,19-22,24,27-29'  # which break the model least


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help='directory of the teacher')
    parser.add_argument('--rows', type=int, default=480, help='to train on, 8 an update')
    parser.add_argument('--dev', type=int, default=64, help='held-out rows, of cot_dev.jsonl')
    parser.add_argument('--lr', type=float, default=5e-4)
    parser.add_argument('--out', default='runs/smollm2', help='where the students go')
    parser.add_argument('--json', default=Path(__file__).parents[1]/'cotkd/results/smollm2_kd.jsonl', help='where the figures go')
    args = parser.parse_args()
    folder, (teacher, tokenizer) = Path(os.environ['COTKD_DATA']), load_lm(args.model)
    some = lambda name, n: list(load_cot(folder/name).shuffle(seed=0).take(n))
    rows, held_out = some('cot_train.jsonl', args.rows), some('cot_dev.jsonl', args.dev)
    config = KDConfig(lr=args.lr, batch_size=8, trainer=dict(eval_steps=.1, save_steps=.1))
    lines, students = [], {'student': f'{args.model}[{LAYERS}]'}
    about = dict(layers=LAYERS, lr=args.lr, batch_size=8, rows=len(rows), held_out=len(held_out))
    for arm, mode in MODES.items():
        out = Path(args.out)/arm
        cost = distill(load_lm(students['student'])[0], teacher, tokenizer, rows + held_out, out, mode, config, title=arm, dev=len(held_out))
        lines += [dict(what='curve', arm=arm, **json.loads(line)) for line in (out/'log.jsonl').read_text().splitlines()]
        lines.append(dict(what='cost', arm=arm, **cost, **about))
        students[arm] = out
    for arm, name in {'teacher': args.model, **students}.items():
        model, _ = load_lm(name)
        lines += [dict(what='held out', arm=arm, mode=mode, **validate(model, teacher, tokenizer, held_out, mode)) for mode in MODES.values()]
    Path(args.json).write_text(''.join(json.dumps(line) + '\n' for line in lines))


if __name__ == '__main__': main()
