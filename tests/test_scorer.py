"How a text becomes a 0 or a 1, and how a question is shown, worked out by hand"
import json

import pytest

from cotkd import bbh
from cotkd.bbh import (ALGORITHMIC, AVERAGES, BBH_COUNTS, BBH_TASKS, BENCHMARKS, NLP, SCORERS,
                       Benchmark, Scorer, add_examples, answers_only, bbh_source, check_items,
                       extract_answer, family, family_weights, few_shot_prompt, find_benchmark,
                       find_scorer, is_correct, is_item, lm_eval_answer, lm_eval_equal,
                       official_answer, official_equal, read_shots, select_tasks, worked_answers)
from cotkd.files import InputError


@pytest.mark.parametrize('example, answer', [
    ('Q: Why?\nA: So.', 'So.'), ('Q: Why?\nA:\nSo.', 'So.'), ('Q: Why? So.', 'Why? So.')])
def test_worked_answers(example, answer):
    "An example that is laid out in another way counts as a whole"
    assert worked_answers(f'Answer.\n\n{example}', 'cot') == [answer]


@pytest.mark.parametrize('text, mode, answer', [
    ('It is. So the answer is (B).', 'cot', '(B)'),
    ('the answer is 3..', 'cot', '3.'),
    ('the answer is  3 \nthe answer is 4.', 'cot', '3'),
    ('the answer is\n3', 'cot', ''),
    ('No answer', 'cot', ''),
    ('Yes.', 'direct', 'Yes'),
    ('the answer is 3.', 'direct', 'the answer is 3'),
    ('\n3', 'direct', '')])
def test_official_answer(text, mode, answer):
    assert official_answer(text, mode) == answer


@pytest.mark.parametrize('text, answer', [
    ('So the answer is (B).', '(B)'),
    ('the answer is 3', ''),
    ('the answer is 34', '3'),
    ('the answer is \nthe answer is 5.', '5'),
    ('the answer is 3. the answer is 4.', '3. the answer is 4'),
    ('the answer is 5.\nthe answer is 6.', '5'),
    ('The answer: 3', '[invalid]')])
def test_lm_eval_answer(text, answer):
    assert lm_eval_answer(text, 'cot') == answer
    assert lm_eval_answer(text, 'direct') == text


def test_matches():
    assert official_equal('3', ' 3\n')
    assert not official_equal('3 ', '3') and not official_equal('', '3')
    assert lm_eval_equal('3', '3') and not lm_eval_equal('3', '3 ')
    assert is_correct('the answer is 3.', '3 ', 'cot')
    assert not is_correct('the answer is 3.', '3 ', 'cot', 'lm-eval')
    assert not is_correct('the answer is 4.', '3', 'cot')


@pytest.mark.parametrize('text, mode, scorer, answer', [
    ('Hm.\n\nQ: 1\nA: the answer is 3.', 'cot', 'official', ''),
    ('Hm.\nQ: 1\nA: the answer is 3.', 'cot', 'official', '3'),
    (' 3\n\nQ: 1', 'direct', 'official', '3'),
    ('Question: the answer is 3.', 'cot', 'lm-eval', '[invalid]'),
    ('a</s>b', 'direct', 'lm-eval', 'a'),
    ('a\n\nb', 'direct', 'lm-eval', 'a'),
    ('a\nb', 'direct', 'lm-eval', 'a\nb')])
def test_a_text_ends_at_its_stops(text, mode, scorer, answer):
    assert extract_answer(text, mode, scorer) == answer


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="mode 'why' is unknown: choose from cot, direct"):
        extract_answer('', 'why')
    with pytest.raises(InputError, match="scorer 'why' .*: choose from official, lm-eval, .*mine"):
        find_scorer('why', (Scorer('mine', {}),))
    assert find_scorer('official') is SCORERS['official']
    mine = Scorer('official', dict(cot=('!',)))
    assert find_scorer('official', (mine,)) is mine
    assert mine.answer('the answer is a! b', 'cot') == 'a'
    assert SCORERS['lm-eval'].needs_examples and not SCORERS['official'].needs_examples


def test_select_tasks():
    assert select_tasks() == select_tasks('all') == list(BBH_TASKS)
    assert len(BBH_TASKS) == 27 and (len(NLP), len(ALGORITHMIC)) == (12, 15)
    assert select_tasks('nlp') == NLP and select_tasks('algorithmic') == ALGORITHMIC
    assert select_tasks(' navigate ,snarks,navigate') == ['snarks', 'navigate']
    assert select_tasks(['navigate', 'nlp']) == [*NLP, 'navigate']
    for asked in ('', [], [''], 'navigate,', 'snark'):
        with pytest.raises(InputError, match='unknown task .*; did you mean'):
            select_tasks(asked)
    with pytest.raises(InputError, match="'snark'; did you mean 'snarks'"):
        select_tasks('nlp,snark')
    with pytest.raises(InputError, match='unknown task .∞.; did you mean'):
        select_tasks('∞')  # like none of them


def test_families():
    assert family('logical_deduction_five_objects') == 'logical_deduction'
    assert family('tracking_shuffled_objects_seven_objects') == 'tracking_shuffled_objects'
    assert family('x_three_objects') == 'x' and family('object_counting') == 'object_counting'
    assert family('x_three_objects_more') == 'x_three_objects_more'
    weights = family_weights(['a', 'b_three_objects', 'b_five_objects'])
    assert weights == dict(a=.5, b_three_objects=.25, b_five_objects=.25)
    assert len(set(map(family, BBH_TASKS))) == 23
    for weights in AVERAGES.values():
        assert sum(weights.values()) == pytest.approx(1)
    assert BBH_COUNTS['snarks'] == 178 and sum(BBH_COUNTS.values()) == 6511
    assert AVERAGES['micro']['snarks'] == pytest.approx(178 / 6511)


