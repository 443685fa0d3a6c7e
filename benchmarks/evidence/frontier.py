"""A run as a frontier: reward against KL along its checkpoints, read off at equal KL, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True)
class Curve:
    """The checkpoints of a run, the start first: steps and oracle calls (K,); per prompt the gold reward and
    log pi / pi_start of the sampled answer (K, P)."""

    steps: Floats
    calls: Floats
    reward: Floats
    kl: Floats

    def means(self, weights: Floats) -> tuple[Floats, Floats]:
        """Mean KL (nats) and mean reward of each checkpoint, (R, K) each, under R resamples' weights (R, P)."""
        return weights @ self.kl.T, weights @ self.reward.T


def curve_of(run: dict[str, Any], start: Sequence[float]) -> Curve:
    """`start`: the rewards of the starting model on the same prompts and random numbers; its KL is 0."""
    points = run["checkpoints"]
    return Curve(
        np.array([0, *(point["step"] for point in points)], dtype=float),
        np.array([0, *(point["calls"] for point in points)], dtype=float),
        np.array([start, *(point["reward"] for point in points)], dtype=float),
        np.array([np.zeros(len(start)), *(point["kl"] for point in points)], dtype=float),
    )


def aligned(one: Curve, other: Curve) -> tuple[Curve, Curve]:
    """Both runs at the checkpoints that both have: with more of them a frontier reads higher."""
    steps = np.intersect1d(one.steps, other.steps)

    def at(curve: Curve) -> Curve:
        kept = np.isin(curve.steps, steps)
        return Curve(curve.steps[kept], curve.calls[kept], curve.reward[kept], curve.kl[kept])

    return at(one), at(other)


def resamples(prompts: int, seed: int = 0) -> Floats:
    """(1 + RESAMPLES, P) weights that sum to 1: first all prompts alike, then bootstrap resamples of them."""
    chance = np.random.default_rng(seed)
    drawn = chance.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=RESAMPLES)
    return np.vstack([np.ones((1, prompts)), drawn]) / prompts


def read_at(x: Floats, y: Floats, level: float | Floats) -> Floats:
    """The frontier of the polyline (x, y) at `level`: the largest y on it where x <= level; (R,). x, y: (R, K); x starts at 0.

    Its corners and the points where it crosses the level: what a user who may spend so much KL (or so many oracle calls) can have
    from this run. All runs have the same number of checkpoints to choose from.
    """
    level = np.broadcast_to(np.asarray(level, dtype=float), x.shape[:1])[:, None]
    corners = np.where(x <= level, y, -np.inf)
    before, after = x[:, :-1], x[:, 1:]
    crosses = (np.minimum(before, after) <= level) & (level <= np.maximum(before, after)) & (before != after)
    share = np.divide(level - before, after - before, out=np.zeros_like(before), where=before != after)
    crossings = np.where(crosses, y[:, :-1] + share * (y[:, 1:] - y[:, :-1]), -np.inf)
    return np.maximum(corners.max(axis=1), crossings.max(axis=1))


def common_kl(one: Curve, other: Curve, weights: Floats) -> Floats:
    """The largest KL that both runs reach, in nats per response, under each resample; (R,)."""
    return np.minimum(one.means(weights)[0].max(axis=1), other.means(weights)[0].max(axis=1))


def gap_at_equal_kl(one: Curve, other: Curve, weights: Floats, shares: Sequence[float]) -> Floats:
    """Reward of `one` minus reward of `other` at equal KL, averaged over levels that are `shares` of the largest common KL; (R,).

    Paired: both runs are read on the same resample of prompts, at the level that this resample gives, so that no resample is
    left out for not reaching a level.
    """
    one, other = aligned(one, other)
    top = common_kl(one, other, weights)
    mine, others = one.means(weights), other.means(weights)
    return np.mean([read_at(*mine, share * top) - read_at(*others, share * top) for share in shares], axis=0)


ALONG = tuple(0.25 + 0.65 * part / 7 for part in range(8))
"""From a quarter of the largest common KL to nine tenths of it: the very end is where the slower run happened to stop, and
reading only there favours the faster one."""


def interval(values: Floats) -> dict[str, float]:
    """The estimate on all prompts (first value) with the percentile interval of the resamples."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def over_seeds(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean over seeds with its t interval (each seed has its own model, data and run)."""
    from scipy.stats import t

    found = np.array(values, dtype=float)
    n = len(found)
    if n < 2:
        return {"mean": float(found[0]) if n else None, "low": None, "high": None, "n": n}
    half = float(t.ppf(0.975, n - 1) * found.std(ddof=1) / np.sqrt(n))
    return {
        "mean": float(found.mean()),
        "low": float(found.mean() - half),
        "high": float(found.mean() + half),
        "n": n,
    }


def compared(
    runs: dict[int, Curve], others: dict[int, Curve], measure: Callable[[Curve, Curve, Floats], Floats]
) -> dict[str, Any]:
    """A measured difference, per seed with its interval over prompts, and over the seeds both have."""
    seeds = sorted(set(runs) & set(others))
    per_seed = {}
    for seed in seeds:
        weights = resamples(runs[seed].reward.shape[1], seed)
        per_seed[seed] = interval(measure(runs[seed], others[seed], weights))
    return {
        "seeds": per_seed,
        "over_seeds": over_seeds([one["mean"] for one in per_seed.values()]),
        "above": sum(one["low"] > 0 for one in per_seed.values()),
        "below": sum(one["high"] < 0 for one in per_seed.values()),
    }
