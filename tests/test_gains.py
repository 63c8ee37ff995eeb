"Tables and figures of gains and of single models: the right numbers in the right rows"
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from cotkd.arms import ARMS, Arm, contrast, find_asked
from cotkd.bbh import ALGORITHMIC, AVERAGES, BBH_TASKS, NLP
from cotkd.experiment import PRESETS, chosen_contrasts
from cotkd.figures import (ENDINGS, check_figure_path, gains_explorer, plot_accuracies, plot_gains,
                           plot_pair, plot_tasks, save_figure)
from cotkd.files import InputError
from cotkd.gains import (accuracy_table, arm_interval, arm_label, describe_setting, finding,
                         format_gain, format_table, gains_table, model_names, own_questions,
                         results_contrasts, task_label, task_order)
from cotkd.records import (check_row, item_scores, name_label, packaged_results, pair_items,
                           simulated_results)
from cotkd.stats import aggregate, compare, mcnemar, wilson

KD = 'kd:kd_cot'
SIX = [*ARMS][:6]


@pytest.fixture(scope='module', autouse=True)
def agg():
    plt.switch_backend('agg')


@pytest.fixture(autouse=True)
def closed():
    "What is closed can still be read"
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def whole():
    return simulated_results(BBH_TASKS, n=30, seeds=(0, 1), off_n=6)


@pytest.fixture(scope='module')
def whole_figure(whole):
    return plot_gains(whole.assign(temperature=.2, chat=True))


@pytest.fixture(scope='module')
def six():
    return simulated_results(['navigate', 'snarks'], n=40, arms=SIX)


@pytest.fixture(scope='module')
def six_figure(six):
    return plot_gains(six)


def labels(fig):
    return [t.get_text() for t in fig.axes[0].get_yticklabels()]


def margin(fig):
    return [t.get_text() for t in fig.axes[0].texts]


def assert_readable(fig):
    "Every word inside the figure, none over another (numbers of an axis aside)"
    fig.draw_without_rendering()
    width, height = fig.get_size_inches() * fig.dpi
    texts = [t for t in fig.findobj(Text) if t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts
             if t.get_text().strip('0123456789−.')]
    for text, box in boxes:
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, text
    for i, (text, box) in enumerate(boxes):
        for other, against in boxes[:i]:
            assert not box.overlaps(against), (text, other)


def assert_all_readable(fig, results):
    "`fig`: from `plot_gains`; the others of these results are drawn here"
    assert_readable(fig)
    other = results.assign(scorer='lm-eval')
    assert_readable(plot_accuracies(results, find_asked('kd_cot'), other=other))
    task = results.task.iloc[0]
    assert_readable(plot_pair(results, find_asked('student'), find_asked('kd_cot'), task))


TASKS = [NLP, ['snarks', 'navigate'], ['navigate'], ['snarks', 'navigate', 'my_own_task'],
         ['salient_translation_error_detection', 'navigate', 'web_of_lies']]


@pytest.mark.parametrize('tasks', TASKS)
def test_figures_can_be_read(tasks):
    results = simulated_results(tasks, n=30, seeds=(0, 1), off_n=6)
    results = results.assign(temperature=.2, chat=True)
    assert_all_readable(plot_gains(results), results)


def test_figures_of_all_tasks_can_be_read(whole, whole_figure):
    assert_all_readable(whole_figure, whole.assign(temperature=.2, chat=True))


def test_all_arms_and_contrasts_can_be_read():
    "Of the preset that asks why"
    results = simulated_results(['navigate', 'snarks'], n=40, seeds=range(3), arms=list(ARMS))
    fig = plot_gains(results, chosen=chosen_contrasts(PRESETS['why']))
    assert_readable(fig)
    said = [t.get_text() for t in fig.axes[2].get_yticklabels()]
    assert len(said) == len(ARMS) == 17 and not any('…' in text for text in said)


