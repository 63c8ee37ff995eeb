"""Do the properties hold for 10,000 examples each?

    pip install -c constraints.txt -e ".[dev]"
    python tools/campaigns/properties.py

Runs the tests of tests/test_properties.py on more examples than every day, each target until its
examples are through or one fails, which is then shown as small as hypothesis can make it. Another
--seed draws other examples, and --targets runs some of the tests. The table is in
cotkd/results/campaigns/properties.json.
"""
import argparse
import contextlib
import importlib
import io
import os
import platform
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT/'cotkd/results/campaigns/properties.json'
PACKAGES = ('cotkd', 'hypothesis', 'torch', 'transformers', 'tokenizers', 'datasets', 'numpy',
            'pandas', 'statsmodels')


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--examples', type=int, default=10_000, help='of each target')
    parser.add_argument('--seed', type=int, default=0, help='of the examples')
    parser.add_argument('--targets', nargs='*', help='names without test_; none: all')
    parser.add_argument('--out', type=Path, default=OUT)
    return parser


def load_tests(examples):
    "The module of the tests, which reads how many examples to draw when it is imported"
    os.environ['COTKD_EXAMPLES'] = str(examples)
    sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
    return importlib.import_module('test_properties')


def failure_of(test):
    "None, or what went wrong and where, with the smallest example"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            test()
        except Exception as error:
            lines = traceback.format_exception_only(error)
            return ''.join(lines) + traceback.format_exc(limit=-3)
    return None


def run_target(tests, name, args):
    import hypothesis
    test = hypothesis.seed(args.seed)(getattr(tests, f'test_{name}'))
    start = time.process_time()
    failure = failure_of(test)
    return dict(
        command='python tools/campaigns/properties.py '
                f'--examples {args.examples} --seed {args.seed} --targets {name}',
        examples=tests.COUNTS[f'test_{name}'], failures=int(bool(failure)),
        cpu_seconds=round(time.process_time() - start, 1), failure=failure,
        python=platform.python_version(),
        versions={package: version(package) for package in PACKAGES})


def main():
    args = make_parser().parse_args()
    tests = load_tests(args.examples)
    from cotkd.files import read_json, write_json  # not above: the number of examples comes first
    names = args.targets or [name[5:] for name in vars(tests) if name.startswith('test_')]
    failures = 0
    print(f'{"target":16} {"examples":>9} {"failures":>9} {"CPU s":>7}')
    for name in names:
        row = run_target(tests, name, args)
        failures += row['failures']
        print(f'{name:16} {row["examples"]:>9,} {row["failures"]:>9} {row["cpu_seconds"]:>7}',
              flush=True)
        if row['failure']:
            print(row['failure'])
        table = read_json(args.out) if args.out.exists() else {}
        write_json(args.out, table | {name: row})
    return int(failures > 0)


if __name__ == '__main__':
    sys.exit(main())
