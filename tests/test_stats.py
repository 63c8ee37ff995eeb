"The statistics against other ways of computing them"
import json
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap, norm
from scipy.stats import t as t_of_student
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from cotkd import stats
from cotkd.arms import ARMS, contrast
from cotkd.bbh import BBH_COUNTS, BBH_TASKS
from cotkd.files import InputError
from cotkd.gains import gains_table
from cotkd.records import load_results, pair_items, simulated_results
from cotkd.stats import (FEWEST, aggregate, compare, crossed_interval, holm, mcnemar,
                         minimal_detectable_difference, paired_bootstrap, unpaired_half_width,
                         wilson)

HEADLINE = contrast('kd:kd_cot')
TASKS = ('a', 'b', 'c')


def average(results):
    return gains_table(results, ['kd:kd_cot']).loc['kd:kd_cot'].loc['macro']


def two_arms(n=300, seed=0):
    "Answers to questions of three tasks; the arms share their luck on most of them"
    rng = np.random.default_rng(seed)
    luck = rng.random(n)
    groups = np.repeat(TASKS, [n // 2, n // 3, n - n // 2 - n // 3])
    own = np.where(rng.random(n) < .6, luck, rng.random(n))
    return (luck < .4).astype(int), (own < .5).astype(int), groups


def study(rng, low, high, agreement, sizes):
    "As `two_arms`; low, high: accuracy of each task under each arm; sizes: its questions"
    low, high = np.repeat(low, sizes), np.repeat(high, sizes)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    shared, own, same = rng.random((3, len(groups)))
    second = np.where(same < agreement, shared, own)
    return (shared < low).astype(float), (second < high).astype(float), groups


# --- one arm

@pytest.mark.parametrize('k, n', [(0, 5), (1, 3), (125, 250), (249, 250), (250, 250)])
def test_wilson_closed_form(k, n):
    z, p = norm.ppf(.975), k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert wilson(k, n) == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-9)


@pytest.mark.parametrize('k, n', [(0, 40), (1, 24), (13, 40), (125, 250), (249, 250), (187, 187)])
def test_wilson_agrees_with_scipy(k, n):
    ci = binomtest(k, n).proportion_ci(.95, method='wilson')
    assert wilson(k, n) == pytest.approx((100 * ci.low, 100 * ci.high), abs=1e-9)


# --- two arms: tests

@pytest.mark.parametrize('both, lost, gained, neither', [
    (100, 12, 30, 108), (0, 1, 0, 0), (50, 20, 20, 10), (3, 0, 9, 1), (240, 1, 8, 1),
    (0, 60, 41, 0)])
def test_mcnemar_agrees_with_statsmodels(both, lost, gained, neither):
    a = [1] * (both + lost) + [0] * (gained + neither)
    b = [1] * both + [0] * lost + [1] * gained + [0] * neither
    reference = reference_mcnemar([[both, lost], [gained, neither]], exact=True)
    assert mcnemar(a, b) == pytest.approx(reference.pvalue)


@pytest.mark.parametrize('gained, lost', [(0, 0), (1, 0), (5, 0), (7, 3), (3, 7), (20, 20)])
def test_mcnemar_is_the_binomial_sum(gained, lost):
    a = [0] * gained + [1] * lost + [1, 0]
    b = [1] * gained + [0] * lost + [1, 0]
    n = gained + lost
    tail = sum(comb(n, i) for i in range(min(gained, lost) + 1))
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail / 2**n))


@pytest.mark.parametrize('p, adjusted', [
    ([.01, .04, .03], [.03, .06, .06]), ([.2], [.2]), ([.5, .6, .001], [1, 1, .003]),
    ([.02, .02, .02, .02], [.08] * 4), ([.01, np.nan, .02], [.02, np.nan, .02]),
    ([np.nan, np.nan], [np.nan, np.nan]), ([.0125, .013, .05, .9], [.05, .05, .1, .9])])
def test_holm_by_hand(p, adjusted):
    np.testing.assert_allclose(holm(p), adjusted, atol=1e-12)


def test_holm_agrees_with_statsmodels():
    for p in np.random.default_rng(0).beta(.3, 2, (5, 27)).round(3):  # with ties and zeros
        np.testing.assert_allclose(holm(p), multipletests(p, method='holm')[1], rtol=1e-12)


# --- two arms: intervals

