"Lines of results, whatever stands in them; names that stay in their directory; what can be paired"
import json

import numpy as np
import pandas as pd
import pytest

from cotkd.arms import contrast
from cotkd.files import InputError, visible, write_lines
from cotkd.records import (check_row, contrast_setting, load_results, packaged_results, pair_items,
                           path_part, prediction_path, same_student, simulated_results,
                           why_unpaired)

KD = contrast('kd:kd_cot')
LINE = dict(arm='kd', task='navigate', seed=0, mode='direct', shots=0, scorer='official', n=4,
            correct=3, items='1101', index=None, skipped=0, model='runs/kd', benchmark='toy')
HOSTILE = ['', '.', '..', '...', '../../etc/passwd', '/etc/passwd', 'C:\\Users\\me', '.hidden',
           'a/b', 'a%2Fb', '50%', 'x' * 300, 'x' * 301, '模' * 200, '%', '%2E', 'nul\0', 'dot.',
           'blank ', ' blank', 'new\nline', '\ud800', '<b>&"', '*?|', '~root']


def result(arm='kd', items='1101', **changes):
    return LINE | dict(arm=arm, items=items, n=len(items), correct=items.count('1')) | changes


def frame(*rows):
    return pd.DataFrame([check_row(row) for row in rows])


def write(path, lines):
    path.write_text(''.join(line + '\n' for line in lines), encoding='utf-8')
    return path


# --- lines

BAD = [
    (dict(index=[0, 1, 2, -1]), 'index holds -1'), (dict(index=[0, 1, 2, 3.0]), 'index holds 3.0'),
    (dict(index=[0, 1, 2, True]), 'index holds True'),
    (dict(index='0123'), 'a list of row numbers'),
    (dict(index=[0, 1, 2, 2]), 'different row numbers'), (dict(index=[0]), 'different row numbers'),
    (dict(index={'0': 1}), 'a list of row numbers'), (dict(seed='0'), "seed is '0'"),
    (dict(seed=.5), 'seed is 0.5'), (dict(seed=None), 'seed is None'),
    (dict(seed=True), 'seed is True'), (dict(n=5), 'n = 5'), (dict(n=4.0), 'n is 4.0'),
    (dict(n=-4), 'n = -4'), (dict(correct=2), 'items hold 3'),
    (dict(correct='3'), "correct is '3'"),
    (dict(arm=3), 'arm is 3'), (dict(model='a\ud800'), 'model is'),
    (dict(arm=None), 'arm is None'), (dict(task=['a']), 'task is'),
    (dict(items=[1, 1, 0, 1]), 'items is'), (dict(items='11x1'), '0 or 1'),
    (dict(mode=['cot']), 'mode is'), (dict(mode=None), 'cot, direct'), (dict(chat=1), 'chat is 1'),
    (dict(shots=-1), 'shots is -1'), (dict(shots='three'), 'shots is'),
    (dict(skipped=-1), 'skipped is -1'), (dict(model=3), 'model is 3'),
    (dict(start=['x']), 'start is'), (dict(scorer=None), 'scorer is None'),
    (dict(benchmark=None), 'benchmark is None'), (dict(temperature=-.1), 'temperature is -0.1'),
    (dict(temperature=True), 'temperature is True'), (dict(temperature='0'), "temperature is '0'")]


@pytest.mark.parametrize('change, words', BAD)
def test_a_field_that_says_nonsense_is_named(tmp_path, change, words):
    path = write(tmp_path/'results.jsonl', [json.dumps(LINE), json.dumps(LINE | change)])
    with pytest.raises(InputError) as error:
        load_results(path)
    text = str(error.value)
    assert 'results.jsonl, line 2: ' in text and words in text and '\n' not in text
    assert len(text) < 400


@pytest.mark.parametrize('field', ['seed', 'n', 'correct', 'shots', 'temperature', 'model',
                                   'items'])
