"""How much a model's responses differ from each other and from themselves. Sequences of tokens in, intervals out. No torch.

Tokens are anything hashable: the model's ids (exact in every language), or words where only the text is known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from sail.evaluation.stats import Floats, Interval, rate_interval, t_quantile

Tokens = Sequence[Hashable]

SAMPLE = 1000
"""n-grams that distinct-n is read at. It falls as text grows, so only values at the same number may be compared."""
GROUPS = 40
SELF_ORDER = 4


def ngrams(tokens: Tokens, order: int) -> list[tuple[Hashable, ...]]:
    """The n-grams of one response, in order; none if it is shorter.

    >>> ngrams("abc", 2)
    [('a', 'b'), ('b', 'c')]
    """
    return [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]


def distinct(
    responses: Sequence[Tokens], order: int, clusters: Sequence[Hashable], *, sample: int = SAMPLE
) -> Interval | None:
    """distinct-n: the share of different n-grams among `sample` n-grams drawn without replacement from all responses.

    Its expectation over all draws is exact (rarefaction, Hurlbert 1971): (1/m) sum over kinds of 1 - C(N - k, m) / C(N, m), with
    N n-grams in all, k of a kind, m = sample. In [0, 1]; 1: no n-gram twice. The number m is fixed because the plain ratio falls
    as text grows (Zipf), so that a model that says less would seem more diverse; with fewer n-grams than that the result is
    None. The interval is the delete-one-group jackknife over at most 40 groups of prompts (Student's t): copying prompts, as a
    bootstrap does, would itself lower diversity. `n` counts n-grams. Source of distinct-n: Li et al., arXiv 1510.03055.
    """
    found = [ngrams(tokens, order) for tokens in responses]
    total = sum(map(len, found))
    groups = _groups(clusters)
    if total < sample:
        return None
    kinds: dict[Hashable, int] = {}
    index = [[kinds.setdefault(gram, len(kinds)) for gram in row] for row in found]
    counts = np.zeros((max(groups, default=0) + 1, len(kinds)))
    for row, group in zip(index, groups, strict=True):
        np.add.at(counts[group], row, 1.0)
    every = counts.sum(axis=0)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])  # log k!
    estimate = _rarefied(every, sample, logs)
    size, clustered = len(counts), len(set(clusters))
    left = [every - one for one in counts]
    if size < 2 or min(rest.sum() for rest in left) < sample:
        return Interval(estimate, None, None, total, clustered)
    without = np.array([_rarefied(rest, sample, logs) for rest in left])
    error = math.sqrt((size - 1) / size * float(((without - without.mean()) ** 2).sum()))
    half = t_quantile(0.95, size - 1) * error
    return Interval(estimate, max(estimate - half, 0.0), min(estimate + half, 1.0), total, clustered)


def self_repetition(responses: Sequence[Tokens], clusters: Sequence[Hashable]) -> Interval:
    """Mean share of 4-grams of a response that occurred before in the same response; 0 never, near 1 a loop.

    Responses of fewer than four tokens have none and are left out of n.
    """
    shares, keys = [], []
    for tokens, key in zip(responses, clusters, strict=True):
        grams = ngrams(tokens, SELF_ORDER)
        if grams:
            shares.append(1.0 - len(set(grams)) / len(grams))
            keys.append(key)
    return rate_interval(shares, keys)


def duplicates(responses: Sequence[Tokens], clusters: Sequence[Hashable]) -> Interval:
    """Share of responses that some *other* prompt was answered with too, token by token.

    It grows with the number of prompts asked, so compare it at equal n.
    """
    asked: dict[tuple[Hashable, ...], Counter[Hashable]] = {}
    for tokens, key in zip(responses, clusters, strict=True):
        asked.setdefault(tuple(tokens), Counter())[key] += 1
    return rate_interval([float(len(asked[tuple(tokens)]) > 1) for tokens in responses], clusters)


def _rarefied(counts: Floats, sample: int, logs: Floats) -> float:
    """Expected number of kinds among `sample` draws without replacement, over `sample`; logs[k] = log k!."""
    counts = counts[counts > 0]
    total = int(counts.sum())
    others = (total - counts).astype(int)
    possible = others >= sample  # else the kind is drawn for certain
    some = others[possible]
    missed = np.zeros(len(counts))
    missed[possible] = np.exp(logs[some] - logs[some - sample] - logs[total] + logs[total - sample])
    return float((1.0 - missed).sum() / sample)


def _groups(clusters: Sequence[Hashable]) -> list[int]:
    """Each prompt's group: prompts in turn, so that groups are of like size."""
    number: dict[Hashable, int] = {}
    return [number.setdefault(key, len(number)) % GROUPS for key in clusters]
