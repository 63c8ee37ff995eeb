"""Arms of `why` on real rows and real models: SmolLM2-135M teaches 20 of its own 30 layers.

    python tools/made/why_real.py --model DIR       # SmolLM2-135M-Instruct

COTKD_DATA names the directory of rationales. Trains on rows of cot_train.jsonl, and asks all
models 300 rows of cot_dev.jsonl without examples; an answer is right if it is the target, word for
word. Stopped, the same command continues. Writes cotkd/results/why_real.jsonl and .json.
"""
import argparse
import os
from pathlib import Path

from cotkd.bbh import Benchmark
from cotkd.data import load_cot
from cotkd.experiment import configure, run
from cotkd.records import read_results

from collect import keep_results, keep_run

ARMS = 'kd_cot,sft_cot,kd_shuffled,kd_matched'
CONTRASTS = 'sft_cot:kd_cot,kd_shuffled:kd_cot,kd_matched:kd_cot'
SETTINGS = dict(arms=ARMS, contrasts=CONTRASTS, rows='320', dev='.003', epochs='1', shots='0',
                sampling_temperature='0', max_new_tokens='200', other_prompt='300', also='')
TRAINER = dict(eval_steps=.25, save_steps=.25)
LAYERS = '0-2,7-11,15-16,18-24,27-29'  # as in the preset smollm2
QUESTIONS = 300


def held_out_questions(folder):
    rows = load_cot(folder/'cot_dev.jsonl').shuffle(seed=0).select(range(QUESTIONS))
    items = [dict(input=row['source'], target=row['target']) for row in rows]
    return Benchmark('cot_dev', 'Held-out rows', items=dict(rows=items))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help='directory of the teacher')
    parser.add_argument('--out', type=Path, default=Path('runs/why_real'), help='run directory')
    args = parser.parse_args()
    folder = Path(os.environ['COTKD_DATA'])
    experiment = configure('smollm2', SETTINGS | dict(
        teacher=args.model, student=f'{args.model}[{LAYERS}]',
        data=str(folder/'cot_train.jsonl')))
    run(experiment, args.out, held_out_questions(folder), preset='smollm2', trainer=TRAINER,
        workers=0)
    keep_results(read_results(args.out), 'why_real')
    keep_run(args.out, 'why_real')


if __name__ == '__main__':
    main()
