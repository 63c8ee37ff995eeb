"Results on file: what is refused, where things lie, and who is paired with whom, by hand"
import json
import re

import pandas as pd
import pytest

from cotkd.arms import Asked, Contrast
from cotkd.bbh import DEFECTS
from cotkd.files import InputError
from cotkd.records import (DEFAULTS, FIELDS, KEY, check_row, drop_defects, fewer_examples,
                           item_scores, load_results, name_label, packaged_results, pair_items,
                           path_part, prediction_path, read_predictions, read_results, result_key,
                           results_path, same_student, setting, starts, why_unpaired,
                           write_results)

ROW = dict(arm='kd', task='x', seed=0, mode='cot', shots=3, scorer='official', n=3, correct=2,
           items='101', index=None, skipped=0, model='m', benchmark='mine')


def row(**changes):
    "A result; `items` decides n and correct"
    new = ROW | changes
    return new | dict(n=len(new['items']), correct=new['items'].count('1'))


def frame(*rows):
    return pd.DataFrame([DEFAULTS | one for one in rows])[[*FIELDS]]


# --- one result

def test_defaults():
    found = check_row(ROW)
    assert found == ROW | dict(examples=None, truncated=0, context_cut=0, weights=None, start=None,
                               temperature=0., dtype='float32', chat=False, recipe=None)
    assert set(found) == set(FIELDS) and KEY == ('arm', 'task', 'mode', 'shots', 'seed')
    assert check_row(row(index=[4, 0, 2])) == found | dict(index=[4, 0, 2])
    assert check_row(ROW | dict(temperature=.5, chat=True, model=None))['temperature'] == .5


@pytest.mark.parametrize('changes, words', [
    (dict(mode='why'), "mode is 'why', expected one of"),
    (dict(chat='no'), "chat is 'no', expected one of True, False"),
    (dict(temperature=-.5), 'temperature is -0.5, expected a number from 0'),
    (dict(temperature='hot'), "temperature is 'hot', expected a number from 0"),
    (dict(items='10'), 'items must be n = 3 characters'),
    (dict(items='1x1'), 'items must be n = 3 characters'),
    (dict(correct=1), 'correct is 1, items hold 2'),
    (dict(index=[0, 1]), 'index must be null or n = 3'),
    (dict(index=[0, 1, 1]), 'index must be null or n = 3'),
    (dict(index=[0, 1, 2, 3]), 'index must be null or n = 3'),
    (dict(index=dict.fromkeys([0, 1, 2])), 'expected a list of row numbers, or null'),
    (dict(index=[0, 1, -1]), 'index holds -1, expected row numbers from 0 up'),
    (dict(index=[0, 1, True]), 'index holds True'), (dict(index=[0, 1, '2']), "index holds '2'"),
    (dict(arm='\ud800'), 'arm is .* expected text'),
    (dict(arm=3), 'arm is 3, expected text'), (dict(task=None), 'task is None, expected text'),
    (dict(model=3), 'model is 3, expected text or null'),
    (dict(seed=.5), 'seed is 0.5, expected a whole number'),
    (dict(n=True), 'n is True, expected a whole number'),
    (dict(shots=-1), 'shots is -1, expected a whole number from 0 up'),
    (dict(skipped=-1), 'skipped is -1'), (dict(truncated='0'), "truncated is '0'"),
    (dict(temperature=True), 'temperature is True'),
    (dict(temperature=float('inf')), 'temperature is inf'),
    (dict(chat=1), 'chat is 1, expected one of True, False'), (dict(mode=3), 'mode is 3'),
    (dict(task=['x' * 61]), "task is \\['" + 'x' * 58 + '…, expected text')])
def test_what_is_no_result(changes, words):
    with pytest.raises(ValueError, match=words):
        check_row(ROW | changes)


def test_what_is_no_object_or_incomplete():
    with pytest.raises(ValueError, match='one JSON object a line'):
        check_row([ROW])
    without = {field: value for field, value in ROW.items() if field not in ('n', 'seed')}
    with pytest.raises(ValueError, match='^no seed, n: a result has the keys arm, task'):
        check_row(without)


# --- files

def test_a_result_takes_the_place_of_the_one_with_its_key(tmp_path):
    assert read_results(tmp_path/'run') == []
    first, second, third = row(), row(seed=1), row(arm='sft')
    for one in (first, second, third, row(seed=1, items='000')):
        write_results(tmp_path/'run', [one])
    found = read_results(tmp_path/'run')
    assert [DEFAULTS | one for one in (first, row(seed=1, items='000'), third)] == found
    assert results_path(tmp_path/'run') == tmp_path/'run'/'results.jsonl'
    assert result_key(first) == ('kd', 'x', 'cot', 3, 0) and result_key({}) == (None,) * 5


