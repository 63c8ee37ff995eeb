"What lm-evaluation-harness wrote, paired"
import json
import shutil
import sys

import numpy as np
import pytest
import yaml

from cotkd.cli import main
from cotkd.files import InputError, read_json, read_lines
from cotkd.harness import (choose_metric, find_models, harness_contrasts, harness_remarks,
                           harness_results, harness_table, is_harness, read_samples, sample_files,
                           unpaired)
from cotkd.stats import holm, mcnemar, paired_bootstrap
from cotkd.toy import make_toy

N = 40
CHOICE = dict(task='toy_choice', output_type='multiple_choice', doc_to_choice=['(A)', '(B)'],
              doc_to_text='Q: {{source}}\nA:', metric_list=[
                  dict(metric=name, aggregation='mean', higher_is_better=True)
                  for name in ('acc', 'acc_norm')])
TEXT = dict(task='toy_text', output_type='generate_until',
            doc_to_text="Q: {{source}}\nA: Let's think step by step.\n",
            generation_kwargs=dict(until=['\n\nQ:'], max_gen_toks=100, do_sample=False),
            metric_list=[dict(metric='exact_match', aggregation='mean', higher_is_better=True)],
            filter_list=[
                dict(name='strict', filter=[
                    dict(function='regex', regex_pattern=r'the answer is (.*)\.'),
                    dict(function='take_first')]),
                dict(name='flexible', filter=[
                    dict(function='regex', regex_pattern='(Yes|No)', group_select=-1),
                    dict(function='take_first')])])


def write_tasks(folder):
    "Two tasks of 40 generated questions, as lm-evaluation-harness reads them"
    for task, problem in (CHOICE, 'hyperbaton'), (TEXT, 'navigate'):
        rows = folder/f'{problem}.jsonl'
        rows.write_text('\n'.join(map(json.dumps, make_toy([problem], N, seed=5, heldout=True))))
        whole = task | dict(dataset_path='json', test_split='test', doc_to_target='{{target}}',
                            dataset_kwargs=dict(data_files=dict(test=str(rows))))
        (folder/f'{problem}.yaml').write_text(yaml.safe_dump(whole))


def ask(monkeypatch, tasks, model, out):
    "As from a terminal, in this process"
    command = pytest.importorskip('lm_eval.__main__').cli_evaluate
    options = ['--model', 'hf', '--model_args', f'pretrained={model},dtype=float32', '--device',
               'cpu', '--batch_size', '20', '--include_path', tasks, '--tasks',
               'toy_choice,toy_text', '--output_path', out, '--log_samples']
    monkeypatch.setattr(sys, 'argv', ['lm_eval', *map(str, options)])
    command()


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "A student before and after two updates, each asked by lm-evaluation-harness"
    from importlib.resources import files
    place = tmp_path_factory.mktemp('asked')
    monkeypatch = pytest.MonkeyPatch()
    write_tasks(place)
    rows = place/'rows.jsonl'
    rows.write_text('\n'.join(map(json.dumps, make_toy(['navigate'], 64, seed=1))))
    assert not main(['distill', '--teacher', 'toy-teacher', '--student', 'toy-student', '--data',
                     str(rows), '--rationales', '--out', str(place/'student'), '--batch-size',
                     '32', '--lr', '0.01'])
    ask(monkeypatch, place, files('cotkd')/'assets/toy-student', place/'before')
    ask(monkeypatch, place, place/'student', place/'after')
    monkeypatch.undo()
    return place


def verdicts(place, task, metric, kind):
    "Straight from the file, by the number of the question"
    lines = read_lines(next(place.rglob(f'samples_{task}_*.jsonl')))
    return np.array([line[metric] for line in sorted(lines, key=lambda line: line['doc_id'])
                     if line['filter'] == kind])


def standard_error(place, task, metric):
    "What it prints behind its ±"
    return read_json(next(place.rglob('results_*.json')))['results'][task][metric]


