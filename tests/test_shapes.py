"""Rows as public data sets lay them out, and the part of each that is question, steps or answer.

The layouts follow the sets named beside them; the texts are ours.
"""
import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cotkd.arms import with_rationales
from cotkd.cli import main
from cotkd.data import load_cot
from cotkd.experiment import PRESETS, configure
from cotkd.files import InputError
from cotkd.shapes import find_shape, read_columns, split_answer, take

ASK, STEPS = 'What is 6 plus 7?', '10 and 3 make 13.'
USER, BOT = dict(role='user', content=ASK), dict(role='assistant')
THOUGHT = f'<think>\n{STEPS}\n</think>\n\n'
PLAIN = (ASK, STEPS, '13')
LISTED = f'{ASK}\nOptions:\n(A) 12\n(B) 13'
LAYOUTS = {
    # name: (row, question, rationale, answer)
    'CoT-Collection': (dict(source=ASK, rationale=STEPS, target='13'), *PLAIN),
    'GSM8K': (dict(question=ASK, answer=f'{STEPS}\n#### 13'), *PLAIN),
    'MetaMathQA': (dict(type='x', query=ASK, response=f'{STEPS} The answer is: 13'), *PLAIN),
    'NuminaMath-CoT': (dict(problem=ASK, solution=f'So $\\boxed{{1\\frac{{1}}{{2}}}}$.'),
                       ASK, 'So $\\boxed{1\\frac{1}{2}}$.', '1\\frac{1}{2}'),
    'OpenR1-Math': (dict(problem=ASK, solution='Look.', answer='12', messages=[
        USER, BOT | dict(content=f'{THOUGHT}So it is $\\boxed{{13}}$.')]), *PLAIN),
    'DeepScaleR': (dict(problem=ASK, answer='13', solution=STEPS), *PLAIN),
    'medical-o1': (dict(Question=ASK, Complex_CoT=STEPS, Response='13'), *PLAIN),
    'Alpaca with a mark': (dict(instruction='Add.', input=ASK, output=f'{STEPS} Answer: **13**.'),
                           f'Add.\n\n{ASK}', STEPS, '13'),
    'ShareGPT': (dict(conversations=[{'from': 'system', 'value': 'Be kind.'},
                                     {'from': 'human', 'value': ASK},
                                     {'from': 'gpt', 'value': f'{THOUGHT}13'}]), *PLAIN),
    'two turns': (dict(messages=[USER, BOT | dict(content='14'),
                                 dict(role='user', content='Again?'),
                                 BOT | dict(content=f'{STEPS} So the answer is 13.')]),
                  f'{ASK}\n\n14\n\nAgain?', STEPS, '13'),
    'reasoning_content': (dict(messages=[USER, BOT | dict(reasoning_content=STEPS,
                                                          content='13')]), *PLAIN),
    'prompt, completion': (dict(prompt=ASK, completion=f'{THOUGHT}13'), *PLAIN),
    'prompt, completion as chats': (dict(prompt=[dict(role='system', content='Hm.'), USER],
                                         completion=[BOT | dict(content=f'{THOUGHT}13')]), *PLAIN),
    'AQuA-RAT': (dict(question=ASK, options=['A)12', 'B)13'], rationale=STEPS, correct='B'),
                 LISTED, STEPS, '(B)'),
    'ARC': (dict(question=ASK, choices=dict(text=['12', '13'], label=['1', '2']), answerKey='2',
                 explanation=STEPS), LISTED, STEPS, '(B)'),
    'MMLU': (dict(question=ASK, choices=['12', '13'], answer=1, cot=STEPS), LISTED, STEPS, '(B)'),
    'StrategyQA': (dict(question=ASK, answer=True, facts=['12 is even.', STEPS]),
                   ASK, f'12 is even.\n{STEPS}', 'yes'),
    'FLAN CoT': (dict(inputs=ASK, targets=f'{STEPS} Therefore, the final answer is 13.'), *PLAIN),
}


def write(rows, path):
    "As the ending of the path says"
    if path.suffix == '.jsonl':
        path.write_text('\n'.join(map(json.dumps, rows)))
    elif path.suffix == '.json':
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == '.parquet':
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == '.arrow':
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        with path.open('w', newline='') as file:
            delimiter = '\t' if path.suffix == '.tsv' else ','
            table = csv.DictWriter(file, rows[0], delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    "A cache of its own for every test"
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))


def parts(row):
    return row['source'], row['rationale'], row['target']


@pytest.mark.parametrize('name', LAYOUTS)
def test_question_steps_and_answer_are_found(name, tmp_path, caplog):
    row, *want = LAYOUTS[name]
    assert list(parts(take(row, find_shape(row)))) == want
    loaded = load_cot(write([row] * 2, tmp_path/'rows.jsonl'))
    assert [list(parts(row)) for row in loaded] == [want] * 2
    assert ('The first row: question' in caplog.text) == (name != 'CoT-Collection')


@pytest.mark.parametrize('ending', ['jsonl', 'json', 'parquet', 'arrow', 'csv', 'tsv'])
def test_every_kind_of_file_holds_the_same_rows(ending, tmp_path):
    rows = [dict(question=f'{ASK} "{i}",\n', answer=f'{STEPS}\n#### {i}') for i in range(2500)]
    path = write(rows, tmp_path/f'train.{ending}')
    for source in (path, *([tmp_path] if ending != 'json' else [])):
        loaded = load_cot(source)
        assert len(loaded) == 2500
        assert parts(loaded[2499]) == (rows[2499]['question'].strip(), STEPS, '2499')


