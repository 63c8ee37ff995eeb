"Statistics in numbers that can be worked out by hand"
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from cotkd.stats import (Z, aggregate, compare, holm, mcnemar, minimal_detectable_difference,
                         paired_bootstrap, unpaired_half_width, wilson)


def test_wilson():
    assert Z == pytest.approx(1.959964, abs=1e-6)
    assert wilson(5, 10) == pytest.approx((23.659, 76.341), abs=1e-3)
    low, high = wilson(0, 10)
    assert low == 0 and high == pytest.approx(27.753, abs=1e-3)
    assert wilson(10, 10) == pytest.approx((72.247, 100), abs=1e-3)
    assert sum(wilson(2.5, 5)) == pytest.approx(100)  # the mean of several seeds
    for correct, n in ((-1, 10), (11, 10), (0, 0), (1, 0)):
        with pytest.raises(ValueError, match=f'got {correct} right of {n} questions'):
            wilson(correct, n)


def test_rounding_leaves_the_estimate_in_its_interval():
    for n in range(1, 400):
        for correct in (0, 1, n - 1, n):
            low, high = wilson(correct, n)
            assert 0 <= low <= 100 * correct / n <= high <= 100


@pytest.mark.parametrize('a, b, groups', [
    ([0, 1], [0], ['x', 'x']), ([0, 1], [0, 1], ['x']), ([], [], []),
    ([[0, 1]], [[0, 1]], [['x', 'x']]), ([0, 2], [0, 1], ['x', 'x']),
    ([0, 1], [0, -.5], ['x', 'x']), ([0, -1], [0, 0], 'xx'), ([0, 1], [0, 1.5], ['x', 'x'])])
def test_pairs_that_are_none(a, b, groups):
    with pytest.raises(ValueError, match='three lists of one length|must lie between'):
        paired_bootstrap(a, b, groups)


A = [0] * 12 + [1] * 8
B = [1] * 6 + [0] * 6 + [1] * 6 + [0] * 2  # 6 gained, 2 lost


def test_bootstrap():
    found = paired_bootstrap(A, B, ['x'] * 20)
    assert found['delta'] == pytest.approx(20)
    assert -10 < found['low'] <= 0 and 40 < found['high'] < 55
    # 2 P(draws <= 0), of 20 differences that are 1 (.3), -1 (.1) or 0
    assert found['p'] == pytest.approx(.21, abs=.04)
    back = paired_bootstrap(B, A, ['x'] * 20)
    assert back['delta'] == -found['delta']
    assert [-back['high'], -back['low']] == pytest.approx([found['low'], found['high']], abs=5.1)
    halves = ['x'] * 10 + ['y'] * 10
    weighted = paired_bootstrap(A, B, halves, weights=dict(x=.9, y=.1))
    assert weighted['delta'] == pytest.approx(90 * .6 + 10 * -.2)
    assert paired_bootstrap(A, B, halves)['delta'] == pytest.approx(20)
    uneven = ['x'] * 6 + ['y'] * 14
    assert paired_bootstrap(A, B, uneven)['delta'] == pytest.approx(50 * (1 - 2 / 14))


def test_the_smallest_p_says_how_many_resamples_there_were():
    a, b = [0] * 40, [1] * 39 + [0]
    assert paired_bootstrap(a, b, ['x'] * 40, n_boot=999)['p'] == pytest.approx(2 / 1000)
    assert paired_bootstrap(b, a, ['x'] * 40, n_boot=999)['p'] == pytest.approx(2 / 1000)
    assert paired_bootstrap([0, 1] * 9, [1, 0] * 9, ['x'] * 18)['p'] <= 1
    assert paired_bootstrap(a, b, ['x'] * 40)['p'] == pytest.approx(2 / 10_001)


def test_seeds_of_the_bootstrap():
    first = paired_bootstrap(A, B, ['x'] * 20)
    assert first == paired_bootstrap(A, B, ['x'] * 20, n_boot=10_000, seed=0)
    assert first != paired_bootstrap(A, B, ['x'] * 20, seed=1)


@pytest.mark.parametrize('a, b, groups', [
    (A[:9], B[:9], ['x'] * 9),  # too few
    ([0] * 20, [1] * 20, ['x'] * 20),  # all went one way
    ([0] * 20, [0] * 10 + [1] * 10, ['x'] * 10 + ['y'] * 10)])  # in each task
def test_no_interval_where_nothing_varies(a, b, groups):
    found = paired_bootstrap(a, b, groups)
    assert found['delta'] == pytest.approx(
        100 * pd.DataFrame(dict(d=np.subtract(b, a), g=groups)).groupby('g').d.mean().mean())
    assert np.isnan([found['low'], found['high'], found['p']]).all()


def test_ten_questions_have_an_interval():
    found = paired_bootstrap(A[:10], B[:10], ['x'] * 10)
    assert found['delta'] == pytest.approx(60) and found['low'] < 60 < found['high']
    one_task_varies = paired_bootstrap([0] * 10 + A[:10], [0] * 10 + B[:10], ['x', 'y'] * 10)
    assert np.isfinite(one_task_varies['low'])
    weightless = paired_bootstrap([0] * 10 + A[:10], [0] * 10 + B[:10],
                                  ['x'] * 10 + ['y'] * 10, weights=dict(x=1., y=0.))
    assert weightless['delta'] == 0 and np.isnan(weightless['low'])


