"""The numbers of an evaluation from what was sampled and scored: lists in, intervals by name out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any

from sail.evaluation.diversity import SAMPLE, distinct, duplicates, self_repetition
from sail.evaluation.stats import mean_interval, paired_interval, rate_interval, standard_error
from sail.generation.base import Sampled

Numbers = dict[str, dict[str, Any]]


def pair_numbers(
    policy: Sequence[tuple[float, float]],
    reference: Sequence[tuple[float, float]],
    beta: float,
    clusters: Sequence[Hashable],
) -> Numbers:
    """margin and accuracy over held-out pairs, from log pi and log pi_ref (nats) of (chosen, rejected).

    margin: h = beta * ((log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)), as training defines it, so in units of
    beta nats; 0 for the reference itself. accuracy: share of pairs with h > 0, ties one half.
    """
    margins = [beta * ((p[0] - r[0]) - (p[1] - r[1])) for p, r in zip(policy, reference, strict=True)]
    right = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
    return {
        "margin": asdict(mean_interval(margins, clusters)),
        "accuracy": asdict(rate_interval(right, clusters)),
    }


def score_number(scores: Sequence[float | None], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """The mean over the answers that have a score; "abstained" counts the others, where there are any.

    >>> score_number([1.0, None, 3.0], ["x", "y", "z"])["mean"]
    2.0
    """
    kept = [place for place, score in enumerate(scores) if score is not None]
    interval = mean_interval([scores[place] or 0.0 for place in kept], [clusters[place] for place in kept])
    return {**asdict(interval), **_abstained(scores, kept)}


def gain_number(
    ours: Sequence[float | None], theirs: Sequence[float | None], clusters: Sequence[Hashable]
) -> dict[str, Any]:
    """The mean of ours - theirs over the prompts where both have a score; "abstained" counts the others, where there are any."""
    kept = [place for place, both in enumerate(zip(ours, theirs, strict=True)) if None not in both]
    a, b = ([scores[place] or 0.0 for place in kept] for scores in (ours, theirs))
    return {**asdict(paired_interval(a, b, [clusters[place] for place in kept])), **_abstained(ours, kept)}


def _abstained(scores: Sequence[float | None], kept: Sequence[int]) -> dict[str, int]:
    return {"abstained": len(scores) - len(kept)} if len(kept) < len(scores) else {}


def unscored_note(who: str, *scores: Sequence[float | None]) -> list[str]:
    """That answers have no score, as a note; nothing where all have one."""
    count, missing = sum(map(len, scores)), sum(score is None for some in scores for score in some)
    told = f"{who} gave no score to {missing} of {count} held-out answers. They are left out: n counts the others."
    return [told] if missing else []


def kl_number(log_ratios: Sequence[float], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """KL(policy || reference) in nats per response: the mean of log pi - log pi_ref over the policy's own samples at
    temperature 1, with its interval and, as "se", its standard error."""
    return {
        **asdict(mean_interval(log_ratios, clusters)),
        "se": standard_error(log_ratios, clusters) if len(log_ratios) else None,
    }


def response_numbers(
    sampled: Sequence[Sampled], clusters: Sequence[Hashable], eos_ids: Sequence[int]
) -> tuple[Numbers, dict[str, str]]:
    """length, cut, empty, distinct_1 to distinct_3, self_repetition and duplicates; and why one of them is left out.

    length counts tokens, the EOS included where one was emitted; the others look at the tokens before it.
    """
    said = [without_end(one.ids, eos_ids) for one in sampled]
    numbers = {
        "length": mean_interval([float(len(one.ids)) for one in sampled], clusters),
        "cut": rate_interval([float(one.cut) for one in sampled], clusters),
        "empty": rate_interval([float(not one.text.strip()) for one in sampled], clusters),
        "self_repetition": self_repetition(said, clusters),
        "duplicates": duplicates(said, clusters),
    }
    left_out: dict[str, str] = {}
    for order in (1, 2, 3):
        value = distinct(said, order, clusters)
        if value is None:
            left_out[f"distinct_{order}"] = (
                f"it is read at {SAMPLE:,} {order}-grams, and the answers have fewer: ask more prompts"
            )
        else:
            numbers[f"distinct_{order}"] = value
    return {name: asdict(value) for name, value in numbers.items()}, left_out


def without_end(ids: Sequence[int], eos_ids: Sequence[int]) -> tuple[int, ...]:
    """A response's tokens less the end-of-turn token."""
    return tuple(ids[:-1]) if ids and ids[-1] in eos_ids else tuple(ids)
