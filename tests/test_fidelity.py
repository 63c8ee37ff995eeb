"A student beside its teacher: by hand, and with the toy teacher"
import numpy as np
import pytest

from cotkd import fidelity
from cotkd.arms import Asked
from cotkd.bbh import toy_benchmark
from cotkd.evaluate import Asking, Subject, evaluate
from cotkd.fidelity import (agreement, agreement_table, answers_after, carry_table, cut_words,
                            disturbed, written_rows)
from cotkd.files import write_lines
from cotkd.models import load_lm
from cotkd.records import DEFAULTS, load_results, prediction_path, write_results
from cotkd.stats import paired_bootstrap

KD = Asked('kd', 'direct')


def keep(out, arm, mode, answers, right, seed=0, task='navigate'):
    "A result and its texts"
    items = ''.join(str(int(answer == right)) for answer in answers)
    row = DEFAULTS | dict(arm=arm, task=task, seed=seed, mode=mode, shots=0, scorer='official',
                          n=len(items), correct=items.count('1'), items=items, skipped=0,
                          index=None, model=arm, benchmark='toy')
    write_results(out, [row])
    write_lines(prediction_path(out, row), [
        dict(index=i, text=f'So. So the answer is {x}.', answer=x, correct=x == right)
        for i, x in enumerate(answers)])


@pytest.fixture
def run(tmp_path):
    "The teacher is wrong at 2 and 3; one seed of the student copies that at 2"
    keep(tmp_path, 'teacher', 'cot', ['Yes', 'Yes', 'No', 'No', ''], 'Yes')
    keep(tmp_path, 'kd', 'direct', ['Yes', 'No', 'No', 'Yes', ''], 'Yes')
    keep(tmp_path, 'kd', 'direct', ['Yes', 'Yes', 'Yes', 'Yes', 'Yes'], 'Yes', seed=1)
    return tmp_path


def test_agreement_by_hand(run):
    "No answer agrees with nothing"
    both = agreement(run, load_results(run), KD)
    same = both.pivot(index='seed', columns='index', values='same')
    assert same.loc[0].tolist() == [True, False, True, False, False]
    assert same.loc[1].tolist() == [True, True, False, False, False]
    assert both.correct_teacher[:5].tolist() == [True, True, False, False, False]


def test_the_table_counts_questions_and_not_seeds(run):
    row = agreement_table(run, load_results(run)).loc['kd']
    assert (row.n, row.n_wrong) == (5, 3)
    assert row.same == pytest.approx(100 * np.mean([1, .5, .5, 0, 0]))
    assert row.same_wrong == pytest.approx(100 * np.mean([.5, 0, 0]))
    assert np.isnan(row.low)  # too few questions


def test_the_interval_is_that_of_the_bootstrap(tmp_path):
    rng = np.random.default_rng(0)
    answers = [rng.choice(['Yes', 'No'], 40).tolist() for _ in range(4)]
    for task, own, other in (('navigate', *answers[:2]), ('web_of_lies', *answers[2:])):
        keep(tmp_path, 'teacher', 'cot', own, 'Yes', task=task)
        keep(tmp_path, 'kd', 'direct', other, 'Yes', task=task)
    row = agreement_table(tmp_path, load_results(tmp_path)).loc['kd']
    same = [a == b for k in (0, 2) for a, b in zip(answers[k], answers[k + 1])]
    found = paired_bootstrap([0] * 80, same, ['navigate'] * 40 + ['web_of_lies'] * 40)
    assert (row.same, row.low, row.high) == pytest.approx(
        (found['delta'], found['low'], found['high']))


@pytest.mark.parametrize('share, before', [
    (0., ''), (.25, 'It'), (.5, 'It is'), (.75, 'It is  so,'), (1., 'It is  so, then.')])
def test_a_cut_keeps_every_letter(share, before):
    text = 'It is  so, then.'
    assert cut_words(text, share) == (before, text[len(before):])
    assert cut_words('', share) == ('', '')


def test_the_end_of_a_rationale_is_of_the_next_row():
    rows = [dict(rationale=text) for text in ('a b c d', 'k l', 'w x y z')]
    assert disturbed(rows, .5) == [('a b', 'a b l'), ('k', 'k y z'), ('w x', 'w x c d')]
    assert disturbed(rows, 1.) == [(row['rationale'], row['rationale']) for row in rows]


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "The toy teacher, and what it wrote"
    out, toy = tmp_path_factory.mktemp('asked'), toy_benchmark(4)
    model, tokenizer = load_lm('toy-teacher')
    evaluate(model, tokenizer, toy, Subject('teacher', 'toy-teacher'), Asking(max_new_tokens=150),
             out=out, progress=False)
    result = load_results(out).query('task == "web_of_lies"').iloc[0].to_dict()
    return model, tokenizer, toy, written_rows(out, result, toy.items['web_of_lies'])


def test_what_was_written_as_rows(asked, tmp_path):
    *_, toy, rows = asked
    assert 3 <= len(rows) <= 4
    for row in rows:
        assert row['source'] == toy.items['web_of_lies'][row['index']]['input']
        assert row['target'] in ('Yes', 'No') and 'So the answer' not in row['rationale']
    keep(tmp_path, 'teacher', 'cot', ['Yes', ''], 'Yes', task='web_of_lies')
    result = load_results(tmp_path).iloc[0].to_dict()
    assert [row['index'] for row in written_rows(tmp_path, result, toy.items['web_of_lies'])] == [0]


def test_a_whole_rationale_has_the_same_answer(asked, monkeypatch):
    model, tokenizer, toy, rows = asked
    monkeypatch.setattr(fidelity, 'SHARES', (.5, 1.))
    table = carry_table(model, tokenizer, toy, 'web_of_lies', rows)
    assert table.columns.tolist() == ['task', 'index', 'share', 'cut', 'ended']
    assert table[table.share == 1.][['cut', 'ended']].all(axis=None)
    assert len(table) == 2 * len(rows) and not table[table.share == .5].cut.all()
    assert carry_table(model, tokenizer, toy, 'web_of_lies', []).empty


def test_the_answer_behind_a_rationale_of_ours(asked):
    model, tokenizer, toy, rows = asked
    prompt = toy.prompt('web_of_lies', rows[0]['source'], 'cot')
    assert answers_after(model, tokenizer, [prompt], [rows[0]['rationale']]) == [rows[0]['target']]
