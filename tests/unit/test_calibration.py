"""Accuracy and calibration of a reward model: against hand computation, scipy, and models whose calibration is known."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from sail.evaluation.calibration import (
    accuracy,
    calibrating_temperature,
    calibration_error,
    reliability,
    reliability_picture,
)


def drawn(count: int, temperature: float, seed: int = 0) -> np.ndarray:
    """Margins of pairs labelled with probability sigmoid(margin / temperature): calibrated at that temperature."""
    chance = np.random.default_rng(seed)
    margins = chance.normal(0, 3, count)
    return np.where(chance.random(count) < 1 / (1 + np.exp(-margins / temperature)), margins, -margins)


def test_accuracy_and_its_interval_by_hand() -> None:
    """Six pairs of three prompts: right 1, 1 | 0, 1 | .5, 0. Wilson with the cluster-robust effective n, t quantile with 2 df."""
    margins, prompts = [1.0, 2.0, -1.0, 3.0, 0.0, -2.0], ["a", "a", "b", "b", "c", "c"]
    found = accuracy(margins, prompts)
    rate = 3.5 / 6
    sums = np.array([2.0, 1.0, 0.5]) - 2 * rate
    error = math.sqrt(3 / 2 * float(sums @ sums)) / 6
    z2 = 4.302653**2 / (rate * (1 - rate) / error**2)
    centre = (rate + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * rate * (1 - rate) + z2 * z2 / 4) / (1 + z2)
    assert (found.mean, found.n, found.clusters) == (pytest.approx(rate), 6, 3)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-5)


def test_reliability_by_hand() -> None:
    """Confidences .525, .525, .975: bins 0, 0, 9."""
    small, large = math.log(0.525 / 0.475), math.log(0.975 / 0.025)
    rows = reliability([small, -small, large])
    assert [row["n"] for row in rows] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert rows[0]["confidence"] == pytest.approx(0.525)
    assert rows[0]["right"]["mean"] == 0.5
    assert rows[9]["right"]["mean"] == 1.0
    assert rows[1]["right"] is rows[1]["confidence"] is None
    # (2/3) |.5 - .525| + (1/3) |1 - .975|
    assert calibration_error([small, -small, large]).mean == pytest.approx(0.025)


def test_which_response_is_called_chosen_first_does_not_matter() -> None:
    assert (
        reliability([0.0, 800.0, -800.0])[9]["n"] == 2
    )  # far from overflow, and 1.0 falls into the last bin
    assert calibration_error([800.0]).mean == 0.0
    assert calibration_error([-800.0]).mean == 1.0


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_is_that_of_scipy_and_covers_the_truth(truth: float) -> None:
    margins = drawn(3000, truth)
    found = calibrating_temperature(margins)
    best = minimize_scalar(
        lambda log_t: np.logaddexp(0, -margins / np.exp(log_t)).mean(), bounds=(-4, 4), method="bounded"
    )
    assert found.mean == pytest.approx(math.exp(best.x), rel=1e-3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < truth < found.high
    assert calibration_error(margins / found.mean).mean < 0.04
    if truth == 3.0:
        assert calibration_error(margins).low > 0.1  # overconfident


def test_pairs_of_one_prompt_widen_the_intervals() -> None:
    margins = np.repeat(drawn(100, 1.0), 8)
    prompts = [place // 8 for place in range(800)]
    for measure in (calibration_error, calibrating_temperature):
        alone, together = measure(margins), measure(margins, prompts)
        assert alone.mean == together.mean
        assert together.clusters == 100
        assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_no_temperature_where_there_is_none() -> None:
    assert calibrating_temperature([1.0, 2.0, 0.5]).mean is None  # always right: the sharper the better
    assert calibrating_temperature([-1.0, -2.0, 0.5]).mean is None  # worse than chance
    assert calibrating_temperature([0.0, 0.0]).mean is None
    assert calibrating_temperature([]).mean is None
    assert calibration_error([]).mean is None
    with pytest.raises(ValueError, match="not a finite"):
        calibration_error([math.nan])


def test_the_picture_is_an_svg_with_a_point_per_bin() -> None:
    rows = reliability(drawn(500, 1.0))
    root = ElementTree.fromstring(reliability_picture(rows, "a <model> & more"))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == sum(row["n"] > 0 for row in rows) == 10
    heights = [float(circle.get("cy") or 0) for circle in circles]
    assert heights[0] > heights[-1]  # the surer, the more often right
    assert re.search(r"a &lt;model&gt;", reliability_picture(rows, "a <model> & more"))
