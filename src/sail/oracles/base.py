"""The contract of an oracle, and the one function through which it is asked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sail.errors import ConfigError, OracleError
from sail.types import Pair, Preference, Prompt

SHOWN_ROWS = 3
SHOWN_CHARACTERS = 60


class Oracle(ABC):
    """Says which of two responses is preferred.

    Contract: one Preference per pair, in order; a probability in [0, 1] or an abstention; splitting the batch changes nothing;
    a pair that cannot be judged costs that pair only (tests/unit/test_oracle_contract.py).
    """

    name: str
    may_abstain: bool
    symmetric: bool = False
    """Whether swapping a pair gives 1 - p by construction."""
    asks_people: bool = False
    """Whether an answer costs a person's time: then only training asks (`without_people`)."""
    place: str = ""
    """Where it stands in the settings of a run: what its caps go by, because its address may change. "" is nowhere."""

    @property
    def order(self) -> str:
        """How the order of the two responses is dealt with.

        scores: each is scored by itself. both_orders, one_order: by a wrapper. symmetric: in a way of its own. as_given: not.
        """
        if self.scorer() is not None:
            return "scores"
        return "symmetric" if self.symmetric else "as_given"

    def ordered(self) -> Oracle | None:
        """The oracle inside whose verdict may depend on the order, where a wrapper asks it in both; None if there is none."""
        return None

    def asked_in(self, orders: str) -> None:
        """A wrapper says in which orders it asks (both_orders, one_order); what keeps a ledger enters it there."""
        return

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, JSON-able and without secrets: the key of its answers in a ledger."""
        return {"name": self.name}

    def own_scores(self) -> ScoringOracle | None:
        """What scores single responses with nothing wrapped around it, itself or a form of it; None if nothing does."""
        return None

    def scorer(self) -> ScoringOracle | None:
        """The oracle that scores single responses, itself or the one inside it; None if there is none."""
        return self.own_scores()

    def report(self) -> dict[str, Any]:
        """What it has counted in this process, JSON-able; shown in results.json."""
        return {}

    @abstractmethod
    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """The preference of each pair. Raises OracleError, naming the rows, if it cannot be had."""


class ScoringOracle(Oracle):
    """An oracle that can also score a single response; its preference is Bradley-Terry on the scores."""

    symmetric = True

    def own_scores(self) -> ScoringOracle | None:
        """Itself."""
        return self

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float | None]:
        """One finite score per response, higher is better; None where it has none, if it may abstain."""

    def score_to_keep(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float | None]:
        """The same where the scores are kept for good: OracleError where one is missing that another attempt may bring."""
        return self.score(prompts, responses)

    def preference(self, first: float, second: float) -> Preference:
        """What the oracle says of a pair whose scores are known: p = sigmoid(first - second)."""
        return Preference(sigmoid(first - second))


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-min(value, 700.0)))
    return math.exp(max(value, -700.0)) / (1.0 + math.exp(max(value, -700.0)))


def ask(oracle: Oracle, pairs: Sequence[Pair]) -> tuple[list[Preference], int]:
    """The preferences of `pairs` and how many of them the oracle was asked for.

    Identical responses are a tie by definition: p = 1/2, and the oracle is not asked (nor paid).
    """
    answers: list[Preference | None] = [
        Preference(0.5, "identical responses") if pair.first == pair.second else None for pair in pairs
    ]
    open_rows = [row for row, answer in enumerate(answers) if answer is None]
    if open_rows:
        asked = [pairs[row] for row in open_rows]
        given = oracle.compare(asked)
        check_count(oracle.name, asked, given)
        for row, answer in zip(open_rows, given, strict=True):
            answers[row] = answer
    return [answer for answer in answers if answer is not None], len(open_rows)


def without_people(oracle: Oracle | None) -> Oracle | None:
    """The oracle for what is asked beside training (a trial, held-out prompts, an audit); None where that would busy people."""
    return None if oracle is None or oracle.asks_people else oracle


def for_measuring(oracle: Oracle | None) -> Oracle | None:
    """The oracle for held-out answers: the scoring one, where there is one inside (noise and budgets are training's); None where
    that would busy people."""
    oracle = without_people(oracle)
    return None if oracle is None else oracle.scorer() or oracle


def must_score(oracle: Oracle) -> Oracle:
    """The same oracle; ConfigError unless it gives held-out answers a score by itself, without people and wrappers."""
    if not isinstance(for_measuring(oracle), ScoringOracle):
        raise ConfigError(
            f"eval_oracle scores single answers, and {oracle.name} cannot. Give a reward(prompts, responses) function, a "
            "reward model or a judge with mode: single; sail eval measures win rates under any other oracle."
        )
    if oracle.own_scores() is None:
        raise ConfigError(
            f"eval_oracle.wrap would do nothing: a wrapper changes verdicts on pairs, and {oracle.name} gives scores there. "
            "Remove eval_oracle.wrap."
        )
    return oracle


def check_count(name: str, pairs: Sequence[Pair], answers: Any) -> None:
    """OracleError unless there is one answer per pair."""
    if len(answers) != len(pairs):
        raise OracleError(
            f"Oracle {name} was asked about {len(pairs)} rows and gave {len(answers)} answers. It must return one value per "
            f"row, in order. The rows: {describe(pairs, range(len(pairs)))}"
        )


def number_or_none(value: Any) -> float | None:
    """The value as a float if it is a finite number (numpy and torch scalars included), else None."""
    if isinstance(value, str | bytes | bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def describe(pairs: Sequence[Pair], rows: Sequence[int] | range) -> str:
    """A few rows by position and prompt, for error messages."""
    shown = [f"row {row} ({_excerpt(pairs[row].prompt)})" for row in list(rows)[:SHOWN_ROWS]]
    more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _excerpt(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else (prompt[-1].get("content", "") if prompt else "")
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…")