def test_equal_to_the_vectors_by_hand(asked):
    results = harness_results(asked/'before', asked/'after')
    table = harness_table(results).droplevel('contrast')
    sides, ps = {}, []
    for task, name, kind in ('toy_choice', 'acc', 'none'), ('toy_text', 'exact_match', 'strict'):
        a, b = (verdicts(asked/side, task, name, kind) for side in ('before', 'after'))
        row = table.loc[f'{task}, {name}' + (f', {kind}' if kind != 'none' else '')]
        by_hand = paired_bootstrap(a, b, np.zeros(N))
        assert row.n == N and np.isclose(row.delta, 100 * (b - a).mean())
        assert [row.low, row.high, row.p] == [by_hand[x] for x in ('low', 'high', 'p')]
        assert row.p_mcnemar == mcnemar(a, b)
        errors = [standard_error(asked/side, task, f'{name}_stderr,{kind}')
                  for side in ('before', 'after')]
        assert np.isclose(row.unpaired, 196 * np.hypot(*errors))
        sides[task] = a, b
        ps.append(row.p_mcnemar)
    assert [*table.p_holm[:2]] == [*holm(np.array(ps))]
    a, b = (np.concatenate([pair[i] for pair in sides.values()]) for i in (0, 1))
    groups = np.repeat([0, 1], N)
    whole = paired_bootstrap(a, b, groups)
    assert [table.low['macro'], table.high['macro']] == [whole['low'], whole['high']]


def test_from_the_command_line(asked, tmp_path, capsys):
    figure = tmp_path/'gains.png'
    assert not main(['gains', str(asked/'before'), str(asked/'after'), '--metric', 'acc_norm',
                     '--out', str(figure)])
    text = capsys.readouterr().out
    assert 'toy choice, acc norm' in text and 'unpaired ±' in text
    assert 'before, toy_text: no metric acc_norm, it has exact_match,strict (0 or 1)' in text
    assert figure.stat().st_size > 5000
    assert not main(['gains', str(asked/'before'), str(asked/'after'), '--contrast',
                     'after:before', '--metric', 'exact_match,flexible'])
    assert 'after → before' in capsys.readouterr().out


def test_several_models_share_the_correction(asked, tmp_path):
    shutil.copytree(asked/'after', tmp_path/'third')
    table = harness_table(harness_results(asked/'before', asked/'after', tmp_path/'third'))
    assert [*table.index.unique('contrast')] == ['before:after', 'before:third']
    tasks = table.drop('macro', level='task')
    assert [*tasks.p_holm] == [*holm(tasks.p_mcnemar)]


@pytest.fixture
def copy(asked, tmp_path):
    "Of both, to be altered"
    for side in 'before', 'after':
        shutil.copytree(asked/side, tmp_path/side)
    return tmp_path


def alter(place, change, task='toy_choice'):
    path = next(place.rglob(f'samples_{task}_*.jsonl'))
    lines = [change(line) for line in read_lines(path)]
    path.write_text('\n'.join(json.dumps(line) for line in lines if line))
    return path


def test_other_questions_do_not_pair(copy):
    "Same numbers of the questions, other texts: of 10, and then of all"
    def other(line):
        return line | dict(doc_hash='other' * (line['doc_id'] < 10) + line['doc_hash'])

    alter(copy/'after', other)
    results = harness_results(copy/'before', copy/'after')
    c, = harness_contrasts(results)
    assert harness_table(results).loc[str(c)].n['toy_choice, acc'] == N - 10
    assert harness_remarks(results, c) == ['toy_choice, acc: 40 and 40 questions, 30 in both']
    alter(copy/'after', lambda line: line | dict(target_hash=line['target_hash'] + 'x'))
    row = harness_table(harness_results(copy/'before', copy/'after')).loc[str(c)]
    assert row.n['toy_choice, acc'] == 0 and np.isnan(row.delta['toy_choice, acc'])
    assert row.n['macro'] == N