def test_bootstrap_is_the_stratified_loop():
    a, b, groups = two_arms()
    rng = np.random.default_rng(7)
    gains = [(b - a)[groups == task] for task in TASKS]
    draws = []
    for _ in range(4000):
        means = [d[rng.integers(len(d), size=len(d))].mean() for d in gains]
        draws.append(100 * np.mean(means))
    draws = np.array(draws)
    got = paired_bootstrap(a, b, groups)
    assert got['delta'] == pytest.approx(100 * np.mean([d.mean() for d in gains]))
    assert [got['low'], got['high']] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=.5)
    p = 2 * min(np.mean(draws <= 0), np.mean(draws >= 0))
    assert got['p'] == pytest.approx(p, abs=.02)


def test_bootstrap_of_one_task_has_the_standard_error_of_a_paired_mean():
    a, b, _ = two_arms(1000)
    got = paired_bootstrap(a, b, ['t'] * 1000)
    width = 2 * 1.96 * 100 * (b - a).std() / np.sqrt(1000)
    assert got['high'] - got['low'] == pytest.approx(width, rel=.04)


@pytest.mark.parametrize('n, low, high, agreement', [
    (40, .5, .6, .5), (250, .4, .5, .7), (250, .02, .2, .9), (178, .9, .95, .3),
    (1000, .5, .5, 0)])
def test_bootstrap_of_one_task_is_scipys(n, low, high, agreement):
    a, b, _ = study(np.random.default_rng(n), [low], [high], agreement, [n])
    ci = bootstrap((a, b), lambda x, y, axis: 100 * (y - x).mean(axis), paired=True,
                   method='percentile', n_resamples=20_000, rng=1).confidence_interval
    got = paired_bootstrap(a, b, ['t'] * n, n_boot=20_000)
    near = .04 * (ci.high - ci.low) + 100 / n
    assert [got['low'], got['high']] == pytest.approx(list(ci), abs=near)


def test_bootstrap_weights():
    a, b, groups = two_arms()
    equal = paired_bootstrap(a, b, groups, weights=dict.fromkeys(TASKS, 1 / 3))
    assert equal == paired_bootstrap(a, b, groups)
    sizes = {task: np.mean(groups == task) for task in TASKS}
    by_size = paired_bootstrap(a, b, groups, weights=sizes)
    assert by_size['delta'] == pytest.approx(100 * (b.mean() - a.mean()))
    first = groups == 'a'
    alone = paired_bootstrap(0 * b[first], b[first], groups[first])
    among = paired_bootstrap(0 * b, b, groups, weights=dict(a=1, b=0, c=0))
    for key in ('delta', 'low', 'high'):
        assert among[key] == pytest.approx(alone[key], abs=.7)


def test_bootstrap_same_seed_same_bytes_and_any_order_of_items():
    a, b, groups = two_arms()
    order = np.random.default_rng(3).permutation(len(a))
    shuffled = paired_bootstrap(list(a[order]), list(b[order]), list(groups[order]))
    assert json.dumps(paired_bootstrap(a, b, groups)) == json.dumps(shuffled)
    assert paired_bootstrap(a, b, groups, seed=1) != paired_bootstrap(a, b, groups)


def test_p_and_interval_agree():
    for seed in range(20):
        got = paired_bootstrap(*two_arms(120, seed), n_boot=2000)
        if got['p'] < .045:
            assert got['low'] > 0 or got['high'] < 0
        if got['p'] > .055:
            assert got['low'] <= 0 <= got['high']


# --- too few to say

def no_interval(found):
    return all(np.isnan(found[key]) for key in ('low', 'high', 'p'))


@pytest.mark.parametrize('n', [1, 2, 3, FEWEST - 1])
@pytest.mark.parametrize('tasks', [1, 3])
@pytest.mark.parametrize('kind', ['all gained', 'all lost', 'none', 'mixed'])
def test_of_fewer_than_ten_there_is_no_interval(n, tasks, kind):
    a = np.zeros(n) if kind != 'all lost' else np.ones(n)
    b = dict(none=a, mixed=np.arange(n) % 2).get(kind, 1 - a)
    groups = np.arange(n) % tasks
    found = paired_bootstrap(a, b, groups)
    means = [(b - a)[groups == task].mean() for task in np.unique(groups)]
    assert found['delta'] == pytest.approx(100 * np.mean(means))
    assert no_interval(found)


@pytest.mark.parametrize('a, b, delta', [(0, 1, 100), (1, 0, -100), (1, 1, 0),
                                         (1 / 3, 2 / 3, 100 / 3)])
