"""Whether a curve of evaluations has fallen from its best, beyond what choosing the best of noise gives.

The best of several evaluations is partly luck, so it may not be compared with later ones as if it had been named beforehand.
What is compared with: the same measurement on curves that are flat and nothing but noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST = 4  # evaluations: two around the best, two at the end
ALARMS, MOST = (
    0.3,
    0.05,
)  # share of flat curves with an alarm: ALARMS / evaluations, at most MOST, at least LEAST
LEAST = 0.002
DRAWS, NUMBERS = 20_000, 1_000_000  # flat curves at most; numbers in all of them at most
FEWEST_DRAWS = 4_000


@dataclass(frozen=True)
class Fall:
    """size: mean around the best minus mean at the end. peak: place of the first evaluation around the best. width: evaluations
    in either mean. certain: beyond what flat curves give."""

    size: float
    peak: int
    width: int
    certain: bool


def fallen(rewards: list[float], error: float) -> Fall:
    """The fall of `rewards` from the mean of its best neighbours to the mean of its last ones.

    error: standard error of one evaluation (over its prompts), in the unit of the rewards. Two or an eighth of the evaluations
    make a mean. The fall must be large both against `error`, which is too wide for evaluations that share prompts and random
    numbers, and against the scatter of the curve itself, which few evaluations tell badly: `limits` says how large.
    """
    values = np.asarray(rewards, dtype=np.float64)
    width = _width(len(values))
    means = _means(values[None, :-width], width)[0]
    peak = int(np.argmax(means))
    size = float(means[peak] - values[-width:].mean())
    by_error, by_scatter, alone = limits(len(values))
    both = size > by_error * error and size > by_scatter * float(_scatter(values[None])[0])
    return Fall(size, peak, width, size > 0 and (both or size > alone * error))


@lru_cache(maxsize=64)
def limits(count: int) -> tuple[float, float, float]:
    """How many errors, and how many times its scatter, a curve of `count` evaluations must have fallen; and the errors that do
    alone, where a cliff hides in its own scatter.

    Of flat curves of independent Gaussian noise with the stated error, the worst case, the share min(ALARMS / count, MOST) is
    beyond both; either limit alone is passed by one and the same share. The last
    limit is passed by LEAST of them. By simulation from a fixed seed.
    """
    draws = max(FEWEST_DRAWS, min(DRAWS, NUMBERS // count))
    noise = np.random.default_rng(count).standard_normal((draws, count))
    width = _width(count)
    size = _means(noise[:, :-width], width).max(axis=1) - noise[:, -width:].mean(axis=1)
    ratio = size / _scatter(noise)
    # the share of curves of which the worse of both ranks is at least this high is the share beyond both limits
    ranks = np.minimum(np.argsort(np.argsort(size)), np.argsort(np.argsort(ratio)))
    rank = int(np.quantile(ranks, 1 - max(LEAST, min(ALARMS / count, MOST))))
    return float(np.sort(size)[rank]), float(np.sort(ratio)[rank]), float(np.quantile(size, 1 - LEAST))


def _width(count: int) -> int:
    return max(2, count // 8)


def _means(values: Array, width: int) -> Array:
    """Means of `width` neighbours along the last axis: (rows, n) -> (rows, n - width + 1)."""
    return np.lib.stride_tricks.sliding_window_view(values, width, axis=1).mean(axis=2)


def _scatter(values: Array) -> Array:
    """The noise of each row, from second differences (a slope has none), a quarter of which, the largest, may be true bends.

    Root of mean square / 6, the variance of second differences of unit noise; too small by the trimming, as in `limits` too.
    """
    squares = np.sort((values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]) ** 2, axis=1)
    kept = squares[:, : squares.shape[1] - max(1, squares.shape[1] // 4)]
    return np.maximum(np.sqrt(kept.mean(axis=1) / 6), 1e-12)
