"""The whole experiment on one GPU with models and rows that lie in directories: four arms, cache, report, and how fast it was.

    python tools/gpu_run.py smollm2 --teacher SMOLLM2 --data cot_train.jsonl --bbh BBH --set limit=100
    python tools/gpu_run.py qwen2.5 --teacher QWEN-1.5B --student QWEN-0.5B --data cot_train.jsonl --bbh BBH --set limit=50

Takes the preset's settings with these models and rows; `--student` defaults to the layers of the teacher that the preset names. Stopped, the
same command continues. Adds the four arms' results to cotkd/results/NAME.jsonl, and tokens per second and the share of the chip's measured
product rate to cotkd/results/NAME_speed.jsonl.
"""
import argparse, json, shutil, time
from dataclasses import replace
from pathlib import Path

import pandas as pd, torch

from cotkd.cache import TeacherCache
from cotkd.experiment import configure, run
from cotkd.models import _split_name


def product_rate(device, n=8192, dtype=torch.bfloat16, seconds=2.):
    "FLOPs per second of a product of two square matrices, as the machine does it"
    n = n if device == 'cuda' else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    for _ in range(3): a @ b
    wait(); start, times = time.perf_counter(), 0
    while time.perf_counter() - start < seconds: a @ b; times += 1; wait()
    return 2 * n**3 * times / (time.perf_counter() - start)


def speed(out, device):
    "One line for each trained student: what it read, how fast, and which share of the product rate that is"
    rate = product_rate(device, dtype=torch.bfloat16 if device == 'cuda' else torch.float32)
    for path in sorted(Path(out).glob('models/*/distill.json')):
        done, arm = json.loads(path.read_text()), path.parent.name.rpartition('-')[0]
        cost, cached = done['cost'], Path(out)/'cache'/arm
        flops = cost['flops'] - (2 * TeacherCache(cached).body * cost['tokens'] / done['recipe']['epochs'] if cached.exists() else 0)  # of training alone
        yield dict(arm=arm, device=torch.cuda.get_device_name() if device == 'cuda' else 'CPU', tokens=cost['tokens'], seconds=cost['seconds'],
                   tokens_per_second=cost['tokens'] / cost['seconds'], tflops_per_second=flops / cost['seconds'] / 1e12,
                   share_of_product_rate=flops / cost['seconds'] / rate, cached=cached.exists(), updates=cost['updates'])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('preset'); parser.add_argument('--teacher', required=True); parser.add_argument('--student')
    parser.add_argument('--data', required=True); parser.add_argument('--bbh', required=True); parser.add_argument('--set', nargs='+', default=[])
    parser.add_argument('--out', help='run directory (default: runs/PRESET)'); parser.add_argument('--results', default=Path(__file__).parents[1]/'cotkd/results')
    args = parser.parse_args(argv)
    experiment = configure(args.preset, dict(s.split('=', 1) for s in args.set))
    layers = experiment.student.removeprefix(_split_name(experiment.student)[0])
    experiment, out = replace(experiment, teacher=args.teacher, student=args.student or args.teacher + layers, data=args.data), Path(args.out or f'runs/{args.preset}')
    print(run(experiment, out, args.bbh, preset=args.preset))
    table = pd.DataFrame(speed(out, 'cuda' if torch.cuda.is_available() else 'cpu'))
    print(table.to_string())
    shutil.copyfile(out/'results.jsonl', Path(args.results)/f'{args.preset}.jsonl')
    (Path(args.results)/f'{args.preset}_speed.jsonl').write_text(table.to_json(orient='records', lines=True))


if __name__ == '__main__': main()
