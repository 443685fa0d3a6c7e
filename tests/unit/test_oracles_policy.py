"""The policy's implicit reward as an oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from sail.errors import OracleError
from sail.oracles import ImplicitReward
from sail.types import Pair

PAIRS = [Pair("p", "aaa", "b"), Pair("q", "a", "bbbb"), Pair("r", "same", "same")]


def log_ratio(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    return [3.0 * len(response) - 5.0 for response in responses]


def test_scores_are_beta_times_the_log_ratio() -> None:
    assert ImplicitReward(log_ratio, 0.1).score(["p", "q"], ["aa", "b"]) == pytest.approx([0.1, -0.2])


def test_preference_is_the_sigmoid_of_the_margin() -> None:
    given = ImplicitReward(log_ratio, 0.1).compare(PAIRS)
    margins = [0.1 * 3.0 * (len(pair.first) - len(pair.second)) for pair in PAIRS]
    assert [one.first_wins for one in given] == pytest.approx([1 / (1 + math.exp(-h)) for h in margins])
    assert given[2].first_wins == 0.5


def test_swapping_gives_the_complement_and_splitting_changes_nothing() -> None:
    oracle = ImplicitReward(log_ratio, 0.3)
    forward, backward = oracle.compare(PAIRS), oracle.compare([pair.swap() for pair in PAIRS])
    for one, other in zip(forward, backward, strict=True):
        assert one.first_wins == pytest.approx(1 - other.first_wins, abs=1e-15)
    assert forward == [oracle.compare([pair])[0] for pair in PAIRS]


def test_large_margins_stay_probabilities() -> None:
    given = ImplicitReward(lambda prompts, responses: [1e6 * len(one) for one in responses], 1.0).compare(
        PAIRS
    )
    assert [one.first_wins for one in given] == [1.0, 0.0, 0.5]


def test_a_wrong_number_of_scores_is_refused() -> None:
    with pytest.raises(OracleError, match="gave 1 answers"):
        ImplicitReward(lambda prompts, responses: [0.0], 0.1).compare(PAIRS)


def test_it_never_abstains() -> None:
    assert ImplicitReward(log_ratio, 0.1).may_abstain is False
