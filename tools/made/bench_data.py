"""How long does `load_cot` take for a file as large as CoT-Collection's, and how much memory?

    python tools/made/bench_data.py                  # 600 MB
    python tools/made/bench_data.py --mb 2360        # as large as the hub's

The file is made up in the hub's shape: rows of COTKD_DATA, numbered, with up to nine other
questions before their own, which makes them about as long as the hub's (1,284 bytes). With --json
the figures are added to a file, such as cotkd/results/bench_data.jsonl.
"""
import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import tempfile
import time
from pathlib import Path

from cotkd.files import read_lines


def longer_row(row, number, rows, rng):
    "The row with other questions before its own, and a number that makes it a new one"
    others = rng.sample(rows, rng.randrange(10))
    before = ' '.join(other['source'] for other in others)
    source = f'({number}) {before} {row["source"]}'
    return {**row, 'source': source, 'task': f'{row["task"]}-{rng.randrange(150)}'}


def write_hub_file(path, rows, size):
    "An object keyed \"0\", \"1\", … of at least `size` bytes; returns how many rows it has"
    rng = random.Random(0)
    n = 0
    with open(path, 'w') as file:
        while n == 0 or file.tell() < size:
            for row in rng.sample(rows, 1000):
                row = longer_row(row, n, rows, rng)
                text = json.dumps(row, indent=4).replace('\n', '\n    ')
                file.write(',' if n else '{')
                file.write(f'\n    "{n}": {text}')
                n += 1
        file.write('\n}')
    return n


def memory(key):
    "In MB; VmHWM: the process's peak so far, RssAnon: what it holds now beside mapped files"
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'{key}:\s+(\d+)', status)[1]) * 1024 / 1e6


def timed(result, name, function, *args, **kwargs):
    "The value of a call; its seconds are noted in `result`"
    start = time.perf_counter()
    cpu = time.process_time()
    value = function(*args, **kwargs)
    result[f'{name}_seconds'] = time.perf_counter() - start
    result[f'{name}_cpu_seconds'] = time.process_time() - cpu
    return value


def measure(path, cache):
    "Load a file twice and split it, in a process that does nothing else"
    import datasets
    from cotkd.data import load_cot, split_cot
    datasets.config.HF_DATASETS_CACHE = cache
    result = dict(imports_mb=memory('VmHWM'))
    ds = timed(result, 'load', load_cot, path)
    result['peak_mb'] = memory('VmHWM')
    result['rows'] = len(ds)
    ds = timed(result, 'second_load', load_cot, path)
    held = memory('RssAnon')
    for by in ('source', 'task'):
        timed(result, f'split_by_{by}', split_cot, ds, by=by)
    result['split_held_mb'] = memory('RssAnon') - held
    return result


def measure_file(rows, size):
    "Write a file of `size` bytes and measure it; -> the line for the results"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'hub.json'
        n = write_hub_file(path, rows, size)
        size = path.stat().st_size
        print(f'{n:,} rows, {size / 1e6:,.0f} MB, {size / n:,.0f} bytes a row', flush=True)
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            result = pool.apply(measure, (path, folder))
    assert result['rows'] == n
    return dict(what='load', gb=size / 1e9, mb_per_second=size / 1e6 / result['load_seconds'],
                **result, machine=f'{platform.machine()}, {os.cpu_count()} cores',
                python=platform.python_version())


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mb', type=float, default=600, help='size of the file, in MB')
    parser.add_argument('--data', default=os.environ.get('COTKD_DATA'),
                        help='directory of cot_train.jsonl (default: COTKD_DATA)')
    parser.add_argument('--json', help='append the figures to this file')
    args = parser.parse_args()
    if not args.data:
        parser.error('COTKD_DATA is not set; name the directory of cot_train.jsonl with --data')
    return args


def main():
    args = read_options()
    row = measure_file(read_lines(Path(args.data)/'cot_train.jsonl'), args.mb * 1e6)
    for name, value in row.items():
        shown = f'{value:,.3f}' if isinstance(value, float) else value
        print(f'{name:>24}  {shown}')
    if args.json:
        with open(args.json, 'a') as file:
            file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
    main()
