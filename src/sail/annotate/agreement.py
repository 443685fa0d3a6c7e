"""Krippendorff's alpha: how far several annotators agree beyond chance, with any number of them and with labels missing.

Source: K. Krippendorff, Content Analysis, 2nd edition, chapter 11; Computing Krippendorff's Alpha-Reliability (2011), whose
worked example the tests hold.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ORDER = ("first", "tie", "second")
"""The verdicts as a scale: a tie lies between the two texts."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Agreement:
    """alpha: 1 = always the same, 0 = as by chance, below 0 = opposite; None where nothing can be said, and `why` says why.

    low, high: 95% interval by resampling prompts. pairs: those with two or more verdicts; verdicts: theirs.
    """

    alpha: float | None
    low: float | None
    high: float | None
    pairs: int
    verdicts: int
    why: str | None = None


def alpha(units: Floats, scale: str = "ordinal") -> float | None:
    """Krippendorff's alpha of `units` (U, K): how many annotators put unit u into category k; `scale` is nominal or ordinal.

        alpha = 1 - (n - 1) * sum_ck o_ck d_ck / sum_ck n_c n_k d_ck        o_ck = sum_u n_uc (n_uk - [c = k]) / (m_u - 1)
        d_ck = [c != k]  or  (sum of n_g from c to k - (n_c + n_k) / 2)^2

    over units with m_u >= 2 values. None if there is no such unit, or if all values are in one category: chance would agree.
    """
    values = alphas(np.asarray(units, dtype=np.float64)[None], scale)
    return None if np.isnan(values[0]) else float(values[0])


def alphas(samples: Floats, scale: str) -> Floats:
    """The same for several sets of units at once, (S, U, K) -> (S,); NaN where it is undefined."""
    size = samples.sum(-1, keepdims=True)
    paired = np.where(size >= 2, samples, 0.0)
    weight = np.where(size >= 2, 1.0 / np.maximum(size - 1, 1), 0.0)
    together = np.einsum("suc,suk->sck", paired * weight, paired)
    alone = (paired * weight).sum(1)
    categories = samples.shape[-1]
    together[:, range(categories), range(categories)] -= alone
    return _from_coincidences(together, scale)


def _from_coincidences(together: Floats, scale: str) -> Floats:
    """alpha of coincidence matrices o, (S, K, K) -> (S,)."""
    counts = together.sum(-1)
    total = counts.sum(-1)
    distance = _distances(counts, scale)
    observed = (together * distance).sum((-2, -1))
    expected = (counts[:, :, None] * counts[:, None, :] * distance).sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1.0 - (total - 1.0) * observed / expected, np.nan)


def _distances(counts: Floats, scale: str) -> Floats:
    categories = counts.shape[-1]
    if scale == "nominal":
        return np.broadcast_to(1.0 - np.eye(categories), (len(counts), categories, categories))
    upto = np.cumsum(counts, -1) - counts / 2
    # From the middle of one category to the middle of the other: half of each, and all that lies between.
    return (upto[:, :, None] - upto[:, None, :]) ** 2


def agreement(
    verdicts: Mapping[str, Sequence[str]],
    prompts: Mapping[str, Hashable] | None = None,
    scale: str = "ordinal",
    *,
    seed: int = 0,
) -> Agreement:
    """alpha over the verdicts of each pair (first, tie, second; others are missing values), with its interval.

    prompts: the prompt of each pair; pairs of one prompt are resampled together. Fewer than two prompts give no interval.
    """
    rows: list[list[int]] = []
    groups: list[Hashable] = []
    for pair, given in verdicts.items():
        counts = [sum(verdict == name for verdict in given) for name in ORDER]
        if sum(counts) >= 2:
            rows.append(counts)
            groups.append(pair if prompts is None else prompts[pair])
    units = np.array(rows, dtype=np.float64).reshape(-1, len(ORDER))
    size = int(units.sum())
    if not rows:
        return Agreement(None, None, None, 0, 0, "no pair has the verdicts of two people yet")
    value = alpha(units, scale)
    if value is None:
        return Agreement(
            None, None, None, len(rows), size, "all verdicts are the same, so chance would agree too"
        )
    low, high = _interval(units, groups, scale, seed)
    return Agreement(value, low, high, len(rows), size)


def _interval(
    units: Floats, groups: Sequence[Hashable], scale: str, seed: int
) -> tuple[float | None, float | None]:
    """The middle 95% of alpha over resampled prompts; the coincidences of a resample are a weighted sum, so no unit is copied."""
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    if len(names) < 2:
        return None, None
    per_group = np.zeros((len(names), len(ORDER), len(ORDER)))
    for row, group in zip(units, groups, strict=True):
        per_group[names[group]] += (np.outer(row, row) - np.diag(row)) / (row.sum() - 1)
    chance = np.random.Generator(np.random.Philox(seed))
    times = chance.multinomial(len(names), [1 / len(names)] * len(names), RESAMPLES).astype(np.float64)
    values = _from_coincidences(np.einsum("sg,gck->sck", times, per_group), scale)
    values = values[~np.isnan(values)]
    if len(values) < RESAMPLES / 2:
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
