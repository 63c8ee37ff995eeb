"Scoring against published numbers, damaged benchmark files, prompts to the byte, and evaluations that are interrupted."
import functools
import gzip
import json
from pathlib import Path

import pytest

from cotkd import bbh
from cotkd.bbh import (BBH_COUNTS, BBH_TASKS, extract_answer, few_shot_prompt, is_correct,
                       load_bbh)
from cotkd.files import InputError


# the scorer

@pytest.fixture(scope='module')
def golden(bbh_dir):
    "Texts of Codex on 14 tasks, and the accuracy that was published for them"
    texts, scores = bbh_dir/'golden'/'codex_cot_14_tasks.jsonl.gz', bbh_dir/'golden'/'codex_cot_14_scores.json'
    if not (texts.is_file() and scores.is_file()): pytest.skip(f'no golden outputs of Codex in {bbh_dir/"golden"}')
    with gzip.open(texts, 'rt', encoding='utf-8') as f: rows = [json.loads(line) for line in f]
    return rows, json.loads(scores.read_text())


def test_golden(golden, bbh_dir):
    "Real outputs of Codex get exactly the accuracy that was published for them"
    rows, published = golden
    assert len(published) == 14
    targets = load_bbh(bbh_dir, list(published))
    for task, accuracy in published.items():
        mine = [r for r in rows if r['task'] == task]
        assert sorted(r['index'] for r in mine) == list(range(BBH_COUNTS[task]))
        assert all(r['target'] == targets[task][r['index']]['target'] for r in mine)
        correct = sum(is_correct(r['prediction'], r['target'], r['mode']) for r in mine)
        assert round(100*correct/len(mine), 6) == accuracy, task


@functools.lru_cache
def lm_eval_file(name):
    "A file of lm-evaluation-harness's bbh_cot_fewshot"
    import yaml
    return yaml.safe_load((Path(pytest.importorskip('lm_eval').__file__).parent/'tasks'/'bbh'/'cot_fewshot'/name).read_text())


def lm_eval_filter(text, task):
    "What lm-evaluation-harness itself makes of a text: its stops, then the filter of its own file for the task"
    extraction, utils = pytest.importorskip('lm_eval.filters.extraction'), pytest.importorskip('lm_eval.models.utils')
    rules = lm_eval_file('_cot_fewshot_template_yaml')
    (rule, first), = [f['filter'] for f in rules['filter_list']]
    assert (rule['function'], first['function']) == ('regex', 'take_first')
    assert 'filter_list' not in lm_eval_file(f'{task}.yaml') # none of its own
    text = utils.postprocess_generated_text(text, rules['generation_kwargs']['until'], None)
    return extraction.RegexFilter(rule['regex_pattern']).apply([[text]], [{}])[0][0]


def test_golden_lm_eval(golden):
    "The compatibility scorer and the installed harness read the same answer in every text of Codex"
    metrics = pytest.importorskip('lm_eval.api.metrics')
    filters = {}
    for r in golden[0]:
        theirs = lm_eval_filter(r['prediction'], r['task'])
        assert extract_answer(r['prediction'], 'cot', 'lm-eval') == theirs, (r['task'], r['index'])
        exact = metrics.exact_match_hf_evaluate(predictions=[theirs], references=[r['target']])['exact_match']
        assert is_correct(r['prediction'], r['target'], 'cot', 'lm-eval') == bool(exact)


@pytest.mark.parametrize('text, mode, answer', [
    ('So the answer is (B).', 'cot', '(B)'), ('so the answer is ] ) }.\nMore.', 'cot', '] ) }'), ('the answer is 3. the answer is 4', 'cot', '3. the answer is 4'),
    ('The answer: 3', 'cot', ''), ('\n\nQ: x\nSo the answer is 3.', 'cot', ''), ('the answer is -21.', 'cot', '-21'), ('', 'cot', ''),
    (' Yes.\nNo.', 'direct', 'Yes'), (' a b c', 'direct', 'a b c'), ('(A)\n\nQ: x', 'direct', '(A)'), ('\n(A)', 'direct', '')])
