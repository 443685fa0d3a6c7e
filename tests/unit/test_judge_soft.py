"""The judge: soft verdicts from log-probabilities, and scores of single responses."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge, completion, pieces
from test_judge import PAIRS, judge, total

from sail.errors import OracleError
from sail.oracles import load_callable
from sail.oracles.judge import ScoreJudge
from sail.oracles.judge.reply import Reply, Token, soft_verdict
from sail.oracles.judge.verdicts import read_verdict
from sail.oracles.wrappers import BothOrders
from sail.types import Pair

# ---- log-probabilities


def tokens(*spoken: tuple[str, dict[str, float]]) -> dict[str, Any]:
    """choices[0].logprobs from tokens and the probabilities of the likeliest at their place."""
    return {
        "content": [
            {"token": text, "logprob": math.log(likeliest.get(text, 1.0)), "top_logprobs": [
                {"token": other, "logprob": math.log(p)} for other, p in likeliest.items()
            ]}
            for text, likeliest in spoken
        ]
    }  # fmt: skip


SURE: dict[str, float] = {}


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        # by hand: P(A) / (P(A) + P(B))
        ([("A", {"A": 0.6, "B": 0.2, "C": 0.1})], 0.75),
        ([("B", {"A": 0.2, "B": 0.6})], 0.25),
        ([("[[", SURE), ("A", {"A": 0.9, "B": 0.1}), ("]]", SURE)], 0.9),
        ([("Answer", SURE), (":", SURE), (" B", {" B": 0.5, "B": 0.1, " A": 0.1, "a": 0.1, "A": 0.2})], 0.4),
        ([("[[A]]", {"[[A]]": 0.7, "[[B]]": 0.3})], 0.7),
        ([("[[A", {"[[A": 0.7, "[[B": 0.1, "[[C": 0.2}), ("]]", SURE)], 0.875),
        (
            [
                ("Say ", SURE),
                ("[[A]]", SURE),
                ("\nno: ", SURE),
                ("[[", SURE),
                ("B", {"B": 0.8, "A": 0.2}),
                ("]]", SURE),
            ],
            0.2,
        ),
        # sampled against the odds: the verdict is B, its probability small
        ([("B", {"A": 0.75, "B": 0.25})], 0.75),
        # the rival is not among the likeliest
        ([("A", {"A": 0.99})], 1.0),
        # a stated tie stays one
        ([("[[", SURE), ("C", {"C": 0.4, "A": 0.4, "B": 0.2}), ("]]", SURE)], 0.5),
    ],
)
def test_soft_verdicts(spoken: list[tuple[str, dict[str, float]]], expected: float) -> None:
    reply = completion("".join(text for text, _ in spoken), logprobs=tokens(*spoken))
    with FakeJudge(judge=lambda message: reply) as server:
        (given,) = judge(server).compare(PAIRS[:1])
        assert server.bodies[0]["logprobs"] is True
        assert server.bodies[0]["top_logprobs"] == 5
    assert given.first_wins == pytest.approx(expected, abs=1e-9)


def test_tokens_before_the_text_are_passed_over() -> None:
    """Some servers list the tokens of thoughts, or a leading space, that the text does not hold."""
    spoken = [("thinking A ", SURE), (" ", SURE), ("B", {"B": 0.6, "A": 0.4})]
    with FakeJudge(judge=lambda message: completion("B", logprobs=tokens(*spoken))) as server:
        assert judge(server).compare(PAIRS[:1])[0].first_wins == pytest.approx(0.4)


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"content": None}, {"content": []}, {"content": [{"token": 1}]},
     {"content": [{"token": "x", "top_logprobs": "y"}]},
     {"content": [{"token": "[[A]]", "logprob": None, "top_logprobs": [{"token": "A"}, 3]}]}, "no"],
)  # fmt: skip
def test_without_log_probabilities_the_verdict_is_hard(logprobs: Any) -> None:
    with FakeJudge(judge=lambda message: completion("[[A]]", logprobs=logprobs)) as server:
        assert judge(server).compare(PAIRS[:1])[0].first_wins == 1.0


def test_soft_is_not_asked_for_when_it_is_off() -> None:
    reply = completion("A", logprobs=tokens(("A", {"A": 0.6, "B": 0.4})))
    with FakeJudge(judge=lambda message: reply) as server:
        assert judge(server, soft=False).compare(PAIRS[:1])[0].first_wins == 1.0
        assert "logprobs" not in server.bodies[0]


def test_a_log_probability_of_minus_infinity() -> None:
    reply = Reply("A", False, None, (Token("A", (("A", -0.1), ("B", -math.inf))),), 1, 1)
    assert soft_verdict(reply, read_verdict("A")) == 1.0


# ---- scores


def test_scores_become_a_probability_by_bradley_terry() -> None:
    with FakeJudge() as server:
        one = judge(server, ScoreJudge, score_temperature=2.0)
        # scores 3, 2 and 1: 1 + the number of w3
        given = one.compare([Pair("p", "w3 w3", "w3"), Pair("p", "w1", "w3 w3"), Pair("q", "w3", "w3 w1")])
        # p / "w3 w3" is asked about once
        assert total(server) == 5
    # by hand: sigmoid(1/2), sigmoid(-2/2), sigmoid(0)
    assert [one.first_wins for one in given] == pytest.approx([0.6224593312018546, 0.2689414213699951, 0.5])


def test_a_scorer_file_of_three_lines(tmp_path: Path) -> None:
    """docs/judge.md has it."""
    with FakeJudge() as server:
        file = tmp_path / "scorer.py"
        file.write_text(
            "from sail.oracles.judge import ScoreJudge\n"
            f"judge = ScoreJudge({server.url!r}, 'fake')\n"
            "score = judge.score\n"
        )
        score = load_callable(f"{file}:score")
        assert list(inspect.signature(score).parameters) == ["conversations"]
        assert score([[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "w3"}]]) == [2.0]


def test_one_missing_score_is_an_abstention() -> None:
    def mostly(message: str) -> str:
        return "no" if "w9" in pieces(message)["response"] else "[[7]]"

    with FakeJudge(judge=mostly) as server:
        given = judge(server, ScoreJudge).compare(
            [Pair("p", "w9", "w1"), Pair("p", "w1", "w9"), Pair("p", "w1", "w2")]
        )
    assert [one.first_wins for one in given] == [None, None, 0.5]
    assert (given[0].reason or "").startswith("the first response has no score")
    assert (given[1].reason or "").startswith("the second response has no score")


def test_a_score_that_failed_is_asked_for_again() -> None:
    """A lost call is no verdict to remember; an unreadable reply is one."""
    with FakeJudge(lambda question, attempt: "400") as server:
        (given,) = judge(server, ScoreJudge).compare(PAIRS[:1])
        assert given.passing
    with FakeJudge(judge=lambda message: "no") as server:
        (given,) = judge(server, ScoreJudge).compare(PAIRS[:1])
        assert not given.passing


def test_both_orders_cancel_a_bias_and_count_it() -> None:
    """A judge that always likes the first place: no preference is left, and the report says why."""
    with FakeJudge(judge=lambda message: "[[A]]") as server:
        both = BothOrders(judge(server))
        assert [one.first_wins for one in both.compare(PAIRS)] == [0.5] * len(PAIRS)
        assert total(server) == 2 * len(PAIRS)
    counts = both.report()["both_orders"]
    assert counts["first_place_wins_both"] == counts["answered"] == len(PAIRS)
    with FakeJudge() as server:
        given = BothOrders(judge(server)).compare([PAIRS[0], PAIRS[0].swap()])
        assert [one.first_wins for one in given] == [1.0, 0.0]
        assert total(server) == 2  # the pair and its swap are the same two questions


def test_scores_of_conversations() -> None:
    """The form that `sail eval --questions` calls: one argument, a score or None for each."""
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "w3 w3"}]
    longer = [*talk, {"role": "user", "content": "more"}, {"role": "assistant", "content": "?"}]
    with FakeJudge() as server:
        one = judge(server, ScoreJudge)
        assert one.score([talk, longer]) == [3.0, 1.0]
        with pytest.raises(OracleError, match="fewer than two messages"):
            one.score([talk[:1]])
    with FakeJudge(judge=lambda message: "no") as server:
        assert judge(server, ScoreJudge).score([talk]) == [None]
    # what failed is not an abstention: an evaluation would keep it
    refusing = FakeJudge(lambda question, attempt: "400:too long")
    with refusing as server, pytest.raises(OracleError, match=r"2 of 2 conversations.*too long"):
        judge(server, ScoreJudge).score([talk, longer])


@pytest.mark.parametrize("text", ["1", "10", "8.5", "7.25"])
def test_a_score_comes_back_from_the_ledger_as_it_was(text: str) -> None:
    with FakeJudge(judge=lambda message: f"[[{text}]]") as server:
        assert judge(server, ScoreJudge).scores([("p", "r")]) == [(float(text), None)]