def test_columns_that_are_named(tmp_path):
    row = dict(frage=ASK, schritte=STEPS, antwort=13, question='not this one')
    path = write([row], tmp_path/'rows.jsonl')
    columns = 'source=frage, rationale=schritte,target=antwort'
    assert parts(load_cot(path, columns=columns)[0]) == PLAIN
    other = load_cot(path, columns=columns.replace('schritte', 'question'))
    assert other[0]['rationale'] == 'not this one'


def test_a_row_without_rationale_serves_who_needs_none(tmp_path):
    path = write([dict(question=ASK, answer='13')] * 3, tmp_path/'rows.jsonl')
    assert parts(load_cot(path, bare=True)[0]) == (ASK, '', '13')
    with pytest.raises(InputError, match='no row has a rationale that we can see'):
        load_cot(path)


def test_a_boxed_answer_has_its_own_braces():
    assert split_answer('a \\boxed{1} b \\fbox{\\sqrt{2}} c')[1] == '\\sqrt{2}'
    assert split_answer('no end \\boxed{1') == ('', 'no end \\boxed{1', '')


def test_the_last_word_counts():
    text = 'The answer is 4. No. So the answer is 5.'
    assert split_answer(text) == ('The answer is 4. No.', '5', 'said')
    assert split_answer('2 #### 3 #### 4')[:2] == ('2 #### 3', '4')
    assert split_answer('This answer is long because\nit goes on\nand on.')[2] == ''


def test_a_column_named_for_rationale_and_answer_is_taken_apart(tmp_path):
    "As if it had been named for the answer alone"
    row = dict(exercise=ASK, worked=f'{STEPS}\n#### 13')
    path = write([row] * 2, tmp_path/'rows.jsonl')
    columns = 'source=exercise,rationale=worked,target=worked'
    found = load_cot(path, columns=columns)[0]
    assert (found['rationale'], found['target']) == (STEPS, '13')
    assert found == load_cot(path, columns='source=exercise,target=worked')[0]


NEAR_MISSES = {
    'nothing is known': (dict(a=ASK, b='13'), {}, 'known to hold the question'),
    'no answer': (dict(question=ASK, steps=STEPS), {}, 'known to hold the answer'),
    'no rationale': (dict(question=ASK, answer='13'), {}, 'with --columns rationale='),
    'a column that is not there': (dict(question=ASK, answer='13'),
                                   dict(columns='source=frage'), 'no row has that column'),
    'an unknown part': (dict(question=ASK, answer='13'), dict(columns='prompt=question'),
                        'expected one of source, rationale, target before the ='),
    'no pair': (dict(question=ASK, answer='13'), dict(columns='question'),
                'expected pairs such as source=question'),
    'an answer from the question': (dict(text=ASK), dict(columns='source=text,target=text'),
                                    'the question is taken from that column'),
    'nobody answers': (dict(messages=[USER]), {}, 'source missing'),
    'a conversation that is none': (dict(messages=['Hello']), {}, 'of another shape'),
}


@pytest.mark.parametrize('name', NEAR_MISSES)
def test_a_near_miss_is_one_line_that_helps(name, tmp_path):
    row, how, words = NEAR_MISSES[name]
    with pytest.raises(InputError, match=words) as caught:
        load_cot(write([row] * 3, tmp_path/'rows.jsonl'), **how)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('ending', ['parquet', 'arrow'])
def test_a_damaged_table_is_one_line(ending, tmp_path):
    path = tmp_path/f'rows.{ending}'
    path.write_bytes(b'PAR1 and nothing more')
    with pytest.raises(InputError, match=f'cannot be read as .{ending}') as caught:
        load_cot(path)
    assert '\n' not in str(caught.value)


def test_no_columns_are_no_choice():
    assert read_columns('') == {}


@pytest.mark.parametrize('name', ['GSM8K', 'OpenR1-Math', 'two turns'])
def test_such_rows_train_from_the_command_line(name, tmp_path, capsys):
    path = write([LAYOUTS[name][0]] * 16, tmp_path/'rows.jsonl')
    out = tmp_path/'student'
    main(['distill', '--student', 'toy-student', '--teacher', 'toy-teacher', '--data', str(path),
          '--rationales', '--batch-size', '8', '--out', str(out)])
    assert json.loads((out/'distill.json').read_text())['cost']['updates'] == 2


def test_a_run_reads_named_columns_and_bare_rows(tmp_path):
    path = write([dict(frage=f'{ASK} {i}', antwort='13') for i in range(20)],
                 tmp_path/'rows.jsonl')
    settings = dict(data=str(path), columns='source=frage,target=antwort', arms='kd', rows='16')
    experiment = configure('toy', settings)
    assert experiment.columns and not PRESETS['toy'].columns
    from cotkd.experiment import training_rows
    rows, held_out = training_rows(experiment, None, tokenizer=toy_tokenizer())
    assert len(rows) == 16 and not held_out and rows[0]['rationale'] == ''
    assert with_rationales(rows, 'none', None) is rows


def toy_tokenizer():
    from cotkd.models import load_tokenizer
    return load_tokenizer('toy-student')
