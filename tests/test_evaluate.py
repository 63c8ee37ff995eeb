"Asking a model: every answer finds its question; stopped anywhere, it ends in the same files."
import os
import signal
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from processes import call, finish

from cotkd import generate
from cotkd.bbh import (OFFICIAL_STOPS, Benchmark, Scorer, add_examples, bbh_benchmark,
                       toy_benchmark)
from cotkd.cli import print_scores
from cotkd.evaluate import Asking, Subject, evaluate, sample_rows, unfinished
from cotkd.files import InputError, read_lines
from cotkd.gains import gains_table
from cotkd.generate import Answer, encode_prompts, generate_batch
from cotkd.models import load_lm, state_identity
from cotkd.records import FIELDS, load_results, prediction_path, read_results

SHORT = Asking(max_new_tokens=8, batch_size=4)


@pytest.fixture(scope='module')
def student():
    return load_lm('toy-student')


@pytest.fixture
def benchmark():
    "Twelve questions of one task, seven of another"
    found = toy_benchmark(12)
    items = dict(navigate=found.items['navigate'], web_of_lies=found.items['web_of_lies'][:7])
    return replace(found, items=deepcopy(items))


@pytest.fixture
def ask(student, benchmark, tmp_path):
    "Ask the student, by default into `run`"
    def ask(asking=SHORT, out='run', arm='kd', weights=None, seed=0, **kwargs):
        subject = Subject(arm, 'toy-student', weights, seed=seed)
        return evaluate(*student, benchmark, subject, asking, out=tmp_path/out, progress=False,
                        **kwargs)
    return ask


def contents(folder):
    paths = [path for path in folder.rglob('*.jsonl')]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def plain_greedy(model, tokenizer, prompt, most):
    "One prompt, `generate` of transformers, nothing of ours"
    ids = tokenizer(prompt, return_tensors='pt')['input_ids']
    new = model.generate(ids, max_new_tokens=most, do_sample=False)[0, ids.shape[1]:]
    return tokenizer.decode(new, skip_special_tokens=True)


# results and texts

def test_results_are_those_of_their_texts(ask, tmp_path):
    results = ask()
    assert all(row.keys() == FIELDS.keys() for row in results)
    assert results == read_results(tmp_path/'run')
    for row, n in zip(results, (12, 7)):
        texts = read_lines(prediction_path(tmp_path/'run', row))
        assert [text['index'] for text in texts] == list(range(n))
        assert row['items'] == ''.join(str(int(text['correct'])) for text in texts)
        assert (row['n'], row['correct'], row['index']) == (n, row['items'].count('1'), None)


def test_texts_are_those_of_plain_generate(student, ask, benchmark, tmp_path):
    first, _ = ask()
    texts = read_lines(prediction_path(tmp_path/'run', first))
    for text in texts[:6]:
        question = benchmark.items['navigate'][text['index']]['input']
        prompt = benchmark.prompt('navigate', question, 'cot', 0)
        assert plain_greedy(*student, prompt, 8).startswith(text['text'])
        assert text['text']


def test_answers_reach_their_questions(ask, benchmark, monkeypatch):
    "In whatever order they are generated"
    rows = [item for items in benchmark.items.values() for item in items]
    targets = {benchmark.prompt('', row['input'], 'cot', 0): row['target'] for row in rows}

    def oracle(model, tokenizer, prompts, *, on_batch, **kwargs):
        for i in reversed(range(len(prompts))):
            text = f'Sure. So the answer is {targets[prompts[i]]}.'
            on_batch([i], [Answer(text if 'not' in prompts[i] else 'Hm.', cut_off=False)])

    monkeypatch.setattr(generate, 'generate_batch', oracle)
    for row in ask():
        questions = [item['input'] for item in benchmark.items[row['task']]]
        assert row['items'] == ''.join(str(int('not' in question)) for question in questions)


def test_a_sample_is_the_same_for_every_arm(ask, benchmark):
    five = replace(SHORT, limit=5)
    kd = ask(five)
    other = ask(replace(five, mode='direct'), arm='kd_cot')
    want = [sample_rows(task, len(items), 5) for task, items in benchmark.items.items()]
    assert [row['index'] for row in kd] == [row['index'] for row in other] == want
    assert [row['index'] for row in ask(index=dict(navigate=[9, 2]))] == [[2, 9], None]


def test_questions_that_do_not_fit_are_counted(ask, benchmark, capsys):
    "They are an error, or left out and said so; they are never cut"
    benchmark.items['navigate'][3]['input'] *= 60
    with pytest.raises(InputError, match='--skip-long'):
        ask()
    some, _ = ask(replace(SHORT, skip_long=True))
    assert (some['n'], some['skipped']) == (11, 1)
    assert some['index'] == [i for i in range(12) if i != 3]
    assert '1 of 12 prompts do not fit' in capsys.readouterr().err


