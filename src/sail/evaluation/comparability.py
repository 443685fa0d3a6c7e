"""When two runs may be compared, and what can still be said where they may not. Facts in, sentences out. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """Something two runs must share to be compared as they stand: what it is called, what its difference does to a comparison,
    and what may be compared in spite of it."""

    key: str
    name: str
    meaning: str
    still: str


FACTS = (
    Fact(
        "start_model",
        "start model",
        "rewards, KL and win rates start from different places",
        "how much each run gained over its own reference",
    ),
    Fact(
        "reference",
        "reference model",
        "their KL, margin, gain and win rate over the reference are to different models",
        "reward, length and diversity",
    ),
    Fact(
        "train_rows",
        "training data",
        "the difference may come from the data instead of the method",
        "what these two models do on the same held-out prompts",
    ),
    Fact(
        "steps",
        "number of optimiser steps",
        "one had more training than the other",
        "gain per 1,000 optimiser steps, and reward at equal KL",
    ),
    Fact(
        "rows_per_step",
        "rows per optimiser step",
        "one saw more rows than the other in as many steps",
        "gain per 1,000 oracle calls and per hour, and reward at equal KL",
    ),
    Fact(
        "oracle_calls",
        "oracle labels spent",
        "one was told more than the other",
        "gain per 1,000 oracle calls, and what a label bought",
    ),
    Fact(
        "oracle",
        "oracle",
        "their rewards and win rates are on different scales",
        "KL, length and diversity",
    ),
    Fact(
        "held_out",
        "held-out prompts",
        "means over different prompts differ by the prompts too",
        "the paired differences on the prompts that they share",
    ),
    Fact(
        "sampling",
        "sampling at evaluation (temperature, limit, samples, seed)",
        "answers were drawn in different ways",
        "preference accuracy and margin on held-out pairs",
    ),
    Fact(
        "seed",
        "training seed",
        "part of the difference is luck",
        "the methods, over several seeds of each",
    ),
)


BY_PATH = "path "
"""Begins a fact of which only the path is known: two paths that are equal may have held other files at other times."""


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """{"comparable", "reasons": [{"what", "run", "to", "meaning", "still"}], "unknown": [names]}.

    one, other: values by the key of `FACTS`; None is unknown, and cannot make a difference, but is said.
    """
    reasons, unknown = [], []
    for fact in FACTS:
        a, b = one.get(fact.key), other.get(fact.key)
        paths = [isinstance(value, str) and value.startswith(BY_PATH) for value in (a, b)]
        if a is None or b is None or paths[0] != paths[1]:
            if a is not b:
                unknown.append(fact.name)
        elif a != b:
            said = {"what": fact.name, "run": a, "to": b, "meaning": fact.meaning, "still": fact.still}
            reasons.append(said)
        elif paths[0]:
            unknown.append(f"{fact.name} (the paths are the same)")
    return {"comparable": not reasons, "reasons": reasons, "unknown": unknown}


def sentences(name: str, to: str, found: dict[str, Any]) -> list[str]:
    """The findings in words: the verdict first, then one line per reason."""
    if not found["comparable"]:
        lines = [f"{name} and {to} are NOT comparable as they stand:"]
        for reason in found["reasons"]:
            values = f"{shown(reason['run'])} and {shown(reason['to'])}"
            lines.append(
                f"  - other {reason['what']} ({values}): {reason['meaning']}. Still comparable: {reason['still']}."
            )
    elif found["unknown"]:
        lines = [f"{name} and {to}: nothing was found that forbids a comparison."]
    else:
        lines = [
            f"{name} and {to} are comparable: same start, reference, data, steps, labels, oracle, prompts and seed."
        ]
    if found["unknown"]:
        lines.append(f"  Not proven: {', '.join(found['unknown'])}.")
    return lines


def shown(value: Any) -> str:
    """A fact's value for a sentence; of a fingerprint its first letters.

    >>> shown(12800), shown("ab" * 32)
    ('12,800', 'abababab')
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return re.sub(r"[0-9a-f]{32,}", lambda found: found[0][:8], str(value).removeprefix(BY_PATH))
