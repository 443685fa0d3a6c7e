"""How often a reward model is right, and how far its probabilities can be trusted. numpy only.

A pair's margin m = score(chosen) - score(rejected); the model says p = sigmoid(m) for the chosen response. Which of the two is
called first is arbitrary, so a pair is read from the side that the model prefers: confidence = max(p, 1 - p), from 1/2 to 1, and
right is 1, 1/2 (m = 0) or 0.
"""

from __future__ import annotations

import html
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail.evaluation.stats import Interval, rate_interval

Floats = NDArray[np.float64]

BINS = 10
RESAMPLES = 500
_HALVINGS = 60


def accuracy(margins: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """Share of pairs whose chosen response scores higher, ties one half, with its 95% interval clustered by prompt.

    >>> accuracy([1.0, 2.0, -1.0, 0.0]).mean
    0.625
    """
    return rate_interval(_right(_data(margins)), clusters)


def reliability(margins: Sequence[float], clusters: Sequence[Hashable] | None = None) -> list[dict[str, Any]]:
    """BINS rows of equal width over confidence 1/2 to 1: low, high, n, mean confidence, and `right`, the share that is right with
    its interval; both None in an empty bin. Of a calibrated model, `right` is the mean confidence."""
    data = _data(margins)
    confidence, right, place = _confidence(data), _right(data), _bins(data)
    rows = []
    for number in range(BINS):
        inside = place == number
        keys = None if clusters is None else [key for key, hit in zip(clusters, inside, strict=True) if hit]
        some = bool(inside.any())
        rows.append(
            {
                "low": 0.5 + 0.5 * number / BINS,
                "high": 0.5 + 0.5 * (number + 1) / BINS,
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()) if some else None,
                "right": asdict(rate_interval(right[inside], keys)) if some else None,
            }
        )
    return rows


def calibration_error(
    margins: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """ECE = sum over bins of (n_bin / n) |share right - mean confidence|, in [0, 1], with a percentile interval from resampled
    clusters. It is biased upwards, by about the sampling error of a bin: that of few pairs is not comparable with that of many.

    >>> calibration_error([0.0, 0.0]).mean
    0.0
    """
    data = _data(margins)
    if not len(data):
        return Interval(None, None, None, 0, 0)
    group, groups = _groups(len(data), clusters)
    gaps, sizes = np.zeros((groups, BINS)), np.bincount(group, minlength=groups).astype(float)
    np.add.at(gaps, (group, _bins(data)), _right(data) - _confidence(data))
    value = float(np.abs(gaps.sum(axis=0)).sum() / len(data))
    if groups == 1:
        return Interval(value, None, None, len(data), 1)
    drawn = _resamples(groups, seed)
    low, high = np.quantile(np.abs(drawn @ gaps).sum(axis=1) / (drawn @ sizes), [0.025, 0.975])
    return Interval(value, float(low), float(high), len(data), groups)


def calibrating_temperature(
    margins: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """The T > 0 that minimises the mean of log(1 + exp(-m / T)), in the unit of the scores: oracle.temperature for calibrated
    probabilities. The mean is None where there is none: every pair is right (T goes to 0), or the model is no better than chance
    (T goes to infinity). Percentile interval from resampled clusters; a limit that is 0 or infinite is None.
    """
    data = _data(margins)
    group, groups = _groups(len(data), clusters)
    value = None if not len(data) else _finite(_temperatures(data, np.ones((1, len(data))))[0])
    if value is None or groups < 2:
        return Interval(value, None, None, len(data), groups)
    found = _temperatures(data, _resamples(groups, seed)[:, group])
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    return Interval(value, _finite(low), _finite(high), len(data), groups)


def _temperatures(data: Floats, weights: Floats) -> Floats:
    """The best T of each row of weights (R, n), by bisection on a = 1/T: the derivative of the loss in a increases, and is
    -sum of w m sigmoid(-a m)."""
    scale = float(np.abs(data).max())
    if scale == 0:
        return np.full(len(weights), np.inf)
    unit = data / scale
    low, high = np.zeros(len(weights)), np.full(len(weights), 1e4)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        slope = -np.einsum("rn,n,rn->r", weights, unit, _sigmoid(-np.outer(middle, unit)))
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    found = scale / ((low + high) / 2)
    never_wrong = weights[:, data < 0].sum(axis=1) == 0
    return np.where(weights @ unit <= 0, np.inf, np.where(never_wrong, 0.0, found))


def _finite(value: Any) -> float | None:
    return float(value) if 0 < value < np.inf else None


def _data(margins: Sequence[float]) -> Floats:
    data = np.asarray(margins, dtype=np.float64).reshape(-1)
    if not np.isfinite(data).all():
        raise ValueError("a margin is not a finite number")
    return data


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(values / 2)))


