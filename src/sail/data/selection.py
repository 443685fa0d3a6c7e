"""Which pairs of a set are learned from: the one place where ties, repeats, held-out prompts and the limit are decided.

In this order, and each is counted:

| step | left out | counted as |
|---|---|---|
| score | gap = 0, 0 < gap < min_gap, gap < 0 | "tie", "near-tie", "scored against its label" |
| answers | both the same text (drop_repeats) | "identical answers" |
| repeats | same prompt, chosen and rejected as an earlier row (drop_repeats) | "repeats an earlier row" |
| held out | rows of the other part, by the hash of the prompt's opening | "in the other part (held-out split)" |
| limit | all but the `limit` rows with the lowest hash of (seed, prompt, answers) | "above the limit" |

Contradictions, the same two answers preferred both ways, stay: they are what people said. `sail data` counts them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sail.types import Prompt

TIE, NEAR_TIE, AGAINST = "tie", "near-tie", "scored against its label"
IDENTICAL, REPEAT = "identical answers", "repeats an earlier row"
OTHER_PART, ABOVE_LIMIT = "in the other part (held-out split)", "above the limit"


@dataclass(frozen=True)
class Candidate:
    """A row before selection: its record in TRL's format, and what selection looks at. prompt None: a row that cannot be read.

    opening: the conversation's beginning as messages, where the prompt is a text that was made of it; else the prompt has it.
    """

    record: Any
    origin: str
    prompt: Prompt | None
    chosen: str | None = None
    rejected: str | None = None
    gap: float | None = None
    opening: Prompt | None = None


@dataclass(frozen=True)
class Rules:
    """What to leave out. part: "train" or "test" of a split by hash, with `share` of the prompts in test; None = no split."""

    min_gap: float = 0.0
    drop_repeats: bool = True
    part: str | None = None
    share: float = 0.05
    limit: int | None = None
    seed: int = 0


@dataclass
class Counts:
    """read: rows of the source; dropped: how many of them were left out, by reason; noted: what else is worth knowing."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)


def select(candidates: Iterable[Candidate], rules: Rules, counts: Counts) -> list[Candidate]:
    """The rows that stay, in their order; `counts.dropped` is added to. A row that cannot be read stays: bad_rows decides."""
    kept: list[Candidate] = []
    seen: set[str] = set()
    for one in candidates:
        reason = _reason(one, rules, seen)
        if reason is None:
            kept.append(one)
        else:
            counts.dropped[reason] += 1
    if rules.limit is not None:
        kept = _limited(kept, rules, counts)
    return kept


def _reason(one: Candidate, rules: Rules, seen: set[str]) -> str | None:
    if one.prompt is None:
        return None
    if one.gap is not None:
        if one.gap < 0:
            return AGAINST
        if one.gap == 0:
            return TIE
        if one.gap < rules.min_gap:
            return NEAR_TIE
    if rules.drop_repeats and one.chosen is not None:
        if one.chosen == one.rejected:
            return IDENTICAL
        key = digest(prompt_id(one.prompt), one.chosen, one.rejected or "")
        if key in seen:
            return REPEAT
        seen.add(key)
    if rules.part is not None and rules.part != part_of(one.opening or one.prompt, rules.share):
        return OTHER_PART
    return None


def part_of(prompt: Prompt, share: float) -> str:
    """ "test" for about `share` of all prompts, else "train": a function of the prompt's opening alone.

    The opening is the text, or the messages up to the first of the user: all rows of one conversation fall to one part, and no
    prompt is in both. Neither seed nor limit moves a prompt, and a larger share keeps the smaller one's prompts in test.
    """
    if not isinstance(prompt, str):
        first = next((place for place, turn in enumerate(prompt) if turn["role"] == "user"), len(prompt) - 1)
        prompt = prompt[: first + 1]
    return "test" if int(digest("held-out", prompt_id(prompt))[:16], 16) / 2**64 < share else "train"


def _limited(kept: Sequence[Candidate], rules: Rules, counts: Counts) -> list[Candidate]:
    def rank(place: int) -> str:
        one = kept[place]
        texts = (json.dumps(one.record, sort_keys=True, default=str),) if one.chosen is None else ()
        key = prompt_id(one.prompt) if one.prompt is not None else one.origin
        return digest(str(rules.seed), key, one.chosen or "", one.rejected or "", *texts)

    readable = [place for place, one in enumerate(kept) if one.prompt is not None]
    stay = set(sorted(readable, key=rank)[: rules.limit])
    counts.dropped[ABOVE_LIMIT] += len(readable) - len(stay)
    counts.dropped += Counter()  # no zeros
    return [one for place, one in enumerate(kept) if place in stay or one.prompt is None]


def prompt_id(prompt: Prompt) -> str:
    """Prompts that differ in whitespace only are the same one; hex."""
    if isinstance(prompt, str):
        return digest(" ".join(prompt.split()))
    return digest(
        *(part for turn in prompt for part in (turn["role"], " ".join(str(turn["content"]).split())))
    )


def digest(*texts: str) -> str:
    """A hash of texts, each with its length, so that nothing can move from one to the next unnoticed; hex."""
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode("utf-8", "replace")
        made.update(len(raw).to_bytes(8, "big") + raw)
    return made.hexdigest()