def test_extract_answer(text, mode, answer): assert extract_answer(text, mode) == answer


# loading

def test_load_all(bbh_dir):
    found = load_bbh(bbh_dir)
    assert list(found) == list(BBH_TASKS) and {t: len(r) for t, r in found.items()} == BBH_COUNTS
    assert {frozenset(r) for rows in found.values() for r in rows} == {frozenset(['input', 'target'])}
    assert {t: len(r) for t, r in load_bbh(bbh_dir, 'snarks,navigate', limit=3).items()} == dict(snarks=3, navigate=3)
    assert len(load_bbh(bbh_dir, 'nlp')) == 12 and len(load_bbh(bbh_dir, 'algorithmic')) == 15


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A directory in BBH's layout with one task of toy questions"
    rows = [dict(input=f'Sentence {i}?', target='(A)') for i in range(178)]
    (tmp_path/'tasks').mkdir()
    (tmp_path/'cot-prompts').mkdir()
    (tmp_path/'tasks'/'snarks.json').write_text(json.dumps(dict(canary='canary GUID of a toy', examples=rows), indent=1))
    monkeypatch.setitem(bbh.DIGESTS, 'snarks', bbh.digest_items(rows))
    return tmp_path


def error(*args, call=load_bbh, **kwargs):
    "The message of the InputError: always one line"
    with pytest.raises(InputError) as caught: call(*args, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_load_source(home, monkeypatch):
    monkeypatch.delenv('COTKD_BBH', raising=False)
    assert 'COTKD_BBH' in error(tasks='snarks')
    monkeypatch.setenv('COTKD_BBH', str(home))
    assert len(load_bbh(tasks='snarks')['snarks']) == 178
    assert 'does not exist' in error(home/'elsewhere')
    assert 'navigate.json is missing' in error(home, 'navigate,snarks')


@pytest.mark.parametrize('change, message', [
    (lambda t: t.replace('"input": "Sentence 3?",', '"input": "Sentence 3?"'), 'line 18'), # the file is indented: a comma short
    (lambda t: t[:500], 'snarks.json is broken'), (lambda t: t.replace('"examples"', '"rows"'), 'expected "examples"'),
    (lambda t: '[]', 'expected "examples"'), (lambda t: t.replace('"Sentence 5?"', '5'), 'example 5'),
    (lambda t: json.dumps(dict(examples=json.loads(t)['examples'][:-1])), 'has 177 questions, snarks has 178'),
    (lambda t: json.dumps(dict(examples=json.loads(t)['examples'][::-1])), 'another order'), (lambda t: t.replace('Sentence 7?', 'Sentence 07?'), 'other texts'),
    (lambda t: t.replace('canary GUID of a toy', ''), 'lost its canary')])
def test_load_damaged(home, change, message):
    path = home/'tasks'/'snarks.json'
    path.write_text(change(path.read_text()))
    assert message in error(home, 'snarks') and str(path) in error(home, 'snarks')


def test_load_not_text(home):
    (home/'tasks'/'snarks.json').write_bytes(b'\xff\xfe\x00')
    assert 'snarks.json is broken' in error(home, 'snarks')


def test_unknown_task(home):
    assert "did you mean 'tracking_shuffled_objects_five_objects'" in error(home, 'tracking_five_objects')
    assert 'unknown task' in error(home, 'snarks,') and 'unknown task' in error(home, [])


def test_defects(bbh_dir):
    "Each known defect is there"
    found, letter = load_bbh(bbh_dir, list(bbh.DEFECTS)), lambda t: len(t) == 3 and t[0] + t[2] == '()'
    for task, rows in bbh.DEFECTS.items():
        for i, reason in rows.items():
            item, options = found[task][i], [line[4:] for line in found[task][i]['input'].split('\n') if line.startswith('(')]
            same = [j for j, r in enumerate(found[task]) if r['input'].strip() == item['input'].strip() and j != i]
            assert {'the answer on file is no letter': not letter(item['target']), 'both options are equal': len(options) == 2 and len(set(options)) == 1,
                    'the question is cut off': len(options) == 1, 'asked before': any(found[task][j]['target'] == item['target'] for j in same),
                    'asked twice, with opposite answers on file': any(found[task][j]['target'] != item['target'] for j in same)}[reason], (task, i)


def test_hub(monkeypatch):
    "The hub is asked task by task; where it cannot be reached, the message says what to set"
    import datasets
    rows = datasets.Dataset.from_list([dict(input='q', target='(A)')]*178)
    monkeypatch.setitem(bbh.DIGESTS, 'snarks', bbh.digest_items(rows.to_list()))
    asked = dict(split='test', revision='b5306be6f827cfafbb545ff5a51f96916029b0fd')
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, task, **kwargs: rows if (name, task, kwargs) == (bbh.HUB, 'snarks', asked) else None)
    assert load_bbh('hub', 'snarks') == dict(snarks=rows.to_list())
    def offline(*args, **kwargs): raise ConnectionError('no network')
    monkeypatch.setattr(datasets, 'load_dataset', offline)
    assert 'COTKD_BBH' in error('hub', 'snarks')
    assert 'COTKD_BBH' in error('snarks', 'q', shots=3, source='hub', call=few_shot_prompt)