def test_predictions(tmp_path):
    path = prediction_path(tmp_path, ROW)
    assert path == tmp_path/'predictions/kd/cot-3-0/x.jsonl'
    assert read_predictions(tmp_path, ROW) == {}
    path.parent.mkdir(parents=True)
    line = dict(index=4, text='So the answer is 3.', answer='3', correct=1, more='?')
    path.write_text(json.dumps(line) + '\n')
    want = {4: dict(text='So the answer is 3.', answer='3', correct=1)}
    assert read_predictions(tmp_path, ROW) == want
    for damaged in ('{"index": 4}\n', 'x\n'):
        path.write_text(damaged)
        with pytest.raises(InputError, match='x.jsonl is no file of predictions'):
            read_predictions(tmp_path, ROW)


@pytest.mark.parametrize('name, part', [
    ('kd_cot', 'kd_cot'), ('x', 'x'), ('a b', 'a b'), ('ü', 'ü'), ('', '%'), ('..', '%2E%2E'),
    ('.x', '%2Ex'), ('.', '%2E'), ('x.', 'x%2E'), ('x/y', 'x%2Fy'), ('a\n', 'a%0A'),
    (' x', '%20x'), ('x' * 180, 'x' * 180), ('é' * 90, 'é' * 90), ('50%', '50%25')])
def test_a_name_stays_in_its_directory(name, part):
    assert path_part(name) == part


def test_long_names_stay_apart():
    long, other = path_part('x' * 181), path_part('x' * 180 + 'y')
    assert long != other and len(long) == 134 and long.startswith('x' * 100 + '%%')
    assert len(path_part('/' * 60)) == 180 and '%%' not in path_part('/' * 60)
    assert '%%' in path_part('/' * 61)


def write(path, *rows):
    path.write_text(''.join(json.dumps(one) + '\n\n' for one in rows))
    return path


def test_load_results(tmp_path):
    first = write(tmp_path/'a.jsonl', row(), row(seed=1))
    found = load_results(first, first)
    assert list(found) == [*FIELDS] and list(found.seed) == [0, 1]
    second = write(tmp_path/'b.jsonl', row(shots=0), row(seed=2))
    assert list(load_results(first, second).seed) == [0, 1, 0, 2]
    assert list(load_results(first, second, shots=3).seed) == [0, 1, 2]
    assert list(load_results(first, second, shots=0).shots) == [0]
    with pytest.raises(InputError, match='no result in .*a.jsonl'):
        load_results(first, shots=5)
    with pytest.raises(InputError, match='an empty list of paths'):
        load_results()
    with pytest.raises(InputError, match='no results at .*c.jsonl'):
        load_results(tmp_path/'c.jsonl')
    with pytest.raises(InputError, match='no results at .*results.jsonl'):
        load_results(tmp_path)
    other = write(tmp_path/'results.jsonl', row(items='001'))
    words = 'two different results for kd x cot 3 0: .*a.jsonl, line 1 and .*results.jsonl, line 1'
    with pytest.raises(InputError, match=words):
        load_results(first, tmp_path)
    assert load_results(tmp_path).equals(load_results(other))


@pytest.mark.parametrize('second', ['x', '[1]', '{}', json.dumps(row(mode='why'))])
def test_a_damaged_line_is_named(tmp_path, second):
    (tmp_path/'a.jsonl').write_text(json.dumps(row()) + '\n\n' + second + '\n')
    with pytest.raises(InputError, match='a.jsonl, line 3: .*remove the line'):
        load_results(tmp_path/'a.jsonl')


def test_packaged_results():
    assert set(packaged_results().benchmark) == {'bbh'}
    assert len(packaged_results('smollm2_bbh')) != len(packaged_results())


# --- pairs

KD, COT = Asked('kd', 'direct'), Asked('kd_cot', 'cot')
BOTH = Contrast(KD, COT)


def direct(**changes):
    return row(mode='direct', **changes)


def cot(**changes):
    return row(arm='kd_cot', **changes)


def test_item_scores():
    results = frame(direct(items='10'), direct(items='01', index=[7, 3], seed=1), cot(), row())
    found = item_scores(results, KD)
    assert found.values.tolist() == [['x', 0, 0, 1], ['x', 0, 1, 0], ['x', 1, 7, 0], ['x', 1, 3, 1]]
    assert list(found) == ['task', 'seed', 'index', 'score']
    none = item_scores(results, Asked('sft', 'cot'))
    assert none.empty and list(none) == list(found)
    assert (none.dtypes[['seed', 'index', 'score']] == int).all()


def pairs(*rows):
    return sorted(map(tuple, pair_items(frame(*rows), BOTH).values.tolist()))


def test_pairs():
    assert pairs(direct(items='100'), cot(items='011')) == [
        ('x', 0, 0, 1, 0), ('x', 0, 1, 0, 1), ('x', 0, 2, 0, 1)]
    only_some = direct(items='11', index=[2, 0])
    assert pairs(only_some, cot(items='011')) == [('x', 0, 0, 1, 0), ('x', 0, 2, 1, 1)]
    assert pairs(direct(), cot(seed=1)) == [] == pairs(direct(), cot(task='y'))


def test_a_question_counts_that_both_answered_under_every_seed():
    rows = [direct(items='11'), cot(items='00'), direct(items='1', index=[1], seed=1),
            cot(items='01', seed=1), direct(task='y', items='1'), cot(task='y', items='1'),
            direct(seed=2)]
    assert pairs(*rows) == [('x', 0, 1, 1, 0), ('x', 1, 1, 1, 1), ('y', 0, 0, 1, 1)]


