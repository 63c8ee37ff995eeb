"""The whole experiment on one GPU, with models and rows that lie in directories.

    python tools/made/gpu_run.py smollm2 --teacher SMOLLM2 \\
        --data cot_train.jsonl --bbh BBH --set limit=100
    python tools/made/gpu_run.py qwen2.5 --teacher QWEN-1.5B --student QWEN-0.5B \\
        --data cot_train.jsonl --bbh BBH --set limit=50

Takes the preset's settings with these models and rows; `--student` defaults to the layers of the
teacher that the preset names. Stopped, the same command continues. Copies the results of all arms
to cotkd/results/NAME.jsonl, and writes tokens per second and the share of the chip's measured
product rate to cotkd/results/NAME_speed.jsonl.
"""
import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from cotkd.arms import find_arm
from cotkd.cache import TeacherCache
from cotkd.experiment import configure, run
from cotkd.files import read_json
from cotkd.names import parse_name

ROOT = Path(__file__).resolve().parents[2]
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def wait():
    if DEVICE == 'cuda':
        torch.cuda.synchronize()


def product_rate(seconds=2.):
    "FLOPs per second of a product of two square matrices, as the machine does it"
    n = 8192 if DEVICE == 'cuda' else 1024
    dtype = torch.bfloat16 if DEVICE == 'cuda' else torch.float32
    a = torch.randn(n, n, device=DEVICE, dtype=dtype)
    b = torch.randn(n, n, device=DEVICE, dtype=dtype)
    for _ in range(3):
        a @ b
    wait()
    times = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        wait()
        times += 1
    return 2 * n**3 * times / (time.perf_counter() - start)


def speed_of(student, out, rate):
    "One trained student: what it read, how fast, and which share of the product rate that is"
    done = read_json(student/'distill.json')
    cost = done['cost']
    arm = find_arm(student.name.rpartition('-')[0])
    where = out/'cache'/arm.mode
    cached = arm.needs_teacher and where.exists()
    flops = cost['flops']
    if cached:  # what is left is training alone
        flops -= 2 * TeacherCache(where).body * cost['tokens'] / done['recipe']['epochs']
    device = torch.cuda.get_device_name() if DEVICE == 'cuda' else 'CPU'
    return dict(arm=arm.name, device=device, tokens=cost['tokens'], seconds=cost['seconds'],
                tokens_per_second=cost['tokens'] / cost['seconds'],
                tflops_per_second=flops / cost['seconds'] / 1e12,
                share_of_product_rate=flops / cost['seconds'] / rate, cached=cached,
                updates=cost['updates'])


def speed(out):
    "A row for each trained student"
    rate = product_rate()
    students = sorted(path.parent for path in out.glob('models/*/distill.json'))
    return pd.DataFrame([speed_of(student, out, rate) for student in students])


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('preset', help='one of cotkd.experiment.PRESETS')
    parser.add_argument('--teacher', required=True, help='directory')
    parser.add_argument('--student', help='directory')
    parser.add_argument('--data', required=True, help='rows with rationales')
    parser.add_argument('--bbh', required=True, help='directory of BIG-Bench-Hard')
    parser.add_argument('--set', nargs='+', default=[], metavar='KEY=VALUE',
                        help='change settings of the preset')
    parser.add_argument('--out', help='run directory (default: runs/PRESET)')
    parser.add_argument('--results', type=Path, default=ROOT/'cotkd/results',
                        help='where the figures go')
    return parser.parse_args()


def main():
    args = read_options()
    out = Path(args.out or f'runs/{args.preset}')
    experiment = configure(args.preset, dict(word.split('=', 1) for word in args.set))
    layers = experiment.student.removeprefix(parse_name(experiment.student).path)
    experiment = replace(experiment, teacher=args.teacher, data=args.data,
                         student=args.student or args.teacher + layers)
    print(run(experiment, out, args.bbh, preset=args.preset))
    table = speed(out)
    print(table.to_string())
    shutil.copyfile(out/'results.jsonl', args.results/f'{args.preset}.jsonl')
    lines = table.to_json(orient='records', lines=True)
    (args.results/f'{args.preset}_speed.jsonl').write_text(lines)


if __name__ == '__main__':
    main()
