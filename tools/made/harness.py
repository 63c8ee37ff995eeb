"""Samples of lm-evaluation-harness, of one student before and after a short distillation.

    python tools/made/harness.py --model DIR --out DIR       # SmolLM2-135M-Instruct

SmolLM2-135M teaches 20 of its own 30 layers rows of cot_train.jsonl for a few updates. Both
students are asked the first 40 questions of two BBH tasks by lm-evaluation-harness: which of two
sentences is the likelier one, and yes or no. COTKD_DATA and COTKD_BBH name the directories of
rationales and of BIG-Bench-Hard. Writes cotkd/results/harness: hashes and verdicts, no text.
"""
import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from cotkd.bbh import load_bbh
from cotkd.data import load_cot
from cotkd.distill import distill
from cotkd.files import read_lines, write_lines
from cotkd.models import load_lm
from cotkd.trainer import KDConfig

RESULTS = Path(__file__).resolve().parents[2]/'cotkd/results/harness'
LAYERS = '0-2,7-11,15-16,18-24,27-29'
ROWS = 192
TASKS = {  # task -> (text in front of the choices, the choices)
    'hyperbaton': ('', lambda item: re.findall(r'\([A-Z]\) (.*)', item['input'])),
    'sports_understanding': ('{{question}} Answer yes or no:', lambda item: ['no', 'yes'])}
METRICS = [dict(metric=name, aggregation='mean', higher_is_better=True)
           for name in ('acc', 'acc_norm')]
WITHOUT_TEXT = ('doc_id', 'filter', 'metrics', 'doc_hash', 'prompt_hash', 'target_hash', 'acc',
                'acc_norm')


def number_of_target(item, choices):
    letter = re.fullmatch(r'\(([A-Z])\)', item['target'])
    return ord(letter[1]) - ord('A') if letter else choices.index(item['target'])


def write_task(out, name):
    "A task of lm-evaluation-harness, which reads the questions of a file"
    text, choices_of = TASKS[name]
    lines = []
    for item in load_bbh(tasks=name, limit=40)[name]:
        choices = choices_of(item)
        lines.append(dict(question=item['input'], choices=choices,
                          answer=number_of_target(item, choices)))
    write_lines(out/f'{name}.jsonl', lines)
    task = dict(task=name, dataset_path='json', test_split='test', output_type='multiple_choice',
                dataset_kwargs=dict(data_files=dict(test=str(out/f'{name}.jsonl'))),
                doc_to_text=text, doc_to_choice='{{choices}}', doc_to_target='{{answer}}',
                metric_list=METRICS)
    (out/'tasks').mkdir(exist_ok=True)
    (out/f'tasks/{name}.yaml').write_text(yaml.safe_dump(task))


def train(model, out):
    "Before and after, as plain directories"
    teacher, tokenizer = load_lm(model)
    student, _ = load_lm(f'{model}[{LAYERS}]')
    for part in student, tokenizer:
        part.save_pretrained(out/'before')
    rows = load_cot(Path(os.environ['COTKD_DATA'])/'cot_train.jsonl').shuffle(seed=0).take(ROWS)
    config = KDConfig(lr=3e-4, batch_size=8)
    print(json.dumps(distill(student, teacher, tokenizer, rows, out/'after', config=config)))


def ask(out, name):
    options = ['--model', 'hf', '--model_args', f'pretrained={name},dtype=float32', '--device',
               'cpu', '--batch_size', '8', '--include_path', 'tasks', '--tasks', ','.join(TASKS),
               '--output_path', f'asked/{name}', '--log_samples']
    subprocess.run([sys.executable, '-m', 'lm_eval', *options], cwd=out, check=True)


def keep(out):
    for path in (out/'asked').rglob('samples_*.jsonl'):
        place = RESULTS/path.relative_to(out/'asked')
        place.parent.mkdir(parents=True, exist_ok=True)
        write_lines(place, [{key: line[key] for key in WITHOUT_TEXT} for line in read_lines(path)])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help='directory of SmolLM2-135M-Instruct')
    parser.add_argument('--out', type=Path, required=True, help='directory for what comes out')
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    train(args.model, out)
    for task in TASKS:
        write_task(out, task)
    for name in 'before', 'after':
        ask(out, name)
    keep(out)


if __name__ == '__main__':
    main()
