"Scoring against published numbers, damaged benchmark files, prompts to the byte"
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
    folder = bbh_dir/'golden'
    texts, scores = folder/'codex_cot_14_tasks.jsonl.gz', folder/'codex_cot_14_scores.json'
    if not (texts.is_file() and scores.is_file()):
        pytest.skip(f'no golden outputs of Codex in {folder}')
    with gzip.open(texts, 'rt', encoding='utf-8') as f:
        rows = [json.loads(line) for line in f]
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
    harness = Path(pytest.importorskip('lm_eval').__file__).parent
    return yaml.safe_load((harness/'tasks/bbh/cot_fewshot'/name).read_text())


def lm_eval_filter(text, task):
    "What the harness itself makes of a text: its stops, then the filter of its file for the task"
    extraction = pytest.importorskip('lm_eval.filters.extraction')
    utils = pytest.importorskip('lm_eval.models.utils')
    rules = lm_eval_file('_cot_fewshot_template_yaml')
    (rule, first), = [f['filter'] for f in rules['filter_list']]
    assert (rule['function'], first['function']) == ('regex', 'take_first')
    assert 'filter_list' not in lm_eval_file(f'{task}.yaml')  # none of its own
    text = utils.postprocess_generated_text(text, rules['generation_kwargs']['until'], None)
    return extraction.RegexFilter(rule['regex_pattern']).apply([[text]], [{}])[0][0]


def test_golden_lm_eval(golden):
    "The compatibility scorer and the installed harness read the same answer in every text of Codex"
    metrics = pytest.importorskip('lm_eval.api.metrics')
    filters = {}
    for r in golden[0]:
        theirs = lm_eval_filter(r['prediction'], r['task'])
        assert extract_answer(r['prediction'], 'cot', 'lm-eval') == theirs, (r['task'], r['index'])
        exact = metrics.exact_match_hf_evaluate(predictions=[theirs], references=[r['target']])
        right = is_correct(r['prediction'], r['target'], 'cot', 'lm-eval')
        assert right == bool(exact['exact_match'])


@pytest.mark.parametrize('text, mode, answer', [
    ('So the answer is (B).', 'cot', '(B)'),
    ('so the answer is ] ) }.\nMore.', 'cot', '] ) }'),
    ('the answer is 3. the answer is 4', 'cot', '3. the answer is 4'),
    ('The answer: 3', 'cot', ''),
    ('\n\nQ: x\nSo the answer is 3.', 'cot', ''),
    ('the answer is -21.', 'cot', '-21'),
    ('', 'cot', ''),
    (' Yes.\nNo.', 'direct', 'Yes'),
    (' a b c', 'direct', 'a b c'),
    ('(A)\n\nQ: x', 'direct', '(A)'),
    ('\n(A)', 'direct', '')])
def test_extract_answer(text, mode, answer):
    assert extract_answer(text, mode) == answer


# loading

def counts(found):
    return {task: len(items) for task, items in found.items()}


def test_load_all(bbh_dir):
    found = load_bbh(bbh_dir)
    assert list(found) == list(BBH_TASKS) and counts(found) == BBH_COUNTS
    assert all(set(item) == {'input', 'target'} for items in found.values() for item in items)
    some = load_bbh(bbh_dir, 'snarks,navigate', limit=3)
    assert counts(some) == dict(snarks=3, navigate=3)
    assert len(load_bbh(bbh_dir, 'nlp')) == 12 and len(load_bbh(bbh_dir, 'algorithmic')) == 15


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A directory in BBH's layout with one task of toy questions"
    rows = [dict(input=f'Sentence {i}?', target='(A)') for i in range(178)]
    (tmp_path/'tasks').mkdir()
    (tmp_path/'cot-prompts').mkdir()
    file = dict(canary='canary GUID of a toy', examples=rows)
    (tmp_path/'tasks'/'snarks.json').write_text(json.dumps(file, indent=1))
    monkeypatch.setitem(bbh.DIGESTS, 'snarks', bbh.digest_items(rows))
    return tmp_path


def error(*args, call=load_bbh, **kwargs):
    "The message of the InputError: always one line"
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_load_source(home, monkeypatch, no_hub):
    monkeypatch.delenv('COTKD_BBH', raising=False)
    assert 'set COTKD_BBH' in error(tasks='snarks')
    monkeypatch.setenv('COTKD_BBH', str(home))
    assert len(load_bbh(tasks='snarks')['snarks']) == 178
    assert 'does not exist' in error(home/'elsewhere')
    assert 'navigate.json is missing' in error(home, 'navigate,snarks')


