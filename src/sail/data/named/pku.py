"""PKU-SafeRLHF: a question, two answers, and two verdicts: which is more helpful, which is safer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail.data.named.base import (
    NO_VERDICT,
    Answered,
    Choice,
    NamedSet,
    Unusable,
    Variant,
    as_user,
    pair_of,
    verdict,
)

VERDICTS = {"helpful": "better_response_id", "safe": "safer_response_id"}
DISAGREE = "the more helpful answer is not the safer one"
_HUB = "PKU-Alignment/PKU-SafeRLHF"


def convert(row: Mapping[str, Any], choice: Choice) -> Answered | Unusable:
    """The answer that the column of `choice.label` names is preferred, whatever the other verdict and the safety marks say."""
    found = {label: verdict(row[column]) for label, column in VERDICTS.items()}
    better = found[choice.label or "helpful"]
    if better is None:
        return Unusable(NO_VERDICT)
    answers = row["response_0"], row["response_1"]
    notes = (DISAGREE,) if None not in found.values() and len({*found.values()}) == 2 else ()
    return pair_of(
        as_user(row["prompt"] or ""), answers[better], answers[1 - better], choice, gap=None, notes=notes
    )


SET = NamedSet(
    name="pku-saferlhf",
    about="questions, many of them harmful; two answers; which is more helpful, which is safer",
    columns=("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
    convert=convert,
    variants={
        "full": Variant(_HUB),
        "10K": Variant(f"{_HUB}-10K", splits={"train": "train"}),
        "30K": Variant(f"{_HUB}-30K"),
        **{
            part.lower(): Variant(_HUB, config=part.lower(), data_dirs=(f"data/{part}",))
            for part in ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")
        },
    },
    labels=("helpful", "safe"),
)
