"""How long does `load_cot` take for a file as large as CoT-Collection's, and how much memory? The file is made up in the hub's shape: rows of
COTKD_DATA, numbered, with up to nine other questions before their own, which makes them about as long as the hub's (1,284 bytes).

    python tests/bench_data.py                                                 # 600 MB
    python tests/bench_data.py --mb 2360                                       # as large as the hub's
"""
import argparse, json, multiprocessing, os, platform, random, re, tempfile, time
from pathlib import Path


def write_hub_file(path, lines, size):
    "An object keyed \"0\", \"1\", … of at least `size` bytes; returns how many rows it has"
    rng, rows, n = random.Random(0), [json.loads(line) for line in lines], 0
    with open(path, 'w') as file:
        while n == 0 or file.tell() < size:
            for row in rng.sample(rows, 1000):
                before = ' '.join(r['source'] for r in rng.sample(rows, rng.randrange(10)))
                row = {**row, 'source': f'({n}) {before} {row["source"]}', 'task': f'{row["task"]}-{rng.randrange(150)}'}
                file.write((',' if n else '{') + f'\n    "{n}": ' + json.dumps(row, indent=4).replace('\n', '\n    '))
                n += 1
        file.write('\n}')
    return n


def memory(key):
    "VmHWM is the process's peak so far, RssAnon what it holds now beside mapped files, in MB"
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) * 1024 / 1e6


def measure(path, cache):
    "Load a file twice and split it, in a process that does nothing else"
    import datasets
    from cotkd.data import load_cot, split_cot
    datasets.config.HF_DATASETS_CACHE = cache
    result = dict(imports_mb=memory('VmHWM'))
    def timed(name, f, *args, **kwargs):
        start, cpu = time.perf_counter(), time.process_time()
        value = f(*args, **kwargs)
        result.update({f'{name}_seconds': time.perf_counter() - start, f'{name}_cpu_seconds': time.process_time() - cpu})
        return value
    ds = timed('load', load_cot, path)
    result.update(peak_mb=memory('VmHWM'), rows=len(ds))
    ds = timed('second_load', load_cot, path)
    held = memory('RssAnon')
    for by in 'source', 'task': timed(f'split_by_{by}', split_cot, ds, by=by)
    return dict(result, split_held_mb=memory('RssAnon') - held)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mb', type=float, default=600, help='size of the file, in millions of bytes')
    parser.add_argument('--data', default=os.environ.get('COTKD_DATA'), help='directory of cot_train.jsonl (default: COTKD_DATA)')
    parser.add_argument('--json', help='append the figures to this file, one JSON object a line')
    args = parser.parse_args()
    if not args.data: parser.error('COTKD_DATA is not set; name the directory of cot_train.jsonl with --data')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'hub.json'
        with open(Path(args.data)/'cot_train.jsonl') as lines: rows = write_hub_file(path, lines, args.mb * 1e6)
        size = path.stat().st_size
        print(f'{rows:,} rows, {size / 1e6:,.0f} MB, {size / rows:,.0f} bytes a row', flush=True)
        with multiprocessing.get_context('spawn').Pool(1) as pool: result = pool.apply(measure, (path, folder))
    assert result['rows'] == rows
    row = dict(what='load', gb=size / 1e9, mb_per_second=size / 1e6 / result['load_seconds'], **result,
               machine=f'{platform.machine()}, {os.cpu_count()} cores', python=platform.python_version())
    print('\n'.join(f'{k:>24}  {v:,.3f}' if isinstance(v, float) else f'{k:>24}  {v}' for k, v in row.items()))
    if args.json:
        with open(args.json, 'a') as file: file.write(json.dumps(row) + '\n')


if __name__ == '__main__': main()
