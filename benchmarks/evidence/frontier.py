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


def resamples(prompts: int, seed: int = 0) -> Floats:
    """(1 + RESAMPLES, P) weights that sum to 1: first all prompts alike, then bootstrap resamples of them."""
    chance = np.random.default_rng(seed)
    drawn = chance.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=RESAMPLES)
    return np.vstack([np.ones((1, prompts)), drawn]) / prompts


def read_at(x: Floats, y: Floats, level: float | Floats) -> Floats:
    """y where the polyline (x, y) first reaches `level`, (R,); NaN where it never does. x, y: (R, K); x starts at 0."""
    level = np.broadcast_to(np.asarray(level, dtype=float), x.shape[:1])
    reached = x >= level[:, None]
    at = reached.argmax(axis=1)
    rows = np.arange(len(x))
    before = np.maximum(at - 1, 0)
    width = x[rows, at] - x[rows, before]
    share = np.divide(level - x[rows, before], width, out=np.ones_like(width), where=width > 0)
    found = y[rows, before] + share * (y[rows, at] - y[rows, before])
    return np.where(reached.any(axis=1), found, np.nan)


def common_kl(one: Curve, other: Curve) -> float:
    """The largest KL that both runs reach, in nats per response."""
    return float(min(one.kl.mean(axis=1).max(), other.kl.mean(axis=1).max()))


def gap_at_equal_kl(one: Curve, other: Curve, weights: Floats, levels: Sequence[float]) -> Floats:
    """Reward of `one` minus reward of `other` at equal KL, averaged over `levels`, (R,). Paired: the same resample of prompts."""
    gaps = [read_at(*one.means(weights), level) - read_at(*other.means(weights), level) for level in levels]
    # A resample in which one of them stays just below the level has no value there.
    return np.nanmean(gaps, axis=0)


def range_levels(top: float, parts: int = 8) -> list[float]:
    """KL levels over the common range, from a quarter of it to its end."""
    return [top * (0.25 + 0.75 * part / (parts - 1)) for part in range(parts)]


def interval(values: Floats) -> dict[str, float]:
    """The estimate on all prompts (first value) with the percentile interval of the resamples."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
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
