"""Waits that the other side asks for beside those of one's own, and what a failed attempt costs."""

from __future__ import annotations

import math
import time

import pytest
from test_oracle_calls import Scripted, by_number, pairs, probabilities

from sail.oracles.calls import Answer, Call, Patience, Retry


def test_a_wait_of_nothing_does_not_take_the_own_wait_away() -> None:
    """Retry-After: 0 on every reply: three waits of at least half of .04, .08 and .16 seconds lie between four attempts."""

    def say(call: Call) -> Answer:
        raise Retry("HTTP 429", after=0.0)

    oracle = Scripted(say, patience=Patience(first_wait=0.04, longest_wait=1.0))
    began = time.monotonic()
    oracle.compare(pairs(1))
    assert oracle.sent.total() == 4
    assert time.monotonic() - began >= (0.04 + 0.08 + 0.16) / 2


@pytest.mark.parametrize(("after", "least", "most"), [(0.0, 1.0, 3.0), (1.5, 1.5, 3.0), (9.0, 9.0, 10.0)])
def test_the_longer_wait_counts_and_no_two_are_the_same(after: float, least: float, most: float) -> None:
    """By hand for the second attempt: its own wait lies between 1 and 2 seconds, and at most half of it comes on top."""
    oracle = Scripted(by_number, patience=Patience(first_wait=1.0, longest_wait=10.0))
    waits = [oracle._wait(1, after) or 0.0 for _ in range(50)]
    assert all(least <= wait <= most for wait in waits)
    assert len(set(waits)) == len(waits)


def test_calls_that_were_held_back_do_not_all_go_at_once() -> None:
    times: list[float] = []

    def say(call: Call) -> Answer:
        times.append(time.monotonic())
        if len(times) <= 8:
            raise Retry("HTTP 429", after=0.1)
        return by_number(call)

    oracle = Scripted(say, concurrency=8, patience=Patience(first_wait=0.4, longest_wait=1.0))
    assert None not in probabilities(oracle, pairs(8))
    again = sorted(times)[8:]
    assert again[0] - times[0] >= 0.1
    assert again[-1] - again[0] > 0.03


def test_what_a_failed_attempt_cost_is_counted() -> None:
    def say(call: Call) -> Answer:
        raise Retry("no choice", after=math.inf, tokens=(5, 2), cost=0.5)

    oracle = Scripted(say)
    oracle.compare(pairs(2))
    spent = oracle.ledger.spent()
    assert (spent.calls, spent.failed, spent.tokens, spent.cost) == (2, 2, 14, 1.0)
