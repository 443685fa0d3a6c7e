"""What a named set is: where its files lie, which columns they have, and the function that reads one row of them.

A function (`NamedSet.convert`) says only what a row means: `Answered`, or `Unusable` with the reason. What becomes of ties,
repeats and held-out prompts is decided in one place for all sets, sail.data.selection. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sail.types import Message, Prompt

NO_VERDICT = "no verdict"
NO_SCORE = "no score"
EMPTY_PROMPT = "empty prompt"
EMPTY_ANSWER = "empty answer"
PROMPTS_DIFFER = "the answers belong to different prompts"
"""Reasons for which rows are unusable; those of one set alone stand in its module."""

SHAPES = ("chat", "text")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""How a conversation is written as text."""


@dataclass(frozen=True)
class Choice:
    """What a user may choose about a set: label, pairing, least gap in score, shape of the rows, seed of what is drawn."""

    label: str | None = None
    pairing: str | None = None
    min_gap: float = 0.0
    shape: str = "chat"
    seed: int = 0


@dataclass(frozen=True)
class Answered:
    """A prompt with its preferred and its other answer.

    gap: score of the chosen less that of the rejected answer; None where the set gives only a verdict. notes: what is worth
    counting about a row that is used. opening: the conversation that a text was made of, which says whether it is held out.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    gap: float | None = None
    notes: tuple[str, ...] = ()
    opening: Prompt | None = None


@dataclass(frozen=True)
class Unusable:
    """A row that cannot be a pair, and why in a few words."""

    reason: str


Convert = Callable[[Mapping[str, Any], Choice], Answered | Unusable]


@dataclass(frozen=True)
class Variant:
    """One form of a set.

    hub: its id there; `config` and `data_dirs` are those of datasets.load_dataset, `revision` a branch with the data where
    the hub keeps the set as a script. splits: our split (train, test) to
    the hub's; without "test" a share of the prompts is held out. Of a local copy, the folders `data_dirs` are read if it has any.
    """

    hub: str
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    config: str | None = None
    data_dirs: tuple[str, ...] = ()
    revision: str | None = None


@dataclass(frozen=True)
class NamedSet:
    """A public set. The first of its variants, labels and pairings is the default; min_gap is None where it has no scores."""

    name: str
    about: str
    columns: tuple[str, ...]
    convert: Convert
    variants: Mapping[str, Variant]
    labels: tuple[str, ...] = ()
    pairings: tuple[str, ...] = ()
    shape: str = "chat"
    min_gap: float | None = None


def is_empty(text: Any) -> bool:
    """Whether it is not text, or text that says nothing."""
    return not isinstance(text, str) or not text.strip()


def as_list(value: Any) -> list[Any]:
    """A list of objects, which some tables keep as an object of lists; nothing is an empty list.

    >>> as_list({"text": ["a", "b"], "note": ["c", "d"]})
    [{'text': 'a', 'note': 'c'}, {'text': 'b', 'note': 'd'}]
    """
    if isinstance(value, Mapping):
        return [dict(zip(value, one, strict=True)) for one in zip(*value.values(), strict=True)]
    return list(value or ())


def number(value: Any) -> float | None:
    """A score as a finite number; None for null, NaN, "N/A" and whatever else is no number.

    >>> number("4"), number("N/A"), number(float("nan"))
    (4.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def verdict(value: Any) -> int | None:
    """0 or 1, the place of the preferred answer; None for anything else."""
    found = number(value)
    return int(found) if found in (0.0, 1.0) else None


def as_user(text: str) -> list[Message]:
    """A question as a conversation of one message."""
    return [{"role": "user", "content": text}]


def pair_of(
    turns: Sequence[Message],
    chosen: Any,
    rejected: Any,
    choice: Choice,
    *,
    gap: float | None = None,
    notes: tuple[str, ...] = (),
) -> Answered | Unusable:
    """The pair in the shape that was chosen: messages, or a text that ends with "Assistant:" and answers that go on from it."""
    if not turns or is_empty(turns[-1].get("content")):
        return Unusable(EMPTY_PROMPT)
    if is_empty(chosen) or is_empty(rejected):
        return Unusable(EMPTY_ANSWER)
    if choice.shape == "chat":
        return Answered(list(turns), chosen.strip(), rejected.strip(), gap, notes)
    heads = {"user": f"{HUMAN} ", "assistant": f"{ASSISTANT} ", "system": "\n\n"}
    text = "".join(f"{heads.get(turn['role'], HUMAN)}{turn['content'].strip()}" for turn in turns)
    answers = f" {chosen.strip()}", f" {rejected.strip()}"
    return Answered(f"{text}{ASSISTANT}", *answers, gap, notes, opening=list(turns))
