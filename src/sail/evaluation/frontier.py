"""Reward over KL: two runs read at equal distance from the reference. No torch.

A curve is a run's points (KL in nats per response, reward), one per checkpoint or evaluation. Between points it is read by linear
interpolation over KL, outside its range not at all: what a method would do at a KL that it never had is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Curve = list[tuple[float, float]]

READS = 5


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


def at_equal_kl(one: Curve, other: Curve, *, reads: int = READS) -> dict[str, Any] | None:
    """Both curves at `reads` evenly spaced values of KL over their common range, and the mean of `one` less `other` there.

    {"low", "high": the range; "reads": [{"kl", "reward", "reward_to", "difference"}]; "mean_difference"}; None if the curves
    have no range in common, or either has fewer than two points.
    """
    if len(one) < 2 or len(other) < 2:
        return None
    low, high = max(one[0][0], other[0][0]), min(one[-1][0], other[-1][0])
    if not low < high:
        return None
    rows = []
    for place in range(reads):
        # The last one as it is: rounding must not push it out of the range.
        kl = high if place == reads - 1 else low + (high - low) * place / (reads - 1)
        a, b = read_at(one, kl), read_at(other, kl)
        if a is not None and b is not None:
            rows.append({"kl": kl, "reward": a, "reward_to": b, "difference": a - b})
    mean = sum(row["difference"] for row in rows) / len(rows)
    return {"low": low, "high": high, "reads": rows, "mean_difference": mean}
