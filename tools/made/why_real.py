"""The questions of `why` on real rows and real models.

    python tools/made/why_real.py train --model DIR       # SmolLM2-135M-Instruct
    python tools/made/why_real.py write --model DIR       # Qwen2.5-Coder-1.5B-Instruct

COTKD_DATA names the directory of rationales. `train`: SmolLM2 teaches 20 of its own 30 layers
rows of cot_train.jsonl of at most 128 tokens (three quarters of them), arm by arm, and all are
asked 300 rows of cot_dev.jsonl without examples; an answer is right if it is the target, word for
word. `write`: a model writes rationales for rows of cot_mini.jsonl, and we count what became of
them. Stopped, the same command continues. Writes cotkd/results/why_real.jsonl and .json, and
why_written.json.
"""
import argparse
import os
from pathlib import Path

from cotkd.data import load_cot
from cotkd.experiment import PRESETS, SMOLLM, configure, run
from cotkd.files import write_json
from cotkd.models import load_lm
from cotkd.names import model_identity
from cotkd.records import read_results
from cotkd.write import Writing, find_written, write_rationales

from collect import RESULTS, keep_results, keep_run
from tune import held_out_rows

ARMS = 'kd_cot,sft_cot,kd_shuffled,kd_matched'
CONTRASTS = 'sft_cot:kd_cot,kd_shuffled:kd_cot,kd_matched:kd_cot'
SETTINGS = dict(arms=ARMS, contrasts=CONTRASTS, rows='320', max_tokens='128', dev='.003',
                epochs='1', shots='0', sampling_temperature='0', max_new_tokens='200',
                other_prompt='300', also='')
TRAINER = dict(eval_steps=.25, save_steps=.25)
WRITING = Writing(shots=3, max_new_tokens=200, batch_size=20)
WRITTEN = 80  # rows that are asked


def data(name):
    return Path(os.environ['COTKD_DATA'])/name


def train(args):
    student = PRESETS['smollm2'].student.replace(SMOLLM, args.model)  # some of its layers
    experiment = configure('smollm2', SETTINGS | dict(
        teacher=args.model, student=student, data=str(data('cot_train.jsonl'))))
    run(experiment, args.out, held_out_rows(data('cot_dev.jsonl')), preset='smollm2',
        trainer=TRAINER, workers=0)
    keep_results(read_results(args.out), 'why_real')
    keep_run(args.out, 'why_real')


def write(args):
    rows = load_cot(data('cot_mini.jsonl'), WRITTEN + WRITING.shots)
    args.out.mkdir(parents=True, exist_ok=True)
    where = rows, args.out/'written.jsonl', model_identity(args.model), WRITING
    counts = find_written(*where) or write_rationales(*load_lm(args.model), *where)
    write_json(RESULTS/'why_written.json', dict(model=Path(args.model).name, **counts))


STEPS = dict(train=train, write=write)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('step', choices=STEPS)
    parser.add_argument('--model', required=True, help='directory of the model')
    parser.add_argument('--out', type=Path, default=Path('runs/why_real'), help='run directory')
    args = parser.parse_args()
    STEPS[args.step](args)


if __name__ == '__main__':
    main()