@pytest.mark.parametrize('n', [FEWEST, 250])
def test_without_spread_there_is_no_interval(a, b, delta, n):
    groups = np.repeat(['t', 'u'], n)
    found = paired_bootstrap([a] * 2 * n, [b] * 2 * n, groups)
    assert found['delta'] == pytest.approx(delta) and no_interval(found)
    # every task the same way, but not all of them the same one
    found = paired_bootstrap([0] * 2 * n, groups == 'u', groups)
    assert found['delta'] == 50 and no_interval(found)


def test_rounding_of_means_is_no_spread():
    a, b = [1 / 3, 2 / 3] * 10, [2 / 3, 1] * 10  # 2/3 - 1/3 and 1 - 2/3 differ in the last bit
    assert no_interval(paired_bootstrap(a, b, ['t'] * 20))


def test_from_ten_on_there_is_one():
    found = paired_bootstrap([0] * FEWEST, [1] * 9 + [0], ['t'] * FEWEST)
    # 10 draws of 9/10: all ten with .9**10 = 35%, six or fewer with 1.3%, seven or fewer with 7%
    assert (found['delta'], found['low'], found['high']) == (90, 70, 100)
    assert found['p'] == pytest.approx(2 / 10_001)


def test_a_spread_without_weight_does_not_count():
    groups = np.repeat(['t', 'u'], 20)
    b = np.where(groups == 't', 1, np.arange(40) % 2)
    assert no_interval(paired_bootstrap(np.zeros(40), b, groups, weights=dict(t=1, u=0)))
    assert not no_interval(paired_bootstrap(np.zeros(40), b, groups, weights=dict(t=0, u=1)))


@pytest.mark.parametrize('seeds', [1, 3])
@pytest.mark.parametrize('n', [1, FEWEST - 1, FEWEST])
def test_compare_counts_questions_and_no_seeds(n, seeds):
    rows = [dict(task='t', seed=seed, index=i, a=0, b=int(i > 0)) for seed in range(seeds)
            for i in range(n)]
    found = compare(pd.DataFrame(rows))
    assert found['n'] == n and found['delta'] == pytest.approx(100 * (n - 1) / n)
    assert no_interval(found) == (n < FEWEST)
    if n < FEWEST:
        assert np.isnan(found['p_mcnemar'])
    else:
        assert found['p_mcnemar'] == pytest.approx(2 / 2**(n - 1))


@pytest.mark.parametrize('a, b', [([0] * 9, [0, 1] * 4 + [1]), ([0] * 50, [1] * 50),
                                  ([1] * 50, [1] * 50), ([], [])])
def test_no_smallest_gain_of_too_few(a, b):
    pairs = pd.DataFrame(dict(task='t', seed=0, index=range(len(a)), a=a, b=b))
    assert np.isnan(minimal_detectable_difference(pairs))


SPREAD = np.linspace(.02, .9, 27)  # accuracies of 27 tasks, from almost none to almost all
DESIGNS = dict(
    equal=([.4] * 3, [.5] * 3, .7, [100] * 3),
    uneven=(SPREAD, SPREAD + .08 * (np.arange(27) % 2), .8,
            [24, 40, 146, 178, 187, 250] * 4 + [250] * 3))


@pytest.mark.parametrize('design', DESIGNS)
def test_interval_covers_the_truth(design):
    low, high, agreement, sizes = DESIGNS[design]
    truth = 100 * np.mean(np.subtract(high, low))
    rng = np.random.default_rng(20_000)
    studies = [paired_bootstrap(*study(rng, low, high, agreement, sizes), n_boot=1000)
               for _ in range(1000)]
    covered = np.mean([s['low'] <= truth <= s['high'] for s in studies])
    assert .93 <= covered <= .97, covered  # 1,000 studies leave ±1.4 points of their own


# --- what a study can find

def pairs_with(gain, rng, sizes):
    a, b, groups = study(rng, [.4] * 3, [.4 + gain] * 3, .7, sizes)
    return pd.DataFrame(dict(a=a, b=b, task=groups, index=range(len(a)), seed=0))


