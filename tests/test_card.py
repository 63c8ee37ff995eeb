"A model card says what was recorded and nothing else, and it is the user's once they changed it"
import json
import re
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

from cotkd import card
from cotkd.arms import Asked, contrast
from cotkd.card import (Student, as_code, as_text, card_data, markdown_table, public_command,
                        push_student, read_student, score_of, student_card, ways_of, write_card)
from cotkd.cli import main
from cotkd.data import HUB_ID
from cotkd.files import InputError, read_json, write_json, write_lines
from cotkd.gains import arm_interval, average_gain
from cotkd.names import model_identity, parse_name
from cotkd.records import load_results, simulated_results
from cotkd.toy import make_toy

TASKS = ('navigate', 'snarks', 'web_of_lies')
RECIPE = dict(lr=3e-4, batch_size=16, epochs=2., divergence='reverse_kl', temperature=1.5,
              ce_weight=0., rationale_weight=1., answer_weight=1., lora_rank=0, seed=1, trainer={},
              rows='4321 rows, 26e3f7efc854', mode='cot', dev=21, vocab=2048, start='5747',
              student='org/base', teacher='org/teacher[0-2]', teacher_id='7eac', data=HUB_ID)
COST = dict(updates=537, examples=8592, tokens=91595, supervised_tokens=34046, flops=5.08e12,
            seconds=141.9, kept=500, kl_kept=.123, kl_last=.145)
ABOUT = dict(rationale='before', hub=dict(student='org/base', teacher='org/teacher'),
             versions=dict(cotkd='9.8.7', torch='6.5.4'),
             command='cotkd distill --student org/base --data /home/me/rows.jsonl --out /me/s')


def make_student(place, recipe={}, cost=COST, about=ABOUT):
    "The base student in the place of one that was trained"
    shutil.copytree(parse_name('toy-student').path, place)
    write_json(place/'distill.json', dict(recipe=RECIPE | recipe, cost=cost, about=about))
    return place


@pytest.fixture
def place(tmp_path):
    return make_student(tmp_path/'mine')


@pytest.fixture
def run_dir(tmp_path):
    "A run of two seeds, with results of both; a student of the second one lies there"
    run = tmp_path/'run'
    place = make_student(run/'models/kd_cot-1', about={})
    weights = model_identity(place)
    results = simulated_results(TASKS, n=40, seeds=(0, 1))
    mine = (results.arm == 'kd_cot') & (results.seed == 1)
    results['weights'] = 'other-' + results.arm + results.seed.astype(str)
    results.loc[mine, 'weights'] = weights
    results['start'] = ['other-student0' if arm.startswith('kd') else None for arm in results.arm]
    results = results.astype(object).where(results.notna(), None)
    write_lines(run/'results.jsonl', results.to_dict('records'))
    write_json(run/'config.json', dict(
        trained={'kd_cot-1': weights}, command='cotkd run toy --out /home/me/run',
        versions=dict(cotkd='1.2.3'), settings={},
        contamination=dict(n=13, rows=4321, questions=120, too_short=0, overlapping=7)))
    return run


def section(text, name):
    return re.search(rf'^## {name}\n\n(.*?)(?=^## |\Z)', text, re.S | re.M)[1]


def rows_of_table(text):
    "Cells of all tables in a text"
    rows = [re.split(r'(?<!\\) \| ', line[2:-2]) for line in text.splitlines() if line[:1] == '|']
    return [row for row in rows if len(row) > 1 and not row[0].startswith('---')]


def numbers(text):
    return [float(x.replace(',', '')) for x in re.findall(r'\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?', text)]


# --- what stands on it

def test_metadata_comes_back_from_the_file(place):
    made = student_card(read_student(place), 'apache-2.0')
    write_card(made, place/'README.md')
    loaded = ModelCard.load(place/'README.md')
    assert loaded.data.to_dict() == made.data.to_dict() == dict(
        base_model='org/base', license='apache-2.0', datasets=[HUB_ID], language='en',
        library_name='transformers', pipeline_tag='text-generation',
        tags=['knowledge-distillation', 'cotkd'])
    assert str(loaded) == (place/'README.md').read_text()
    assert '`apache-2.0`' in section(made.text, 'Licence')


def test_origin_and_recipe_are_those_of_the_record(place):
    text = student_card(read_student(place)).text
    origin = dict(rows_of_table(section(text, 'Where it comes from')))
    assert origin['base student'] == '`org/base`' and origin['teacher'] == '`org/teacher[0-2]`'
    assert origin['rows'].startswith('4,300 to learn from, and 21 held out')
    assert origin['learned of a row'] == 'the rationale, then the answer'
    recipe = dict(rows_of_table(section(text, 'How it was trained')))
    shown = {label: numbers(value) for label, value in recipe.items()}
    assert shown['peak learning rate'] == [3e-4] and shown['temperature'] == [1.5]
    assert shown['rows per update'] == [16] and shown['passes over the rows'] == [2]
    assert recipe['divergence from the teacher'] == r'reverse\_kl'
    assert recipe['arithmetic'] == 'float32' and shown['seed'] == [1]
    cost = [x for label in [*recipe][-8:] for x in shown[label]]
    assert cost == [537, 8592, 34046, 5.08e12, 142, 500, .123, .145]
    assert 'cotkd 9.8.7, torch 6.5.4' in text


