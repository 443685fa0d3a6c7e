"""A win rate with the effect of length taken out. numpy only."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from sail.evaluation.stats import Floats, Interval, rate_interval

RIDGE = 0.01
"""Weight of a normal prior with standard deviation 10 on both coefficients: nothing beside data, finite without it."""
_CHUNK = 2_000_000


def length_controlled(
    outcomes: Sequence[float],
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """The win rate predicted at equal length: sigmoid(a) of the logistic regression P(win) = sigmoid(a + b z).

    outcomes: 1, 0.5 (tie) or 0 of n comparisons; differences: length of the judged response less that of its rival, in any unit;
    z is that difference over its root mean square, so z = 0 is equal length. Interval: bootstrap over prompts, percentiles.

    What it assumes: the log-odds of winning are linear in the length difference, the same for every prompt; and length is a mere
    bias of the judge. Where a longer answer is better *because* of what the length lets it say, the control takes real quality
    out too; where hardly any pair has equal length, the value at z = 0 is extrapolated. Read it beside the plain rate, never
    instead of it. With every outcome the same, or every length equal, nothing can be controlled for: the plain rate is returned.
    After Dubois et al., arXiv 2404.04475, without their terms per model and instruction. Raises ValueError as `rate_interval`.
    """
    y, x = np.asarray(outcomes, dtype=np.float64), np.asarray(differences, dtype=np.float64)
    if len(y) != len(x):
        raise ValueError(f"{len(y)} outcomes but {len(x)} length differences")
    plain = rate_interval(y, clusters, level=level)
    scale = float(np.sqrt(np.mean(x**2))) if len(x) else 0.0
    if scale == 0.0 or len(set(y.tolist())) == 1 or plain.low is None:
        return plain
    keys = range(len(y)) if clusters is None else clusters
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.intp)
    z, groups = x / scale, len(number)
    whole = _fit(z, y, np.ones((1, len(y))))
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(y))
    parts = []
    for done in range(0, resamples, rows):
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(rows, resamples - done))
        parts.append(_fit(z, y, drawn[:, index].astype(np.float64), start=whole[0]))
    low, high = np.quantile(np.concatenate(parts)[:, 0], [(1 - level) / 2, (1 + level) / 2])
    rate, low, high = (float(1.0 / (1.0 + np.exp(-value))) for value in (whole[0, 0], low, high))
    return Interval(rate, min(low, rate), max(high, rate), len(y), groups)


def _fit(z: Floats, y: Floats, weights: Floats, start: Floats | None = None) -> Floats:
    """(a, b) of each row of weights (R, n), by Newton's method from `start`: (R, 2)."""
    beta = np.zeros((len(weights), 2)) if start is None else np.tile(start, (len(weights), 1))
    squares = z * z
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(beta[:, :1] + beta[:, 1:] * z, -40.0, 40.0)))
        residual, spread = weights * (y - p), weights * p * (1.0 - p)
        g0, g1 = residual.sum(1) - RIDGE * beta[:, 0], residual @ z - RIDGE * beta[:, 1]
        h00, h01, h11 = spread.sum(1) + RIDGE, spread @ z, spread @ squares + RIDGE
        det = h00 * h11 - h01 * h01
        step = np.stack([(h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det], axis=1)
        # Far from the optimum a Newton step overshoots; the objective is concave, so short steps arrive.
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        beta += step
        if np.abs(step).max() < 1e-8:
            break
    return beta