@pytest.mark.parametrize('number', ['NaN', 'Infinity', '-Infinity'])
def test_numbers_that_json_does_not_have(tmp_path, field, number):
    line = json.dumps(LINE | {field: 'HERE'}).replace('"HERE"', number)
    with pytest.raises(InputError, match=f'line 1: {number} is no number of JSON'):
        load_results(write(tmp_path/'results.jsonl', [line]))


@pytest.mark.parametrize('line', ['[1]', '3', 'null', '"kd"', '{', 'kd 3', '{"arm": "kd"}'])
def test_a_line_that_is_no_result(tmp_path, line):
    with pytest.raises(InputError, match='line 1: ') as error:
        load_results(write(tmp_path/'results.jsonl', [line]))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('start', [b'', b'\xef\xbb\xbf'], ids=['plain', 'BOM'])
@pytest.mark.parametrize('end', [b'\n', b'\r\n', b'\r\n\r\n'], ids=['LF', 'CRLF', 'blank lines'])
def test_files_of_other_systems_are_read(tmp_path, start, end):
    lines = [json.dumps(result(arm)).encode() + end for arm in ('kd', 'kd_cot')]
    (tmp_path/'results.jsonl').write_bytes(start + b''.join(lines))
    assert load_results(tmp_path).arm.tolist() == ['kd', 'kd_cot']


def test_one_result_twice_is_one_and_two_of_a_name_are_refused(tmp_path):
    path = write(tmp_path/'results.jsonl', [json.dumps(LINE)] * 2)
    assert len(load_results(path, path)) == 1
    write(path, [json.dumps(LINE), json.dumps(result(items='0000'))])
    words = 'two different results for kd navigate.*line 1 and .*line 2'
    with pytest.raises(InputError, match=words):
        load_results(path)


def test_shots_that_are_not_there_are_told(tmp_path):
    path = write(tmp_path/'results.jsonl', [json.dumps(result(shots=k)) for k in (0, 3)])
    assert load_results(path, shots=3).shots.tolist() == [3]
    with pytest.raises(InputError, match='has shots 5: these have 0 and 3'):
        load_results(path, shots=5)


# --- names

def test_plain_names_are_their_own_file_names():
    plain = ['kd', 'kd_cot', 'my arm-2', 'a.b', '模型', 'lr=1e-3', 'x' * 180, 'KD+CoT', "it's",
             '$1']
    assert [path_part(name) for name in plain] == plain


def test_hostile_names_are_different_file_names_in_their_directory(tmp_path):
    parts = [path_part(name) for name in HOSTILE]
    assert len(set(parts)) == len(HOSTILE)
    for part in parts:
        assert part and not part.startswith('.') and not set(part) & set('/\\\0:\n')
        assert len(part.encode()) <= 200
    for arm in HOSTILE:
        for task in HOSTILE:
            path = prediction_path(tmp_path, LINE | dict(arm=arm, task=task))
            assert path.resolve().parent.parent.parent == (tmp_path/'predictions').resolve()
    path.parent.mkdir(parents=True)
    path.write_text('')


def test_what_cannot_be_seen_is_written_out():
    hidden = ['\x00', '\x1b', '\x7f', '\x9b', '\r', '\u200b', '\u200e', '\u202e', '\u2066',
              '\ufeff', '\u2028', '\U000e0041', '\ud800']
    for character in hidden:
        number = ord(character)
        shown = visible(f'a{character}b')
        assert shown.isprintable() and f'{number:x}' in shown and shown[0] + shown[-1] == 'ab'
    for text in ('a\n\tb', '$5_^', 'é模型😀', '<b>&"', ''):
        assert visible(text) == text
    assert visible(None) == 'None'
    assert visible('\x1b\u202e') == '\\x1b\\u202e'


# --- pairs

def side(arm, **changes):
    return result(arm, mode='direct' if arm == 'kd' else 'cot', **changes)


