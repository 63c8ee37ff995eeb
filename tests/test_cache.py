"A cache of a teacher: whole or missing, never of something else, and as good as the teacher."
import json
import os
import signal
import subprocess
import sys

import pytest

from cotkd.cache import TeacherCache, fingerprint, write_cache
from cotkd.files import InputError
from cotkd.models import load_lm
from cotkd.toy import make_toy

# a process that writes a cache of small files, and is killed after so many of them
WRITER = '''
import json, os, signal, sys
import cotkd.cache as cache
rows, out, last = json.load(open(sys.argv[1])), sys.argv[2], int(sys.argv[3])
cache.FILE_BYTES = 1 << 13
save, written = cache._save, []

def save_and_die(*args):
    save(*args)
    written.append(args)
    if len(written) == last:
        os.kill(os.getpid(), signal.SIGKILL)

cache._save = save_and_die
cache.write_cache('toy-teacher', rows, out)
'''


@pytest.fixture(scope='module')
def rows():
    return make_toy(['web_of_lies', 'navigate'], 40, seed=5)


@pytest.fixture(scope='module')
def tokenizer():
    return load_lm('toy-teacher')[1]


def write_and_die(rows_file, out, last):
    "-> how the process ended; `last`: files it writes before it is killed, 0: it is not"
    command = [sys.executable, '-c', WRITER, str(rows_file), str(out), str(last)]
    return subprocess.run(command, capture_output=True).returncode


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if '.tmp' not in path.name}


def test_kills_leave_the_same_cache(rows, tmp_path):
    file = tmp_path/'rows.json'
    file.write_text(json.dumps(rows))
    assert write_and_die(file, tmp_path/'whole', 0) == 0
    for last in (1, 4):
        assert write_and_die(file, tmp_path/'killed', last) == -signal.SIGKILL
        with pytest.raises(InputError, match='finish it'):
            TeacherCache(tmp_path/'killed')
    assert write_and_die(file, tmp_path/'killed', 0) == 0
    assert content(tmp_path/'killed') == content(tmp_path/'whole')
    assert len(content(tmp_path/'whole')) > 9


def test_a_flipped_byte_in_any_file_is_named(rows, tmp_path):
    cache = write_cache('toy-teacher', rows[:6], tmp_path/'cache')
    for path in sorted(cache.iterdir()):
        if path.name.startswith('.'):
            continue
        whole = path.read_bytes()
        for place in (9, len(whole) // 2, len(whole) - 3):
            flipped = bytes([whole[place] ^ 4])
            path.write_bytes(whole[:place] + flipped + whole[place + 1:])
            with pytest.raises(InputError, match=path.name):
                TeacherCache(cache)
        path.write_bytes(whole)
    assert len(TeacherCache(cache)) == 6


@pytest.mark.parametrize('change, words', [
    (dict(teacher='toy-student'), 'teacher of it'),
    (dict(rows=5), 'rows of it'),
    (dict(mode='cot'), 'mode, prompt of it'),
    (dict(extra=True), 'tokenizer of it')], ids=['teacher', 'rows', 'mode', 'tokenizer'])
def test_a_cache_of_something_else_is_refused(rows, tmp_path, change, words):
    cache = TeacherCache(write_cache('toy-teacher', rows[:4], tmp_path/'cache', 'direct'))
    tokenizer = load_lm('toy-teacher')[1]
    cache.check(fingerprint('toy-teacher', tokenizer, rows[:4], 'direct'))
    if 'extra' in change:
        tokenizer.add_tokens(['extra'])
    found = fingerprint(change.get('teacher', 'toy-teacher'), tokenizer,
                        rows[:change.get('rows', 4)], change.get('mode', 'direct'))
    with pytest.raises(InputError, match=words):
        cache.check(found)


def test_a_padded_call_changes_no_identity(rows, tmp_path, tokenizer):
    cache = TeacherCache(write_cache('toy-teacher', rows[:4], tmp_path/'cache'))
    tokenizer(['one', 'two and three'], padding=True, truncation=True, max_length=2)
    cache.check(fingerprint('toy-teacher', tokenizer, rows[:4], 'cot'))


def test_shards_make_one_cache(rows, tmp_path, monkeypatch):
    monkeypatch.setattr('cotkd.cache.FILE_BYTES', 1 << 13)
    write_cache('toy-teacher', rows[:9], tmp_path/'whole')
    for i in (2, 1):
        write_cache('toy-teacher', rows[:9], tmp_path/'shards', shard=(i, 2))
    assert content(tmp_path/'shards') == content(tmp_path/'whole')
    with pytest.raises(InputError, match='shard is 3/2'):
        write_cache('toy-teacher', rows[:9], tmp_path/'shards', shard=(3, 2))