def examples_changed(change):
    "A change of the file's text that changes its list of examples"
    def changed(text):
        file = json.loads(text)
        return json.dumps(file | dict(examples=change(file['examples'])))

    return changed


@pytest.mark.parametrize('change, message', [
    # the file is indented: a comma short
    (lambda t: t.replace('"input": "Sentence 3?",', '"input": "Sentence 3?"'), 'line 18'),
    (lambda t: t[:500], 'snarks.json is broken'),
    (lambda t: t.replace('"examples"', '"rows"'), 'expected "examples"'),
    (lambda t: '[]', 'expected "examples"'),
    (lambda t: t.replace('"Sentence 5?"', '5'), 'example 5'),
    (examples_changed(lambda rows: rows[:-1]), 'has 177 questions, snarks has 178'),
    (examples_changed(lambda rows: rows[::-1]), 'another order'),
    (lambda t: t.replace('Sentence 7?', 'Sentence 07?'), 'other texts'),
    (lambda t: t.replace('canary GUID of a toy', ''), 'lost its canary')])
def test_load_damaged(home, change, message):
    path = home/'tasks'/'snarks.json'
    path.write_text(change(path.read_text()))
    assert message in error(home, 'snarks') and str(path) in error(home, 'snarks')


def test_load_not_text(home):
    (home/'tasks'/'snarks.json').write_bytes(b'\xff\xfe\x00')
    assert 'snarks.json is broken' in error(home, 'snarks')


def test_unknown_task(home):
    near = "did you mean 'tracking_shuffled_objects_five_objects'"
    assert near in error(home, 'tracking_five_objects')
    assert 'unknown task' in error(home, 'snarks,') and 'unknown task' in error(home, [])


def is_defect(reason, items, i):
    "Is it true of the i-th question of a task?"
    question, target = items[i]['input'], items[i]['target']
    options = [line[4:] for line in question.split('\n') if line.startswith('(')]
    others = [item['target'] for j, item in enumerate(items)
              if j != i and item['input'].strip() == question.strip()]
    letter = len(target) == 3 and target[0] + target[2] == '()'
    true = {
        'the answer on file is no letter': not letter,
        'both options are equal': len(options) == 2 and options[0] == options[1],
        'the question is cut off': len(options) == 1,
        'asked before': target in others,
        'asked twice, with opposite answers on file': any(x != target for x in others)}
    return true[reason]


def test_defects(bbh_dir):
    "Each known defect is there"
    found = load_bbh(bbh_dir, list(bbh.DEFECTS))
    for task, rows in bbh.DEFECTS.items():
        for i, reason in rows.items():
            assert is_defect(reason, found[task], i), (task, i)


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
    assert direct.count('\n\nQ: ') == 4
    assert 'step by step' not in direct and 'the answer is' not in direct
    for given, bare in zip(prompt.split('\n\nQ: ')[1:4], direct.split('\n\nQ: ')[1:4]):
        question, answer = bare.rsplit('\nA: ', 1)
        assert given.startswith(question + "\nA: Let's think step by step.")
        assert given.endswith(f'the answer is {answer}.')


def prompt_of_lm_eval(task, question):
    "With the harness's own file for the task"
    file = lm_eval_file(f'{task}.yaml')
    template = file['doc_to_text']
    text = file['description']
    for sample in file['fewshot_config']['samples']:
        text += template.replace('{{input}}', sample['input']) + sample['target'] + '\n\n'
    return text + template.replace('{{input}}', question)


def test_prompts_of_lm_eval(bbh_dir):
    "The harness shows the same prompts, but for a line break in the first example of one task"
    differ = [task for task in BBH_TASKS if prompt_of_lm_eval(task, 'Is it?')
              != few_shot_prompt(task, 'Is it?', source=bbh_dir)]
    assert differ == ['sports_understanding']


def test_prompt_without_shots(monkeypatch, no_hub):
    monkeypatch.delenv('COTKD_BBH', raising=False)
    given = few_shot_prompt('anything', 'Is it?', shots=0)
    assert given == "Q: Is it?\nA: Let's think step by step.\n"
    assert few_shot_prompt('anything', 'Is it?', mode='direct', shots=0) == 'Q: Is it?\nA:'
    assert 'set COTKD_BBH' in error('navigate', 'q', call=few_shot_prompt)


def test_prompt_damaged(home):
    assert 'snarks.txt is missing' in error('snarks', 'q', source=home, call=few_shot_prompt)
    (home/'cot-prompts'/'snarks.txt').write_text('Which one is sarcastic?\n\nQ: x\nA: y')
    said = error('snarks', 'q', source=home, call=few_shot_prompt)
    assert 'expected a first line with the canary, a rule' in said
