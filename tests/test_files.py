"What is written is whole, what is read is checked, and a directory belongs to one thing."
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from cotkd import files
from cotkd.files import InputError

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch):
    "A memory of digests of its own for every test"
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    return files.memory_file()


@pytest.fixture
def start(tmp_path):
    "Start a Python program beside this one, in the test's directory"
    started = []

    def _start(program, *args):
        command = [sys.executable, '-c', program, *map(str, args)]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    "A working directory in which nothing can be written, also not by root"
    folder = tmp_path/'read only'
    folder.mkdir(mode=0o555)
    monkeypatch.chdir(folder)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield
    if is_root:
        os.seteuid(0)


def error(function, *args, **kwargs):
    "The message of the InputError that a call raises: always one line"
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    return message


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# Writing

def test_what_is_written_is_read(tmp_path):
    rows = [dict(text='“naïve”\u2028\n', n=1), dict(text='', n=None)]
    files.write_json(tmp_path/'new'/'a.json', dict(rows=rows))
    files.write_lines(tmp_path/'new'/'b.jsonl', rows)
    assert files.read_json(tmp_path/'new'/'a.json') == dict(rows=rows)
    assert files.read_lines(tmp_path/'new'/'b.jsonl') == rows
    assert names(tmp_path/'new') == ['a.json', 'b.jsonl']


@pytest.mark.parametrize('stop', [KeyboardInterrupt, ValueError])
def test_a_stopped_write_changes_nothing(tmp_path, stop):
    path = tmp_path/'a.txt'
    files.write_text(path, 'old')
    with pytest.raises(stop), files.replacing(path) as part:
        part.write_text('ne')
        raise stop
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['a.txt']


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
def test_a_failed_write_is_one_line(tmp_path, monkeypatch, number):
    def fail(*paths):
        raise OSError(number, os.strerror(number))

    path = tmp_path/'a.txt'
    files.write_text(path, 'old')
    monkeypatch.setattr(os, 'replace', fail)
    assert error(files.write_text, path, 'new') == (
        f'{path} cannot be written ({os.strerror(number)}): '
        'make room there, or choose another place')
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['a.txt']


def test_a_file_in_the_place_of_a_directory_is_one_line(tmp_path):
    (tmp_path/'file').write_text('')
    for place in 'file/a.txt', 'file/more/a.txt':
        message = error(files.write_text, tmp_path/place, 'new')
        assert message.startswith(f'{tmp_path/place} cannot be written (')


def test_nothing_is_written_into_a_closed_directory(read_only):
    closed = 'cannot be written (Permission denied): make room there, or choose another place'
    assert error(files.write_json, 'a.json', {}) == f'a.json {closed}'
    assert error(files.write_text, 'run/a.txt', '') == f'run/a.txt {closed}'
    assert closed in error(files.claim, 'run', 'run.json', {}, 'run')
    assert closed in error(files.only_one('run', 'this run').__enter__)
    assert closed in error(files.taking_turns('a.jsonl').__enter__)


def test_what_cannot_be_read_is_not_called_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError, match='missing'):
        with files.replacing(tmp_path/'copy') as part:
            shutil.copyfile(tmp_path/'missing', part)
    assert names(tmp_path) == []


WRITES = """
import time
from cotkd.files import replacing
with replacing('a.txt') as part:
    part.write_text('ne')
    print('writing', flush=True)
    time.sleep(60)
"""


def test_a_killed_write_changes_nothing(tmp_path, start):
    files.write_text(tmp_path/'a.txt', 'old')
    process = start(WRITES)
    assert process.stdout.readline() == 'writing\n'
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path/'a.txt').read_text() == 'old'
    rest = [path for path in files.list_files(tmp_path) if path.name != 'a.txt']
    assert len(rest) == 1 and all(map(files.is_scratch, rest))


# Reading

@pytest.mark.parametrize('content', [b'', b'{"a": 1', b'[1]', b'null', b'7', b'\xff', b'{} {}'])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path/'a.json'
    path.write_bytes(content)
    assert error(files.read_json, path) == (
        f'{path} is not one JSON object: it was changed or damaged; remove it, '
        'then run the same command again')