def test_six_arms_and_four_contrasts_can_be_read(six, six_figure):
    table = gains_table(six)
    assert list(table.index.unique('contrast')) == [KD, 'kd:sft', 'sft:sft_cot', 'kd_cot:sft_cot']
    assert_readable(six_figure)
    assert len(six_figure.axes) == 3
    assert [t.get_text() for t in six_figure.axes[1].get_yticklabels()] == [
        'KD → KD+CoT', 'KD → SFT', 'SFT → SFT+CoT', 'KD+CoT → SFT+CoT']


def test_an_arm_of_ones_own_is_in_table_and_figure(monkeypatch):
    monkeypatch.setitem(ARMS, 'mine', Arm('mine', 'Mine', against=('kd_cot',)))
    four = simulated_results(['navigate', 'snarks'], n=40)
    mine = four[four.arm == 'kd_cot'].assign(arm='mine')
    results = pd.concat([four, mine])
    table = gains_table(results)
    assert table.loc['kd_cot:mine'].loc['macro'].delta == 0
    fig = plot_gains(results, table=table)
    words = ' '.join(t.get_text() for t in fig.findobj(Text))
    assert 'Mine' in words and 'KD+CoT → Mine' in words
    assert ('KD+CoT → Mine', 'n') in format_table(results, table)


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


def test_halves_have_their_own_average(whole, whole_figure):
    fig, pairs = whole_figure, pair_items(whole, contrast(KD))
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
    assert got == pytest.approx([34., 70.2, 36.2, 33.1333, 39.2667], abs=1e-3)
    assert table.loc['web_of_lies'].p_holm == pytest.approx(.066291, abs=1e-6)


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


# --- a comparison is of what both answered

def result(arm, items, mode=None, **changes):
    row = dict(arm=arm, task='navigate', seed=0, mode=mode or ARMS[arm].asked, shots=0,
               scorer='official', n=len(items), correct=items.count('1'), items=items, index=None,
               skipped=0, model=arm, benchmark='toy')
    return check_row(row | changes)


WHOLE = '1' * 50 + '0' * 200  # right on the first 50 of 250
PART = '1' * 40 + '0' * 10  # 40 right of 50


def sampled(arm, index=range(50), **changes):
    return result(arm, PART, index=list(index), **changes)


def mixed(first=0, **changes):
    "KD, teacher and base student were asked all 250, KD+CoT 50 of them from `first` on"
    rows = [result('teacher', WHOLE[::-1]), result('student', '01' * 125), result('kd', WHOLE)]
    return pd.DataFrame([*rows, sampled('kd_cot', range(first, first + 50), **changes)])


def marks(fig, panel=0):
    "{marker: where it stands in the first row}"
    lines = [line for line in fig.axes[panel].lines if line.get_marker() not in ('None', '', None)]
    return {line.get_marker() + '*' * (line.get_markerfacecolor() == line.get_color()):
            float(np.atleast_1d(line.get_xdata())[0]) for line in lines}


@pytest.mark.parametrize('first, kd, teacher', [(0, 100, 0), (25, 50, 0), (200, 0, 100)])
def test_numbers_of_a_comparison_are_of_the_paired_questions(first, kd, teacher):
    results = mixed(first)
    table = gains_table(results)
    row = table.loc[KD, 'macro']
    assert (row.n, row.a, row.b, row.delta) == (50, kd, 80, 80 - kd)
    shown = format_table(results, table)
    assert shown['KD', 'direct*'].tolist() == ['20.0 (n=250)'] * 2
    assert shown['KD+CoT', 'step by step*'].tolist() == ['80.0'] * 2
    assert shown['Teacher', 'step by step*'].tolist() == ['20.0 (n=250)'] * 2
    sides = shown['KD → KD+CoT'][['from, %', 'to, %']]
    assert sides.values.tolist() == [[f'{kd:.1f}', '80.0']] * 2
    assert f'{abs(80 - kd):.1f} points' in finding(table)
    fig = plot_gains(results, table=table)
    found = marks(fig)
    assert (found['o'], found['o*']) == (kd, 80)
    # diamond and triangle: teacher and base student on those 50
    assert (found['D*'], found['v*']) == (teacher, 50)
    arms = [t.get_text() for t in fig.axes[1].get_yticklabels()]
    assert arms == ['Teacher (n=250)', 'Base student (n=250)', 'KD (n=250)', 'KD+CoT']


