"""The study's arithmetic on made-up runs whose answers are known by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

STUDY = Path(__file__).parents[2] / "benchmarks" / "evidence"
sys.path.insert(0, str(STUDY))

from analyse import at_equal_calls, at_equal_kl, at_the_end, share_of  # noqa: E402
from frontier import (  # noqa: E402
    Curve,
    common_kl,
    compared,
    curve_of,
    interval,
    over_seeds,
    read_at,
    resamples,
)


def straight(slope: float, top: float, *, prompts: int = 50, calls: float = 0.0, noise: float = 0.0) -> Curve:
    """reward = slope * KL at four checkpoints up to KL `top`; every prompt has its own offset."""
    offset = np.random.default_rng(0).normal(size=prompts) * noise
    kl = np.array([0.0, 0.25, 0.5, 1.0])[:, None] * top + np.zeros(prompts)
    return Curve(np.arange(4.0), np.arange(4.0) * calls, slope * kl + offset, kl)


def test_the_frontier_by_hand() -> None:
    """Up to (3, 20), then back to (2, 5): what was reached with less stays; half way to (3, 20) the line is at (2, 15)."""
    x, y = np.array([[0.0, 1.0, 3.0, 2.0]]), np.array([[0.0, 10.0, 20.0, 5.0]])
    for level, wanted in ((0.0, 0.0), (0.5, 5.0), (1.0, 10.0), (2.0, 15.0), (3.0, 20.0), (9.0, 20.0)):
        assert read_at(x, y, level)[0] == pytest.approx(wanted)
    # A run whose KL comes back to 1 with a reward of 30 is read there, not where it passed 1 before.
    back_x, back_y = np.array([[0.0, 1.0, 3.0, 1.0]]), np.array([[0.0, 10.0, 20.0, 30.0]])
    assert read_at(back_x, back_y, 1.0)[0] == pytest.approx(30.0)
    # A reward that falls while KL grows does not count against the run: an earlier checkpoint may be taken.
    assert read_at(np.array([[0.0, 1.0, 3.0]]), np.array([[0.0, 10.0, 4.0]]), 3.0)[0] == pytest.approx(10.0)


def test_equal_kl_takes_the_largest_common_one() -> None:
    """Slopes 2 and 1, reaching 1 and 4 nats: at .9 nats the gap is .9; at the end, at other KLs, it is 2 - 4 = -2."""
    one, other = straight(2.0, 1.0), straight(1.0, 4.0)
    weights = resamples(50)
    assert common_kl(one, other, weights)[0] == pytest.approx(1.0)
    assert at_equal_kl(one, other, weights)[0] == pytest.approx(0.9)
    assert at_the_end(one, other, weights)[0] == pytest.approx(-2.0)
    assert share_of(one, other, weights)[0] == pytest.approx(0.5)


def test_only_common_checkpoints_are_read() -> None:
    """A run with more checkpoints on the same concave frontier is not better."""
    kl = np.array([0.0, 0.5, 1.0, 2.0, 4.0])[:, None] + np.zeros(10)
    dense = Curve(np.arange(5.0), np.zeros(5), np.sqrt(kl), kl)
    sparse = Curve(np.array([0.0, 2.0, 4.0]), np.zeros(3), np.sqrt(kl[::2]), kl[::2])
    weights = resamples(10)[:1]
    assert read_at(*dense.means(weights), 0.7)[0] > read_at(*sparse.means(weights), 0.7)[0] + 0.1
    assert compared({0: dense}, {0: sparse}, at_equal_kl)["over_seeds"]["mean"] == pytest.approx(0.0)


def test_equal_calls() -> None:
    """100 and 50 calls a checkpoint: at 150 calls the first is half way between its checkpoints 1 and 2, reward .375 * 4."""
    one, other = straight(4.0, 1.0, calls=100), straight(1.0, 1.0, calls=50)
    assert at_equal_calls(one, other, resamples(50))[0] == pytest.approx(4 * 0.375 - 1.0)


def test_noise_that_prompts_share_cancels() -> None:
    """Paired: the offset of a prompt is the same in both runs, so that the gap has no error although each mean has."""
    one, other = straight(2.0, 1.0, noise=5.0), straight(1.0, 1.0, noise=5.0)
    gap = compared({0: one}, {0: other}, at_equal_kl)
    assert gap["seeds"][0]["high"] - gap["seeds"][0]["low"] < 1e-9
    assert gap["above"] == 1
    alone = interval(resamples(50) @ one.reward[-1])
    assert alone["high"] - alone["low"] > 1.0


def test_swapped_runs_swap_the_sign() -> None:
    one, other = straight(2.0, 1.0), straight(1.0, 1.0)
    gaps = [
        compared({0: a}, {0: b}, at_equal_kl)["over_seeds"]["mean"] for a, b in ((one, other), (other, one))
    ]
    assert gaps[0] == pytest.approx(0.9)
    assert gaps[1] == pytest.approx(-0.9)


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.3, 0.5, 0.1, 0.4, 0.2]
    found = over_seeds(values)
    wanted = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(wanted)
    assert over_seeds([0.3]) == {"mean": 0.3, "low": None, "high": None, "n": 1}


def test_resampled_means_have_the_bootstraps_error() -> None:
    values = np.random.default_rng(1).normal(size=400)
    spread = (resamples(400) @ values)[1:].std()
    assert spread == pytest.approx(values.std() / 20, rel=0.1)


def test_a_run_begins_at_the_start() -> None:
    run = {"checkpoints": [{"step": 5, "calls": 3, "reward": [1.0, 2.0], "kl": [0.5, 0.7]}]}
    curve = curve_of(run, [0.0, 1.0])
    assert curve.steps.tolist() == [0, 5]
    assert curve.calls.tolist() == [0, 3]
    assert curve.kl.mean(axis=1).tolist() == [0.0, pytest.approx(0.6)]
    assert curve.reward.mean(axis=1).tolist() == [0.5, 1.5]
