"""A win rate with the effect of length taken out. numpy only."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

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
    z is that difference over its root mean square, so z = 0 is equal length. Interval: bootstrap over prompts of the studentised
    a (its cluster-robust error), since plain percentiles cover too seldom away from 1/2 (91 to 92% at rates .7 and .9).

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
    order = np.argsort(index, kind="stable")
    data = _Clustered(x[order] / scale, y[order], index[order])
    logit, error = (float(one[0]) for one in data.fit(np.ones((1, data.groups))))
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(y))
    parts = []
    for done in range(0, resamples, rows):
        share = np.full(data.groups, 1 / data.groups)
        drawn = rng.multinomial(data.groups, share, size=min(rows, resamples - done)).astype(np.float64)
        fitted, errors = data.fit(drawn)
        parts.append((fitted - logit) / errors)
    low, high = np.quantile(np.concatenate(parts), [(1 - level) / 2, (1 + level) / 2])
    limits = (logit, logit - high * error, logit - low * error)
    rate, below, above = (float(1.0 / (1.0 + np.exp(-value))) for value in limits)
    return Interval(rate, min(below, rate), max(above, rate), len(y), data.groups)


class _Clustered:
    """n comparisons in the order of their clusters: z (scaled length differences), y (outcomes), index (the cluster of each)."""

    def __init__(self, z: Floats, y: Floats, index: NDArray[np.intp]) -> None:
        self.z, self.y, self.index = z, y, index
        self.starts = np.flatnonzero(np.diff(index, prepend=-1))
        self.groups = len(self.starts)

    def fit(self, drawn: Floats) -> tuple[Floats, Floats]:
        """The intercept a of each row of cluster weights (R, clusters), and its cluster-robust standard error: both (R,)."""
        weights, z = drawn[:, self.index], self.z
        beta = np.zeros((len(drawn), 2))
        for _ in range(50):
            step, inverse, residual = self._newton(beta, weights)
            beta += step
            if np.abs(step).max() < 1e-8:
                break
        # The influence of each comparison on a, summed by cluster: the sandwich estimate.
        influence = np.add.reduceat((inverse[0] - inverse[1] * z) * residual, self.starts, axis=1)
        variance = (drawn * influence**2).sum(axis=1) * self.groups / (self.groups - 1)
        return beta[:, 0], np.sqrt(np.maximum(variance, 1e-12))

    def _newton(self, beta: Floats, weights: Floats) -> tuple[Floats, tuple[Floats, ...], Floats]:
        """One step towards the optimum (R, 2), the first row of the inverse Hessian as two columns (R, 1), and y - p (R, n)."""
        z, y = self.z, self.y
        p = 1.0 / (1.0 + np.exp(-np.clip(beta[:, :1] + beta[:, 1:] * z, -40.0, 40.0)))
        residual, spread = weights * (y - p), weights * p * (1.0 - p)
        g0, g1 = residual.sum(1) - RIDGE * beta[:, 0], residual @ z - RIDGE * beta[:, 1]
        h00, h01, h11 = spread.sum(1) + RIDGE, spread @ z, spread @ (z * z) + RIDGE
        det = h00 * h11 - h01 * h01
        step = np.stack([(h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det], axis=1)
        # Far from the optimum a Newton step overshoots; the objective is concave, so short steps arrive.
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        return step, ((h11 / det)[:, None], (h01 / det)[:, None]), y - p