# prompts

@pytest.mark.parametrize('task', BBH_TASKS)
def test_prompt_bytes(bbh_dir, task):
    file = (bbh_dir/'cot-prompts'/f'{task}.txt').read_bytes()
    prompt = few_shot_prompt(task, 'Is it?', source=bbh_dir)
    shots = b''.join(file.splitlines(keepends=True)[2:])
    assert prompt.encode() == shots + b"\n\nQ: Is it?\nA: Let's think step by step.\n"
    assert 'canary' not in prompt and '-----' not in prompt[:6]
    direct = few_shot_prompt(task, 'Is it?', mode='direct', source=bbh_dir)
    assert direct.endswith('\n\nQ: Is it?\nA:') and direct.split('\n')[0] == prompt.split('\n')[0]
    assert direct.count('\n\nQ: ') == 4 and 'step by step' not in direct and 'the answer is' not in direct
    for given, bare in zip(prompt.split('\n\nQ: ')[1:4], direct.split('\n\nQ: ')[1:4]):
        question, answer = bare.rsplit('\nA: ', 1)
        assert given.startswith(question + "\nA: Let's think step by step.") and given.endswith(f'the answer is {answer}.')


def test_prompts_of_lm_eval(bbh_dir):
    "The harness shows the same prompts, but for a line break in the first example of one task"
    differ = []
    for task in BBH_TASKS:
        file = lm_eval_file(f'{task}.yaml')
        ask = lambda question: file['doc_to_text'].replace('{{input}}', question)
        theirs = file['description'] + ''.join(ask(s['input']) + s['target'] + '\n\n' for s in file['fewshot_config']['samples']) + ask('Is it?')
        if theirs != few_shot_prompt(task, 'Is it?', source=bbh_dir): differ.append(task)
    assert differ == ['sports_understanding']


def test_prompt_without_shots(monkeypatch):
    monkeypatch.delenv('COTKD_BBH', raising=False)
    assert few_shot_prompt('anything', 'Is it?', shots=0) == "Q: Is it?\nA: Let's think step by step.\n"
    assert few_shot_prompt('anything', 'Is it?', mode='direct', shots=0) == 'Q: Is it?\nA:'
    assert 'COTKD_BBH' in error('navigate', 'q', call=few_shot_prompt)


def test_prompt_damaged(home):
    assert 'snarks.txt is missing' in error('snarks', 'q', source=home, call=few_shot_prompt)
    (home/'cot-prompts'/'snarks.txt').write_text('Which one is sarcastic?\n\nQ: x\nA: y')
    assert 'expected a first line with the canary, a rule' in error('snarks', 'q', source=home, call=few_shot_prompt)