UNPAIRED = {
    'other seeds, 0 / 1': (side('kd'), side('kd_cot', seed=1)),
    'other tasks, navigate / snarks': (side('kd'), side('kd_cot', task='snarks')),
    'no task under one seed': (side('kd'), side('kd', task='snarks', seed=1),
                               side('kd_cot', seed=1), side('kd_cot', task='snarks')),
    'other rows of the same tasks': (side('kd'), side('kd_cot', index=[4, 5, 6, 7])),
    'no row under every seed': (side('kd', index=[0, 1, 2, 3]), side('kd_cot', index=[0, 1, 2, 3]),
                                side('kd', seed=1, index=[4, 5, 6, 7]),
                                side('kd_cot', seed=1, index=[4, 5, 6, 7])),
    'KD+CoT, step by step has no answers yet: the run is not finished': (
        side('kd'), result('kd_cot')),
    'KD, direct has no answers yet': (side('kd', items='', index=[]), side('kd_cot'))}


@pytest.mark.parametrize('words', UNPAIRED)
def test_why_nothing_can_be_paired(words):
    results = frame(*UNPAIRED[words])
    assert pair_items(results, KD).empty
    why = why_unpaired(results, KD)
    assert words in why and '\n' not in why


def test_where_there_is_a_pair_there_is_no_why():
    assert why_unpaired(frame(side('kd'), side('kd_cot', index=[3, 4, 5, 6])), KD) == ''


@pytest.mark.parametrize('field, other', [
    ('shots', 3), ('scorer', 'lm-eval'), ('benchmark', 'bbh'), ('temperature', .2), ('chat', True)])
def test_the_two_sides_decide_what_may_be_compared(field, other):
    two = side('kd'), side('kd_cot')
    beside = result('teacher', mode='cot', **{field: other})
    results = frame(*two, beside)
    assert contrast_setting(results, KD) == contrast_setting(frame(*two), KD)
    assert len(pair_items(results, KD)) == 4
    with pytest.raises(InputError, match=f'results mix {field} .*compare one {field} at a time'):
        pair_items(results, contrast('teacher:kd_cot'))
    with pytest.raises(InputError, match=f'mix {field}'):  # one side in two ways
        pair_items(frame(*two, side('kd', task='snarks', **{field: other})), KD)


def test_mixed_shots_say_how_to_choose():
    with pytest.raises(InputError, match='choose with --shots 0 or --shots 3'):
        pair_items(frame(side('kd'), side('kd_cot', shots=3)), KD)


@pytest.mark.parametrize('a, b, same', [
    (None, None, True), ('s1', 's1', True), ('s1', None, True), ('s1', 's2', False)])
def test_students_of_one_student(a, b, same):
    results = frame(side('kd', start=a), side('kd_cot', start=b))
    assert same_student(results, KD) == same


@pytest.mark.parametrize('weights, same', [('s1', True), ('s2', False), (None, True)])
def test_the_base_student_is_where_an_arm_started(weights, same):
    results = frame(result('student', mode='cot', weights=weights), side('kd_cot', start='s1'))
    assert same_student(results, contrast('student:kd_cot')) == same


def test_an_arm_of_one_seed_is_one_model():
    two = [side('kd', weights='w1'), side('kd', task='snarks', weights='w2'), side('kd_cot')]
    with pytest.raises(InputError, match='arm kd, seed 0 holds answers of different models'):
        pair_items(frame(*two), KD)
    two[1] |= dict(seed=1)  # of another training
    assert len(pair_items(frame(*two), KD)) == 4


def test_simulated_results_are_results():
    for row in simulated_results(['navigate'], n=5, seeds=(0, 1)).to_dict('records'):
        assert check_row({k: None if x is np.nan else x for k, x in row.items()})


def test_what_is_absent_stays_absent_and_can_be_written_again(tmp_path):
    found = packaged_results('toy_bbh')
    assert found[found.arm == 'teacher'].start.tolist() == [None] * 12
    assert all(found[found.arm == 'kd'].start.str.len() == 32)
    write_lines(tmp_path/'results.jsonl', found.to_dict('records'))
    pd.testing.assert_frame_equal(load_results(tmp_path), found)
