"A cache of a teacher: whole or missing, never of something else, and as good as the teacher."
import os
import signal

import pytest
from processes import call, finish

import cotkd.cache as cache_module
from cotkd.cache import TeacherCache, fingerprint, write_cache
from cotkd.files import InputError
from cotkd.models import load_lm
from cotkd.toy import make_toy

@pytest.fixture(scope='module')
def rows():
    return make_toy(['web_of_lies', 'navigate'], 40, seed=5)


@pytest.fixture(scope='module')
def tokenizer():
    return load_lm('toy-teacher')[1]


def write(rows, out, last=0):
    "Small files; the process is killed after so many of them, 0: it is not"
    save, written = cache_module._save, []

    def save_and_die(*args):
        save(*args)
        written.append(args)
        if len(written) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    cache_module.FILE_BYTES = 1 << 13
    cache_module._save = save_and_die
    write_cache('toy-teacher', rows, out)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if '.tmp' not in path.name}


def test_kills_leave_the_same_cache(rows, tmp_path):
    finish(write, rows, tmp_path/'whole')
    for last in (1, 4):
        assert call(write, rows, tmp_path/'killed', last).codes == [-signal.SIGKILL]
        with pytest.raises(InputError, match='finish it'):
            TeacherCache(tmp_path/'killed')
    finish(write, rows, tmp_path/'killed')
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