def test_a_reference_that_was_not_asked_all_of_it_is_no_mark():
    rows = mixed().to_dict('records')
    rows[0] = sampled('teacher', range(1, 51))
    found = marks(plot_gains(pd.DataFrame(rows)))
    assert np.isnan(found['D*']) and found['v*'] == 50


def test_where_all_were_asked_alike_nothing_is_added():
    results = packaged_results()
    table = format_table(results, gains_table(results))
    own = [column for column in table.columns if column[1].endswith('*')]
    assert len(own) == 4 and not table[own].map(lambda x: '(' in x).any().any()
    assert list(table['KD → KD+CoT']) == ['n', 'points [95% CI]', 'p',
                                          'p (McNemar, Holm)']


def test_other_seeds_are_not_the_paired_ones():
    rows = [result('kd', '1' * 20), result('kd', '0' * 20, seed=1), result('kd_cot', '01' * 10)]
    results = pd.DataFrame(rows)
    table = gains_table(results)
    row = table.loc[KD, 'macro']
    assert (row.seeds, row.a, row.b, row.delta) == (1, 100, 50, -50)
    shown = format_table(results, table)
    assert shown['KD', 'direct*'].tolist() == ['50.0 (n=20, 2 seeds)'] * 2
    assert shown['KD → KD+CoT', 'from, %'].tolist() == ['100.0'] * 2


@pytest.mark.parametrize('seed', range(6))
def test_an_arm_s_own_questions_are_those_that_no_pair_has(seed):
    "By the verdicts themselves; other seeds and rows for both sides of four tasks"
    rng = np.random.default_rng(seed)
    results = simulated_results([*BBH_TASKS][:4], n=3, seeds=(0, 1), arms=('kd', 'kd_cot'))
    rows = results.to_dict('records')
    for row in rows:
        index = sorted(rng.choice(3, rng.choice([2, 3], p=[.2, .8]), replace=False).tolist())
        items = ''.join(row['items'][i % row['n']] for i in index)
        row.update(index=index, n=len(index), items=items, correct=items.count('1'))
    results, c = pd.DataFrame(rows)[rng.random(len(rows)) < .9], contrast(KD)
    paired = pair_items(results, c)
    for side in c.a, c.b:
        mine = item_scores(results, side)
        asked = {task: {*zip(part.seed, part['index'])} for task, part in mine.groupby('task')}
        both = {task: {*zip(part.seed, part['index'])} for task, part in paired.groupby('task')}
        own = {task for task in asked if asked[task] != both.get(task)}
        assert own_questions(results, side, [c]) == own


@pytest.mark.parametrize('name', ['kd@cot:kd_cot', 'kd:kd_cot@direct', 'kd@cot:kd_cot@direct'])
def test_every_prompt_is_paired_by_itself(name):
    off = simulated_results(['navigate', 'snarks'], n=60, off_n=20)
    c = contrast(name)
    table = gains_table(off, [name])
    pairs = pair_items(off, c)
    by_task = pairs.groupby('task')[['a', 'b']].mean().mean() * 100
    row = table.loc[name, 'macro']
    assert [row.a, row.b] == pytest.approx(list(by_task))
    assert row.n == len(pairs) < 120
    shown = format_table(off, table)
    label = [x for x in shown.columns.levels[0] if '→' in x][0]
    assert shown[label, 'from, %'].iloc[-1] == f'{row.a:.1f}'
    assert marks(plot_gains(off, table=table))['o'] == pytest.approx(row.a)


def test_an_average_of_all_arms_is_of_the_same_tasks():
    "Teacher has one of two tasks: no average beside those of others"
    results = simulated_results(['navigate', 'snarks'], n=20)
    part = results[~((results.arm == 'teacher') & (results.task == 'snarks'))]
    fig = plot_gains(part)
    assert fig.axes[1].texts[0].get_text() == '– step by step, – direct'
    assert format_table(part, gains_table(part))['Teacher', 'step by step*'].iloc[-1] == '–'