def test_what_was_changed_is_shown(place):
    student = read_student(place)
    changed = dict(lora_rank=8, lmbda=.5, ce_weight=.25, t_squared=True, dtype='bfloat16',
                   trainer=dict(optim='adafactor', logging_dir='/home/me/logs'))
    text = student_card(replace(student, recipe=RECIPE | changed)).text
    recipe = dict(rows_of_table(section(text, 'How it was trained')))
    assert recipe['rank of low-rank adapters, merged into the weights'] == '8'
    assert recipe["share of the updates on the student's own texts"] == '0.5'
    assert recipe['share of cross-entropy with the text'] == '0.25'
    assert recipe['arithmetic'] == 'bfloat16'
    assert recipe['logging_dir (of the trainer)'] == '`logs`' and '/home' not in text


def test_what_is_not_known_is_left_out(place):
    bare = {key: x for key, x in RECIPE.items() if key not in ('student', 'teacher', 'data')}
    student = replace(read_student(place), recipe=bare, about={})
    made = student_card(student)
    assert made.data.base_model is made.data.license is made.data.datasets is None
    assert made.data.language is None and 'model-index' not in made.data.to_dict()
    assert [row[0] for row in rows_of_table(section(made.text, 'Where it comes from'))][1:] == [
        'rows']
    for words in 'Command', 'Versions', '## Licence', '## How well', 'None', 'nan':
        assert words not in made.text


def test_trained_on_the_text_alone(place):
    recipe = RECIPE | dict(ce_weight=1., mode='direct', teacher_id=None)
    del recipe['teacher']
    text = student_card(replace(read_student(place), recipe=recipe)).text
    assert 'from the text of the rows below' in text and 'teacher_' not in text
    trained = section(text, 'How it was trained')
    assert 'cross-entropy with the text' in trained and 'divergence from' not in trained
    assert 'It answers at once' in text and 'predictions it learned' not in text


@pytest.mark.parametrize('mode, words', [
    ('cot', 'step by step.\\n"'), ('direct', "QUESTION\\nA:'"), ('after', 'reasons follow')])
def test_the_prompt_of_the_training_is_shown(mode, words, place):
    student = replace(read_student(place), recipe=RECIPE | dict(mode=mode))
    assert words in section(student_card(student).text, 'How to ask it')
    chat = replace(student, recipe=student.recipe | dict(chat=True))
    assert 'chat=True' in section(student_card(chat).text, 'How to ask it')


# --- results

def test_every_number_of_the_results(run_dir):
    student = read_student(run_dir/'models/kd_cot-1')
    made = student_card(student)
    results = load_results(run_dir)
    mine = results[results.weights == student.weights]
    answers, gains = section(made.text, 'How well it answers').split('\n\n')[:2]
    for row, mode in zip(rows_of_table(answers)[1:], ('cot', 'direct'), strict=True):
        own = mine[mine['mode'] == mode]
        found = arm_interval(own, Asked('kd_cot', mode))
        assert found['delta'] == pytest.approx(100 * (own.correct / own.n).mean())
        shown = [round(found[name], 1) for name in ('delta', 'low', 'high')]
        assert numbers(row[1]) == [own.n.sum()] and numbers(row[2]) == shown
    told = {row[1]: row for row in rows_of_table(gains)[1:]}
    assert [*told] == ['KD, direct', 'Base student, step by step', 'Base student, direct']
    once = results[results.seed == 1]
    gain = average_gain(once, contrast('kd:kd_cot'))
    expected = [round(abs(gain[x]), 1) for x in ('a', 'b', 'delta', 'low', 'high')]
    assert numbers(told['KD, direct'][2]) == [gain.n]
    assert [x for cell in told['KD, direct'][3:] for x in numbers(cell)] == expected
    asked_once = results.assign(seed=1)[(results.arm == 'student') | (results.seed == 1)]
    gain = average_gain(asked_once, contrast('student:kd_cot'))
    assert numbers(told['Base student, step by step'][5])[0] == round(gain.delta, 1)


