"""Intervals: against scipy and closed forms, and by their coverage on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from sail.evaluation.stats import (
    Interval,
    mean_interval,
    paired_interval,
    rate_interval,
    ratio_interval,
    t_quantile,
    win_rate,
)


def cluster_robust_t(values, clusters, level=0.95):
    """Closed form: mean +- t(G-1) * sqrt(G/(G-1) * sum over clusters of squared residual sums) / n."""
    values, keys = np.asarray(values), np.asarray(clusters)
    mean, groups = values.mean(), np.unique(keys)
    squares = sum((values[keys == g] - mean).sum() ** 2 for g in groups)
    error = math.sqrt(len(groups) / (len(groups) - 1) * squares) / len(values)
    half = scipy.stats.t.ppf((1 + level) / 2, len(groups) - 1) * error
    return mean - half, mean + half


def clustered(rng, groups, low=1, high=6):
    """Normal values with a shared part per cluster, so that ignoring clusters would be wrong."""
    sizes = rng.integers(low, high, groups)
    keys = np.repeat(np.arange(groups), sizes)
    return rng.normal(size=groups)[keys] + rng.normal(size=len(keys)), keys


@pytest.mark.parametrize("df", [1, 2, 4, 9, 30, 300, 5000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def testt_quantile_is_scipys(df, level):
    assert t_quantile(level, df) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, df), rel=1e-4)


def test_few_clusters_give_exactly_the_cluster_robust_t_interval():
    values, keys = clustered(np.random.default_rng(1), 6)
    result = mean_interval(values, keys.tolist())
    assert (result.low, result.high) == pytest.approx(cluster_robust_t(values, keys), rel=1e-4)
    assert (result.n, result.clusters) == (len(values), 6)


def test_many_clusters_agree_with_the_cluster_robust_t_interval():
    values, keys = clustered(np.random.default_rng(2), 300)
    result = mean_interval(values, keys.tolist())
    low, high = cluster_robust_t(values, keys)
    assert result.mean == pytest.approx(values.mean())
    assert abs(result.low - low) < 0.1 * (high - low)
    assert abs(result.high - high) < 0.1 * (high - low)


def test_ignoring_the_clusters_would_be_too_narrow():
    rng = np.random.default_rng(3)
    values, keys = clustered(rng, 60, 8, 9)
    wide, narrow = mean_interval(values, keys.tolist()), mean_interval(values)
    assert wide.high - wide.low > 1.7 * (narrow.high - narrow.low)


def test_unclustered_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(4).exponential(size=150)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=2000, random_state=np.random.default_rng(0)
    ).confidence_interval
    ours = mean_interval(values)
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.15 * width
    assert abs(ours.high - theirs.high) < 0.15 * width


def test_paired_interval_is_the_interval_of_differences():
    rng = np.random.default_rng(5)
    prompt = rng.normal(scale=10, size=80)  # prompts differ much more than models do
    a, b = prompt + rng.normal(0.5, 0.3, 80), prompt + rng.normal(0, 0.3, 80)
    result = paired_interval(a, b)
    assert result == mean_interval(a - b)
    assert result.low > 0
    assert mean_interval(a).low < mean_interval(b).high


def test_same_seed_same_interval_and_scaling_commutes():
    values = np.random.default_rng(6).normal(size=50)
    assert mean_interval(values) == mean_interval(values)
    small, large = mean_interval(values), mean_interval(1e6 * values + 3e6)
    assert large.low == pytest.approx(1e6 * small.low + 3e6)


def test_values_weigh_the_same_whatever_their_cluster():
    assert mean_interval([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]).mean == 0.25


def test_wilson_is_scipys_without_clusters():
    outcomes = [1.0] * 140 + [0.0] * 60
    theirs = scipy.stats.binomtest(140, 200).proportion_ci(method="wilson")
    ours = rate_interval(outcomes)
    # t(199) for z and the n / (n - 1) correction move it by less than one percent of its width
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_duplicating_every_outcome_within_its_prompt_changes_nothing():
    outcomes = [1, 1, 0, 0.5, 1, 0, 1, 1, 0.5, 1, 1, 0]
    once = win_rate(outcomes, list(range(12)))
    five = win_rate(outcomes * 5, list(range(12)) * 5)
    assert (five.low, five.high) == pytest.approx((once.low, once.high))
    assert five.n == 60
    assert five.clusters == 12


def test_win_rate_counts_ties_and_leaves_abstentions_out():
    result = win_rate([1, 0.5, None, 0, 0.5, None], ["a", "b", "c", "a", "b", "d"])
    assert (result.mean, result.n, result.clusters, result.ties, result.abstained) == (0.5, 4, 2, 2, 2)


@pytest.mark.parametrize("value", [0, 1])
def test_unanimous_outcomes_keep_a_width(value):
    result = win_rate([value] * 20)
    assert result.mean == value
    assert result.high - result.low > 0.1
    assert result.low <= value <= result.high


def test_all_ties():
    result = win_rate([0.5] * 30)
    assert result.low < 0.5 < result.high
    assert result.ties == 30


def test_ratio_is_the_median_ratio_and_ignores_an_outlier():
    rng = np.random.default_rng(7)
    base = rng.uniform(1, 2, 101)
    times = 1.5 * base * rng.uniform(0.98, 1.02, 101)
    times[50] *= 100
    result = ratio_interval(times, base)
    assert result.low < 1.5 < result.high
    assert result.high - result.low < 0.02
    # distribution-free check: order statistics of rank 41 and 61 of 101 bound the median with 95%
    ordered = np.sort(times / base)
    assert (result.low, result.high) == pytest.approx((ordered[40], ordered[60]), abs=0.003)


def test_nothing_in_nothing_out():
    nothing = Interval(None, None, None, 0, 0)
    assert mean_interval([]) == nothing
    assert paired_interval([], []) == nothing
    assert rate_interval([]) == nothing
    assert ratio_interval([], []) == nothing
    empty = win_rate([None, None])
    assert (empty.mean, empty.low, empty.n, empty.abstained) == (None, None, 0, 2)


def test_one_cluster_has_a_mean_and_no_interval():
    assert mean_interval([1.0, 3.0], ["p", "p"]) == Interval(2.0, None, None, 2, 1)
    assert rate_interval([1.0, 0.0], ["p", "p"]) == Interval(0.5, None, None, 2, 1)
    assert ratio_interval([2.0], [1.0]) == Interval(2.0, None, None, 1, 1)


def test_constant_values_have_a_point():
    result = mean_interval([0.1] * 30)
    assert (result.mean, result.low, result.high) == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_silent_nan(bad):
    for call in (mean_interval, rate_interval):
        with pytest.raises(ValueError, match=r"values\[1\]"):
            call([0.5, bad])
    with pytest.raises(ValueError, match=r"b\[0\]"):
        paired_interval([1.0], [bad])


def test_wrong_shapes_and_values_are_refused():
    with pytest.raises(ValueError, match="3 values but 2 clusters"):
        mean_interval([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match="equal lengths"):
        paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="outcome is"):
        win_rate([0.7])
    with pytest.raises(ValueError, match="clusters"):
        win_rate([1, 0], ["a"])
    with pytest.raises(ValueError, match="positive"):
        ratio_interval([1.0, 0.0], [1.0, 1.0])


def simulated(kind, rng, groups):
    """One data set (values, clusters) of a kind whose true mean `TRUTH` knows."""
    if kind == "normal":
        values, keys = clustered(rng, groups)
        return values, keys
    keys = np.repeat(np.arange(groups), rng.integers(1, 5, groups))
    if kind == "skewed":
        return rng.lognormal(0, 0.75, size=len(keys)), keys
    chance = rng.beta(2.1, 0.9, groups)[keys] if kind == "wins" else np.full(len(keys), 0.96)
    return (rng.random(len(keys)) < chance).astype(float), keys


TRUTH = {"normal": 0.0, "skewed": math.exp(0.75**2 / 2), "wins": 0.7, "nearly all wins": 0.96}


@pytest.mark.parametrize("kind", TRUTH)
def test_coverage(kind):
    """300 repetitions with 100 clusters: a true 95% is seen as 91.5-98.5% but once in about 200 seeds."""
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(300):
        values, keys = simulated(kind, rng, 100)
        result = (
            win_rate(values.tolist(), keys.tolist())
            if "wins" in kind
            else mean_interval(values, keys.tolist(), resamples=500)
        )
        inside += result.low <= TRUTH[kind] <= result.high
    assert 0.915 <= inside / 300 <= 0.985