def test_contrasts_of_other_tasks_say_so(six, six_figure):
    words = [t.get_text() for t in six_figure.findobj(Text)]
    assert 'All contrasts: average of the same tasks, 95% interval' in words
    part = six[~((six.arm == 'sft_cot') & (six.task == 'snarks'))]
    fig = plot_gains(part)
    words = [t.get_text() for t in fig.findobj(Text)]
    assert 'All contrasts: average of the tasks that both sides answered, 95% interval' in words
    assert [t.get_text() for t in fig.axes[1].get_yticklabels()] == [
        'KD → KD+CoT (n=80)', 'KD → SFT (n=80)', 'SFT → SFT+CoT (n=40)',
        'KD+CoT → SFT+CoT (n=40)']
    assert_readable(fig)


def test_arms_have_the_average_of_the_contrast():
    "BBH's algorithmic half counts three sizes of a task once, for one arm as for two"
    results = simulated_results(ALGORITHMIC, n=20).assign(benchmark='bbh')
    table = gains_table(results)
    row = table.loc[KD, 'macro']
    shown = format_table(results, table).iloc[-1]
    assert shown['KD', 'direct*'] == f'{row.a:.1f}'
    assert shown['KD+CoT', 'step by step*'] == f'{row.b:.1f}'
    fig = plot_gains(results, table=table)
    assert marks(fig)['o'] == pytest.approx(row.a)
    assert fig.axes[1].texts[2].get_text().startswith(f'{row.a:.1f} direct')


UNPAIRED = {
    'they have other seeds, 0 / 1': [result('kd', PART), result('kd_cot', PART, seed=1)],
    'they have other tasks, navigate / snarks': [result('kd', PART),
                                                result('kd_cot', PART, task='snarks')],
    'they were asked other rows of the same tasks': [sampled('kd'),
                                                    sampled('kd_cot', range(50, 100))],
    'KD+CoT, step by step has no answers yet: the run is not finished': [
        result('kd', PART), result('kd_cot', PART, mode='direct')]}


@pytest.mark.parametrize('why', UNPAIRED)
def test_what_cannot_be_paired_is_said_everywhere(why):
    results = pd.DataFrame(UNPAIRED[why])
    table = gains_table(results)
    assert finding(table) == f'No question has been answered by both KD and KD+CoT: {why}'
    assert np.isnan(table.loc[KD, 'macro'][['a', 'b', 'delta', 'low', 'p']].astype(float)).all()
    assert set(format_table(results, table)['KD → KD+CoT', 'points [95% CI]']) == {'–'}
    words = [t.get_text() for t in plot_gains(results, table=table).findobj(Text)]
    assert any(why in text for text in words)
    title = plot_pair(results).axes[0].get_title(loc='left').replace('\n', ' ')
    assert why in title


@pytest.mark.parametrize('arm, task', [('x' * 300, 'snarks'), ('kd_cot', 'y' * 300)])
def test_a_reason_with_long_names_can_be_read(arm, task):
    two = [result('kd', PART), result('kd_cot', PART, task=task) | dict(arm=arm)]
    fig = plot_gains(pd.DataFrame(two), chosen=[f'kd:{arm}'])
    fig.canvas.draw()
    title = next(t for t in fig.texts if 'they have other tasks' in t.get_text())
    assert title.get_fontsize() > 5
    assert title.get_window_extent().x1 <= fig.get_figwidth() * fig.dpi


# --- students of other pairs

def students(a='s' * 32, b='t' * 32):
    return pd.DataFrame([result('kd', PART, start=a), result('kd_cot', PART[::-1], start=b)])


@pytest.mark.parametrize('ask', [gains_table, plot_gains, results_contrasts, gains_explorer])
def test_students_of_other_models_are_not_compared_unasked(ask):
    with pytest.raises(InputError) as error:
        ask(students())
    text = str(error.value)
    assert '\n' not in text and '--contrast kd:kd_cot' in text
    assert 'kd (from ssssssssssss) and kd_cot (from tttttttttttt)' in text