# nothing is asked twice, and nothing of another

def never(*args, **kwargs):
    raise AssertionError('asked again')


@pytest.mark.parametrize('change', [
    dict(weights='other'), dict(seed=1), dict(arm='kd_cot'),
    dict(asking=replace(SHORT, temperature=.2)), dict(asking=replace(SHORT, mode='direct')),
    dict(asking=replace(SHORT, limit=3)), dict(asking=replace(SHORT, max_new_tokens=9))],
    ids=['weights', 'seed', 'arm', 'temperature', 'mode', 'limit', 'room'])
def test_only_the_very_same_is_known_already(change, ask, tmp_path, monkeypatch):
    first = ask()
    before = contents(tmp_path/'run')
    monkeypatch.setattr(generate, 'generate_batch', never)
    assert ask() == first
    assert contents(tmp_path/'run') == before
    with pytest.raises(AssertionError, match='asked again'):
        ask(**change)


def test_lost_texts_are_asked_for_again(ask, student, benchmark, tmp_path):
    first = ask()
    prediction_path(tmp_path/'run', first[0]).unlink()
    subject = Subject('kd', 'toy-student', state_identity(student[0]))
    assert unfinished(benchmark, subject, SHORT, tmp_path/'run') == ['navigate']
    assert ask() == first
    assert len(read_results(tmp_path/'run')) == 2