def test_results_for_machines_are_those_for_people(run_dir):
    student = read_student(run_dir/'models/kd_cot-1')
    write_card(student_card(student), run_dir/'README.md')
    found = ModelCard.load(run_dir/'README.md').data
    assert found.model_name == 'kd_cot-1' and len(found.eval_results) == 2
    scores = [score_of(own) for own in ways_of(load_results(run_dir), student.weights)]
    for result, score in zip(found.eval_results, scores, strict=True):
        assert result.metric_value == round(score.percent, 2)
        assert [*result.metric_args.values()] == [score.n, round(score.low, 2),
                                                  round(score.high, 2)]
        assert score.asked in result.metric_name


def test_a_run_lends_what_it_knows(run_dir):
    student = read_student(run_dir/'models/kd_cot-1')
    assert student.about['rationale'] == 'before' and student.run == run_dir
    text = student_card(student).text
    assert '`cotkd run toy --out run`' in text and 'cotkd 1.2.3' in text
    assert '7 of 120 questions share 13 words' in text


def test_another_students_results_are_not_taken(run_dir):
    place = run_dir/'models/kd_cot-1'
    config = json.loads((place/'config.json').read_text())
    write_json(place/'config.json', dict(config, more=1))  # other bytes: not what the run trained
    student = read_student(place)
    assert student.run is None and '## How well' not in student_card(student).text
    with pytest.raises(InputError, match='no result there is of'):
        student_card(student, results=[run_dir])


def test_variants_stand_beside(run_dir):
    rows = [dict(row, temperature=0.2) for row in load_results(run_dir).to_dict('records')]
    (run_dir/'greedy').mkdir()
    write_lines(run_dir/'greedy/results.jsonl', rows)
    data = student_card(read_student(run_dir/'models/kd_cot-1')).data
    assert len(data.eval_results) == 4
    assert sum('temperature 0.2' in result.metric_name for result in data.eval_results) == 2


# --- names and places

STRANGE = ['a|b', '`tick`', '*star* _x_', 'two\nlines', '---\nlicense: mit\n---', '\u202eturned',
           '<script>alert(1)</script>', "'quote\"", '{{ jinja }}', '%s {name}', '```', '模型']


@pytest.mark.parametrize('name', STRANGE)
def test_strange_names(name, place):
    recipe = RECIPE | dict(student=f'/home/me/{name}', teacher=name, data=f'C:\\me\\{name}')
    student = replace(read_student(place), recipe=recipe,
                      place=place.with_name(name.replace('/', '_')),
                      about=dict(ABOUT, hub={}, command=f'cotkd distill --out {name}'))
    path = place/'README.md'
    write_card(student_card(student), path)
    text = path.read_text('utf-8')
    assert card.is_ours(path) and '/home' not in text and '\u202e' not in text
    found = ModelCard.load(path)
    assert found.data.base_model is found.data.license is None
    table = rows_of_table(section(found.text, 'Where it comes from'))
    assert {len(row) for row in table} == {2} and len(table) == 6
    compile(re.search(r'```python\n(.*?)\n```', found.text, re.S)[1], 'card', 'exec')


@pytest.mark.parametrize('name', STRANGE)
def test_text_stays_on_its_line(name):
    for made in as_code(name), as_text(name):
        assert '\n' not in made and '\u202e' not in made
        assert markdown_table([[made, 'b']]).splitlines()[0].count(' | ') == 1


def test_paths_lose_their_directories():
    command = r'cotkd distill --teacher org/big[0-2] --set data=/a/b.jsonl C:\me\x "/a b/c d"'
    assert public_command(command.replace('\\', '\\\\'), {'org/big'}) == (
        "cotkd distill --teacher 'org/big[0-2]' --set data=b.jsonl x 'c d'")


# --- the command

def refused(capsys, words, *said):
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cotkd: ')]
    assert len(lines) == 1, lines
    for text in said:
        assert text in lines[0]


def test_what_is_no_student(run_dir, place, capsys):
    refused(capsys, ['card', run_dir/'nowhere'], 'is no directory')
    refused(capsys, ['card', run_dir/'models'], 'holds no student')
    refused(capsys, ['card', run_dir], 'run of several students', 'kd_cot-1')
    record = read_json(place/'distill.json')
    write_json(place/'distill.json', dict(recipe=record['recipe']))
    refused(capsys, ['card', place], 'unfinished student', '--resume')
    (place/'distill.json').write_text('[]')
    refused(capsys, ['card', place], 'not one JSON object')
    write_json(place/'distill.json', record)
    (place/'model.safetensors').unlink()
    refused(capsys, ['card', place], 'unfinished student')
    assert not (place/'README.md').exists()


