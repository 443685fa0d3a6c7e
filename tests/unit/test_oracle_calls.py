"""Paid calls: order, retries, caps exact to the call, errors that stop and errors that cost a row."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sail.errors import OracleError
from sail.oracles.calls import Answer, Call, CallOracle, Caps, Patience, Retry
from sail.oracles.ledger import Ledger
from sail.types import Pair

QUICK = Patience(first_wait=0.001, longest_wait=0.5)


class Scripted(CallOracle):
    """Asks a function; counts what was sent and how many calls were in flight at most."""

    def __init__(self, say: Callable[[Call], Answer], **options: Any) -> None:
        super().__init__("scripted", **{"patience": QUICK, **options})
        self.say = say
        self.sent: Counter[str] = Counter()
        self.most = self.now = 0
        self.guard = threading.Lock()

    def send(self, call: Call) -> Answer:
        with self.guard:
            self.sent[str(call.prompt)] += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.say(call)
        finally:
            with self.guard:
                self.now -= 1


def by_number(call: Call) -> Answer:
    return Answer(int(str(call.prompt)) % 100 / 100, tokens_in=10, cost=0.1)


def slowly(call: Call) -> Answer:
    time.sleep(0.01)
    return by_number(call)


def pairs(count: int, first: int = 0) -> list[Pair]:
    return [Pair(str(number), "x", "y") for number in range(first, first + count)]


def probabilities(oracle: CallOracle, asked: list[Pair]) -> list[float | None]:
    return [one.first_wins for one in oracle.compare(asked)]


# --- Order, cache, concurrency --------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_pairs_whatever_is_slow() -> None:
    def say(call: Call) -> Answer:
        time.sleep(0.03 if call.prompt in ("0", "7") else 0.0)
        return by_number(call)

    oracle = Scripted(say, concurrency=8)
    assert probabilities(oracle, pairs(30)) == [number / 100 for number in range(30)]


def test_as_many_calls_at_once_as_allowed_and_not_more() -> None:
    oracle = Scripted(slowly, concurrency=5)
    oracle.compare(pairs(30))
    assert oracle.most == 5


def test_a_pair_is_asked_once_in_a_batch_and_once_in_a_life(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite", run="a") as ledger:
        oracle = Scripted(by_number, ledger=ledger)
        assert probabilities(oracle, pairs(3) + pairs(3)) == [0.0, 0.01, 0.02] * 2
        assert probabilities(oracle, pairs(4)) == [0.0, 0.01, 0.02, 0.03]
        assert oracle.sent.total() == 4
    with Ledger(tmp_path / "l.sqlite", run="b") as ledger:
        again = Scripted(by_number, ledger=ledger)
        assert probabilities(again, pairs(4)) == [0.0, 0.01, 0.02, 0.03]
        assert again.sent.total() == 0
        assert (ledger.spent().calls, ledger.spent().found) == (0, 4)


def test_a_swapped_pair_is_another_question() -> None:
    oracle = Scripted(by_number)
    oracle.compare([Pair("1", "x", "y"), Pair("1", "y", "x")])
    assert oracle.sent["1"] == 2


def test_no_concurrency_is_refused() -> None:
    with pytest.raises(OracleError, match="must be at least 1; it is 0"):
        Scripted(by_number, concurrency=0)


# --- What goes wrong ------------------------------------------------------------------------------------------


def test_what_may_pass_is_asked_again_and_every_attempt_is_in_the_ledger() -> None:
    def say(call: Call) -> Answer:
        if oracle.sent[str(call.prompt)] < 3:
            raise Retry("HTTP 500")
        return by_number(call)

    oracle = Scripted(say)
    assert probabilities(oracle, pairs(4)) == [0.0, 0.01, 0.02, 0.03]
    assert set(oracle.sent.values()) == {3}
    assert Counter(row["state"] for row in oracle.ledger.rows()) == {"failed": 8, "answered": 4}


def test_a_row_that_never_answers_costs_that_row_only_and_is_asked_again_later() -> None:
    def say(call: Call) -> Answer:
        if call.prompt == "2" and ill:
            raise Retry("HTTP 503")
        return by_number(call)

    ill = True
    oracle = Scripted(say, concurrency=3)
    given = oracle.compare(pairs(5))
    assert [one.first_wins for one in given] == [0.0, 0.01, None, 0.03, 0.04]
    assert given[2].reason == "no answer: HTTP 503"
    assert oracle.sent["2"] == QUICK.attempts
    ill = False
    assert probabilities(oracle, pairs(5))[2] == 0.02
    assert set(oracle.sent.values()) == {1, QUICK.attempts + 1}


def test_what_nobody_foresaw_costs_the_row_and_its_message_is_not_repeated() -> None:
    def say(call: Call) -> Answer:
        if call.prompt == "1":
            raise KeyError("header Authorization: Bearer sk-hidden")
        return by_number(call)

    oracle = Scripted(say)
    given = oracle.compare(pairs(3))
    assert [one.first_wins for one in given] == [0.0, None, 0.02]
    assert str(given[1].reason).startswith("no answer: unexpected KeyError (test_oracle_calls.py line ")
    assert "sk-hidden" not in str([given, list(oracle.ledger.rows())])
    assert oracle.sent["1"] == 1


@pytest.mark.parametrize("number", [1.5, -0.1, math.nan])
def test_a_number_that_is_no_probability_is_an_abstention(number: float) -> None:
    oracle = Scripted(lambda call: Answer(number))
    assert oracle.compare(pairs(1))[0].reason == f"the oracle gave {number!r}, which is no probability"


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_error_that_nothing_mends_stops_the_batch(concurrency: int) -> None:
    def say(call: Call) -> Answer:
        time.sleep(0.005)
        if call.prompt == "5":
            raise OracleError("The key was refused. Check it.")
        return by_number(call)

    oracle = Scripted(say, concurrency=concurrency)
    with pytest.raises(OracleError, match=r"^The key was refused\. Check it\.$"):
        oracle.compare(pairs(200))
    assert oracle.sent.total() <= 6 + 2 * concurrency
    assert oracle.ledger.spent().open == 0
    # What was answered stays answered.
    assert len(list(oracle.ledger.rows(state="answered"))) == oracle.sent.total() - 1


def test_rows_that_wait_for_a_repetition_leave_when_the_batch_stops() -> None:
    def say(call: Call) -> Answer:
        if call.prompt == "0":
            time.sleep(0.05)
            raise OracleError("gone")
        raise Retry("later", after=30.0)

    oracle = Scripted(say, concurrency=4, patience=Patience(longest_wait=60.0))
    began = time.monotonic()
    with pytest.raises(OracleError, match="gone"):
        oracle.compare(pairs(4))
    assert time.monotonic() - began < 5.0


def test_an_oracle_that_is_not_there_stops_the_run() -> None:
    def say(call: Call) -> Answer:
        raise Retry("connection refused")

    oracle = Scripted(say, patience=Patience(2, 0.001, 0.01, failures_in_a_row=6))
    assert probabilities(oracle, pairs(4)) == [None] * 4
    with pytest.raises(
        OracleError, match=r"has not answered 6 rows in a row \(the last reason: connection refused\)"
    ):
        oracle.compare(pairs(50, first=10))
    assert oracle.sent.total() <= 2 * (6 + oracle.concurrency)


def test_an_answer_between_failures_begins_the_count_anew() -> None:
    def say(call: Call) -> Answer:
        if int(str(call.prompt)) % 3:
            raise Retry("HTTP 500", after=math.inf)
        return by_number(call)

    oracle = Scripted(say, concurrency=1, patience=Patience(failures_in_a_row=3))
    assert probabilities(oracle, pairs(30)).count(None) == 20
    assert set(oracle.sent.values()) == {1}  # after=inf gives the row up at once


def test_an_interrupted_call_stays_possibly_paid() -> None:
    def say(call: Call) -> Answer:
        raise KeyboardInterrupt

    oracle = Scripted(say, concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        oracle.compare(pairs(2))
    assert [row["prompt"] for row in oracle.ledger.possibly_paid()] == ["0"]


# --- Retry-After ----------------------------------------------------------------------------------------------


def test_a_wait_that_is_asked_for_holds_back_every_call() -> None:
    times: list[float] = []

    def say(call: Call) -> Answer:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Retry("HTTP 429", after=0.2)
        return by_number(call)

    oracle = Scripted(say, concurrency=1)
    assert probabilities(oracle, pairs(3)) == [0.0, 0.01, 0.02]
    assert times[1] - times[0] >= 0.2
    times.clear()
    oracle = Scripted(say, concurrency=2)
    oracle.compare(pairs(6))
    # The call that was in flight with the first one may have gone; no other before the wait was over.
    assert sum(at - times[0] < 0.19 for at in times) <= 2


def test_a_wait_above_the_longest_is_not_waited_for() -> None:
    def say(call: Call) -> Answer:
        raise Retry("HTTP 429: come back tomorrow", after=86400.0)

    oracle = Scripted(say)
    began = time.monotonic()
    assert oracle.compare(pairs(1))[0].reason == "no answer: HTTP 429: come back tomorrow"
    assert time.monotonic() - began < 1.0
    assert oracle.sent.total() == 1


def test_waits_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 1, 2, 4, then the longest, 5; each times the jitter, which lies between .5 and 1."""
    oracle = Scripted(by_number, patience=Patience(attempts=6, first_wait=1.0, longest_wait=5.0))
    for attempt, whole in enumerate([1.0, 2.0, 4.0, 5.0, 5.0]):
        waits = [oracle._wait(attempt, None) or 0.0 for _ in range(50)]
        assert all(whole / 2 <= wait <= whole for wait in waits)
        assert max(waits) - min(waits) > whole / 10
    assert oracle._wait(5, None) is None


