"""Reward over KL: two runs read at equal distance from the reference. No torch.

A curve is a run's points (KL in nats per response, reward), one per checkpoint or evaluation. Between points it is read by linear
interpolation over KL, outside its range not at all: what a method would do at a KL that it never had is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sail.evaluation.stats import FEW_CLUSTERS, Floats, Interval

Curve = list[tuple[float, float]]

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Where in their common range two curves are read. Not at its lower end: there both runs usually are the same start, whose
difference is 0 whatever the methods do."""

Cells = dict[str, list[tuple[float, float]]]
"""Of each prompt: (log pi - log pi_ref, reward) at every point of a curve, the points in one order for all prompts."""


def as_curve(points: Sequence[tuple[float | None, float | None]]) -> Curve:
    """Points in the order of KL, without those where something is missing; points at the same KL become their mean.

    A run whose KL falls again on its way is read as if its points had come in the order of KL.
    """
    found: dict[float, list[float]] = {}
    for kl, reward in points:
        if kl is not None and reward is not None:
            found.setdefault(kl, []).append(reward)
    return [(kl, sum(rewards) / len(rewards)) for kl, rewards in sorted(found.items())]


def read_at(curve: Curve, kl: float) -> float | None:
    """The reward at a KL; None outside the curve's range.

    >>> read_at([(0.0, 0.0), (2.0, 1.0)], 0.5), read_at([(0.0, 0.0), (2.0, 1.0)], 3.0)
    (0.25, None)
    """
    if not curve or not curve[0][0] <= kl <= curve[-1][0]:
        return None
    for (left, low), (right, high) in pairwise(curve):
        if kl <= right:
            return low + (high - low) * (kl - left) / (right - left)
    return curve[-1][1]


def at_equal_kl(one: Curve, other: Curve) -> dict[str, Any] | None:
    """Both curves at a quarter, half, three quarters and the end of their common range of KL, and the mean of `one` less `other`
    there.

    {"low", "high": the first and the last KL that is read; "reads": [{"kl", "reward", "reward_to", "difference"}];
    "mean_difference"}; None if the curves have no range in common, or either has fewer than two points.
    """
    if len(one) < 2 or len(other) < 2:
        return None
    low, high = max(one[0][0], other[0][0]), min(one[-1][0], other[-1][0])
    if not low < high:
        return None
    rows = []
    for share in SHARES:
        # The last one as it is: rounding must not push it out of the range.
        kl = high if share == 1.0 else low + (high - low) * share
        a, b = read_at(one, kl), read_at(other, kl)
        if a is not None and b is not None:
            rows.append({"kl": kl, "reward": a, "reward_to": b, "difference": a - b})
    mean = sum(row["difference"] for row in rows) / len(rows)
    return {"low": rows[0]["kl"], "high": high, "reads": rows, "mean_difference": mean}


def at_equal_kl_by_prompt(
    one: Cells, other: Cells, *, level: float = 0.95, seed: int = 0, resamples: int = 1000
) -> dict[str, Any] | None:
    """`at_equal_kl` on the prompts that both runs were asked, and "interval" (`Interval`): a percentile bootstrap of
    `mean_difference` over those prompts.

    Paired: each resample of prompts makes both curves anew, their common range with them, and reads them there. It says what
    other prompts would have told of these two runs, not what other training seeds would have. None with fewer than
    `FEW_CLUSTERS` shared prompts, without a common range, or if more than one resample in twenty has none.
    """
    shared = [prompt for prompt in one if prompt in other]
    if len(shared) < FEW_CLUSTERS:
        return None
    mine, theirs = (np.array([cells[prompt] for prompt in shared], dtype=float) for cells in (one, other))
    whole = at_equal_kl(_curve(mine.mean(axis=0)), _curve(theirs.mean(axis=0)))
    if whole is None:
        return None
    count, chance = len(shared), np.random.default_rng(seed)
    found = []
    for weights in chance.multinomial(count, np.full(count, 1 / count), size=resamples) / count:
        ours, others = (np.tensordot(weights, cells, axes=1) for cells in (mine, theirs))
        read = at_equal_kl(_curve(ours), _curve(others))
        if read is not None:
            found.append(read["mean_difference"])
    if len(found) < 0.95 * resamples:
        return None
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return {**whole, "interval": Interval(whole["mean_difference"], float(low), float(high), count, count)}


def _curve(points: Floats) -> Curve:
    """Points (K, 2) of KL and reward as a curve."""
    return as_curve([(float(kl), float(reward)) for kl, reward in points])
