"""UltraFeedback: an instruction and four scored answers (raw), or the pair that was made of them (binarized)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sail.data.named.base import (
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    NO_SCORE,
    PROMPTS_DIFFER,
    Answered,
    Choice,
    NamedSet,
    Unusable,
    Variant,
    as_list,
    as_user,
    is_empty,
    number,
    pair_of,
)
from sail.types import Message

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
TOO_FEW = "fewer than two answers with a score"
SOME_UNSCORED = "an answer without a score was left aside"
NO_CONVERSATION = "chosen or rejected is not a conversation that ends with an answer"


def convert_raw(row: Mapping[str, Any], choice: Choice) -> Answered | Unusable:
    """The best answer against the worst one, or against a random one of those at least `min_gap` below it.

    Which one is drawn depends on the seed and the instruction alone. If all lie closer than `min_gap`, the lowest of them is
    taken, so that the row is counted as a tie or near-tie. Of equal best scores the first in the file wins.
    """
    found = [(_score(answer, choice.label or "overall"), answer) for answer in as_list(row["completions"])]
    scored = [
        (score, answer["response"])
        for score, answer in found
        if score is not None and not is_empty(answer["response"])
    ]
    if is_empty(row["instruction"]):
        return Unusable(EMPTY_PROMPT)
    if len(scored) < 2:
        return Unusable(TOO_FEW)
    best = max(range(len(scored)), key=lambda place: scored[place][0])
    top, chosen = scored[best]
    others = scored[:best] + scored[best + 1 :]
    far = [one for one in others if top - one[0] > 0 and top - one[0] >= choice.min_gap]
    if choice.pairing == "best_worst" or not far:
        low, rejected = min(others, key=lambda one: one[0])
    else:
        low, rejected = far[_draw(choice.seed, row["instruction"], len(far))]
    notes = (SOME_UNSCORED,) if len(scored) < len(found) else ()
    return pair_of(as_user(row["instruction"]), chosen, rejected, choice, gap=top - low, notes=notes)


def _score(answer: Mapping[str, Any], label: str) -> float | None:
    """overall: overall_score. fine_grained: the mean rating of the four aspects, or of those that have one."""
    if label == "overall":
        return number(answer.get("overall_score"))
    marks = answer.get("annotations") or {}
    ratings = [number((marks.get(aspect) or {}).get("Rating")) for aspect in ASPECTS]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else number(answer.get("fine-grained_score"))


def _draw(seed: int, text: str, count: int) -> int:
    digest = hashlib.blake2b(f"{seed}|{text}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def convert_binarized(row: Mapping[str, Any], choice: Choice) -> Answered | Unusable:
    """The messages before the answers are the prompt; the scores decide what is a tie."""
    sides = [_split(row[side]) for side in ("chosen", "rejected")]
    if sides[0] is None or sides[1] is None:
        return Unusable(NO_CONVERSATION)
    (before, chosen), (other, rejected) = sides[0], sides[1]
    if before != other:
        return Unusable(PROMPTS_DIFFER)
    if is_empty(chosen) or is_empty(rejected):
        return Unusable(EMPTY_ANSWER)
    scores = number(row["score_chosen"]), number(row["score_rejected"])
    if scores[0] is None or scores[1] is None:
        return Unusable(NO_SCORE)
    return pair_of(before, chosen, rejected, choice, gap=scores[0] - scores[1])


def _split(messages: Any) -> tuple[list[Message], Any] | None:
    messages = as_list(messages)
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        return None
    return [{"role": one["role"], "content": one["content"] or ""} for one in messages[:-1]], messages[-1][
        "content"
    ]


RAW = NamedSet(
    name="ultrafeedback",
    about="instructions with four answers each, scored by a language model",
    columns=("instruction", "completions"),
    convert=convert_raw,
    variants={"full": Variant("openbmb/UltraFeedback", splits={"train": "train"})},
    labels=("overall", "fine_grained"),
    pairings=("best_random", "best_worst"),
    min_gap=0.5,
)

BINARIZED = NamedSet(
    name="ultrafeedback-binarized",
    about="the same instructions with the best answer and one of the others, as messages",
    columns=("chosen", "rejected", "score_chosen", "score_rejected"),
    convert=convert_binarized,
    variants={
        "full": Variant(
            "HuggingFaceH4/ultrafeedback_binarized", splits={"train": "train_prefs", "test": "test_prefs"}
        )
    },
    min_gap=0.5,
)
