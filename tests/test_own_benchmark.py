"A benchmark that lies in a file, its worked examples and its scorers"
import json
import re

import pytest

from cotkd.bbh import SCORERS, file_benchmark, find_scorer, is_correct
from cotkd.cli import main
from cotkd.files import InputError
from cotkd.records import read_results

ITEMS = [dict(problem=f'What is {i} plus 1?', answer=str(i + 1), task='plus one')
         for i in range(12)]
ITEMS += [dict(problem=f'Is {i} even?', answer='yes' if i % 2 == 0 else 'no', task='parity')
          for i in range(12)]
SHOTS = 'Q: What is 1 plus 2?\nA: 1 and 2 make 3. So the answer is 3.\n\nQ: 2 plus 2?\nA: #### 4\n'


@pytest.fixture
def items(tmp_path):
    path = tmp_path/'school.jsonl'
    path.write_text('\n'.join(map(json.dumps, ITEMS)))
    return path


@pytest.fixture
def shots(tmp_path):
    path = tmp_path/'shots.txt'
    path.write_text(SHOTS)
    return path


@pytest.mark.parametrize('name, text, target, right', [
    ('letter', 'It is (B), not (C). So the answer is (B).', '(B)', True),
    ('letter', 'A or B? I take B', 'B', True),
    ('letter', 'I think so', '(A)', False),
    ('letter', 'none', '(A)', False),
    ('number', 'That is 1,234.50 in all.', '1234.5', True),
    ('number', 'First 3, then\n#### -7', '-7', True),
    ('number', 'The answer is 7.', '-7', False),
    ('number', 'no idea', '7', False),
    ('exact', 'Let me see.\nNew  york', 'New York.', True),
    ('exact', 'So the answer is New York City.', 'New York', False),
    ('math', 'Thus $x = \\boxed{\\frac{1}{2}}$.', '0.5', True),
    ('math', 'The answer is 2x + 1.', '1 + 2x', True),
    ('math', 'The answer is 2x.', '3x', False),
])
def test_scorers(name, text, target, right):
    assert is_correct(text, target, 'cot', name) == right


def test_a_missing_library_is_said_before_a_model_works(items, tmp_path, capsys,
                                                        monkeypatch):
    monkeypatch.setattr('cotkd.bbh.find_spec', lambda name: None)
    monkeypatch.setattr('cotkd.models.load_lm', None)
    assert main(['eval', '--model', 'toy-student', '--data', str(items), '--scorer', 'math',
                 '--out', str(tmp_path/'out')])
    assert 'pip install math-verify' in capsys.readouterr().err
    assert not (tmp_path/'out').exists()


def test_scorers_end_where_the_official_one_does():
    for name in 'letter', 'number', 'exact', 'math':
        assert find_scorer(name).stops == SCORERS['official'].stops
    assert not is_correct('4\n\nQ: next? 5', '5', 'cot', 'number')


def test_a_file_is_a_benchmark(items, shots):
    own = file_benchmark(items, tasks='parity', shots_file=shots)
    assert own.name == 'school' and list(own.items) == ['parity'] and own.most_shots == 2
    assert own.items['parity'][1] == dict(input='Is 1 even?', target='no')
    prompt = own.prompt('parity', 'Is 1 even?', 'direct', shots=2)
    assert prompt == ('Q: What is 1 plus 2?\nA: 3\n\nQ: 2 plus 2?\nA: 4\n\n'
                      + file_benchmark(items).prompt('parity', 'Is 1 even?', 'direct'))
    assert file_benchmark(items).most_shots == 0


@pytest.mark.parametrize('more, words', [
    (['--tasks', 'oddity'], "no task 'oddity' in .*: it has plus one, parity"),
    (['--shots', '5'], 'has prompts with 0 examples'),
    (['--shots-file', 'nothing.txt'], 'cannot be read .*: expected worked examples'),
    (['--columns', 'source=frage'], 'no row has that column'),
])
def test_what_is_wrong_is_one_line(items, tmp_path, capsys, more, words):
    assert main(['eval', '--model', 'toy-student', '--data', str(items), '--out',
                 str(tmp_path/'out'), *more])
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(words, said) and said.startswith('cotkd: ')
    assert not (tmp_path/'out').exists()


def test_examples_in_another_layout_are_refused(items, tmp_path):
    path = tmp_path/'shots.txt'
    path.write_text('1 plus 2 is 3')
    with pytest.raises(InputError, match='holds no worked examples'):
        file_benchmark(items, shots_file=path)


def test_from_the_command_line_to_the_gains(items, shots, tmp_path, capsys):
    for arm, model in ('teacher', 'toy-teacher'), ('student', 'toy-student'):
        main(['eval', '--model', model, '--arm', arm, '--data', str(items), '--shots-file',
              str(shots), '--scorer', 'number', '--mode', 'cot', '--max-new-tokens', '8', '--out',
              str(tmp_path/'run')])
    rows = read_results(tmp_path/'run')
    assert {(row['arm'], row['task'], row['n'], row['shots'], row['scorer']) for row in rows} == {
        (arm, task, 12, 2, 'number') for arm in ('teacher', 'student')
        for task in ('plus one', 'parity')}
    main(['gains', str(tmp_path/'run'), '--contrast', 'student:teacher'])
    assert 'plus one' in capsys.readouterr().out