@pytest.mark.parametrize('changes, words', [
    (dict(shots=0), 'results mix shots 0 and 3'), (dict(scorer='lm-eval'), 'results mix scorer'),
    (dict(benchmark='bbh'), 'results mix benchmark bbh and mine'),
    (dict(chat=True), 'results mix chat'), (dict(temperature=.7), 'results mix temperature')])
def test_settings_do_not_mix(changes, words):
    with pytest.raises(InputError, match=words):
        pairs(direct(), cot(**changes))
    assert setting(frame(direct(), cot())) == dict(
        benchmark='mine', scorer='official', shots=3, temperature=0, dtype='float32', chat=False)
    with pytest.raises(InputError, match='no results are left to compare'):
        setting(frame(direct())[:0])


def test_a_name_in_a_figure():
    assert name_label('kd_cot') == 'kd_cot' and name_label('') == "''"
    assert name_label('a\nb\tc\x07') == 'a\\nb\\tc\\x07'
    assert name_label('x' * 36) == 'x' * 36
    long, other = name_label('x' * 37), name_label('x' * 38)
    assert long != other and len(long) == len(other) == 36
    assert long.startswith('x' * 18 + '…' + 'x' * 9 + ' #')
    assert re.fullmatch('ab…m #[0-9a-f]{6}', name_label('abcdefghijklm', 12))


@pytest.mark.parametrize('rows, why', [
    ([direct(), cot()], ''),
    ([direct()], 'has no answers yet'),
    ([cot()], 'KD, direct has no answers yet'),
    ([direct(), cot(task='y')], 'they have other tasks, x / y'),
    ([direct(task=t) for t in 'abcd'] + [cot(task=t) for t in 'xyz'],
     'they have other tasks, a, b, c and 1 more / x, y, z'),
    ([direct(), cot(seed=1)], 'they have other seeds, 0 / 1'),
    ([direct(), direct(task='y', seed=1), cot(seed=1), cot(task='y')],
     'they share no task under one seed'),
    ([direct(items='1', index=[0]), cot(items='1', index=[1])], 'they were asked other rows'),
    ([direct(items='1', index=[0]), cot(items='1', index=[0]),
      direct(items='1', index=[1], seed=1), cot(items='1', index=[1], seed=1)],
     'they share no row under every seed')])
def test_why_nothing_is_paired(rows, why):
    found = why_unpaired(frame(*rows), BOTH)
    assert why in found and bool(why) == bool(found)
    assert 'and 0 more' not in found


def test_one_seed_of_an_arm_is_one_model():
    mixed = direct(weights='a' * 20), direct(weights='b' * 20, task='y')
    with pytest.raises(InputError, match=f"arm kd, seed 0 .*{'a' * 12} and {'b' * 12}\\)"):
        pairs(*mixed, cot())
    assert pairs(direct(weights='a'), direct(weights='b', seed=1), cot(weights='c'),
                 cot(weights='c', seed=1))
    assert pairs(direct(weights='a'), cot(), row(arm='sft', weights='x'),
                 row(arm='sft', weights='y', task='y', shots=0))


def test_students():
    results = frame(direct(start='s'), cot(start='s'), row(arm='student', weights='s', start='no'),
                    row(arm='sft', start='other'), row(arm='sft_cot'))
    student, sft = Asked('student', 'cot'), Asked('sft', 'cot')
    assert starts(results, KD) == starts(results, student) == {'s'}
    assert starts(results, sft) == {'other'} and starts(results, Asked('sft_cot', 'cot')) == set()
    assert same_student(results, BOTH) and same_student(results, Contrast(student, KD))
    assert not same_student(results, Contrast(sft, KD))
    assert same_student(results, Contrast(Asked('sft_cot', 'cot'), KD))  # not known


def test_without_defects():
    assert set(DEFECTS['snarks']) == {86, 88}
    items = '1' * 86 + '101' + '0'
    whole = row(task='snarks', benchmark='bbh', items=items)
    found = drop_defects(whole)
    assert found['index'] == [*range(86), 87, 89] and found['items'] == '1' * 86 + '00'
    assert (found['n'], found['correct']) == (88, 86)
    some = drop_defects(row(task='snarks', benchmark='bbh', items='101', index=[88, 3, 86]))
    assert (some['items'], some['index'], some['n'], some['correct']) == ('0', [3], 1, 0)
    assert drop_defects(row(task='snarks'))['items'] == '101'  # of another benchmark
    assert {**found, **whole} == whole


def test_what_was_not_asked_has_no_examples():
    "Rows from before a task was asked with the most examples that fit"
    asked = row(task='x', shots=3, examples=1)
    left_out = row(task='x', arm='kd', items='', shots=3, skipped=2)
    assert fewer_examples(frame(left_out, asked)) == {'x': 1}
    with pytest.raises(InputError, match='results of x mix 1 and 3 worked examples'):
        fewer_examples(frame(row(task='x', arm='kd', shots=3), asked))
