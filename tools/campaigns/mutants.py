"""Would the tests notice if a line were wrong?

    pip install -c constraints.txt -e ".[dev]"
    python tools/campaigns/mutants.py                         # or: mutants.py losses prompt

Changes one place of a module at a time, in memory (a comparison, an operator, a constant, a
condition, what is returned, a statement that is left out), and runs the module's tests on it. A
mutant that fails a test is killed, and so is one that takes much too long. Those that survive go
to cotkd/results/campaigns/mutants.json; the `why` that was written there to one stays.
"""
import argparse
import ast
import importlib
import importlib.machinery
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT/'cotkd/results/campaigns/mutants.json'


@dataclass
class Subject:
    "What is mutated, and the tests that should notice"
    tests: list  # arguments of pytest
    only: tuple = ()  # functions and classes; (): all
    but: tuple = ()  # functions and constants that are left out


PROPERTIES = 'tests/test_properties.py::test_'
SUBJECTS = {
    'losses': Subject(
        ['tests/test_losses_values.py', 'tests/test_losses.py', PROPERTIES + 'losses'],
        but=('CHUNK_BYTES', 'BLOCK')),  # how much at once: no result depends on it
    'prompt': Subject(
        ['tests/test_prompt.py', PROPERTIES + 'spans', PROPERTIES + 'prefix_sharing'],
        only=('format_example', 'encode', 'encode_rows', 'split_thoughts', 'cut', '_rectangle',
              '_batch', '_teacher_hidden', 'KDCollator', 'split_by_length')),
    'bbh': Subject(
        ['tests/test_scorer.py', PROPERTIES + 'scorer'],
        only=('select_tasks', 'family', 'family_weights', 'official_answer', 'official_equal',
              'lm_eval_answer', 'lm_eval_equal', 'Scorer', 'find_scorer', 'extract_answer',
              'is_correct', 'answers_only', 'add_examples', 'Benchmark', 'find_benchmark',
              'is_item', 'check_items', '_wrong_shots', 'bbh_source', 'read_shots',
              'few_shot_prompt')),
    'stats': Subject(['tests/test_stats_values.py', PROPERTIES + 'statistics']),
    'records': Subject(
        ['tests/test_records_values.py', 'tests/test_records.py', PROPERTIES + 'records'],
        but=('simulated_results', '_simulated', '_COINS'))}  # for demonstrations

# --- what can be changed

SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.And: ast.Or, ast.Or: ast.And}
CONDITIONAL = (ast.If, ast.IfExp, ast.While)
NO_CODE = (ast.JoinedStr, ast.Raise, ast.Assert)  # messages


def name_of(thing):
    return thing.__name__


def negated(test):
    return ast.UnaryOp(ast.Not(), test)


def changes(node):
    "(what, attribute, new value) of every change of one node"
    op = getattr(node, 'op', None)
    if type(op) in SWAPPED:
        new = SWAPPED[type(op)]
        yield f'{name_of(type(op))} -> {name_of(new)}', 'op', new()
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            new = SWAPPED[type(op)]
            ops = [*node.ops[:i], new(), *node.ops[i + 1:]]
            yield f'{name_of(type(op))} -> {name_of(new)}', 'ops', ops
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield 'not x -> x', 'operand', negated(node.operand)
    if isinstance(node, CONDITIONAL):
        yield 'condition negated', 'test', negated(node.test)
    if isinstance(node, ast.comprehension):
        for i, test in enumerate(node.ifs):
            yield 'filter negated', 'ifs', [*node.ifs[:i], negated(test), *node.ifs[i + 1:]]
    if isinstance(node, ast.Return) and node.value is not None:
        yield 'return None', 'value', ast.Constant(None)
    if isinstance(node, ast.Constant):
        for value in other_constants(node.value):
            yield f'{node.value} -> {value}', 'value', value
    for field in ('body', 'orelse', 'finalbody'):
        yield from without_statements(node, field)


def other_constants(value):
    if isinstance(value, bool):
        return [not value]
    return [value + 1, value - 1] if isinstance(value, (int, float)) else []


def without_statements(node, field):
    "One statement after the other left out"
    block = getattr(node, field, None)
    for i, line in enumerate(block if isinstance(block, list) else ()):
        text = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
        if isinstance(line, (ast.Expr, ast.AugAssign, ast.Raise)) and not text:
            new = [*block[:i], ast.Pass(), *block[i + 1:]]
            yield f'left out: {ast.unparse(line)[:60]}', field, new


def mutable(node):
    "A node and those in it, without messages, annotations and decorators"
    yield node
    for field, value in ast.iter_fields(node):
        if field in ('annotation', 'returns', 'decorator_list'):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, NO_CODE):
                yield from mutable(child)


