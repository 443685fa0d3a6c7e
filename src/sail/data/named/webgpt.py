"""OpenAI WebGPT comparisons: a question, two answers written with a browser, and how strongly people preferred one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail.data.named.base import (
    NO_SCORE,
    Answered,
    Choice,
    NamedSet,
    Unusable,
    Variant,
    as_user,
    number,
    pair_of,
)


def convert(row: Mapping[str, Any], choice: Choice) -> Answered | Unusable:
    """The answer with the higher score is preferred; the scores lie in [-1, 1] and sum to 0, so a tie is 0 twice."""
    scores = number(row["score_0"]), number(row["score_1"])
    if scores[0] is None or scores[1] is None:
        return Unusable(NO_SCORE)
    better = 0 if scores[0] >= scores[1] else 1
    question = row["question"] or {}
    text = question if isinstance(question, str) else question.get("full_text")
    answers = row["answer_0"], row["answer_1"]
    gap = abs(scores[0] - scores[1])
    return pair_of(as_user(text or ""), answers[better], answers[1 - better], choice, gap=gap)


SET = NamedSet(
    name="webgpt-comparisons",
    about="questions with two answers that cite web pages, scored by people",
    columns=("question", "answer_0", "answer_1", "score_0", "score_1"),
    convert=convert,
    variants={
        "full": Variant(
            "openai/webgpt_comparisons",
            splits={"train": "train"},
            data_dirs=("default",),
            revision="refs/convert/parquet",
        )
    },
    min_gap=0.0,
)
