"Processes that share a run: the same bytes, whoever does what, and no one left behind"
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from processes import call

from cotkd import experiment as module
from cotkd import workers as pools
from cotkd.bbh import toy_benchmark
from cotkd.experiment import PRESETS, members, run, training_need
from cotkd.files import InputError
from cotkd.workers import find_workers, workers

SMALL = replace(PRESETS['toy'], rows=32, dev=.2, epochs=2., other_prompt=1, max_new_tokens=8)


def two_tasks():
    toy = toy_benchmark(2)
    return replace(toy, items={task: toy.items[task] for task in ('navigate', 'web_of_lies')})


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(module, 'choose_benchmark', lambda *_: two_tasks())


def contents(folder):
    "Bytes of students, answers and results; what is cost, and locks, aside"
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*')
            if path.name in ('model.safetensors', 'results.jsonl', 'report.html')
            or 'predictions' in path.parts and path.suffix == '.jsonl'}


def test_one_process_or_two_write_the_same_bytes(benchmark, tmp_path):
    for count in 1, 2:
        run(SMALL, tmp_path/str(count), False, seeds=2, workers=count)
    one, two = contents(tmp_path/'1'), contents(tmp_path/'2')
    assert len(one) > 20 and one.keys() == two.keys()
    assert [name for name in one if name.name != 'report.html' and one[name] != two[name]] == []
    configs = [json.loads((tmp_path/name/'config.json').read_text()) for name in ('1', '2')]
    assert configs[0]['trained'] == configs[1]['trained'] and len(configs[0]['trained']) == 4
    run(SMALL, tmp_path/'2', False, seeds=2, workers=2)  # there is nothing left to do
    assert contents(tmp_path/'2') == two


def test_a_student_is_asked_before_another_is_trained(monkeypatch):
    jobs = []
    here = contextmanager(lambda count: iter([ThreadPoolExecutor(1)]))
    monkeypatch.setattr(module, 'workers', here)
    monkeypatch.setattr(module, '_is_trained', lambda run, member: member.key == 'kd_cot-0')
    monkeypatch.setattr(module, '_note_trained', lambda run, member, cost: jobs.append(cost))
    monkeypatch.setattr(module, '_train_apart', lambda run, member, _: f'train {member.key}')
    monkeypatch.setattr(module, '_ask', lambda run, member, _: jobs.append(f'ask {member.key}'))
    module._share(None, members(SMALL, '', seeds=2), None, count=1)
    assert jobs == ['ask kd_cot-0', 'train kd-0', 'ask kd-0', 'train kd-1', 'ask kd-1',
                    'train kd_cot-1', 'ask kd_cot-1', 'ask teacher-0', 'ask student-0']


def test_one_process_asks_the_students_of_an_arm_before_the_next_arm_is_trained(monkeypatch):
    jobs = []
    monkeypatch.setattr(module, '_train_arm', lambda run, arm, *_: jobs.append(f'train {arm.name}'))
    monkeypatch.setattr(module, '_ask', lambda run, member, _: jobs.append(f'ask {member.key}'))
    module._one_by_one(SimpleNamespace(experiment=SMALL), members(SMALL, '', seeds=1), None)
    assert jobs == ['train kd', 'ask kd-0', 'train kd_cot', 'ask kd_cot-0', 'ask teacher-0',
                    'ask student-0']


def test_a_mistake_in_a_process_is_said_here():
    with pytest.raises(ValueError, match='invalid literal'), workers(1) as pool:
        pool.submit(int, 'one').result()


def test_a_killed_process_is_one_line_and_the_others_leave():
    with pytest.raises(InputError, match='was killed, .* the same command goes on'):
        with workers(2) as pool:
            numbers = [pool.submit(os.getpid), pool.submit(os.getpid)]
            asleep = pool.submit(time.sleep, 600)
            pool.submit(os.kill, numbers[0].result(), signal.SIGKILL)
            asleep.result()
    assert_gone(number.result() for number in numbers)


def assert_gone(numbers):
    "Within a minute, on a busy machine"
    deadline = time.monotonic() + 60
    numbers = [*numbers]
    while any(psutil.pid_exists(number) for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(.1)


def sleep_in_a_pool(numbers):
    with workers(1) as pool:
        numbers.write_text(str(pool.submit(os.getpid).result()))
        pool.submit(time.sleep, 600)
        os.kill(os.getpid(), signal.SIGKILL)


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    assert call(sleep_in_a_pool, tmp_path/'number').codes == [-9]
    assert_gone([int((tmp_path/'number').read_text())])


INTERRUPTED = """
from cotkd.workers import workers
with workers(1) as pool:
    pool.submit(exec, 'from tqdm import tqdm; list(tqdm([1]))').result()
    raise KeyboardInterrupt
"""


def test_bars_of_a_process_leave_nothing_behind():
    ended = subprocess.run([sys.executable, '-c', INTERRUPTED], capture_output=True, text=True)
    assert '1/1' in ended.stderr and 'KeyboardInterrupt' in ended.stderr
    assert 'leaked' not in ended.stderr


def test_how_many(monkeypatch):
    "One per core for small models; alone on a GPU, under torchrun, or where memory is short"
    need = training_need(PRESETS['toy'])
    monkeypatch.setattr(pools, 'cores', lambda: 6)
    gigabytes = {24: 6, 8: 3, 2: 1}
    for size, count in gigabytes.items():
        memory = type('Memory', (), dict(total=size * 10**9))
        monkeypatch.setattr('psutil.virtual_memory', lambda: memory)
        assert find_workers(need) == count
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    assert find_workers(need) == 1
