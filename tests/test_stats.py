"The statistics against other ways of computing them"
import json
from math import comb

import numpy as np
import pytest
from scipy.stats import norm

from cotkd.bbh import BBH_COUNTS, BBH_TASKS
from cotkd.data import InputError
from cotkd.gains import gains_table
from cotkd.stats import (HEADLINE, aggregate, compare, load_results, mcnemar, pair_items, paired_bootstrap,
                         simulated_results, wilson)


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


def test_interval_covers_the_truth():
    truth, hits = 10, 0 # P(b) - P(a) of `two_arms`
    for seed in range(300):
        got = paired_bootstrap(*two_arms(240, seed), n_boot=500)
        hits += got["low"] <= truth <= got["high"]
    assert .91 <= hits / 300 <= .985


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
    macro = gains_table(both).loc["macro"]
    each = [compare(pair_items(frames[frames.seed == s]))["delta"] for s in (0, 1)]
    assert macro.delta == pytest.approx(np.mean(each)) and (macro.seeds, macro.n) == (2, 120)


def test_only_questions_that_both_answered_count(tmp_path):
    frame = simulated_results(["navigate"], n=10)
    at = frame.index[(frame.arm == "kd") & (frame["mode"] == HEADLINE["kd"])][0]
    frame.at[at, "items"], frame.at[at, "index"], frame.at[at, "n"], frame.at[at, "correct"] = "0000", [9, 3, 5, 7], 4, 0
    pairs = pair_items(load_results(write(tmp_path, frame)))
    kd_cot = frame[(frame.arm == "kd_cot") & (frame["mode"] == "cot")]["items"].iloc[0]
    assert sorted(zip(pairs["index"], pairs.b)) == [(i, int(kd_cot[i])) for i in (3, 5, 7, 9)]


@pytest.mark.parametrize("change,words", [
    (dict(items="01x"), "n = "), (dict(correct=-1), "items hold"), (dict(arm="kd+cot"), "teacher, student, kd, kd_cot"),
    (dict(mode="think"), "cot, direct"), (dict(benchmark="mmlu"), "bbh, toy"), (dict(index=[1, 1]), "different row numbers")])
def test_damaged_results_name_file_and_line(tmp_path, change, words):
    rows = simulated_results(["navigate"], n=20).to_dict("records")
    rows[2] |= change
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(InputError, match="results.jsonl, line 3: ") as e: load_results(tmp_path)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_mixed_benchmarks_are_refused():
    frame = simulated_results(["navigate"], n=20)
    with pytest.raises(InputError, match="mix benchmark bbh and toy"):
        gains_table(frame.assign(benchmark=["bbh", "toy"] * (len(frame) // 2)))