# --- Caps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 8, 32])
def test_the_cap_of_calls_is_held_to_the_call(concurrency: int, tmp_path: Path) -> None:
    """Also over resumes, and failed attempts count."""

    def say(call: Call) -> Answer:
        time.sleep(0.002)
        if oracle.sent[str(call.prompt)] == 1 and int(str(call.prompt)) % 5 == 0:
            raise Retry("HTTP 500")
        return by_number(call)

    for cap, first in ((40, 0), (40, 100), (55, 200)):
        with Ledger(tmp_path / "l.sqlite", run="a") as ledger:
            before = ledger.spent().calls
            oracle = Scripted(say, ledger=ledger, concurrency=concurrency, caps=Caps(calls=cap))
            given = oracle.compare(pairs(60, first=first))
            assert ledger.spent().calls == cap
            assert oracle.sent.total() == cap - before
            assert {one.reason for one in given if one.first_wins is None} == {
                f"the budget of {cap} calls is spent"
            }


def test_a_cap_of_nothing_asks_nothing() -> None:
    oracle = Scripted(by_number, caps=Caps(calls=0))
    assert probabilities(oracle, pairs(3)) == [None] * 3
    assert oracle.sent.total() == 0


@pytest.mark.parametrize(
    ("caps", "most"), [(Caps(tokens=205), 20), (Caps(cost=2.05), 20), (Caps(tokens=1000, cost=0.35), 3)]
)
def test_caps_of_tokens_and_money_are_never_passed(caps: Caps, most: int) -> None:
    """10 tokens and 0.1 of money a call: by hand, 20 calls fit into 205 tokens, and 3 into 0.35."""
    oracle = Scripted(slowly, concurrency=16, caps=caps)
    given = probabilities(oracle, pairs(60))
    assert sum(p is not None for p in given) == oracle.sent.total() == most
    assert caps.tokens is None or oracle.ledger.spent().tokens <= caps.tokens
    assert caps.cost is None or oracle.ledger.spent().cost <= caps.cost + 1e-9


