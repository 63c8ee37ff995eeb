"Tables and figures of gains and of single models: the right numbers in the right rows"
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from cotkd.arms import ARMS, Arm, contrast, find_asked
from cotkd.bbh import ALGORITHMIC, AVERAGES, BBH_TASKS, NLP
from cotkd.figures import gains_explorer, plot_accuracies, plot_gains, plot_pair, plot_tasks
from cotkd.files import InputError
from cotkd.gains import (accuracy_table, arm_interval, describe_setting, format_table, gains_table,
                         task_order)
from cotkd.records import packaged_results, pair_items, simulated_results
from cotkd.stats import aggregate, compare, mcnemar, wilson

KD = 'kd:kd_cot'


@pytest.fixture(autouse=True)
def agg():
    plt.switch_backend('agg')
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def whole():
    return simulated_results(BBH_TASKS, n=30, seeds=(0, 1), off_n=6)


def labels(fig):
    return [t.get_text() for t in fig.axes[0].get_yticklabels()]


def margin(fig):
    return [t.get_text() for t in fig.axes[0].texts]


def assert_readable(fig):
    "Every word inside the figure, none over another (numbers of an axis aside)"
    fig.canvas.draw()
    width, height = fig.get_size_inches() * fig.dpi
    texts = [t for t in fig.findobj(Text) if t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts
             if t.get_text().strip('0123456789−.')]
    for text, box in boxes:
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, text
    for i, (text, box) in enumerate(boxes):
        for other, against in boxes[:i]:
            assert not box.overlaps(against), (text, other)


TASKS = [list(BBH_TASKS), NLP, ['snarks', 'navigate'], ['navigate'],
         ['snarks', 'navigate', 'my_own_task'],
         ['salient_translation_error_detection', 'navigate', 'web_of_lies']]


@pytest.mark.parametrize('tasks', TASKS)
def test_figures_can_be_read(tasks):
    results = simulated_results(tasks, n=30, seeds=(0, 1), off_n=6)
    results = results.assign(temperature=.2, chat=True)
    assert_readable(plot_gains(results))
    other = results.assign(scorer='lm-eval')
    assert_readable(plot_accuracies(results, find_asked('kd_cot'), other=other))
    assert_readable(plot_pair(results, find_asked('student'), find_asked('kd_cot'), tasks[0]))


def test_six_arms_and_four_contrasts_can_be_read():
    results = simulated_results(['navigate', 'snarks'], n=40, arms=list(ARMS))
    table = gains_table(results)
    assert list(table.index.unique('contrast')) == [KD, 'kd:sft', 'sft:sft_cot', 'kd_cot:sft_cot']
    fig = plot_gains(results)
    assert_readable(fig)
    assert len(fig.axes) == 3
    assert [t.get_text() for t in fig.axes[1].get_yticklabels()] == [
        'KD → KD+CoT', 'KD → SFT', 'SFT → SFT+CoT', 'KD+CoT → SFT+CoT']


def test_an_arm_of_ones_own_is_in_table_and_figure(monkeypatch):
    monkeypatch.setitem(ARMS, 'mine', Arm('mine', 'Mine', against=('kd_cot',)))
    six = simulated_results(['navigate', 'snarks'], n=40)
    mine = six[six.arm == 'kd_cot'].assign(arm='mine')
    results = pd.concat([six, mine])
    assert gains_table(results).loc['kd_cot:mine'].loc['macro'].delta == 0
    fig = plot_gains(results)
    words = ' '.join(t.get_text() for t in fig.findobj(Text))
    assert 'Mine' in words and 'KD+CoT → Mine' in words
    assert ('KD+CoT → Mine', 'n') in format_table(results, gains_table(results))


def test_an_arm_that_is_in_no_table_is_shown_under_its_name():
    results = simulated_results(['navigate'], n=40)
    results = pd.concat([results, results[results.arm == 'kd_cot'].assign(arm='other')])
    table = gains_table(results, ['kd:other'])
    assert table.loc['kd:other'].loc['macro'].delta == pytest.approx(
        gains_table(results, [KD]).loc[KD].loc['macro'].delta)
    with pytest.raises(InputError, match="no results of arm 'nobody'"):
        gains_table(results, ['kd:nobody'])


def test_p_is_corrected_for_the_tasks_that_were_tested(whole):
    part = whole[~((whole.task == 'snarks') & (whole.arm == 'kd'))]
    table = gains_table(part, [KD], n_boot=10).loc[KD]
    assert table.p_holm.isna().sum() == 2
    assert np.isnan(table.p_holm['macro']) and np.isnan(table.p_holm['snarks'])
    assert table.p_holm.min() == pytest.approx(26 * table.p_mcnemar.drop('macro').min())
    pairs = pair_items(part, contrast(KD))
    one = pairs[pairs.task == 'navigate']
    assert table.p_mcnemar['navigate'] == max(mcnemar(s.a, s.b) for _, s in one.groupby('seed'))


