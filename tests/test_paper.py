"The presets of the paper, from rows to report, with small models of the same kind."
from dataclasses import replace

import pytest
from pairs import CONTEXTS, make_pair

from cotkd.arms import find_asked
from cotkd.bbh import BBH_TASKS
from cotkd.cli import main
from cotkd.experiment import PRESETS, run, variants_of
from cotkd.files import InputError, read_json
from cotkd.gains import MACRO, accuracy_table, gains_table
from cotkd.models import load_lm
from cotkd.records import fewer_examples, load_results, prediction_path
from cotkd.report import PAPER


ARMS = {'teacher', 'student', 'kd', 'kd_cot'}


@pytest.mark.parametrize('name', PAPER)
def test_a_preset_of_the_paper_from_rows_to_report(name, cot_data, bbh_dir, tmp_path):
    "One run, and all that the paper's table needs of it"
    preset, out = PRESETS[name], tmp_path/'run'
    small = replace(
        preset, **make_pair(name, preset, tmp_path, cot_data), limit=1, max_new_tokens=4,
        rows=24, epochs=2., data=str(cot_data/'CoT_collection_en.sample.json'))
    run(small, out, bbh_dir, preset=name)
    results = load_results(out)
    check_answers(results, name)
    check_examples(results, name)
    check_report(out, results, name)
    check_variants(out)
    if preset.chat:
        check_lent_template(out, small, tmp_path/'alone')
    model, tokenizer = load_lm(out/'models/kd_cot-0')
    assert model.config.model_type == ('qwen2' if name == 'paper-qwen' else 'llama')
    assert bool(tokenizer.chat_template) == (name != 'paper-qwen')


def check_answers(results, name):
    "All arms answered all tasks under both prompts, three shots, as the paper samples"
    assert (results.shots == 3).all() and (results.temperature == .2).all()
    assert (results.chat == (name != 'paper-qwen')).all()
    assert (results.skipped == 0).all() and (results.n == 1).all()
    for arm in ARMS:
        for mode in 'cot', 'direct':
            part = results[(results.arm == arm) & (results['mode'] == mode)]
            assert set(part.task) == set(BBH_TASKS) and len(part) == 27
        assert accuracy_table(results, find_asked(f'{arm}@cot')).n['all_27'] == 27


def check_examples(results, name):
    "A task too long for one model has fewer examples for all"
    few = fewer_examples(results)  # raises, were they not the same for all
    assert ('geometric_shapes' in few) == (CONTEXTS[name] < 4096)
    assert all(n < 3 for n in few.values()) and len(few) < 27


def check_report(out, results, name):
    named = read_json(out/'config.json')['settings']['contrasts'].split(',')
    assert named == ['kd@cot:kd_cot', 'kd:kd_cot']
    table = gains_table(results, named, n_boot=100)
    assert table.delta.notna().all() and (table.n.loc[:, MACRO] == 27).all()
    page = (out/'report.html').read_text()
    for text in 'Beside the paper', 'Asked again', 'KD, step by step → KD+CoT', 'KD → KD+CoT', \
            f"{PAPER[name]['kd_cot']:.1f} [", '1,440,000':
        assert text in page, text
    assert ('worked examples are longer' in page) == (CONTEXTS[name] < 4096)


def check_variants(out):
    "Greedy answers, and those of the students of the last update"
    greedy, last = [load_results(out/variant) for variant in ('greedy', 'last')]
    assert (greedy.temperature == 0).all() and (last.temperature == .2).all()
    for results in greedy, last:
        assert (results['mode'] == 'cot').all()
        assert len(results) == 4 * 27 and set(results.arm) == ARMS
    for arm in 'kd', 'kd_cot':
        apart = (out/f'models/{arm}-0/last').is_dir()
        cost = read_json(out/'config.json')['cost'][arm]
        assert apart == (cost['kl_kept'] != cost['kl_last'])
        ours = set(last.weights[last.arm == arm])
        assert (ours == set(greedy.weights[greedy.arm == arm])) != apart


def check_lent_template(out, small, alone):
    "Arm by arm, a base student without a template answers as in the run"
    words = ['eval', '--model', small.student, '--chat', '--tasks', 'navigate', '--limit', '1',
             '--max-new-tokens', '4', '--temperature', '.2', '--out', str(alone)]
    assert main(words) == 2  # it has no template
    assert not main([*words, '--tokenizer', small.teacher, '--context', '2048'])
    found, = load_results(alone).to_dict('records')
    there = prediction_path(out, found).read_bytes()
    assert prediction_path(alone, found).read_bytes() == there


def test_what_would_be_the_same_results_is_not_asked(tmp_path):
    paper = PRESETS['paper-qwen']
    assert variants_of(paper) == ['', 'greedy', 'last']
    assert variants_of(replace(paper, sampling_temperature=0.)) == ['', 'last']
    assert variants_of(replace(paper, dev=0.)) == ['', 'greedy']
    with pytest.raises(InputError, match="'greed' is unknown; choose from greedy, last"):
        run(replace(paper, also='greed'), tmp_path/'run')