SHOTS = ("Answer.\n\nQ: 1 + 1?\nA: Let's think step by step.\nIt is 2. So the answer is 2."
         '\n\nQ: Is it?\nA: Yes\nA: So the answer is no.')


def test_examples():
    bare = 'Answer.\n\nQ: 1 + 1?\nA: 2\n\nQ: Is it?\nA: no'
    assert answers_only(SHOTS) == bare and answers_only('Answer.') == 'Answer.'
    assert add_examples(SHOTS, 'Why?') == SHOTS + "\n\nQ: Why?\nA: Let's think step by step.\n"
    assert add_examples(SHOTS, 'Why?', 'direct') == bare + '\n\nQ: Why?\nA:'
    assert add_examples('', 'Why?', 'direct') == 'Q: Why?\nA:'


ITEMS = [dict(input='Why?', target='So')]


def test_a_benchmark():
    mine = Benchmark('mine', items=dict(a=ITEMS), examples=lambda task: SHOTS)
    assert repr(mine) == "Benchmark(name='mine', label='mine', note='')"  # no questions
    assert mine.label == 'mine' and Benchmark('mine', 'My own').label == 'My own'
    assert mine.prompt('a', 'Why?') == add_examples('', 'Why?')
    assert mine.prompt('a', 'Why?', 'direct', 2) == add_examples(SHOTS, 'Why?', 'direct')
    for shots in (1, 3):
        with pytest.raises(InputError, match=f'shots={shots}: .* choose 2, or 0 for none'):
            mine.prompt('a', 'Why?', shots=shots)
    with pytest.raises(InputError, match='shots=1: mine has prompts with 0 examples; choose 0'):
        Benchmark('mine').prompt('a', 'Why?', shots=1)
    for items in ([], [dict(input='Why?')], [dict(input='Why?', target=3)], ITEMS + ['x']):
        with pytest.raises(InputError, match="task 'b' of mine"):
            Benchmark('mine', items=dict(a=ITEMS, b=items))
    assert mine.scorer == 'official' == BENCHMARKS['bbh'].scorer
    assert Benchmark('mine', scorers=(Scorer('first', {}), Scorer('second', {}))).scorer == 'first'
    assert find_benchmark('bbh') is BENCHMARKS['bbh']
    assert find_benchmark('mine') == Benchmark('mine')


def test_items(monkeypatch):
    assert is_item(ITEMS[0]) and not is_item('x') and not is_item(dict(input='Why?'))
    assert not is_item(dict(input=1, target='So'))
    rows = [dict(input=str(i), target='So', more=1) for i in range(178)]
    clean = [dict(input=row['input'], target='So') for row in rows]
    monkeypatch.setitem(bbh.DIGESTS, 'snarks', bbh.digest_items(rows))
    assert check_items(rows, 'snarks', 'here') == clean
    for wrong, words in ((rows[:-1], 'here has 177 questions, snarks has 178'),
                         (rows[::-1], 'other texts or another order than snarks'),
                         ({}, 'here, example 0'), ([*rows[:2], 'x'], 'here, example 2')):
        with pytest.raises(InputError, match=words):
            check_items(wrong, 'snarks', 'here')


def test_where_the_benchmark_is(tmp_path, monkeypatch):
    monkeypatch.setenv('COTKD_BBH', str(tmp_path))
    assert bbh_source() == tmp_path and bbh_source('hub') == 'hub'
    with pytest.raises(InputError, match='BBH directory .*elsewhere does not exist'):
        bbh_source(tmp_path/'elsewhere')
    monkeypatch.delenv('COTKD_BBH')
    assert bbh_source() == 'hub'


def test_prompts_of_the_authors(tmp_path, no_hub):
    folder = tmp_path/'cot-prompts'
    folder.mkdir()
    with pytest.raises(InputError, match='snarks.txt is missing'):
        read_shots('snarks', tmp_path)
    for content in ('canary GUID x\nmore\n-----\n' + SHOTS, 'x\n-----\n' + SHOTS,
                    'canary GUID x\n-----\n', SHOTS):
        (folder/'snarks.txt').write_text(content)
        with pytest.raises(InputError, match='expected a first line with the canary'):
            read_shots('snarks', tmp_path)
    (folder/'snarks.txt').write_text('canary GUID x\n-----\n' + SHOTS)
    assert read_shots('snarks', tmp_path) == SHOTS
    assert few_shot_prompt('snarks', 'Why?', source=tmp_path) == add_examples(SHOTS, 'Why?')
    assert few_shot_prompt('any', 'Why?', 'direct', 0) == 'Q: Why?\nA:'
    with pytest.raises(InputError, match='shots=2: BBH has prompts with 3 examples'):
        few_shot_prompt('snarks', 'Why?', shots=2, source=tmp_path)
    for task in ('snarks', 'no_such_task'):
        with pytest.raises(InputError, match=f'{task}.txt is not .*HF_HUB_OFFLINE is set'):
            read_shots(task, 'hub')


def test_digest():
    text = json.dumps([['Why?', 'So']])
    assert bbh.digest_items(ITEMS) == bbh.hashlib.sha256(text.encode()).hexdigest()[:8]