@pytest.mark.parametrize('power', [.5, .8])
def test_minimal_detectable_difference_is_found_with_that_power(power):
    rng, sizes = np.random.default_rng(3), [40, 100, 250]
    found = [minimal_detectable_difference(pairs_with(.07, rng, sizes), power)
             for _ in range(200)]
    gain = np.mean(found) / 100
    studies = [study(rng, [.4] * 3, [.4 + gain] * 3, .7, sizes) for _ in range(2000)]
    seen = np.mean([paired_bootstrap(*s, n_boot=1000)['low'] > 0 for s in studies])
    assert seen == pytest.approx(power, abs=.035), seen  # 2,000 studies leave ±2 points


def test_minimal_detectable_difference_is_in_standard_errors_of_the_bootstrap():
    results = simulated_results(list(BBH_TASKS)[:5], n=120, seeds=(0, 1))
    pairs = pair_items(results, HEADLINE)
    got = compare(pairs)
    error = (got['high'] - got['low']) / (2 * 1.96)
    wanted = error * (1.96 + .8416)
    assert minimal_detectable_difference(pairs) == pytest.approx(wanted, rel=.03)


@pytest.mark.parametrize('percent', [17.77, 23.10, 39.22, 49.95])
def test_unpaired_half_width_is_that_of_binomials(percent):
    counts = np.array(list(BBH_COUNTS.values()))
    draws = np.random.default_rng(0).binomial(counts, percent / 100, size=(20_000, 27))
    spread = (draws / counts).mean(axis=1).std()
    one = unpaired_half_width(percent)
    assert one == pytest.approx(100 * 1.96 * spread, rel=.02)
    assert unpaired_half_width(percent, percent) == pytest.approx(2**.5 * one)


# --- averages

def test_aggregate_names():
    numbers = {task: float(i) for i, task in enumerate(BBH_TASKS)}
    got = aggregate(numbers)
    assert list(got) == ['all_27', 'micro', 'all_23', 'nlp_12', 'algorithmic_11']
    assert got['all_27'] == pytest.approx(13)
    micro = sum(numbers[task] * BBH_COUNTS[task] for task in numbers) / 6511
    assert got['micro'] == pytest.approx(micro)
    both = 12 * got['nlp_12'] + 11 * got['algorithmic_11']
    assert both == pytest.approx(23 * got['all_23'])
    del numbers['tracking_shuffled_objects_five_objects']
    assert [name for name, x in aggregate(numbers).items() if x is not None] == ['nlp_12']


# --- results on file

