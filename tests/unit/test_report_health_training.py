"""Health checks on the training and its outcome, on made-up logs."""

from __future__ import annotations

import math

import pytest
from health_records import DPR, lines, said, state

from sail.report import RunRecord, build_report
from sail.report.measure import rate_of_counts


def test_not_finite():
    assert said(RunRecord("r", not_finite={"loss": 2}), "finite") == "loss (2 times)"
    nulls = RunRecord("r", metrics=[{"step": 1, "loss": None, "kl/policy_ref": None}])
    assert (state(nulls, "finite"), said(nulls, "finite")) == ("warning", "loss (1 times)")
    assert state(lines(loss=0.5), "finite") == "fine"


@pytest.mark.parametrize(("dpr", "expected"), [(0.31, "fine"), (0.5, "warning")])
def test_realised_mixture(dpr, expected):
    # 1,000 rows at weight .3: a standard error of .0145 (by hand), so .31 is within 4 of them and .5 is not
    record = lines(route__dpr=dpr, route__data=1 - dpr, epoch=1.0, loss=0.7)
    asked = RunRecord("r", config=DPR, metrics=record.metrics, results={"train_rows": 1000})
    assert state(asked, "mixture") == expected


def test_a_route_nobody_asked_for():
    record = lines(route__dpr=0.3, route__data=0.6, route__dpp=0.1, epoch=1.0)
    assert (
        state(RunRecord("r", config=DPR, metrics=record.metrics, results={"train_rows": 100}), "mixture")
        == "warning"
    )


@pytest.mark.parametrize(
    ("norms", "limit", "expected"),
    [
        ([2.0] * 40, None, "warning"),
        ([2.0] * 20 + [0.5] * 20, None, "fine"),
        ([2.0] * 40, 5.0, "fine"),
        ([2.0] * 40, 0, "fine"),
        ([2.0] * 10, None, "not measured"),
    ],
)
def test_clipping(norms, limit, expected):
    record = lines(grad_norm=norms)
    train = {} if limit is None else {"max_grad_norm": limit}
    assert state(RunRecord("r", config={"train": train}, metrics=record.metrics), "clipping") == expected


def test_gap_between_training_and_held_out_pairs():
    wiggle = [0.9 + 0.01 * math.sin(i) for i in range(40)]
    size = {"eval_samples_per_second": 100.0, "eval_runtime": 5.0, "route__data": 1.0}
    assert state(lines(pair__accuracy=wiggle, eval_accuracy=0.6, **size), "gap") == "warning"
    assert state(lines(pair__accuracy=wiggle, eval_accuracy=0.8, **size), "gap") == "fine"
    few = {**size, "eval_runtime": 0.1}
    assert (
        state(lines(pair__accuracy=wiggle, eval_accuracy=0.6, **few), "gap") == "fine"
    )  # ten held-out pairs
    online = {**size, "route__data": 0.0, "route__dpr": 1.0}
    assert state(lines(pair__accuracy=wiggle, eval_accuracy=0.6, **online), "gap") == "not measured"


def test_reward_below_the_reference():
    fell = {"metrics": {"reward_gain": {"mean": -1.0, "low": -1.2, "high": -0.8, "n": 50}}}
    assert state(RunRecord("r", results=fell), "reward") == "warning"
    assert build_report([RunRecord("r", results=fell)], title="t")["answers"][0]["answer"] == "No, worse"


@pytest.mark.parametrize(("kl", "expected"), [(3.0, "fine"), (26.0, "fine"), (40.0, "warning")])
def test_level_of_kl(kl, expected):
    stated = {"metrics": {"kl": {"mean": kl, "low": kl - 2, "high": kl + 2, "n": 50}}}
    assert state(RunRecord("r", results=stated), "kl-level") == expected
    assert state(lines(eval_kl=kl, eval_kl_se=1.0), "kl-level") == expected
    assert state(lines(kl__policy_ref=kl), "kl-level") == ("warning" if kl > 25 else "fine")


def evaluations(rewards, kls, half=0.1, error=0.05) -> RunRecord:
    return lines(
        eval_reward=rewards,
        eval_reward_low=[r - half for r in rewards],
        eval_reward_high=[r + half for r in rewards],
        eval_kl=kls,
        eval_kl_se=error,
    )


@pytest.mark.parametrize(
    ("rewards", "kls", "expected"),
    [
        ([1.0, 2.0, 2.1, 2.2], [0.5, 1, 1.5, 2], "fine"),
        ([1.0, 2.0, 1.5, 1.2], [0.5, 1, 2, 3], "warning"),
        ([1.0, 2.0, 1.5, 1.2], [0.5, 1, 1, 1], "fine"),  # the reward falls, but not by going further
        ([1.0, 2.0, 2.1, 1.95], [0.5, 1, 2, 3], "fine"),  # one evaluation within the best one's interval
        ([1.0, 2.0], [0.5, 1], "not measured"),
    ],
)
def test_reward_that_falls_while_the_kl_grows(rewards, kls, expected):
    assert state(evaluations(rewards, kls), "late") == expected


def test_noisy_evaluations_raise_no_alarm():
    assert state(evaluations([1.0, 2.0, 1.5, 1.2], [0.5, 1, 2, 3], half=1.0), "late") == "fine"
    assert state(evaluations([1.0, 2.0, 1.5, 1.2], [0.5, 1, 2, 3], error=2.0), "late") == "fine"


def test_wilson_by_hand():
    # z = 1.96: centre (1/2 + z^2/20) / (1 + z^2/10) = 1/2; half width z sqrt(1/40 + z^2/400) / (1 + z^2/10) = .2634
    rate = rate_of_counts(5, 10)
    assert (rate["mean"], rate["low"], rate["high"]) == pytest.approx(
        (0.5, 0.5 - 0.2634, 0.5 + 0.2634), abs=1e-4
    )
    assert rate_of_counts(0, 0)["mean"] is None
    assert rate_of_counts(0, 10)["low"] == 0