def test_a_card_of_somebody_is_kept(place, capsys):
    readme = place/'README.md'
    readme.write_text('mine')
    refused(capsys, ['card', place], 'written or changed by hand', '--overwrite')
    assert readme.read_text() == 'mine'
    assert main(['card', str(place), '--out', str(place/'other.md')]) is None
    assert main(['card', str(place), '--overwrite']) is None
    assert readme.read_text() == (place/'other.md').read_text()
    assert main(['card', str(place), '--license', 'mit']) is None  # ours: replaced
    assert 'license: mit' in readme.read_text()
    readme.write_text(readme.read_text().replace('4,300', '5,000'))
    refused(capsys, ['card', place], 'changed by hand')
    assert main(['card', str(place/'.'), '--overwrite']) is None


def test_wrong_words(place, capsys):
    refused(capsys, ['card', place, '--license', 'My Own'], "'My Own'", 'apache-2.0')
    refused(capsys, ['card', place, '--results', place/'none'], 'no results at')
    for name in 'mine', 'a/b/c', '/a', 'a b/c', 'ä/b':
        refused(capsys, ['card', place, '--push-to-hub', name], 'OWNER/NAME')
    assert not (place/'README.md').exists()
    with pytest.raises(SystemExit):
        main(['card', str(place), '--out', 'x', '--push-to-hub', 'a/b'])


# --- to the hub

@pytest.fixture
def hub(monkeypatch):
    "What would go to the hub"
    sent = {}

    def upload(api, *, repo_id, folder_path, allow_patterns, ignore_patterns, **more):
        files = [str(p.relative_to(folder_path)) for p in folder_path.rglob('*') if p.is_file()]
        sent[repo_id] = {name: (folder_path/name).read_bytes() for name in filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)}

    def create(api, name, private, exist_ok):
        assert private and exist_ok
        return f'https://hub/{name}'

    monkeypatch.setattr(card, 'hub_answers', lambda: True)
    monkeypatch.setattr(HfApi, 'create_repo', create)
    monkeypatch.setattr(HfApi, 'upload_folder', upload)
    return sent


def test_student_and_card_go_up_and_nothing_else(place, hub, capsys):
    for name in ('training_args.bin', 'log.jsonl', 'last/config.json', 'checkpoint-9/model.bin',
                 '.working.lock', 'LICENSE', 'notes.pdf', '.secret.json'):
        (place/name).parent.mkdir(exist_ok=True)
        (place/name).write_text('{}')
    assert main(['card', str(place), '--push-to-hub', 'ada/kd']) is None
    assert capsys.readouterr().out.splitlines()[-1] == 'https://hub/ada/kd'
    assert sorted(hub['ada/kd']) == ['LICENSE', 'README.md', 'config.json',
                                     'generation_config.json', 'model.safetensors',
                                     'tokenizer.json', 'tokenizer_config.json']
    text = hub['ada/kd']['README.md'].decode()
    assert "pipeline('text-generation', 'ada/kd'" in text and '# `kd`' in text


def test_a_changed_card_goes_up_as_it_is(place, hub, capsys):
    (place/'README.md').write_text('mine')
    assert main(['card', str(place), '--push-to-hub', 'ada/kd']) is None
    assert 'changed by hand and stays' in capsys.readouterr().out
    assert hub['ada/kd']['README.md'] == b'mine'


def test_a_hub_that_says_no(place, hub, monkeypatch, capsys):
    def create(*args, **kwargs):
        raise OSError('403 Forbidden\nmore')
    monkeypatch.setattr(HfApi, 'create_repo', create)
    refused(capsys, ['card', place, '--push-to-hub', 'ada/kd'], '403 Forbidden', 'hf auth login')
    monkeypatch.setattr(card, 'hub_answers', lambda: False)
    refused(capsys, ['card', place, '--push-to-hub', 'ada/kd'], 'cannot be reached')
    assert not hub and (place/'README.md').exists()


# --- from the training on

def test_a_trained_student_gets_its_card(tmp_path, monkeypatch, capsys):
    write_lines(tmp_path/'rows.jsonl', make_toy(['web_of_lies'], 16, seed=5))
    words = ['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', '--data',
             str(tmp_path/'rows.jsonl'), '--no-rationales', '--out', str(tmp_path/'mine'),
             '--batch-size', '8']
    refused(capsys, [*words, '--push_to_hub'], 'cotkd card DIR --push-to-hub')
    assert not (tmp_path/'mine').exists()
    assert main(words) is None
    about = read_json(tmp_path/'mine/distill.json')['about']
    assert about['rationale'] == 'none' and about['command'].startswith('cotkd distill')
    assert about['hub'] == {} and about['versions']['cotkd']
    assert main(['card', str(tmp_path/'mine')]) is None
    made = ModelCard.load(tmp_path/'mine/README.md')
    assert str(tmp_path) not in str(made) and made.data.base_model is None
    assert '--data rows.jsonl' in made.text and '16 to learn from' in made.text
    assert main(words) is None  # a card beside it does not make it another one
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(re.search(r'```python\n(.*?)\n```', made.text, re.S)[1], {})
    assert capsys.readouterr().out.strip()