def write(path, rows):
    path.mkdir(exist_ok=True, parents=True)
    (path/'results.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def records(frame):
    return frame.to_dict('records')


def test_runs_of_several_seeds_join_across_directories(tmp_path):
    frame = simulated_results(['navigate', 'snarks'], n=60, seeds=(0, 1))
    runs = [frame[frame.seed == seed] for seed in (0, 1)]
    folders = [write(tmp_path/f'{seed}', records(run)) for seed, run in enumerate(runs)]
    macro = average(load_results(*folders))
    each = [compare(pair_items(run, HEADLINE))['delta'] for run in runs]
    assert macro.delta == pytest.approx(np.mean(each))
    assert (macro.seeds, macro.n) == (2, 120)


def test_only_questions_that_both_answered_count(tmp_path):
    rows = records(simulated_results(['navigate'], n=10))
    own = {row['arm']: row for row in rows if row['mode'] == ARMS[row['arm']].asked}
    own['kd'] |= dict(items='0000', index=[9, 3, 5, 7], n=4, correct=0)
    pairs = pair_items(load_results(write(tmp_path, rows)), HEADLINE)
    answers = own['kd_cot']['items']
    assert sorted(zip(pairs['index'], pairs.b)) == [(i, int(answers[i])) for i in (3, 5, 7, 9)]


@pytest.mark.parametrize('change, words', [
    (dict(items='01x'), 'n = '), (dict(correct=-1), 'items hold'),
    (dict(mode='think'), 'cot, direct'), (dict(index=[1, 1]), 'different row numbers'),
    (dict(temperature='hot'), 'a number from 0'), (dict(chat=None), 'True, False')])
def test_damaged_results_name_file_and_line(tmp_path, change, words):
    rows = records(simulated_results(['navigate'], n=20))
    rows[2] |= change
    with pytest.raises(InputError, match='results.jsonl, line 3: ') as error:
        load_results(write(tmp_path, rows))
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('key, values', [
    ('benchmark', ['bbh', 'toy']), ('scorer', ['lm-eval', 'official']), ('shots', [0, 3]),
    ('temperature', [0., .2]), ('chat', [False, True])])
def test_mixed_settings_are_refused(key, values):
    frame = simulated_results(['navigate'], n=20)
    mixed = frame.assign(**{key: values * (len(frame) // 2)})
    words = f'mix {key} {values[0]} and {values[1]}: compare one {key} at a time'
    with pytest.raises(InputError, match=words):
        gains_table(mixed)


def test_results_without_temperature_and_chat_are_greedy_and_plain(tmp_path):
    frame = simulated_results(['navigate'], n=20)
    write(tmp_path/'old', records(frame.drop(columns=['temperature', 'chat'])))
    old = load_results(tmp_path/'old')
    assert set(old.temperature) == {0.} and set(old.chat) == {False}
    # the same results, said in full
    write(tmp_path/'new', records(frame))
    assert len(load_results(tmp_path/'old', tmp_path/'new')) == len(frame)


def test_seeds_apart():
    frame = simulated_results(['navigate', 'snarks'], n=60, seeds=(0, 1, 2))
    each = [compare(pair_items(frame[frame.seed == seed], HEADLINE))['delta']
            for seed in range(3)]
    spread = compare(pair_items(frame, HEADLINE))['seed_sd']
    assert spread == pytest.approx(np.std(each, ddof=1))
    # a seed with one task does not count: it would compare tasks
    running = frame[~((frame.seed == 2) & (frame.task == 'snarks'))]
    spread = compare(pair_items(running, HEADLINE))['seed_sd']
    assert spread == pytest.approx(np.std(each[:2], ddof=1))
    assert np.isnan(compare(pair_items(frame[frame.seed == 0], HEADLINE))['seed_sd'])


# --- training runs and questions at once

def crossed(runs=5, questions=40, seed=0):
    "0/1 of two arms, and tasks of unlike size"
    rng = np.random.default_rng(seed)
    skill = rng.normal(0, .8, (2, runs, 1)) + rng.normal(0, 1, questions)
    a, b = (rng.random((2, runs, questions)) < 1 / (1 + np.exp(-skill))).astype(int)
    return a, b, np.array(['s'] * 10 + ['t'] * (questions - 10))


def variance_by_hand(a, b, groups):
    "Sums over all pairs of runs and of questions, without a mean of squares"
    d, (runs, n) = (b - a).astype(float), a.shape
    tasks = sorted(set(groups))
    gains = np.array([np.mean([d[r, groups == t].mean() for t in tasks]) for r in range(runs)])
    by_run = sum((x - y)**2 for x in gains for y in gains) / 2 / runs / (runs - 1) / runs
    by_question = left = 0.
    for t in tasks:
        x = d[:, groups == t]
        n = x.shape[1]
        m = x.mean(0)
        pairs = sum((u - v)**2 for u in m for v in m) / 2 / n / (n - 1)
        by_question += pairs / n / len(tasks)**2
        rest = [(x[r, i] - x[r, j] - x[q, i] + x[q, j])**2 for r in range(runs) for q in range(runs)
                for i in range(n) for j in range(n)]
        left += np.sum(rest) / 4 / runs / (runs - 1) / n / (n - 1) / (runs * n) / len(tasks)**2
    return by_question, by_run, left


@pytest.mark.parametrize('seed', range(3))
def test_crossed_variance_by_hand(seed):
    a, b, groups = crossed(4, 24, seed)
    by_question, by_run, left = variance_by_hand(a, b, groups)
    shares = dict(s=.5, t=.5)
    parts = stats._variance_parts((b - a).astype(float), groups, shares)
    assert [part.variance for part in parts] == pytest.approx([by_question, by_run, left])
    found = crossed_interval(a, b, groups)
    whole = max(by_question + by_run - left, by_question, by_run)
    freedom = whole**2 / sum(part.squares for part in parts)
    half = 100 * t_of_student.ppf(.975, freedom) * whole**.5
    assert found['high'] - found['delta'] == pytest.approx(half)
    assert found['delta'] == pytest.approx(paired_bootstrap(a.mean(0), b.mean(0), groups)['delta'])


def test_runs_that_agree_leave_the_questions():
    "A t interval of the questions' differences"
    a, b, _ = crossed(1, 40)
    same = np.repeat(a, 3, 0), np.repeat(b, 3, 0), np.zeros(40)
    d = (b - a)[0]
    low, high = t_of_student.interval(.95, 39, d.mean(), d.std(ddof=1) / 40**.5)
    found = crossed_interval(*same)
    assert (found['low'], found['high']) == pytest.approx((100 * low, 100 * high))


def test_the_order_of_runs_and_questions_does_not_matter():
    a, b, groups = crossed()
    rng = np.random.default_rng(1)
    runs, questions = rng.permutation(5), rng.permutation(40)
    shuffled = a[runs][:, questions], b[runs][:, questions], groups[questions]
    assert crossed_interval(*shuffled) == pytest.approx(crossed_interval(a, b, groups))
    back = crossed_interval(b, a, groups)
    assert back['low'] == pytest.approx(-crossed_interval(a, b, groups)['high'])


def test_a_share_of_nothing_is_not_looked_at():
    a, b, groups = crossed()
    part = groups == 's'
    alone = crossed_interval(a[:, part], b[:, part], groups[part])
    assert crossed_interval(a, b, groups, dict(s=1., t=0.)) == pytest.approx(alone)


def test_where_runs_or_questions_are_too_few():
    a, b, groups = crossed()
    for few in ((a[:1], b[:1], groups), (a[:, :9], b[:, :9], groups[:9]), (a, a, groups)):
        found = crossed_interval(*few)
        assert all(np.isnan(found[key]) for key in ('low', 'high', 'p'))
        assert not np.isnan(found['delta'])
    for wrong in ((a[0], b[0], groups), (a, b[:2], groups), (a, b, groups[:5])):
        with pytest.raises(ValueError, match='a row for each run and a column for each question'):
            crossed_interval(*wrong)
    with pytest.raises(ValueError, match='between 0 .wrong. and 1 .right.'):
        crossed_interval(100 * a, b, groups)


def test_crossed_interval_covers_the_truth():
    "Five runs whose luck is large"
    truth, hits = 100 * gain_of_logits(.3, np.hypot(1.5, .4)), 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        luck, hard = rng.normal(0, .4, (2, 5, 1)), rng.normal(0, 1.5, 300)
        chance = 1 / (1 + np.exp(hard - luck - np.reshape([0, .3], (2, 1, 1))))
        a, b = rng.random((2, 5, 300)) < chance
        found = crossed_interval(a, b, np.repeat(['s', 't', 'u'], 100))
        hits += found['low'] <= truth <= found['high']
    assert .91 <= hits / 300 <= .985


def gain_of_logits(gain, spread):
    "Mean gain of a probability whose logit is normal, by quadrature"
    x = np.linspace(-8, 8, 2001)
    density = np.exp(-x**2 / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    return ((1 / (1 + np.exp(-gain - spread * x)) - 1 / (1 + np.exp(-spread * x))) * density).sum()


def as_pairs(a, b, groups):
    rows = [dict(task=groups[i], seed=r, index=i, a=a[r, i], b=b[r, i])
            for r in range(len(a)) for i in range(len(groups))]
    return pd.DataFrame(rows)


def test_three_runs_have_an_interval_over_runs():
    "Two have not; the one over questions stands beside it"
    a, b, groups = crossed()
    for runs in (2, 3, 5):
        found = compare(as_pairs(a[:runs], b[:runs], groups))
        questions = paired_bootstrap(a[:runs].mean(0), b[:runs].mean(0), groups)
        assert found['over_runs'] == (runs > 2)
        assert found['low_questions'] == pytest.approx(questions['low'])
        over = crossed_interval(a[:runs], b[:runs], groups) if runs > 2 else questions
        for key in ('delta', 'low', 'high', 'p'):
            assert found[key] == pytest.approx(over[key])


def test_a_run_without_all_tasks_leaves_the_interval_over_questions():
    frame = as_pairs(*crossed(3))
    assert compare(frame)['over_runs']
    assert not compare(frame[(frame.seed < 2) | (frame.task == 's')])['over_runs']


def test_power_over_runs():
    "Studies with just the gain that is said to be found are significant in 80 of 100"
    def study(seed, gain):
        rng = np.random.default_rng(seed)
        luck = rng.normal(0, .05, (2, 5, 1)) + np.reshape([.4, .4 + gain], (2, 1, 1))
        a, b = (rng.random((2, 5, 120)) < luck).astype(int)
        return a, b, np.repeat(['s', 't'], 60)

    smallest = np.mean([minimal_detectable_difference(as_pairs(*study(s, .1))) for s in range(20)])
    found = [crossed_interval(*study(s, smallest / 100))['low'] > 0 for s in range(300)]
    assert .7 <= np.mean(found) <= .9