@pytest.mark.parametrize('line', [b'{"a": 1', b'[1]', b'null', b'7', b'\xff', b'{} {}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path/'a.jsonl'
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    assert error(files.read_lines, path) == (
        f'{path}, line 3 is no JSON object: remove the line, then run the same command again')


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert files.read_lines(tmp_path/'a.jsonl') == []
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path/'a.json')


# Identity

def test_digest_depends_on_values_not_on_order():
    one = files.digest('kd', dict(lr=1e-4, rows=3))
    assert one == files.digest('kd', dict(rows=3, lr=1e-4))
    assert len(one) == 32
    others = [files.digest('kd', dict(lr=1e-4, rows=4)), files.digest('kd'), files.digest()]
    assert len({one, *others}) == 4


def save(directory, size=100, last=0):
    "What `save_pretrained` leaves, changed some time ago"
    directory.mkdir(exist_ok=True)
    (directory/'config.json').write_text('{}')
    weights = directory/'model.safetensors'
    weights.write_bytes(bytes(size - 1) + bytes([last]))
    age(weights)
    return directory


def age(path, seconds=1000):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_identity_is_of_bytes_not_of_place(tmp_path):
    model = save(tmp_path/'model')
    before = files.identity(model)
    assert files.identity(save(tmp_path/'copy')) == before
    for name in 'distill.json', 'training_args.bin', 'README.md', '.working.lock':
        (model/name).write_text('{"a": 1}')
    (model/'checkpoint-1').mkdir()
    assert files.identity(model) == before
    (model/'tokenizer.json').write_text('{}')
    assert files.identity(model) != before


@pytest.mark.parametrize('size', [100, MEGABYTE])
def test_one_bit_makes_another_model(tmp_path, size):
    before = files.identity(save(tmp_path/'model', size))
    changed = save(tmp_path/'model', size, last=1)
    age(changed/'model.safetensors', 500)
    assert files.identity(changed) != before


def test_a_small_file_is_read_although_its_time_is_the_old_one(tmp_path):
    weights = save(tmp_path/'model')/'model.safetensors'
    before, stat = files.file_digest(weights), weights.stat()
    weights.write_bytes(bytes(99) + b'\1')
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files.file_digest(weights) != before


def test_a_big_file_with_the_old_size_and_time_is_taken_for_the_old_one(tmp_path):
    "What the notebook says we do not see"
    weights = save(tmp_path/'model', MEGABYTE)/'model.safetensors'
    before, stat = files.file_digest(weights), weights.stat()
    weights.write_bytes(bytes(MEGABYTE - 1) + b'\1')
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files.file_digest(weights) == before


def test_a_big_file_that_just_changed_is_read_again(tmp_path, memory):
    path = tmp_path/'weights'
    path.write_bytes(bytes(MEGABYTE))
    stat = path.stat()
    before = files.file_digest(path)
    path.write_bytes(bytes(MEGABYTE - 1) + b'\1')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files.file_digest(path) != before
    assert not memory.exists()


DIGEST = """
import hashlib
from cotkd.files import file_digest
real = hashlib.file_digest
def tell(*args):
    print('read')
    return real(*args)
hashlib.file_digest = tell
print(file_digest('weights'), file_digest('weights'))
"""


def test_two_processes_read_a_big_file_once(tmp_path, start):
    (tmp_path/'weights').write_bytes(bytes(MEGABYTE))
    age(tmp_path/'weights')
    digest = hashlib.sha256(bytes(MEGABYTE)).hexdigest()[:32]
    said = [start(DIGEST).communicate()[0].split() for _ in range(2)]
    assert said == [['read', digest, digest], [digest, digest]]


@pytest.mark.parametrize('content', ['', '{"a": ', '[]'])
def test_a_damaged_memory_is_ignored(tmp_path, memory, content):
    files.write_text(memory, content)
    (tmp_path/'weights').write_bytes(bytes(MEGABYTE))
    age(tmp_path/'weights')
    digest = hashlib.sha256(bytes(MEGABYTE)).hexdigest()[:32]
    assert files.file_digest(tmp_path/'weights') == digest
    assert list(files.read_json(memory).values()) == [digest]


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path/'no directory').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'no directory'))
    (tmp_path/'weights').write_bytes(bytes(MEGABYTE))
    age(tmp_path/'weights')
    digest = hashlib.sha256(bytes(MEGABYTE)).hexdigest()[:32]
    assert files.file_digest(tmp_path/'weights') == digest


# Claims

def test_a_claim_is_compared_part_by_part(tmp_path):
    run = tmp_path/'run'
    belongs = dict(rows=4, tasks=('a', 'b'), weights=None)
    assert files.check_claim(run, 'run.json', belongs, 'run') is None
    assert not run.exists()
    assert files.claim(run, 'run.json', belongs, 'run') is None
    files.write_json(run/'run.json', belongs | dict(cost=7))
    assert files.claim(run, 'run.json', belongs, 'run')['cost'] == 7
    other = dict(rows=5, tasks=('a', 'b'), weights='f00')
    assert error(files.claim, run, 'run.json', other, 'run') == (
        f'{run} holds another run, which differs in rows, weights: '
        'choose another --out, or delete it')
    assert files.read_json(run/'run.json')['rows'] == 4


def test_a_part_of_parts_is_compared_by_name(tmp_path):
    run = tmp_path/'run'
    files.claim(run, 'run.json', dict(settings=dict(lr=1, epochs=2, chat=True)), 'run')
    asked = dict(settings=dict(lr=2, epochs=2, seed=0))
    assert 'differs in settings.lr, settings.seed, settings.chat: ' in (
        error(files.claim, run, 'run.json', asked, 'run'))


