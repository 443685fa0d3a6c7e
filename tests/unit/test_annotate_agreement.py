"""Krippendorff's alpha against his own worked example, Cohen's kappa by hand, and what must not move it."""

from __future__ import annotations

import numpy as np
import pytest

from sail.annotate.agreement import agreement, alpha

# K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units, five values,
# missing data. He gives .743 (nominal) and .815 (ordinal).
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def published() -> np.ndarray:
    rows = [row.split() for row in OBSERVERS]
    return np.array(
        [[sum(row[unit] == str(value) for row in rows) for value in range(1, 6)] for unit in range(12)],
        dtype=float,
    )


@pytest.mark.parametrize(("scale", "expected"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_the_published_example(scale: str, expected: float) -> None:
    assert round(alpha(published(), scale) or 0, 3) == expected


def test_cohens_kappa_by_hand() -> None:
    """Two people, 20 pairs: both first 8, both second 6, once each way 3 and 3. Observed agreement 14/20 = .7; each says first in
    11 of 20, so chance agrees in .55^2 + .45^2 = .505; kappa = (.7 - .505) / (1 - .505). With equal margins alpha differs
    from kappa only by its correction for the number of values n = 40: 1 - alpha = (1 - kappa) (n - 1) / n."""
    pairs = [["first"] * 2] * 8 + [["second"] * 2] * 6 + [["first", "second"]] * 3 + [["second", "first"]] * 3
    kappa = (0.7 - 0.505) / (1 - 0.505)
    found = agreement({str(place): given for place, given in enumerate(pairs)}, scale="nominal")
    assert found.alpha == pytest.approx(1 - (1 - kappa) * 39 / 40, abs=1e-12)
    assert (found.pairs, found.verdicts) == (20, 40)
    # of two categories the scale does not matter
    assert agreement({str(place): given for place, given in enumerate(pairs)}).alpha == pytest.approx(
        found.alpha
    )


def test_a_tie_is_nearer_than_the_opposite() -> None:
    sure = {f"{pair} {side}": [side] * 2 for pair in range(6) for side in ("first", "second")}
    near = agreement({**sure, "x": ["first", "tie"], "y": ["tie", "second"]})
    far = agreement({**sure, "x": ["first", "second"], "y": ["tie", "tie"]})
    assert near.alpha is not None
    assert far.alpha is not None
    assert near.alpha > far.alpha
    assert agreement(sure).alpha == pytest.approx(1.0)


def test_skips_and_lone_labels_are_missing_values() -> None:
    pairs = {"a": ["first", "first"], "b": ["second", "second"], "c": ["first", "second"]}
    with_missing = {**pairs, "a": ["first", "skip", "first"], "d": ["tie"], "e": ["skip", "skip"], "f": []}
    assert agreement(with_missing) == agreement(pairs)


def test_where_nothing_can_be_said() -> None:
    nobody = agreement({"a": ["first"], "b": []})
    assert (nobody.alpha, nobody.pairs) == (None, 0)
    assert "two people" in (nobody.why or "")
    same = agreement({"a": ["first"] * 2, "b": ["first"] * 3})
    assert same.alpha is None
    assert "same" in (same.why or "")


def test_the_interval_covers_and_is_clustered_by_prompt() -> None:
    """Pairs of one prompt that agree with each other say less: the interval by prompt is wider. One prompt has none."""
    chance = np.random.default_rng(0)
    pairs, prompts = {}, {}
    for prompt in range(12):
        agrees = chance.random() < 0.7
        for place in range(8):
            side, other = ("first", "second") if chance.random() < 0.5 else ("second", "first")
            pairs[f"{prompt}/{place}"] = [side, side if agrees else other]
            prompts[f"{prompt}/{place}"] = prompt
    alone, clustered = agreement(pairs), agreement(pairs, prompts)
    assert alone.alpha == clustered.alpha
    for one in (alone, clustered):
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.alpha < one.high <= 1.0  # type: ignore[operator]
    assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)  # type: ignore[operator]
    assert agreement(pairs, dict.fromkeys(pairs, "one")).low is None
    assert agreement(pairs, prompts) == clustered
