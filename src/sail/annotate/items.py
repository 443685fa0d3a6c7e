"""What is labelled and what a label says: the values that file, page and run share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sail import seeds
from sail.types import Prompt


@dataclass(frozen=True)
class Item:
    """A pair to be labelled, in its stored order. given: the probability of the first by who labelled it before, if anybody."""

    prompt: Prompt
    first: str
    second: str
    given: float | None = None

    @classmethod
    def of(cls, prompt: Prompt, one: str, other: str, given: float | None = None) -> tuple[Item, bool]:
        """The item of two texts in any order, and whether they were swapped: the text with the smaller sha256 is stored first."""
        if _sha256(one) <= _sha256(other):
            return cls(prompt, one, other, given), False
        return cls(prompt, other, one, None if given is None else 1.0 - given), True

    @property
    def hash(self) -> str:
        """sha256 (hex) of prompt and texts: the same in every process, on every machine and in either order asked."""
        return _sha256(json.dumps([self.prompt, self.first, self.second], sort_keys=True))


@dataclass(frozen=True)
class Label:
    """One standing label: who gave which verdict on which pair, after how many seconds, and which text stood on the left."""

    pair: str
    annotator: str
    verdict: str
    seconds: float
    shown_left: str


@dataclass(frozen=True)
class Verdict:
    """What people said of a pair in the end: the probability that its first text wins, or None and why.

    expired: its deadline had passed before it had all its labels.
    """

    probability: float | None
    reason: str | None
    expired: bool = False


@dataclass(frozen=True)
class Progress:
    """Over the open pairs: labels given and wanted, those of one annotator, how many are left for them, and about how long that
    takes (seconds; None while unknown)."""

    given: int
    wanted: int
    mine: int
    left_for_me: int
    seconds_left: float | None


def shown_left(annotator: str, pair: str) -> str:
    """Which text stands on the left for this annotator: a fair coin that depends on both names and nothing else."""
    return "first" if seeds.uniform("annotate", annotator, pair) < 0.5 else "second"


def verdict_of(verdicts: Sequence[str]) -> Verdict:
    """p = (votes for the first + ties / 2) / votes; a skip is no vote, and without a vote there is an abstention."""
    votes = [verdict for verdict in verdicts if verdict != "skip"]
    if not votes:
        return Verdict(
            None, f"skipped by {len(verdicts)} of {len(verdicts)} people" if verdicts else "no label"
        )
    wins = sum({"first": 1.0, "tie": 0.5}.get(verdict, 0.0) for verdict in votes)
    return Verdict(wins / len(votes), None)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
