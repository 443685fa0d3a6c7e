"""Anthropic HH-RLHF: two transcripts of a conversation that differ in the assistant's last answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sail.data.named.base import (
    EMPTY_ANSWER,
    PROMPTS_DIFFER,
    Answered,
    Choice,
    NamedSet,
    Unusable,
    Variant,
    pair_of,
)
from sail.types import Message

NOT_A_TRANSCRIPT = "does not begin with Human"
NO_LAST_ANSWER = "does not end with an answer"
NOT_IN_TURNS = "Human and Assistant do not take turns"
EMPTY_TURN = "an empty turn before the answer"

PARTS = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")
"""The folders that hold pairs; red-team-attempts holds none."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def convert(row: Mapping[str, Any], choice: Choice) -> Answered | Unusable:
    """Both transcripts are cut into turns; all turns but the last are the prompt, and must be the same in both."""
    sides = [_turns(row[side]) for side in ("chosen", "rejected")]
    for side in sides:
        if isinstance(side, Unusable):
            return side
    chosen, rejected = (side for side in sides if not isinstance(side, Unusable))
    if chosen[:-1] != rejected[:-1]:
        return Unusable(PROMPTS_DIFFER)
    return pair_of(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], choice)


def _turns(text: Any) -> list[Message] | Unusable:
    """The turns of a transcript that ends with an answer of the assistant, or what is wrong with it."""
    if not isinstance(text, str) or not text.lstrip().startswith("Human:"):
        return Unusable(NOT_A_TRANSCRIPT)
    parts = _TURN.split("\n\n" + text.lstrip())
    turns = [
        {"role": _ROLES[name], "content": words.strip()}
        for name, words in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        return Unusable(NO_LAST_ANSWER)
    if any(turn["role"] != ("user", "assistant")[place % 2] for place, turn in enumerate(turns)):
        return Unusable(NOT_IN_TURNS)
    if not turns[-1]["content"]:
        return Unusable(EMPTY_ANSWER)
    if not all(turn["content"] for turn in turns):
        return Unusable(EMPTY_TURN)
    return turns


SET = NamedSet(
    name="hh-rlhf",
    about="conversations about help and harm; two answers to the last message",
    columns=("chosen", "rejected"),
    convert=convert,
    variants={
        "all": Variant("Anthropic/hh-rlhf", data_dirs=PARTS),
        **{part: Variant("Anthropic/hh-rlhf", data_dirs=(part,)) for part in PARTS},
    },
)