def test_a_claim_may_stand_inside_a_record(tmp_path):
    claim = tmp_path/'student', 'distill.json', dict(lr=1), 'distillation', 'recipe'
    assert files.claim(*claim) is None
    assert files.claim(*claim) == dict(recipe=dict(lr=1))
    files.write_json(tmp_path/'student'/'distill.json', dict(cost=3))
    assert 'differs in lr' in error(files.claim, *claim)


def test_a_directory_of_something_else_is_not_claimed(tmp_path):
    (tmp_path/'thesis.txt').write_text('mine')
    assert error(files.claim, tmp_path, 'run.json', {}, 'run') == (
        f'{tmp_path} is not empty and holds no run: choose another --out')
    assert names(tmp_path) == ['thesis.txt']


def test_scratch_files_keep_nobody_from_a_directory(tmp_path):
    for name in '.working.lock', 'run.json.123.tmp':
        (tmp_path/name).write_text('')
    assert files.claim(tmp_path, 'run.json', dict(rows=4), 'run') is None


def test_a_damaged_claim_is_named(tmp_path):
    (tmp_path/'run.json').write_text('{"rows": ')
    message = error(files.claim, tmp_path, 'run.json', dict(rows=4), 'run')
    assert message.startswith(f'{tmp_path/"run.json"} is not one JSON object')


CLAIMS = """
import os, sys
from cotkd.files import InputError, claim
print('ready', flush=True)
rows = sys.argv[1]
while not os.path.exists('go'):
    pass
for i in range(60):
    try:
        old = claim(f'run{i}', 'run.json', dict(rows=rows), 'run')
        print('first' if old is None else 'again')
    except InputError:
        print('refused')
"""


def race(start, tmp_path, program, *args):
    "What processes that start at the same moment say, one list for each"
    processes = [start(program, arg) for arg in args]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    (tmp_path/'go').write_text('')
    return [process.communicate(timeout=60)[0].split() for process in processes]


def test_the_same_claim_at_once_is_one_claim(tmp_path, start):
    one, other = race(start, tmp_path, CLAIMS, 'same', 'same')
    assert {frozenset(pair) for pair in zip(one, other)} == {frozenset(['first', 'again'])}


def test_of_two_claims_at_once_one_is_refused(tmp_path, start):
    one, other = race(start, tmp_path, CLAIMS, 'one', 'other')
    assert len(one) == len(other) == 60
    for i, pair in enumerate(zip(one, other)):
        assert set(pair) == {'first', 'refused'}
        first = 'one' if pair[0] == 'first' else 'other'
        assert files.read_json(tmp_path/f'run{i}'/'run.json') == dict(rows=first)
        assert names(tmp_path/f'run{i}') == ['run.json']


# Locks

TURNS = """
import os, sys
from cotkd.files import read_lines, taking_turns, write_lines
print('ready', flush=True)
while not os.path.exists('go'):
    pass
for i in range(60):
    with taking_turns('rows.jsonl'):
        rows = read_lines('rows.jsonl')
        write_lines('rows.jsonl', rows + [dict(who=sys.argv[1], i=i)])
"""


def test_nothing_is_lost_between_two_that_take_turns(tmp_path, start):
    race(start, tmp_path, TURNS, 'one', 'other')
    rows = files.read_lines(tmp_path/'rows.jsonl')
    for who in 'one', 'other':
        assert [row['i'] for row in rows if row['who'] == who] == list(range(60))


WORKS = """
import time
from cotkd.files import only_one
with only_one('run', 'this run'):
    print('working', flush=True)
    time.sleep(60)
"""


def work(directory):
    with files.only_one(directory, 'this run'):
        return 'done'


def test_a_directory_in_use_is_refused_until_its_process_dies(tmp_path, start):
    process = start(WORKS)
    assert process.stdout.readline() == 'working\n'
    run = tmp_path/'run'
    assert error(work, run) == (
        f'{run}: this run is running in another process: '
        'wait for it, or choose another --out')
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert work(run) == 'done'
    assert work(run) == 'done'
    assert files.check_claim(run, 'run.json', {}, 'run') is None


def test_an_error_of_the_work_itself_passes_and_frees_the_directory(tmp_path):
    for kind in InputError, TimeoutError, KeyError:
        with pytest.raises(kind, match='inside'), files.only_one(tmp_path, 'this run'):
            raise kind('inside')
    assert work(tmp_path) == 'done'


# The disk

def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    asked = []
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: asked.append(p) or usage(9e9, 6e9, 3e9))
    new = tmp_path/'new'/'cache'
    files.check_disk(new, 3e9, '12 supervised tokens')
    assert error(files.check_disk, new, 3.2e9, '12 supervised tokens') == (
        f'{new} needs 3.2 GB for 12 supervised tokens, but 3.0 GB are free: '
        'choose another disk, or fewer rows')
    assert asked == [tmp_path, tmp_path]
    assert not new.parent.exists()


def test_files_are_light():
    program = 'import sys, cotkd.files; print({"torch", "pandas", "numpy"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.stdout == 'set()\n'
