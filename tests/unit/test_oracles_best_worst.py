"""Best and worst of n by scores: places, the oracle's own probability, ties, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from tiny import reward

from sail.errors import OracleError
from sail.mixture import ROUTES, Share
from sail.online import Example, Response, choose, compare
from sail.oracles import PreferenceFunction, RewardFunction, ScoringOracle
from sail.oracles.best_worst import best_and_worst
from sail.types import Pair, Preference


def length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The number of characters."""
    return [float(len(response)) for response in responses]


class Counting(RewardFunction):
    """Remembers what it was asked to score, and refuses to compare."""

    def __init__(self) -> None:
        super().__init__(length, temperature=2.0, name="counting")
        self.scored: list[str] = []

    def score(self, prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
        self.scored += responses
        return super().score(prompts, responses)

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        raise AssertionError("asked again")


def test_best_worst_and_the_oracles_own_probability() -> None:
    """Lengths 2, 4, 1, 3 at temperature 2: best is place 1, worst place 2, p = sigmoid((4 - 1) / 2)."""
    oracle = Counting()
    (choice,), calls = best_and_worst(oracle, ["x"], [["aa", "aaaa", "a", "aaa"]])
    assert (choice.best, choice.worst) == (1, 2)
    assert choice.preference.first_wins == pytest.approx(1.0 / (1.0 + math.exp(-1.5)), rel=1e-12)
    assert calls == 2
    assert oracle.scored == ["aa", "aaaa", "a", "aaa"]


def test_of_equal_scores_the_first_place_counts() -> None:
    (choice,), _ = best_and_worst(Counting(), ["x"], [["b", "cc", "dd", "e"]])
    assert (choice.best, choice.worst) == (1, 0)


def test_all_scores_equal_is_a_tie_of_the_first_two() -> None:
    (choice,), calls = best_and_worst(Counting(), ["x"], [["a", "b", "c"]])
    assert (choice.best, choice.worst, choice.preference.first_wins) == (0, 1, 0.5)
    assert calls == 2  # three scores are one and a half pairs, rounded up


def test_equal_texts_are_scored_once_and_identical_ones_never() -> None:
    oracle = Counting()
    choices, calls = best_and_worst(oracle, ["x", "y"], [["a", "bb", "a", "bb"], ["c"] * 4])
    assert oracle.scored == ["a", "bb"]
    assert calls == 1
    assert choices[1].preference == Preference(0.5, "identical responses")
    assert best_and_worst(oracle, [], []) == ([], 0)


def test_an_oracle_that_only_scores_is_bradley_terry() -> None:
    class Plain(ScoringOracle):
        name, may_abstain = "plain", False

        def score(self, prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
            return [float(len(one)) for one in responses]

        def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
            raise AssertionError

    (choice,), _ = best_and_worst(Plain(), ["x"], [["a", "aa", "aaaa"]])
    assert choice.preference.first_wins == pytest.approx(1.0 / (1.0 + math.exp(-3.0)), rel=1e-12)


# ---- as pairs of a step


def examples(count: int, texts: list[str]) -> list[Example]:
    share = Share(ROUTES["dpr"], 1.0)
    made = []
    for place in range(count):
        samples = [Response((3 + k, 1), text, False, -1.0, -1.0) for k, text in enumerate(texts)]
        row = {"index": place, "prompt": f"prompt {place}"}
        made.append(Example(row, share, 0.3, step=5, samples=samples))
    return made


def test_the_place_in_the_pair_says_nothing() -> None:
    """Over 400 rows the better one stands first in half of them (4 standard errors: 0.1), and the label always says which."""
    made = examples(400, ["aaa", "a", "aaaa", "aa"])
    oracle = Counting()
    calls = choose(made, oracle, seed=1) + compare(made, oracle)
    assert calls == 400 * 2
    p = 1.0 / (1.0 + math.exp(-1.5))
    for one in made:
        assert {response.text for response in one.responses} == {"aaaa", "a"}
        better_first = one.responses[0].text == "aaaa"
        assert one.preference is not None
        assert one.preference.first_wins == pytest.approx(p if better_first else 1.0 - p, rel=1e-12)
        assert one.source == "oracle:counting"
    share = sum(one.responses[0].text == "aaaa" for one in made) / 400
    assert abs(share - 0.5) < 0.1


def test_ties_among_the_best_give_no_place_an_advantage() -> None:
    """Three samples, two of them best: by sample number alone the best would stand first in two thirds."""
    made = []
    for k in range(3):
        texts = ["aa", "bb", "cc"]
        texts[k] = "d"
        made += examples(200, texts)
    for number, one in enumerate(made):
        one.row["index"] = number
    choose(made, Counting(), seed=2)
    share = sum(one.responses[0].text != "d" for one in made) / 600
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 600)


def test_an_oracle_that_only_compares_is_refused() -> None:
    oracle = PreferenceFunction(lambda prompts, first, second: [1.0] * len(first))
    with pytest.raises(OracleError, match=r"needs an oracle that scores .* Give one of the form reward"):
        choose(examples(1, ["a", "b", "c"]), oracle, seed=0)


def test_a_pair_of_two_is_not_chosen() -> None:
    made = examples(3, ["a", "aa"])
    assert choose(made, RewardFunction(reward), seed=0) == 0
    assert all(one.first is None for one in made)
