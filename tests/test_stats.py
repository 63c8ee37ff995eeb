"The statistics against other ways of computing them"
import json
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap, norm
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from cotkd.bbh import BBH_COUNTS, BBH_TASKS
from cotkd.arms import ARMS, contrast
from cotkd.files import InputError
from cotkd.gains import gains_table
from cotkd.records import load_results, pair_items, simulated_results
from cotkd.stats import (aggregate, compare, holm, mcnemar, minimal_detectable_difference,
                         paired_bootstrap, unpaired_half_width, wilson)

HEADLINE = contrast('kd:kd_cot')


def average(results):
    return gains_table(results, ['kd:kd_cot']).loc['kd:kd_cot'].loc['macro']


def two_arms(n=300, seed=0):
    rng = np.random.default_rng(seed)
    luck = rng.random(n)
    groups = np.repeat(["a", "b", "c"], [n // 2, n // 3, n - n // 2 - n // 3])
    return (luck < .4).astype(int), (np.where(rng.random(n) < .6, luck, rng.random(n)) < .5).astype(int), groups


@pytest.mark.parametrize("k,n", [(0, 5), (1, 3), (125, 250), (249, 250), (250, 250)])
def test_wilson_closed_form(k, n):
    z = norm.ppf(.975)
    mid, half = (k/n + z*z/(2*n)) / (1 + z*z/n), z * np.sqrt(k/n*(1 - k/n)/n + z*z/(4*n*n)) / (1 + z*z/n)
    assert wilson(k, n) == pytest.approx((100 * (mid - half), 100 * (mid + half)), abs=1e-9)


@pytest.mark.parametrize("k,n", [(0, 40), (1, 24), (13, 40), (125, 250), (249, 250), (187, 187)])
def test_wilson_agrees_with_scipy(k, n):
    ci = binomtest(k, n).proportion_ci(.95, method="wilson")
    assert wilson(k, n) == pytest.approx((100 * ci.low, 100 * ci.high), abs=1e-9)


@pytest.mark.parametrize("both,lost,gained,neither", [(100, 12, 30, 108), (0, 1, 0, 0), (50, 20, 20, 10), (3, 0, 9, 1), (240, 1, 8, 1), (0, 60, 41, 0)])
def test_mcnemar_agrees_with_statsmodels(both, lost, gained, neither):
    a, b = [1] * (both + lost) + [0] * (gained + neither), [1] * both + [0] * lost + [1] * gained + [0] * neither
    assert mcnemar(a, b) == pytest.approx(reference_mcnemar([[both, lost], [gained, neither]], exact=True).pvalue)


@pytest.mark.parametrize("p,adjusted", [
    ([.01, .04, .03], [.03, .06, .06]), ([.2], [.2]), ([.5, .6, .001], [1, 1, .003]), ([.02, .02, .02, .02], [.08] * 4),
    ([.01, np.nan, .02], [.02, np.nan, .02]), ([np.nan, np.nan], [np.nan, np.nan]), ([.0125, .013, .05, .9], [.05, .05, .1, .9])])
def test_holm_by_hand(p, adjusted):
    np.testing.assert_allclose(holm(p), adjusted, atol=1e-12)


def test_holm_agrees_with_statsmodels():
    for p in np.random.default_rng(0).beta(.3, 2, (5, 27)).round(3):  # with ties and zeros
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


@pytest.mark.parametrize("gained,lost", [(0, 0), (1, 0), (5, 0), (7, 3), (3, 7), (20, 20)])
def test_mcnemar_is_the_binomial_sum(gained, lost):
    a, b = [0] * gained + [1] * lost + [1, 0], [1] * gained + [0] * lost + [1, 0]
    n = gained + lost
    want = min(1, 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n)
    assert mcnemar(a, b) == pytest.approx(want)


def test_bootstrap_is_the_stratified_loop():
    a, b, groups = two_arms()
    rng, draws = np.random.default_rng(7), []
    for _ in range(4000):
        means = []
        for g in "abc":
            d = (b - a)[groups == g]
            means.append(d[rng.integers(len(d), size=len(d))].mean())
        draws.append(100 * np.mean(means))
    got = paired_bootstrap(a, b, groups)
    assert got["delta"] == pytest.approx(100 * np.mean([(b - a)[groups == g].mean() for g in "abc"]))
    assert [got["low"], got["high"]] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=.5)
    assert got["p"] == pytest.approx(2 * min(np.mean(np.array(draws) <= 0), np.mean(np.array(draws) >= 0)), abs=.02)


def test_bootstrap_of_one_task_has_the_standard_error_of_a_paired_mean():
    a, b, _ = two_arms(1000)
    got, d = paired_bootstrap(a, b, ["t"] * 1000), b - a
    assert got["high"] - got["low"] == pytest.approx(2 * 1.96 * 100 * d.std() / np.sqrt(1000), rel=.04)


@pytest.mark.parametrize("n,low,high,agreement", [(40, .5, .6, .5), (250, .4, .5, .7), (250, .02, .2, .9), (178, .9, .95, .3), (1000, .5, .5, 0)])
def test_bootstrap_of_one_task_is_scipys(n, low, high, agreement):
    a, b = study(np.random.default_rng(n), [low], [high], agreement, [n])[:2]
    ci = bootstrap((a, b), lambda x, y, axis: 100 * (y - x).mean(axis), paired=True, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    got = paired_bootstrap(a, b, ["t"] * n, n_boot=20_000)
    assert [got["low"], got["high"]] == pytest.approx(list(ci), abs=.04 * (ci.high - ci.low) + 100 / n)


def test_bootstrap_weights():
    a, b, groups = two_arms()
    assert paired_bootstrap(a, b, groups, weights=dict.fromkeys("abc", 1 / 3)) == paired_bootstrap(a, b, groups)
    sizes = {g: np.mean(groups == g) for g in "abc"}
    assert paired_bootstrap(a, b, groups, weights=sizes)["delta"] == pytest.approx(100 * (b.mean() - a.mean()))
    alone, among = paired_bootstrap((b - b)[groups == "a"], b[groups == "a"], groups[groups == "a"]), paired_bootstrap(0 * b, b, groups, weights=dict(a=1, b=0, c=0))
    assert [among[k] for k in ("delta", "low", "high")] == pytest.approx([alone[k] for k in ("delta", "low", "high")], abs=.7)


def test_bootstrap_same_seed_same_bytes_and_any_order_of_items():
    a, b, groups = two_arms()
    o = np.random.default_rng(3).permutation(len(a))
    assert json.dumps(paired_bootstrap(a, b, groups)) == json.dumps(paired_bootstrap(list(a[o]), list(b[o]), list(groups[o])))
    assert paired_bootstrap(a, b, groups, seed=1) != paired_bootstrap(a, b, groups)


def test_p_and_interval_agree():
    for seed in range(20):
        got = paired_bootstrap(*two_arms(120, seed), n_boot=2000)
        if got["p"] < .045: assert got["low"] > 0 or got["high"] < 0
        if got["p"] > .055: assert got["low"] <= 0 <= got["high"]


def study(rng, low, high, agreement, sizes):
    "Two arms that share their luck on some questions; low, high: accuracy of each task; sizes: its questions"
    low, high, groups = np.repeat(low, sizes), np.repeat(high, sizes), np.repeat(np.arange(len(sizes)), sizes)
    shared, own, same = rng.random((3, len(groups)))
    return (shared < low).astype(float), (np.where(same < agreement, shared, own) < high).astype(float), groups


SPREAD = np.linspace(.02, .9, 27) # accuracies of 27 tasks, from almost none to almost all
DESIGNS = dict(equal=([.4] * 3, [.5] * 3, .7, [100] * 3), uneven=(SPREAD, SPREAD + .08 * (np.arange(27) % 2), .8, [24, 40, 146, 178, 187, 250] * 4 + [250] * 3))


@pytest.mark.parametrize("design", DESIGNS)
def test_interval_covers_the_truth(design):
    low, high, agreement, sizes = DESIGNS[design]
    truth = 100 * np.mean(np.subtract(high, low))
    rng = np.random.default_rng(20_000)
    studies = [paired_bootstrap(*study(rng, low, high, agreement, sizes), n_boot=1000)
               for _ in range(1000)]
    covered = np.mean([s["low"] <= truth <= s["high"] for s in studies])
    assert .93 <= covered <= .97, covered  # 1,000 studies leave ±1.4 points of their own


@pytest.mark.parametrize("power", [.5, .8])
def test_minimal_detectable_difference_is_found_with_that_power(power):
    rng, sizes = np.random.default_rng(3), [40, 100, 250]
    pairs = lambda gain: pd.DataFrame(dict(zip("ab", (arms := study(rng, [.4] * 3, [.4 + gain] * 3, .7, sizes))[:2])) | dict(task=arms[2], index=range(390), seed=0))
    gain = np.mean([minimal_detectable_difference(pairs(.07), power) for _ in range(200)])
    found = np.mean([paired_bootstrap(*study(rng, [.4] * 3, [.4 + gain / 100] * 3, .7, sizes), n_boot=1000)["low"] > 0 for _ in range(2000)])
    assert found == pytest.approx(power, abs=.035), found # 2,000 studies leave ±2 points of their own


def test_minimal_detectable_difference_is_in_standard_errors_of_the_bootstrap():
    pairs = pair_items(simulated_results(list(BBH_TASKS)[:5], n=120, seeds=(0, 1)), HEADLINE)
    got = compare(pairs)
    assert minimal_detectable_difference(pairs) == pytest.approx((got["high"] - got["low"]) / (2 * 1.96) * (1.96 + .8416), rel=.03)


@pytest.mark.parametrize("percent", [17.77, 23.10, 39.22, 49.95])
def test_unpaired_half_width_is_that_of_binomials(percent):
    counts = np.array(list(BBH_COUNTS.values()))
    draws = (np.random.default_rng(0).binomial(counts, percent / 100, size=(20_000, 27)) / counts).mean(axis=1)
    assert unpaired_half_width(percent) == pytest.approx(100 * 1.96 * draws.std(), rel=.02)
    assert unpaired_half_width(percent, percent) == pytest.approx(2**.5 * unpaired_half_width(percent))


def test_aggregate_names():
    numbers = {t: float(i) for i, t in enumerate(BBH_TASKS)}
    got = aggregate(numbers)
    assert list(got) == ["all_27", "micro", "all_23", "nlp_12", "algorithmic_11"]
    assert got["all_27"] == pytest.approx(13)
    assert got["micro"] == pytest.approx(sum(numbers[t] * BBH_COUNTS[t] for t in numbers) / 6511)
    assert 12 * got["nlp_12"] + 11 * got["algorithmic_11"] == pytest.approx(23 * got["all_23"])
    del numbers["tracking_shuffled_objects_five_objects"]
    assert [k for k, v in aggregate(numbers).items() if v is not None] == ["nlp_12"]


def write(path, frame):
    path.mkdir(exist_ok=True, parents=True)
    (path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in frame.to_dict("records")))
    return path


def test_runs_of_several_seeds_join_across_directories(tmp_path):
    frames = simulated_results(["navigate", "snarks"], n=60, seeds=(0, 1))
    both = load_results(write(tmp_path / "s0", frames[frames.seed == 0]), write(tmp_path / "s1", frames[frames.seed == 1]))
    macro = average(both)
    each = [compare(pair_items(frames[frames.seed == s], HEADLINE))["delta"] for s in (0, 1)]
    assert macro.delta == pytest.approx(np.mean(each)) and (macro.seeds, macro.n) == (2, 120)


def test_only_questions_that_both_answered_count(tmp_path):
    frame = simulated_results(["navigate"], n=10)
    at = frame.index[(frame.arm == "kd") & (frame["mode"] == ARMS["kd"].asked)][0]
    frame.at[at, "items"], frame.at[at, "index"], frame.at[at, "n"], frame.at[at, "correct"] = "0000", [9, 3, 5, 7], 4, 0
    pairs = pair_items(load_results(write(tmp_path, frame)), HEADLINE)
    kd_cot = frame[(frame.arm == "kd_cot") & (frame["mode"] == "cot")]["items"].iloc[0]
    assert sorted(zip(pairs["index"], pairs.b)) == [(i, int(kd_cot[i])) for i in (3, 5, 7, 9)]


@pytest.mark.parametrize("change,words", [
    (dict(items="01x"), "n = "), (dict(correct=-1), "items hold"), 
    (dict(mode="think"), "cot, direct"), (dict(index=[1, 1]), "different row numbers"),
    (dict(temperature="hot"), "a number from 0"), (dict(chat=None), "True, False")])
def test_damaged_results_name_file_and_line(tmp_path, change, words):
    rows = simulated_results(["navigate"], n=20).to_dict("records")
    rows[2] |= change
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(InputError, match="results.jsonl, line 3: ") as e: load_results(tmp_path)
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("key,values", [("benchmark", ["bbh", "toy"]), ("scorer", ["lm-eval", "official"]), ("shots", [0, 3]),
                                        ("temperature", [0., .2]), ("chat", [False, True])])
def test_mixed_settings_are_refused(key, values):
    frame = simulated_results(["navigate"], n=20)
    with pytest.raises(InputError, match=f"mix {key} {values[0]} and {values[1]}: compare one {key} at a time"):
        gains_table(frame.assign(**{key: values * (len(frame) // 2)}))


def test_results_without_temperature_and_chat_are_greedy_and_plain(tmp_path):
    frame = simulated_results(["navigate"], n=20)
    old = load_results(write(tmp_path / "old", frame.drop(columns=["temperature", "chat"])))
    assert set(old.temperature) == {0.} and set(old.chat) == {False}
    assert len(load_results(tmp_path / "old", write(tmp_path / "new", frame))) == len(frame) # the same results, said in full


def test_seeds_apart():
    frame = simulated_results(["navigate", "snarks"], n=60, seeds=(0, 1, 2))
    each = [compare(pair_items(frame[frame.seed == s], HEADLINE))["delta"] for s in range(3)]
    assert compare(pair_items(frame, HEADLINE))["seed_sd"] == pytest.approx(np.std(each, ddof=1))
    running = frame[~((frame.seed == 2) & (frame.task == "snarks"))] # a seed with one task does not count: it would compare tasks
    assert compare(pair_items(running, HEADLINE))["seed_sd"] == pytest.approx(np.std(each[:2], ddof=1))
    assert np.isnan(compare(pair_items(frame[frame.seed == 0], HEADLINE))["seed_sd"])