def parts(tree, subject):
    "The statements of the module that are mutated"
    for node in tree.body:
        name = getattr(node, 'name', None)
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        if isinstance(node, (ast.Import, ast.ImportFrom)) or name in subject.but:
            continue
        if not subject.only or name in subject.only:
            yield node


def mutants(source, subject):
    "(line, what is changed, code) of every mutant"
    tree = ast.parse(source)
    for part in parts(tree, subject):
        line = part.lineno
        for node in mutable(part):
            line = getattr(node, 'lineno', line)
            for what, attribute, new in list(changes(node)):
                old = getattr(node, attribute)
                setattr(node, attribute, new)
                yield line, what, ast.unparse(tree)
                setattr(node, attribute, old)


# --- the tests of one mutant

def load_libraries(tests):
    "Import what the tests import, then forget the package and the tests: a child loads them anew"
    sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
    for test in tests:
        importlib.import_module(Path(test.split('::')[0]).stem)
    ours = {'cotkd', *(path.stem for path in (ROOT/'tests').glob('*.py'))}
    for name in [name for name in sys.modules if name.split('.')[0] in ours]:
        del sys.modules[name]


def test_in_child(module, code, tests):
    "Run the tests with this code in place of the module's; never returns"
    if code is not None:
        path = str(ROOT/f'cotkd/{module}.py')
        compiled = compile(code, path, 'exec')
        loader = importlib.machinery.SourceFileLoader
        normal = loader.get_code
        loader.get_code = lambda self, name: (
            compiled if name == f'cotkd.{module}' else normal(self, name))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    status = 1
    try:
        status = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '--no-header', *tests])
    finally:
        os._exit(int(status))


def status_of(module, code, tests, timeout):
    "0 where all tests pass; None: they took too long"
    child = os.fork()
    if not child:
        os.setsid()
        test_in_child(module, code, tests)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


# --- one module

def run_module(module, most, seed):
    subject = SUBJECTS[module]
    source = (ROOT/f'cotkd/{module}.py').read_text('utf-8')
    start = time.monotonic()
    if status_of(module, None, subject.tests, 600) != 0:
        sys.exit(f'the tests of {module} fail without any change: pytest {" ".join(subject.tests)}')
    timeout = 10 + 5 * (time.monotonic() - start)
    found = list(mutants(source, subject))
    places = sorted(random.Random(seed).sample(range(len(found)), min(most, len(found))))
    survivors, slow = [], 0
    for place in places:
        line, what, code = found[place]
        status = status_of(module, code, subject.tests, timeout)
        slow += status is None
        if status == 0:
            text = source.splitlines()[line - 1].strip()
            survivors.append(dict(line=line, code=text, change=what, why=''))
            print(f'  {module}.py, line {line}: {what:24} | {text}', flush=True)
    killed = len(places) - len(survivors)
    return dict(possible=len(found), tried=len(places), killed=killed, too_slow=slow,
                percent=round(100 * killed / len(places), 1),
                seconds=round(time.monotonic() - start), tests=subject.tests, survivors=survivors)


def keep_reasons(new, old):
    "Take over what was written about the same survivor"
    reasons = {(s['code'], s['change']): s['why'] for s in old.get('survivors', ())}
    for survivor in new['survivors']:
        survivor['why'] = reasons.get((survivor['code'], survivor['change']), '')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('modules', nargs='*', help=f'of {", ".join(SUBJECTS)}; all if not given')
    parser.add_argument('--most', type=int, default=100, help='mutants of a module, drawn')
    parser.add_argument('--seed', type=int, default=0, help='of the drawing')
    parser.add_argument('--out', type=Path, default=OUT)
    args = parser.parse_args()
    os.chdir(ROOT)
    modules = args.modules or list(SUBJECTS)
    load_libraries(sorted({test for module in modules for test in SUBJECTS[module].tests}))
    for module in modules:
        result = run_module(module, args.most, args.seed)
        print(f'{module:8} {result["killed"]} of {result["tried"]} killed '
              f'({result["percent"]} %) in {result["seconds"]} s', flush=True)
        save(args, module, result)


def save(args, module, result):
    from cotkd.files import read_json, write_json
    table = read_json(args.out) if args.out.exists() else dict(modules={})
    keep_reasons(result, table['modules'].get(module, {}))
    table['command'] = f'python tools/campaigns/mutants.py --most {args.most} --seed {args.seed}'
    table['modules'][module] = result
    write_json(args.out, table)


if __name__ == '__main__':
    main()
