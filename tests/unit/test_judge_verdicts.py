"""Replies of judges and their reading: the table of data/judge_replies.yaml, and what must hold of any reply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sail.oracles.judge.verdicts import Reading, read_score, read_verdict

TABLE = yaml.safe_load((Path(__file__).parent / "data" / "judge_replies.yaml").read_text(encoding="utf-8"))
WORTH = {"A": 1.0, "B": 0.0, "tie": 0.5}


def check(got: Reading, reads: Any) -> None:
    wanted = WORTH.get(reads, reads)
    if isinstance(wanted, str):
        assert got.value is None, got
        assert wanted in (got.reason or "")
    else:
        assert got.value == wanted, got.reason
        assert got.reason is None


@pytest.mark.parametrize("row", TABLE["pairwise"], ids=lambda row: repr(row["reply"])[:40])
def test_verdicts(row: dict[str, Any]) -> None:
    check(read_verdict(row["reply"], cut=row.get("cut", False)), row["reads"])


@pytest.mark.parametrize("row", TABLE["single"], ids=lambda row: repr(row["reply"])[:40])
def test_scores(row: dict[str, Any]) -> None:
    check(read_score(row["reply"], cut=row.get("cut", False)), row["reads"])


def test_the_table_is_long_enough() -> None:
    assert len(TABLE["pairwise"]) >= 40
    assert len(TABLE["single"]) >= 40


@given(st.text(alphabet='AB[]C :*\n/1890.,-answer{}"<think>', max_size=60), st.booleans())
def test_any_reply_is_read_or_abstained_on(reply: str, cut: bool) -> None:
    """Never an exception, never a verdict and a reason together, and the place holds the deciding word."""
    for got, allowed in (
        (read_verdict(reply, cut=cut), lambda value: value in (0.0, 0.5, 1.0)),
        (read_score(reply, cut=cut), lambda value: 1 <= value <= 10),
    ):
        assert (got.value is None) == bool(got.reason)
        if got.value is not None:
            assert allowed(got.value)
            assert 0 <= got.start < got.end <= len(reply)


@given(st.sampled_from("AB"), st.text(alphabet="abcdefgh ,.\n", max_size=80))
def test_a_final_bracketed_verdict_is_read_after_any_talk(letter: str, talk: str) -> None:
    assert read_verdict(f"{talk}\n[[{letter}]]").value == WORTH[letter]


@pytest.mark.parametrize(
    "reply",
    [
        "Answer:" + " " * 100_000,
        "[[" * 50_000,
        "Answer: " * 20_000,
        "A" * 200_000,
        "<think>" * 30_000,
        "*" * 99_999 + "B ,",
        "[[A]] " * 20_000,
        "Helpfulness: 9/10\n" * 6_000,
        "my the final overall " * 5_000,
        "Verdict: A is the " * 6_000,
        "not " * 30_000 + "[[A]]",
    ],
)
@pytest.mark.timeout(5)
def test_hostile_replies_are_read_quickly(reply: str) -> None:
    assert isinstance(read_verdict(reply), Reading)
    assert isinstance(read_score(reply), Reading)