@pytest.mark.parametrize('a, b', [(None, None), ('s', None), (None, 't'), ('s', 's')])
def test_students_of_one_model_or_unknown_are(a, b):
    assert 'base models' not in finding(gains_table(students(a, b)))


def test_students_of_other_models_are_compared_when_named():
    results = students()
    table = gains_table(results, [KD])
    said = finding(table)
    assert said.endswith('(students of different base models)')
    assert said.startswith('KD → KD+CoT: ') and 'Rationales' not in said
    words = ' '.join(t.get_text() for t in plot_gains(results, table=table).findobj(Text))
    assert 'students of different base models' in words and 'one small student' not in words
    title = plot_pair(results).axes[0].get_title(loc='left').replace('\n', ' ')
    assert 'students of different base models' in title


def test_one_other_student_among_the_contrasts_is_named():
    results = simulated_results(['navigate'], n=20, arms=SIX)
    results['start'] = results.arm.map(dict(kd='s1', kd_cot='s1', sft='s2', sft_cot='s2'))
    with pytest.raises(InputError, match='kd .from s1. and sft .from s2.'):
        gains_table(results)
    assert len(gains_table(results, ['kd:kd_cot', 'sft:sft_cot']))


# --- too few to say

FEW = {'one': ('0', '1', '+100.0'), 'three': ('000', '111', '+100.0'),
       'lost': ('11', '00', '−100.0'), 'none': ('000', '000', '+0.0'),
       'nine': ('0' * 9, '1' * 5 + '0' * 4, '+55.6')}


@pytest.mark.parametrize('seeds', [1, 2])
@pytest.mark.parametrize('case', FEW)
def test_too_few_questions_have_no_interval_anywhere(case, seeds):
    a, b, gain = FEW[case]
    results = pd.DataFrame([result(arm, items, seed=seed) for seed in range(seeds)
                            for arm, items in (('kd', a), ('kd_cot', b))])
    table = gains_table(results)
    few = 'too few questions'
    assert finding(table) == f'KD → KD+CoT: {gain} points ({few} for an interval)'
    shown = format_table(results, table)['KD → KD+CoT'].iloc[-1]
    assert shown['points [95% CI]'] == f'{gain} ({few})'
    assert (shown['p'], shown['p (McNemar, Holm)']) == ('–', '–')
    fig = plot_gains(results, table=table)
    assert_readable(fig)
    assert margin(fig)[0] == f'{gain} ({few})'
    words = ' '.join(t.get_text() for t in fig.findobj(Text))
    assert 'Rationales add' not in words and 'nan' not in words
    assert f'{gain} ({few})' in plot_pair(results).axes[0].get_title(loc='left').replace('\n', ' ')
    one = accuracy_table(results, find_asked('kd_cot'))
    assert np.isnan(one.low.iloc[0]) and not np.isnan(one.low['navigate'])  # Wilson's stays
    assert f'({few}), n={len(a)}' in margin(plot_accuracies(results, find_asked('kd_cot')))[0]


@pytest.mark.parametrize('a, b, gain, cell', [
    ('0', '1', '+100.0', '+100.0 (no interval)'), ('1', '1', '+0.0', '+0.0'),
    ('1', '0', '−100.0', '−100.0 (no interval)')])
def test_one_sided_questions_have_no_interval(a, b, gain, cell):
    results = pd.DataFrame([result('kd', a * 20), result('kd_cot', b * 20)])
    table = gains_table(results)
    assert finding(table) == (f'KD → KD+CoT: {gain} points (too few questions for an interval: '
                              'all of a task went the same way)')
    assert format_gain(table.iloc[-1]) == cell == margin(plot_gains(results, table=table))[0]


# --- names

NAMES = {
    'mathematics': ['a_b^c', 'lr$1e-4$', '$x_$', '$\\frac$', '%'],
    'marks': ['<b>&"', 'C:\\Users\\me\\student', '\x1b[31mred', 'exe\u202etxt', 'new\nline'],
    'long, empty, taken': ['x' * 300, '', 'KD', 'a b']}


