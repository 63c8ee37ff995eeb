"The same experiment again: the same bytes; and what a preset asks decides what it compares"
import json
from dataclasses import replace

import pytest
from processes import finish

from cotkd import experiment as module
from cotkd.arms import ARMS
from cotkd.bbh import toy_benchmark
from cotkd.cli import main
from cotkd.experiment import PRESETS, askings, chosen_contrasts, configure, read_config, run
from cotkd.files import InputError
from cotkd.records import load_results

SMALL = ['--set', 'rows=24', 'heldout=3', 'other_prompt=2', 'max_new_tokens=10', 'epochs=2',
         'contrasts=kd@cot:kd_cot']


def command(*words):
    "In a process of its own, on two tasks of six"
    toy = toy_benchmark(3)
    two = replace(toy, items={task: toy.items[task] for task in ('navigate', 'web_of_lies')})
    module.toy_benchmark = lambda heldout: two
    assert not main(list(words))


@pytest.fixture(scope='module')
def twice(tmp_path_factory):
    "A run, the same again, and one from the first one's config.json alone"
    folder = tmp_path_factory.mktemp('repeated')
    for name in 'first', 'second':
        finish(command, 'run', 'toy', *SMALL, '--seeds', '2', '--bbh', '',
               '--out', f'{folder}/{name}', '--weight_decay', '0.1')
    finish(command, 'run', f'{folder}/first/config.json', '--bbh', '', '--out', f'{folder}/third')
    return folder


@pytest.mark.parametrize('other', ['second', 'third'])
@pytest.mark.parametrize('path', ['results.jsonl', 'models/kd_cot-1/model.safetensors',
                                  'predictions/kd_cot/cot-0-1/navigate.jsonl'])
def test_one_seed_gives_the_same_bytes(path, other, twice):
    assert (twice/other/path).read_bytes() == (twice/'first'/path).read_bytes()


def test_a_config_holds_all_that_a_run_was(twice):
    experiment, seeds, trainer = read_config(twice/'first'/'config.json')
    assert seeds == 2 and trainer == dict(weight_decay=.1)
    assert experiment == configure('toy', dict(x.split('=', 1) for x in SMALL[1:]))


def test_other_models_or_questions_are_no_repetition(twice, tmp_path):
    config = json.loads((twice/'first'/'config.json').read_text())
    experiment, *_ = read_config(twice/'first'/'config.json')
    for part in 'identities', 'questions':
        with pytest.raises(InputError, match=f'{part} are .* of the run that is to come out again'):
            run(experiment, tmp_path/'run', False, 2, trainer=config['trainer'],
                repeats=config | {part: 'other'})
    assert main(['run', str(twice/'first'/'config.json')]) == 2  # where to?
    assert not (tmp_path/'run').exists()


def test_the_headline_is_what_the_settings_name(twice, capsys):
    "In figure, page and table: KD asked step by step, as KD+CoT is"
    page = (twice/'first'/'report.html').read_text()
    assert 'KD, step by step' in page
    command('gains', str(twice/'first'))
    assert 'KD, step by step → KD+CoT' in capsys.readouterr().out
    assert {*load_results(twice/'first').arm} == {'teacher', 'student', 'kd', 'kd_cot'}


PAIRS = [name for name, preset in PRESETS.items() if preset.data != 'toy']


@pytest.mark.parametrize('preset', PAIRS)
def test_the_papers_presets_ask_every_arm_step_by_step(preset):
    "All questions of both contrasts, the one of the paper first"
    experiment = PRESETS[preset]
    assert [str(c) for c in chosen_contrasts(experiment)] == ['kd@cot:kd_cot', 'kd:kd_cot']
    for arm in ARMS.values():
        limits = {asking.mode: asking.limit or 250 for asking in askings(experiment, arm)}
        assert limits == dict(cot=250, direct=250)  # as many as any task has


def test_contrasts_follow_the_arms():
    paper = PRESETS['paper-qwen']
    assert chosen_contrasts(replace(paper, arms='sft,sft_cot')) is None
    with pytest.raises(InputError, match="contrast 'kd'"):
        configure('toy', dict(contrasts='kd'))


# --- further results

@pytest.fixture(scope='module')
def again(cot_data, tmp_path_factory):
    "A run that also asks greedily, and the students of the last update"
    found = toy_benchmark(2)
    benchmark = replace(found, items={'navigate': found.items['navigate']})
    settings = replace(
        PRESETS['toy'], data=str(cot_data/'CoT_collection_en.sample.json'), rows=24, epochs=2.,
        dev=.2, sampling_temperature=.5, also='greedy,last', max_new_tokens=4,
        contrasts='kd@cot:kd_cot,kd:kd_cot')
    out = tmp_path_factory.mktemp('again')/'run'
    run(settings, out, benchmark)
    return settings, out, benchmark


def rows_of(path):
    return sorted(path.read_text().splitlines())


@pytest.mark.parametrize('lost', ['teacher', 'everyone'])
def test_what_a_kill_left_unshared_is_shared_by_the_same_command(lost, again, tmp_path):
    "Results of models that the last update did not change, which no model is asked for"
    settings, out, benchmark = again
    before = {path.name: path for path in (out/'last').iterdir()}['results.jsonl']
    rows, page = rows_of(before), out/'report.html'
    shared = [row for row in rows if json.loads(row)['arm'] in ('teacher', 'student')]
    kept = [row for row in rows if row not in (shared if lost == 'everyone' else shared[:1])]
    before.write_text(''.join(f'{row}\n' for row in kept))
    page.unlink()
    run(settings, out, benchmark)
    assert rows_of(before) == rows and 'students of the last update' in page.read_text()


def test_a_last_student_that_would_be_thrown_away_is_refused(again, tmp_path):
    settings, _, benchmark = again
    with pytest.raises(InputError, match='save_total_limit=1.*or also=last'):
        run(settings, tmp_path/'run', benchmark, trainer=dict(save_total_limit=1))


def test_gains_of_further_results_are_those_of_the_headline(again, capsys):
    "The settings of the run stand in the directory above"
    _, out, _ = again
    command('gains', str(out/'last'))
    said = capsys.readouterr().out
    assert 'KD, step by step → KD+CoT' in said and 'the run is not finished' not in said