@pytest.mark.parametrize('after', [1, 4])
def test_interrupted(after, ask, benchmark, tmp_path, monkeypatch):
    "What is there is valid; the same call goes on there, and ends with the same files"
    whole = ask(out='whole')
    asked = []

    def interrupted(model, tokenizer, prompts, *, on_batch, **kwargs):
        def count(rows, answers):
            on_batch(rows, answers)
            asked.append([(len(prompts), row) for row in rows])
            if len(asked) == after:
                raise KeyboardInterrupt
        return generate_batch(model, tokenizer, prompts, on_batch=count, **kwargs)

    monkeypatch.setattr(generate, 'generate_batch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask()
    for path in (tmp_path/'run').rglob('*.part'):
        read_lines(path)
    assert ask() == whole
    questions = sum(asked, [])
    assert len(questions) == len(set(questions)) == 19  # none was asked twice
    assert contents(tmp_path/'run') == contents(tmp_path/'whole')


def test_a_part_of_another_model_is_not_taken(ask, tmp_path, monkeypatch):
    whole = ask(out='whole')

    def interrupted(model, tokenizer, prompts, *, on_batch, **kwargs):
        on_batch([0], [Answer('So the answer is Yes.', cut_off=False)])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(generate, 'generate_batch', interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(weights='other')
    assert ask() == whole
    assert contents(tmp_path/'run') == contents(tmp_path/'whole')


def test_damaged_results_are_named(ask, tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'results.jsonl').write_text('{"arm": "kd"}\n{"arm": \n')
    with pytest.raises(InputError, match='results.jsonl, line 2'):
        ask()


# what an answer depends on

def test_sampled_answers_depend_on_seed_and_question_alone(ask, tmp_path):
    def texts(out):
        return {name: x for name, x in contents(tmp_path/out).items() if 'predictions' in name}

    warm = replace(SHORT, temperature=.7)
    for out, size in (('4', 4), ('1', 1), ('32', 32)):
        ask(replace(warm, batch_size=size), out=out)
    ask(replace(warm, kv_memory=1e-9), out='no room')  # for one at a time
    ask(warm, out='other', seed=1)
    assert texts('4') == texts('1') == texts('32') == texts('no room')
    assert {*texts('4').values()} != {*texts('other').values()}


def test_chat_goes_through_the_template(student, benchmark, tmp_path, monkeypatch):
    model, tokenizer = student[0], deepcopy(student[1])
    chat = replace(SHORT, chat=True, max_new_tokens=2)
    subject = Subject('teacher', 'toy-student')
    with pytest.raises(InputError, match='no chat template'):
        evaluate(model, tokenizer, benchmark, subject, chat, out=tmp_path, progress=False)
    tokenizer.chat_template = ('{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}'
                               '<reply>')
    seen = []

    def spy(model, tokenizer, prompts, **kwargs):
        seen.extend(prompts)
        return generate_batch(model, tokenizer, prompts, **kwargs)

    monkeypatch.setattr(generate, 'generate_batch', spy)
    results = evaluate(model, tokenizer, benchmark, subject, chat, out=tmp_path, progress=False)
    question = benchmark.items['navigate'][0]['input']
    assert all(row['chat'] for row in results)
    assert seen[0] == f"<user>Q: {question}<reply>A: Let's think step by step.\n"


# real questions, a benchmark of one's own

def test_three_shots_and_a_model_without_the_room(student, bbh_dir, tmp_path):
    benchmark = bbh_benchmark(bbh_dir, 'sports_understanding,snarks')
    asking = Asking(shots=3, limit=2, max_new_tokens=4, skip_long=True)
    results = evaluate(*student, benchmark, Subject('student', 'toy-student'), asking,
                       out=tmp_path, progress=False)
    assert [row['n'] + row['skipped'] for row in results] == [2, 2]


def long_examples(task):
    "Of 40 words each, answered in ten"
    shown = 'Say yes.'
    for i in range(3):
        shown += f"\n\nQ: {'why ' * 40}\nA: Let's think step by step.\n{'so ' * 10}yes."
    return shown


@pytest.fixture
def wordy():
    questions = [dict(input='why ' * n, target='yes') for n in (3, 30, 10)]
    short = [dict(input='why?', target='yes')]
    return Benchmark('wordy', items=dict(long=questions, short=short), examples=long_examples)


@pytest.mark.parametrize('mode', ['cot', 'direct'])
def test_a_task_is_asked_with_the_most_examples_that_fit(mode, student, wordy, tmp_path, capsys):
    "Beside its longest question and an answer as long as theirs; the same under both prompts"
    model, tokenizer = student

    def tokens(text):
        return len(tokenizer(text)['input_ids'])

    answer = tokens("Let's think step by step.\n" + 'so ' * 10 + 'yes.')
    longest = wordy.items['long'][1]['input']
    needed = {n: tokens(wordy.prompt('long', longest, 'cot', 3, n)) + answer for n in range(4)}
    for shown, context in ((3, needed[3]), (2, needed[3] - 1), (1, needed[2] - 1), (0, needed[0])):
        asking = Asking(mode=mode, shots=3, context=context, max_new_tokens=2)
        of_long, of_short = evaluate(*student, wordy, Subject('kd', 'toy-student'), asking,
                                     out=tmp_path/str(shown), progress=False)
        assert of_long['examples'] == (None if shown == 3 else shown)
        assert of_long['n'] == 3 and of_long['shots'] == 3 and of_long['skipped'] == 0
        assert of_short['examples'] is None or of_short['examples'] >= shown
        said = capsys.readouterr().err
        assert (f'long: {shown} of 3 worked examples' in said) == (shown < 3)
        print_scores([of_long, of_short], wordy)
        apart = shown < 3 and of_short['examples'] is None
        found = 'average of 1 task with all 3 examples' in capsys.readouterr().out
        assert found == apart


def test_arms_are_compared_only_with_the_same_examples(student, wordy, tmp_path):
    for arm, context in dict(kd=None, kd_cot=300).items():
        asking = Asking(mode='cot', shots=3, context=context, max_new_tokens=2)
        evaluate(*student, wordy, Subject(arm, 'toy-student'), asking, out=tmp_path,
                 progress=False)
    with pytest.raises(InputError, match='long mix [012] and 3 worked examples.*--context'):
        gains_table(load_results(tmp_path), ['kd@cot:kd_cot'])


def test_answers_that_the_context_cuts_are_counted_apart(student, tmp_path):
    "Of two questions that leave room for little and for all of eight tokens"
    model, tokenizer = student
    context = model.config.max_position_embeddings
    words = 'why '
    while len(encode_prompts(tokenizer, [add_examples('', words, 'direct')])[0]) < context - 10:
        words += 'why '
    mine = Benchmark('mine', items=dict(a=[dict(input=words, target='x'),
                                           dict(input='why?', target='x')]))
    asking = Asking(mode='direct', max_new_tokens=12)
    result, = evaluate(*student, mine, Subject('kd', 'toy-student'), asking, out=tmp_path,
                       progress=False)
    lines = read_lines(prediction_path(tmp_path, result))
    ended = [len(tokenizer(line['text'])['input_ids']) for line in lines]
    assert ended[0] < 12 and result['context_cut'] == 1
    assert result['truncated'] == 1 + (ended[1] >= 11)


def test_the_model_with_the_longer_context_has_no_longer_answer(student, tmp_path):
    "The shorter context of a pair holds for both"
    model, tokenizer = student
    mine = Benchmark('mine', items=dict(a=[dict(input='why?', target='x')]))
    prompt = add_examples('', 'why?', 'cot')
    context = len(encode_prompts(tokenizer, [prompt])[0]) + 5
    whole, cut_off = [
        evaluate(model, tokenizer, mine, Subject('teacher', 'toy-student'),
                 Asking(max_new_tokens=12, context=most), out=tmp_path/str(most), progress=False)[0]
        for most in (None, context)]
    assert (whole['context_cut'], cut_off['context_cut']) == (0, 1)
    assert whole['recipe'] != cut_off['recipe']  # what is on file is asked again
    text = read_lines(prediction_path(tmp_path/str(context), cut_off))[0]['text']
    assert len(tokenizer(text, add_special_tokens=False)['input_ids']) == 5
    longer = read_lines(prediction_path(tmp_path/'None', whole))[0]['text']
    assert longer.startswith(text) and longer != text


def test_answers_in_another_precision_are_others(student, benchmark, tmp_path):
    "They are asked again, say so, and are not compared"
    for arm, dtypes in dict(kd=('bfloat16', 'float32'), kd_cot=('bfloat16',)).items():
        subject = Subject(arm, 'toy-student', weights='the same')
        for dtype in dtypes:
            model, tokenizer = load_lm('toy-student', dtype=dtype)
            found = evaluate(model, tokenizer, benchmark, subject, SHORT, out=tmp_path,
                             progress=False)
            assert {row['dtype'] for row in found} == {dtype}
            assert [row for row in read_results(tmp_path) if row['arm'] == arm] == found
    with pytest.raises(InputError, match='results mix dtype bfloat16 and float32'):
        gains_table(load_results(tmp_path), ['kd@cot:kd_cot'])


def test_a_benchmark_of_ones_own(student, tmp_path):
    "Three worked examples included, in fifteen lines"
    sums = [dict(input=f'What is {i} + 2?', target=str(i + 2)) for i in range(12)]

    def examples(task):
        shown = 'Add two numbers.'
        for item in sums[:3]:
            steps = f"Let's think step by step.\nSo the answer is {item['target']}."
            shown += f"\n\nQ: {item['input']}\nA: {steps}"
        return shown

    mine = Benchmark('sums', items=dict(add=sums[3:]), examples=examples)
    results = evaluate(*student, mine, Subject('student', 'toy-student'),
                       Asking(shots=3, max_new_tokens=8), out=tmp_path, progress=False)
    assert [(row['task'], row['n'], row['benchmark']) for row in results] == [('add', 9, 'sums')]
    assert mine.prompt('add', 'What is 1 + 1?', 'direct', 3).count('\nA: ') == 3


def test_a_benchmark_is_scored_by_its_own_scorer(student, tmp_path):
    always = Scorer('always', OFFICIAL_STOPS, equal=lambda answer, target: True)
    items = dict(add=[dict(input='What is 1 + 2?', target='3')])
    mine = Benchmark('sums', items=items, scorers=(always,))
    short = Asking(max_new_tokens=4)

    def score(benchmark, **how):
        result, = evaluate(*student, benchmark, Subject('student', 'toy-student'),
                           replace(short, **how), out=tmp_path, progress=False)
        return result['scorer'], result['items']

    assert score(mine) == ('always', '1')
    assert score(mine, scorer='official') == ('official', '0')
    with pytest.raises(InputError, match="a result of 'add' of the benchmark 'sums'"):
        score(replace(mine, name='other'))
    with pytest.raises(InputError, match='always with shots=0'):
        score(replace(mine, scorers=(replace(always, needs_examples=True),)))


# several processes

def two_ways(out):
    "Greedy, and sampled"
    benchmark = toy_benchmark(12)
    tasks = ('navigate', 'web_of_lies')
    benchmark = replace(benchmark, items={task: benchmark.items[task] for task in tasks})
    found = []
    for arm, temperature in (('student', 0.), ('kd', .2)):
        asking = replace(SHORT, temperature=temperature)
        found += evaluate(*load_lm('toy-student'), benchmark, Subject(arm, 'toy-student'), asking,
                          out=out, progress=False)
    return found


def two_ways_or_die(out, killed_after=0):
    "The second process is killed in the midst of its answers, after so many batches"
    batches = []

    def counted(*args, on_batch, **kwargs):
        def count(*answers):
            on_batch(*answers)
            batches.append(answers)
            if os.environ['RANK'] == '1' and len(batches) == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)
        return generate_batch(*args, on_batch=count, **kwargs)

    generate.generate_batch = counted
    two_ways(out)


def test_two_processes_leave_the_files_of_one(tmp_path):
    "Killed in the second evaluation, and continued by one"
    whole = two_ways(tmp_path/'whole')
    finish(two_ways_or_die, tmp_path/'two', processes=2)
    assert contents(tmp_path/'two') == contents(tmp_path/'whole')
    assert any(call(two_ways_or_die, tmp_path/'killed', 5, processes=2).codes)
    assert len(read_results(tmp_path/'killed')) == 2
    assert two_ways(tmp_path/'killed') == whole
    assert contents(tmp_path/'killed') == contents(tmp_path/'whole')