def test_halves_have_their_own_average(whole):
    fig, pairs = plot_gains(whole), pair_items(whole, contrast(KD))
    assert labels(fig)[:14] == [
        'average of 27 tasks (all_27)', 'NLP: average of 12 tasks (nlp_12)',
        *(t.replace('_', ' ') for t in task_order(NLP))]
    assert labels(fig)[14] == 'algorithmic: average of 15 tasks (algorithmic_11)'
    for row, tasks in ((0, BBH_TASKS), (1, NLP)):
        delta = compare(pairs[pairs.task.isin(tasks)])['delta']
        assert margin(fig)[row].startswith(f'{delta:+.1f} [')
    table = gains_table(whole, [KD], n_boot=10).loc[KD]
    named = [aggregate(table[side].to_dict())['algorithmic_11'] for side in ('a', 'b')]
    assert margin(fig)[14].startswith(f'{named[1] - named[0]:+.1f} [')


def test_an_average_counts_only_finished_tasks(whole):
    running = whole[~(whole.task.isin(['snarks', 'navigate']) & (whole.arm == 'kd_cot'))]
    found = [t for t in labels(plot_gains(running)) if 'average' in t]
    assert found == ['average of 25 tasks', 'NLP: average of 11 tasks',
                     'algorithmic: average of 14 tasks']


@pytest.mark.parametrize('asked', ['teacher', 'kd', 'kd_cot@direct'])
def test_accuracies(whole, asked):
    table = accuracy_table(whole, find_asked(asked))
    tasks = table.drop([*AVERAGES])
    named = aggregate(tasks.percent.to_dict())
    assert table.percent[:5].to_dict() == pytest.approx(named)
    assert list(table.n[:5]) == [tasks.n.sum()] * 3 + [tasks.n[NLP].sum(),
                                                       tasks.n[ALGORITHMIC].sum()]
    for t, r in tasks.iterrows():
        assert (r.low, r.high) == pytest.approx(wilson(r.percent * r.n / 100, r.n))
    alone = arm_interval(whole[whole.task.isin(NLP)], find_asked(asked))
    got = list(table.loc['nlp_12', ['low', 'high']])
    assert got == pytest.approx([alone['low'], alone['high']], abs=1)


def test_accuracies_show_both_scorers(whole):
    none = whole['items'].str.replace('1', '0')
    other = whole.assign(scorer='lm-eval', items=none, correct=0)
    fig = plot_accuracies(whole, find_asked('teacher'), other=other)
    filled, hollow = (line for line in fig.axes[0].lines if line.get_marker() in ('o', 's'))
    assert filled.get_ydata().tolist() == hollow.get_ydata().tolist()
    assert set(hollow.get_xdata()[:5]) == {0}
    assert margin(fig)[0].endswith('n=810')


def test_accuracies_of_an_arm_that_is_not_there(whole):
    with pytest.raises(InputError, match="no answers of 'Teacher, step by step'.*KD, step by step"):
        plot_accuracies(whole[whole.arm == 'kd'], find_asked('teacher'))
    with pytest.raises(InputError, match='mix temperature'):
        gains_table(whole.assign(temperature=[0, .2] * (len(whole) // 2)))


def test_setting_names_what_is_unusual(whole):
    row = gains_table(whole, [KD], n_boot=10).loc[KD].loc['macro']
    usual = describe_setting(whole, contrast(KD), row)
    assert '27 tasks, 0-shot, official exact-match scorer, 810 questions' in usual
    assert '2 seeds, averaged (standard deviation' in usual
    unusual = describe_setting(whole.assign(temperature=.2, chat=True), contrast(KD), row)
    assert 'scorer, sampled at temperature 0.2, through the chat template, 810' in unusual


def test_committed_results_say_what_they_always_said():
    table = gains_table(packaged_results(), [KD]).loc[KD]
    row = table.loc['macro']
    got = [row.a, row.b, row.delta, row.low, row.high]
    assert got == pytest.approx([34.4, 67.9333, 33.5333, 30.5333, 36.5333], abs=1e-3)
    assert table.loc['web_of_lies'].p_holm == pytest.approx(.830373, abs=1e-6)


def test_explorer_draws_what_the_menus_say():
    results = simulated_results(['navigate', 'snarks'], n=20, off_n=5)
    widget = gains_explorer(results[results.arm != 'student'])
    menus = {w.description: w for w in widget.children if hasattr(w, 'options')}
    assert not any('Base student' in label for label, _ in menus['a'].options)
    assert [label for label, _ in menus['task'].options] == ['all tasks', 'navigate', 'snarks']
    fig = plot_pair(results, find_asked('teacher@direct'), find_asked('teacher'), 'snarks')
    title = fig.axes[0].get_title(loc='left')
    assert 'snarks: Teacher, step by step − Teacher, direct' in title


@pytest.mark.parametrize('arms', [['student', 'kd_cot'], ['kd', 'kd_cot']])
def test_heat_map_of_a_part(arms):
    results = simulated_results(['navigate', 'snarks'], n=20, off_n=5)
    plot_tasks(results[results.arm.isin(arms)]).canvas.draw()
    plot_gains(results[results.arm.isin(arms)]).canvas.draw()
