"""A single-score judge as an oracle that scores: for held-out answers, an eval_oracle and the best and worst of several."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sail.errors import OracleError
from sail.oracles.base import ScoringOracle
from sail.types import Pair, Preference, Prompt

if TYPE_CHECKING:
    from sail.oracles.judge.judge import ScoreJudge

_log = logging.getLogger(__name__)
LOWEST, HIGHEST = 1.0, 10.0


def to_unit(score: float) -> float:
    """A score in the ledger's unit, 0 to 1.

    >>> to_unit(10.0), score_of(Preference(to_unit(5.5)))
    (1.0, 5.5)
    """
    return (score - LOWEST) / (HIGHEST - LOWEST)


def score_of(told: Preference) -> float | None:
    """Back from the ledger's unit; scores have a few decimals only."""
    return None if told.first_wins is None else round(LOWEST + told.first_wins * (HIGHEST - LOWEST), 6)


def bradley_terry(first: float, second: float, temperature: float) -> Preference:
    """p = sigmoid((first - second) / temperature)."""
    return Preference(0.5 * (1.0 + math.tanh((first - second) / temperature / 2.0)))


class JudgedScores(ScoringOracle):
    """The scores of a ScoreJudge, 1 to 10; p = sigmoid((s_first - s_second) / score_temperature). None where it abstains."""

    may_abstain = True

    def __init__(self, judge: ScoreJudge) -> None:
        self.judge, self.name = judge, judge.name

    def settings(self) -> dict[str, Any]:
        """The judge's."""
        return self.judge.settings()

    def report(self) -> dict[str, Any]:
        """The judge's."""
        return self.judge.report()

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """The judge's."""
        return self.judge.compare(pairs)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """The score of each response, None where the judge abstained or gave no answer; how many, and why, goes to the log."""
        found = self.judge.told(list(zip(prompts, responses, strict=True)))
        silent = [one.reason for one in found if one.first_wins is None]
        if silent:
            _log.warning(
                "sail: oracle %s gave no score to %d of %d responses, the first because: %s",
                *(self.name, len(silent), len(found), silent[0]),
            )
        return [score_of(one) for one in found]

    def score_to_keep(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """The same, and OracleError where calls failed: what is kept would be taken for an abstention for good."""
        found = self.judge.told(list(zip(prompts, responses, strict=True)))
        failed = [one.reason for one in found if one.passing]
        if failed:
            raise OracleError(
                f"Oracle {self.name} has no answer to {len(failed)} of {len(found)} responses, the first: {failed[0]}. See that "
                "the judge can be reached, then ask again."
            )
        return [score_of(one) for one in found]

    def preference(self, first: float, second: float) -> Preference:
        """Bradley-Terry at the judge's score_temperature."""
        return bradley_terry(first, second, self.judge.score_temperature)