def named(names):
    "For each name an arm, a task, and models on that task"
    tasks = {'navigate': names[0]} | {name: name for name in names}
    rows = [result(arm, '0110' * 20 if arm != 'kd' else '0100' * 20, model=model, task=task)
            for arm in ('teacher', 'student', 'kd', 'kd_cot') for task, model in tasks.items()]
    rows += [result('kd', '0110' * 20, task=task) | dict(arm=name)
             for name in names for task in tasks]
    return pd.DataFrame(rows)


@pytest.mark.parametrize('kind', NAMES)
@pytest.mark.filterwarnings('ignore:Glyph')
def test_text_is_text_in_every_figure(kind):
    names = NAMES[kind]
    results = named(names)
    found = gains_table(results)
    figures = [plot_gains(results, table=found), plot_tasks(results),
               plot_accuracies(results, find_asked('kd_cot'))]
    figures += [plot_pair(results, find_asked('kd'), find_asked('kd_cot'), name) for name in names]
    assert_readable(figures[0])
    for fig in figures:
        fig.draw_without_rendering()
        for text in fig.findobj(Text):
            if text.get_text().strip('0123456789−.'):
                assert not text.get_parse_math(), text.get_text()
                assert all(c == '\n' or c.isprintable() for c in text.get_text())
    table = format_table(results, found)
    assert table.columns.is_unique
    assert {*map(arm_label, names)} <= {*table.columns.levels[0]}
    # the average, two headings, and the tasks
    assert len(set(labels(figures[0]))) == 4 + len(names)


def test_the_styles_of_figures_change_nothing_outside():
    plot_gains(packaged_results())
    assert plt.rcParams['text.parse_math']


@pytest.mark.parametrize('model, shown', [
    ('runs/kd', 'kd'), ('runs/kd/', 'kd'), ('C:\\Users\\me\\student', 'student'), ('', '(no name)'),
    (None, '(no name)'), ('org/模型', '模型'), ('a\x1b', 'a\\x1b')])
def test_names_of_models(model, shown):
    assert model_names(pd.DataFrame([result('kd', '1', model=model)])) == [shown]


def test_labels_are_short_and_all_different():
    names = ['x' * 300, 'x' * 301, 'x' * 299 + 'y', '', "''", 'KD', 'kd', 'Teacher']
    shown = [arm_label(name) for name in names]
    assert len(set(shown)) == 8 and max(map(len, shown)) <= 24
    assert len(name_label('x' * 300)) == 36 and len(task_label('x' * 37)) == 32
    assert task_label('x' * 36) == 'x' * 36


# --- where a figure goes

@pytest.mark.parametrize('name', ['gains', 'gains.txt', 'gains.', '.png', 'gains.png.bak', ''])
def test_a_path_that_names_no_picture_is_refused_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = mixed()
    path = tmp_path/name
    for draw in (lambda: plot_gains(results, path), lambda: save_figure(None, path)):
        with pytest.raises(InputError) as error:
            draw()
        assert '\n' not in str(error.value) and '.png' in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('ending', [*ENDINGS, '.PNG'])
def test_every_ending_that_is_offered_works(ending, tmp_path):
    fig = plt.figure(figsize=(.5, .5))
    save_figure(fig, tmp_path/'not'/'there'/f'fig{ending}')
    assert (tmp_path/'not'/'there'/f'fig{ending}').stat().st_size


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(InputError, match='cannot be written') as error:
        save_figure(plt.figure(), tmp_path/'file'/'fig.png')
    assert '\n' not in str(error.value)
    with pytest.raises(InputError, match='is a directory: name a file in it'):
        check_figure_path(tmp_path)


@pytest.mark.parametrize('runs', [1, 2, 3])
def test_a_figure_says_what_its_interval_is_over(runs):
    results = simulated_results(['navigate', 'snarks'], n=40, seeds=range(runs))
    words = ' '.join(t.get_text() for t in plot_gains(results).findobj(Text)).replace('\n', ' ')
    over_runs = 'over questions and 3 training runs, crossed' in words
    assert over_runs == (runs == 3)
    assert ('over questions, paired bootstrap' in words) == (runs < 3)