def test_the_order_of_the_lines_does_not_matter(copy):
    before = harness_table(harness_results(copy/'before', copy/'after'))
    path = alter(copy/'after', lambda line: line)
    path.write_text('\n'.join(path.read_text().split('\n')[::-1]))
    assert harness_table(harness_results(copy/'before', copy/'after')).equals(before)


def test_other_prompts_are_said(copy):
    alter(copy/'after', lambda line: line | dict(prompt_hash='x'), 'toy_text')
    results = harness_results(copy/'before', copy/'after')
    remark, = harness_remarks(results, *harness_contrasts(results))
    assert remark.startswith('toy_text, exact_match, strict: asked with other prompts')


def test_a_question_that_comes_twice(copy):
    lines = read_lines(next((copy/'before').rglob('samples_toy_choice_*.jsonl')))[:3]
    path = copy/'twice.jsonl'
    path.write_text('\n'.join(json.dumps(line | dict(acc=acc))
                              for line, acc in zip(lines[:1] * 2 + lines[1:2], (1., 0., 1.))))
    assert [*read_samples(path).scores.values()] == [1, 0, 1]


def test_the_latest_file_counts(copy):
    path = next((copy/'after').rglob('samples_toy_choice_*.jsonl'))
    later = path.with_name('samples_toy_choice_2999-01-01T00-00-00.000001.jsonl')
    shutil.copy(path, later)
    assert sample_files(path.parent)['toy_choice'] == later
    assert set(sample_files(path.parent)) == {'toy_choice', 'toy_text'}


def test_models_of_one_directory(copy):
    one = copy/'both'
    for side in 'before', 'after':
        inside, = (copy/side).iterdir()
        shutil.copytree(inside, one/f'__home__me__{side}')
    assert [*find_models(one)] == ['after', 'before']
    assert [*find_models(copy/'before', copy/'before')] != ['before', 'before']


@pytest.mark.parametrize('change, message', [
    (lambda line: {key: x for key, x in line.items() if key != 'filter'}, "without 'filter'"),
    (lambda line: line | dict(acc=.5, acc_norm=.5), 'no metric of 0 and 1, it has acc,none')])
def test_files_that_cannot_be_paired(copy, change, message, capsys):
    shutil.rmtree(copy/'before')
    alter(copy/'after', change)
    next((copy/'after').rglob('samples_toy_text_*')).unlink()
    with pytest.raises(InputError, match=message):
        harness_results(copy/'after')


def test_mistakes_are_one_line(asked, tmp_path, capsys):
    before = str(asked/'before')
    for words, message in [
            ([before], 'only before has samples'),
            ([before, str(tmp_path)], 'holds samples of lm-evaluation-harness, and others'),
            ([before, str(asked/'after'), '--shots', '3'], '--shots 3'),
            ([before, str(asked/'after'), '--contrast', 'before:x'], "no results of arm 'x'"),
            ([before, str(asked/'after'), '--metric', 'bleu'], 'nothing to compare: before')]:
        assert main(['gains', *words]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and '\n' not in error
    assert main(['gains', 'cotkd/results/toy_bbh.jsonl', '--metric', 'acc']) == 2
    assert '--metric acc: that chooses among metrics' in capsys.readouterr().err
    assert not is_harness(tmp_path)
    with pytest.raises(InputError, match='no samples of lm-evaluation-harness'):
        find_models(tmp_path)


def test_values():
    assert np.isclose(unpaired([50, 50], 101), 196 * np.sqrt(2 * .25 / 100))
    assert np.isnan(unpaired([50, 50], 1))
    assert choose_metric({'a,x': False, 'a,y': True, 'b,x': True}) == 'a,y'
    assert choose_metric({'a,x': True, 'b,x': True}, 'b') == 'b,x'
    assert choose_metric({'a,x': True, 'a,y': True}, 'a,y') == 'a,y'
    assert choose_metric({'a,x': False}, 'a') is None