def _confidence(data: Floats) -> Floats:
    return _sigmoid(np.abs(data))


def _right(data: Floats) -> Floats:
    return (data > 0) + 0.5 * (data == 0)


def _bins(data: Floats) -> NDArray[np.intp]:
    return np.minimum(((_confidence(data) - 0.5) * 2 * BINS).astype(np.intp), BINS - 1)


def _groups(count: int, clusters: Sequence[Hashable] | None) -> tuple[NDArray[np.intp], int]:
    if clusters is None:
        return np.arange(count, dtype=np.intp), count
    number: dict[Hashable, int] = {}
    group = np.array([number.setdefault(key, len(number)) for key in clusters], dtype=np.intp)
    return group, len(number)


def _resamples(groups: int, seed: int) -> Floats:
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    return np.asarray(drawn, dtype=np.float64)


def reliability_picture(rows: Sequence[dict[str, Any]], title: str) -> str:
    """The reliability table as an SVG: share right over confidence, with intervals, and the diagonal of a calibrated model."""
    side, edge = 300, 50

    def x(value: float) -> float:
        return edge + (value - 0.5) * 2 * side

    def y(value: float) -> float:
        return 30 + (1 - value) * side

    bottom, parts = y(0), []
    for tick in range(6):
        across, up = 0.5 + tick / 10, tick / 5
        parts.append(
            f'<line x1="{edge}" x2="{edge + side}" y1="{y(up):.0f}" y2="{y(up):.0f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{edge - 6}" y="{y(up) + 4:.0f}" text-anchor="end">{up:.1f}</text>')
        parts.append(
            f'<text x="{x(across):.0f}" y="{bottom + 18:.0f}" text-anchor="middle">{across:.1f}</text>'
        )
    parts.append(
        f'<line x1="{edge}" y1="{y(0.5):.0f}" x2="{edge + side}" y2="{y(1):.0f}" stroke="#888" stroke-dasharray="5 4"/>'
    )
    for row in rows:
        if not row["n"]:
            continue
        right, across = row["right"], x(row["confidence"])
        if right["low"] is not None:
            ends = f'y1="{y(right["low"]):.1f}" y2="{y(right["high"]):.1f}"'
            parts.append(
                f'<line x1="{across:.1f}" x2="{across:.1f}" {ends} stroke="#0072b2" stroke-width="2"/>'
            )
        parts.append(
            f'<circle cx="{across:.1f}" cy="{y(right["mean"]):.1f}" r="4" fill="#0072b2"><title>n {row["n"]}</title></circle>'
        )
    labels = (
        f'<text x="{edge}" y="18" font-weight="bold">{html.escape(title)}</text>'
        f'<text x="{edge + side / 2:.0f}" y="{bottom + 38:.0f}" text-anchor="middle">confidence of the reward model</text>'
        f'<text transform="translate(14,{30 + side / 2:.0f}) rotate(-90)" text-anchor="middle">share of pairs it has right</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {edge + side + 20} {side + 80}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{labels}{"".join(parts)}</svg>\n'
    )