def test_with_no_price_known_yet_calls_go_one_by_one() -> None:
    """The first call costs all there is: nothing else may be in flight with it."""
    oracle = Scripted(lambda call: Answer(0.5, cost=5.0), concurrency=16, caps=Caps(cost=1.0))
    assert sum(p is not None for p in probabilities(oracle, pairs(20))) == 1
    assert oracle.ledger.spent().cost == 5.0


def test_calls_that_cost_nothing_are_not_held_back() -> None:
    def say(call: Call) -> Answer:
        time.sleep(0.01)
        return Answer(0.5)

    oracle = Scripted(say, concurrency=8, caps=Caps(cost=1.0))
    oracle.compare(pairs(60))
    assert oracle.sent.total() == 60
    assert oracle.most == 8


def test_an_open_call_of_a_killed_run_counts_as_the_dearest(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite", run="a") as ledger:
        oracle = Scripted(by_number, ledger=ledger, caps=Caps(cost=0.35))
        oracle.compare(pairs(1))
        ledger.intend(ledger.oracle("scripted", oracle.settings()), Call("in flight", "x", "y"))
        # Longer ago than a call may take: whoever sent it is dead.
        ledger._db.execute("UPDATE calls SET asked_at = asked_at - 3600 WHERE state = 'sent'")
    with Ledger(tmp_path / "l.sqlite", run="a") as ledger:
        oracle = Scripted(by_number, ledger=ledger, caps=Caps(cost=0.35))
        oracle.compare(pairs(9, first=1))
        assert oracle.sent.total() == 1  # 0.1 spent + 0.1 possibly + 0.1 now


def test_what_another_run_has_spent_does_not_count(tmp_path: Path) -> None:
    for run in ("a", "b"):
        with Ledger(tmp_path / "l.sqlite", run=run) as ledger:
            oracle = Scripted(by_number, ledger=ledger, caps=Caps(calls=3))
            oracle.compare(pairs(9, first=10 if run == "a" else 50))
            assert oracle.sent.total() == 3


def test_an_answered_pair_is_free_at_the_cap() -> None:
    oracle = Scripted(by_number, caps=Caps(calls=2), concurrency=1)
    oracle.compare(pairs(2, first=7))
    assert probabilities(oracle, [*pairs(2, first=7), *pairs(1)]) == [0.07, 0.08, None]


def test_at_the_cap_the_run_goes_on_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    oracle = Scripted(by_number, caps=Caps(calls=2))
    with caplog.at_level(logging.WARNING):
        oracle.compare(pairs(9))
        oracle.compare(pairs(9, first=20))
    assert [record.getMessage() for record in caplog.records] == [
        "sail: oracle scripted: the budget of 2 calls is spent; further pairs abstain."
    ]


def test_at_the_cap_the_run_stops(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        oracle = Scripted(slowly, ledger=ledger, caps=Caps(calls=10, at_cap="stop"), concurrency=4)
        with pytest.raises(
            OracleError, match=r"^Oracle scripted: the budget of 10 calls is spent, and at_cap is stop\."
        ):
            oracle.compare(pairs(50))
        assert oracle.sent.total() == 10
        assert len(list(ledger.rows(state="answered"))) == 10
        raised = Scripted(slowly, ledger=ledger, caps=Caps(calls=12, at_cap="stop"), concurrency=4)
        assert None not in probabilities(raised, pairs(10))
        assert raised.sent.total() <= 2