def test_mcnemar():
    assert mcnemar(A, B) == pytest.approx(2 * 37 / 256)  # 1 + 8 + 28 of 2^8
    assert mcnemar(B, A) == pytest.approx(2 * 37 / 256)
    assert mcnemar([0, 1], [0, 1]) == 1
    assert mcnemar([0] * 5, [1] * 5) == pytest.approx(2 / 32)
    with pytest.raises(ValueError, match='needs 0/1 per item'):
        mcnemar([0, .5], [0, 1])
    with pytest.raises(ValueError, match='needs 0/1 per item'):
        mcnemar([0, 1], [0, .5])


def test_holm():
    assert holm([.01, .04, .03]).tolist() == pytest.approx([.03, .06, .06])
    assert holm([0, 1]).tolist() == [0, 1] and holm([.6, .7]).tolist() == [1, 1]
    np.testing.assert_allclose(holm([np.nan, .02, .5]), [np.nan, .04, .5])
    for p in ([-.1], [1.1], [.5, 2]):
        with pytest.raises(ValueError, match='got p-values'):
            holm(p)
    given = np.array([.01, .04])
    holm(given)
    assert given.tolist() == [.01, .04]


def pairs(a, b, tasks, seeds, index):
    return pd.DataFrame(dict(task=tasks, seed=seeds, index=index, a=a, b=b))


def two_seeds():
    "20 questions under two seeds: the first gains 20 points, the second 10"
    second = [*B[:5], 0, *B[6:18], 0, 1 - A[19]]
    both = [*B, *second]
    return pairs(A * 2, both, ['x'] * 40, [0] * 20 + [1] * 20, [*range(20)] * 2), both


def test_compare():
    frame, both = two_seeds()
    found = compare(frame, n_boot=2000)
    gains = [100 * np.mean(np.subtract(both[i:i + 20], A)) for i in (0, 20)]
    assert (found['n'], found['seeds']) == (20, 2)
    assert found['delta'] == pytest.approx(np.mean(gains))
    assert found['seed_sd'] == pytest.approx(np.std(gains, ddof=1))
    of_seeds = [mcnemar(A, both[:20]), mcnemar(A, both[20:])]
    assert found['p_mcnemar'] == pytest.approx(max(of_seeds))
    mean = (np.array(both[:20]) + both[20:]) / 2
    interval = paired_bootstrap(A, mean, ['x'] * 20, n_boot=2000)
    assert {key: found[key] for key in interval} == pytest.approx(interval)
    one = compare(frame[frame.seed == 0])
    assert one['seeds'] == 1 and np.isnan(one['seed_sd'])
    assert one['delta'] == pytest.approx(20)
    weights = dict(x=.5)
    assert compare(frame, weights=weights)['delta'] == pytest.approx(np.mean(gains) / 2)


def test_a_seed_that_has_not_finished_all_tasks_does_not_spread_the_seeds():
    frame, _ = two_seeds()
    other = frame[frame.seed == 0].assign(task='y')
    found = compare(pd.concat([frame, other]))
    assert found['seeds'] == 1 and found['n'] == 40 and np.isnan(found['seed_sd'])


def test_compare_nothing_or_little():
    frame, _ = two_seeds()
    found = compare(frame[:0])
    assert (found.pop('n'), found.pop('seeds'), found.pop('over_runs')) == (0, 0, False)
    assert np.isnan([*found.values()]).all()
    assert set(found) == {'delta', 'low', 'high', 'low_questions', 'high_questions', 'p',
                          'p_mcnemar', 'seed_sd'}
    few = compare(frame[:9])
    assert few['n'] == 9 and np.isnan(few['p_mcnemar']) and np.isfinite(few['delta'])
    assert np.isfinite(compare(frame[:10])['p_mcnemar'])


@pytest.mark.parametrize('power', [.5, .8, .95])
def test_minimal_detectable_difference(power):
    frame, _ = two_seeds()
    frame = frame[frame.seed == 0]
    d = np.subtract(B, A)
    error = d.std() / np.sqrt(20)
    want = 100 * (norm.ppf(.975) + norm.ppf(power)) * error
    assert minimal_detectable_difference(frame, power) == pytest.approx(want)
    twice = pd.concat([frame, frame.assign(task='y')])
    found = minimal_detectable_difference(twice, power)
    assert found == pytest.approx(want / np.sqrt(2))


def test_minimal_detectable_difference_of_nothing():
    frame, _ = two_seeds()
    frame = frame[frame.seed == 0]
    assert minimal_detectable_difference(frame) == minimal_detectable_difference(frame, .8)
    assert np.isnan(minimal_detectable_difference(frame[:0]))
    assert np.isnan(minimal_detectable_difference(frame[:9]))
    assert np.isfinite(minimal_detectable_difference(frame[:10]))
    assert np.isnan(minimal_detectable_difference(frame.assign(a=0, b=1)))
    for power in (0, 1, -.5, 1.5):
        with pytest.raises(ValueError, match='power is'):
            minimal_detectable_difference(frame, power)


def test_aggregate():
    averages = dict(half=dict(x=.5, y=.5), first=dict(x=1.))
    assert aggregate(dict(x=10, y=20, z=99), averages) == dict(half=15., first=10.)
    for missing in (dict(x=10), dict(x=10, y=None), dict(x=10, y=float('nan'))):
        assert aggregate(missing, averages) == dict(half=None, first=10.)
    assert aggregate(dict(x=0, y=0), averages) == dict(half=0, first=0)


def test_unpaired_half_width():
    assert unpaired_half_width(50, counts=[100]) == pytest.approx(9.79982, abs=1e-4)
    assert unpaired_half_width(50, counts=[100, 100]) == pytest.approx(6.92952, abs=1e-4)
    want = 195.9964 * np.sqrt((.2 * .8 + .3 * .7) * (1 / 50 + 1 / 200) / 4)
    assert unpaired_half_width(20, 30, counts=[50, 200]) == pytest.approx(want, rel=1e-6)
