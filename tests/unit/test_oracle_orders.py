"""How the order of two responses is dealt with: what a cap does between both orders, and what is said of a bias for a place."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from health_records import DPR, said, state

from sail.cli import main
from sail.evaluation.orders import orders_of
from sail.oracles import Oracle, PreferenceFunction, RewardFunction
from sail.oracles.calls import Answer, Call, CallOracle, Caps
from sail.oracles.ledger import LEDGER, Ledger
from sail.oracles.wrappers import BothOrders, Committee, Noise, OneOrder, Remember
from sail.report import RunRecord, read_runs
from sail.report.provenance import facts
from sail.types import Pair


def pairs(count: int, start: int = 0) -> list[Pair]:
    return [Pair(f"p{number}", f"a{number}", f"b{number}") for number in range(start, start + count)]


class First(CallOracle):
    """Gives `p` to whatever stands first."""

    def __init__(self, ledger: Ledger, p: float = 0.9, **options: Any) -> None:
        super().__init__("first", ledger=ledger, **options)
        self.p = p

    def send(self, call: Call) -> Answer:
        return Answer(self.p, raw="[[A]]", tokens_in=1, cost=1.0)


# --- A cap between the two orders -----------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_cap_costs_no_more_halves_than_calls_in_flight(concurrency: int) -> None:
    """64 pairs and 60 calls: 30 verdicts, but for the calls that were in flight when the cap was reached."""
    oracle = BothOrders(First(Ledger(":memory:"), caps=Caps(calls=60), concurrency=concurrency))
    given = [one.first_wins for one in oracle.compare(pairs(64))]
    assert 30 - concurrency // 2 <= len([p for p in given if p is not None]) <= 30


def export(folder: Path, *more: str) -> tuple[list[dict[str, Any]], str]:
    target = folder / "out.jsonl"
    assert main(["ledger", str(folder), "--export", str(target), "--force", *more]) == 0
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()], str(target)


def test_half_a_pair_is_not_exported_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5 calls are two pairs and a half: the half would be decided by its place."""
    with Ledger(tmp_path / LEDGER, run=".") as ledger:
        BothOrders(First(ledger, caps=Caps(calls=5), concurrency=1)).compare(pairs(9))
    assert export(tmp_path)[0] == []
    assert "2 ties, 1 asked in one of two orders only (--one-order takes them)" in " ".join(
        capsys.readouterr().out.split()
    )
    (row,), _ = export(tmp_path, "--one-order")
    assert (row["chosen"], row["score_chosen"]) == ("a2", 0.9)
    capsys.readouterr()
    assert main(["ledger", str(tmp_path), "--one-order"]) == 2
    assert "--one-order concerns an export" in capsys.readouterr().err


@pytest.mark.parametrize("wrap", [OneOrder, lambda oracle: oracle])
def test_one_order_is_whole_where_one_was_wanted(tmp_path: Path, wrap: Any) -> None:
    with Ledger(tmp_path / LEDGER, run=".") as ledger:
        wrap(First(ledger)).compare(pairs(4))
    assert len(export(tmp_path)[0]) == 4


def test_what_is_remembered_of_both_orders_is_whole(tmp_path: Path) -> None:
    with Ledger(tmp_path / LEDGER, run=".") as ledger:
        Remember(
            BothOrders(
                PreferenceFunction(lambda p, a, b: [0.9 if x < y else 0.2 for x, y in zip(a, b, strict=True)])
            ),
            ledger,
        ).compare(pairs(3))
    assert len(export(tmp_path)[0]) == 3


# --- Caps: by place, and over processes -----------------------------------------------------------------------


class Elsewhere(First):
    """The same judge at another address."""

    def __init__(self, ledger: Ledger, url: str, **options: Any) -> None:
        super().__init__(ledger, **options)
        self.url, self.place = url, "oracle"

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "url": self.url}


def test_a_new_address_does_not_begin_the_caps_anew(tmp_path: Path) -> None:
    for url, calls in (("one", 7), ("two", 3), ("one", 0)):
        with Ledger(tmp_path / LEDGER, run="a") as ledger:
            before = ledger.spent().calls
            oracle = Elsewhere(ledger, url, caps=Caps(calls=10), concurrency=1)
            oracle.compare(pairs(7, start=10 * before))
            assert ledger.spent().calls - before == calls
    with Ledger(tmp_path / LEDGER, run="a") as ledger:
        elsewhere = Elsewhere(ledger, "two", caps=Caps(calls=10))
        elsewhere.place = "eval_oracle"
        elsewhere.budget.caps = Caps(calls=4)
        assert [one.first_wins for one in elsewhere.compare(pairs(2, start=900))] == [
            0.9,
            None,
        ]  # its own three count
        ledger.retire()
        fresh = Elsewhere(ledger, "two", caps=Caps(calls=10), concurrency=1)
        assert all(one.first_wins == 0.9 for one in fresh.compare(pairs(10, start=500)))


def test_a_cap_waits_for_calls_that_another_process_has_in_flight(tmp_path: Path) -> None:
    """2.2 spent of 10 and seven calls open elsewhere, at the dearest 1.1 each: nothing may be sent now, but six of them come to
    little, and then there is room. Before, the budget was said to be spent."""
    with Ledger(tmp_path / LEDGER, run="a") as other, Ledger(tmp_path / LEDGER, run="a") as ledger:
        mine = First(ledger, caps=Caps(cost=10.0))
        known = other.oracle("first", mine.settings())
        for number in range(2):
            call = Call(f"old {number}", "x", "y")
            other.settle(other.intend(known, call), Answer(0.5, cost=1.1))
        open_calls = [other.intend(known, Call(f"open {number}", "x", "y")) for number in range(7)]

        def settle() -> None:
            time.sleep(0.3)
            for number, call_id in enumerate(open_calls):
                other.settle(call_id, Answer(0.5, cost=1.1 if number == 0 else 0.01))

        thread = threading.Thread(target=settle)
        thread.start()
        (given,) = mine.compare(pairs(1))
        thread.join()
        assert given.first_wins == 0.9
        assert mine.budget.reached is None


def test_the_first_call_of_all_processes_goes_alone(tmp_path: Path) -> None:
    with Ledger(tmp_path / LEDGER, run="a") as other, Ledger(tmp_path / LEDGER, run="a") as ledger:
        mine = First(ledger, caps=Caps(tokens=100))
        first = other.intend(other.oracle("first", mine.settings()), Call("elsewhere", "x", "y"))
        thread = threading.Thread(target=lambda: mine.compare(pairs(1)))
        thread.start()
        time.sleep(0.3)
        assert ledger.spent().calls == 1
        other.settle(first, Answer(0.5, tokens_in=1))
        thread.join(timeout=20)
        assert ledger.spent().calls == 2


# --- What is said of a position bias --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oracle", "order"),
    [
        (lambda: RewardFunction(lambda prompts, responses: [0.0] * len(prompts)), "scores"),
        (lambda: PreferenceFunction(lambda prompts, first, second: [0.5] * len(prompts)), "as_given"),
    ],
)
def test_what_an_oracle_says_of_the_order(oracle: Any, order: str) -> None:
    inner: Oracle = oracle()
    assert inner.order == order
    assert Noise(inner, 0.1).order == order
    both, one = BothOrders(inner), OneOrder(inner)
    assert (both.order, one.order) == (("scores",) * 2 if order == "scores" else ("both_orders", "one_order"))
    assert both.ordered() is (None if order == "scores" else inner)
    assert Noise(both, 0.1).ordered() is both.ordered()
    assert one.ordered() is None
    assert Committee([both, one]).order == one.order
    assert Committee([both, inner]).order == ("scores" if order == "scores" else "as_given")


def shown(first: float) -> Any:
    return {"mean": pytest.approx(first)}


def test_the_bias_of_a_judge_that_always_says_first(tmp_path: Path) -> None:
    """By hand: .9 for the first place in both orders, so .4 of bias, and every pair has another winner. Over two processes."""
    for start in (0, 40):
        with Ledger(tmp_path / LEDGER, run=".") as ledger:
            BothOrders(First(ledger)).compare(pairs(40, start))
            (found,) = orders_of(ledger)
    assert (found["oracle"], found["order"], found["pairs"]) == ("first", "both_orders", 80)
    assert found["first_wins"]["mean"] == pytest.approx(0.9)
    assert found["bias"]["mean"] == pytest.approx(0.4)
    assert (found["disagreement"]["mean"], found["disagreement"]["n"]) == (1.0, 80)
    with Ledger(tmp_path / LEDGER, run="another") as ledger:
        assert orders_of(ledger) == []
        # A run that finds everything in a shared file is told of the same pairs; one with pairs of its own, of those.
        oracle = BothOrders(First(ledger))
        oracle.compare(pairs(80))
        assert orders_of(ledger)[0]["pairs"] == 80
        oracle.compare(pairs(3, 100))
        assert orders_of(ledger)[0]["pairs"] == 3


def test_of_one_order_the_place_is_measured_and_of_scores_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / LEDGER, run=".") as ledger:
        OneOrder(First(ledger, 0.7)).compare(pairs(30))
        Remember(RewardFunction(lambda prompts, responses: [0.0] * len(prompts)), ledger).compare(pairs(3))
        (found,) = orders_of(ledger)
    assert (found["order"], found["disagreement"], found["pairs"]) == ("one_order", None, 30)
    assert found["bias"]["mean"] == pytest.approx(0.2)


def report_of(folder: Path) -> tuple[RunRecord, list[str]]:
    (record,) = read_runs([folder])
    (row,) = [fact for fact in facts([record]) if fact["id"] == "swap"]
    return record, row["cells"][0]["lines"]


def test_the_report_says_the_bias_and_warns(tmp_path: Path) -> None:
    """The audit of such a run said "symmetric", and the check was green, because the average over both orders is."""
    settings = {**DPR, "oracle": {"kind": "judge", "wrap": ["both_orders"]}}
    (tmp_path / "config.resolved.yaml").write_text(json.dumps(settings))
    (tmp_path / "audit.json").write_text(json.dumps({"oracle_swap": {"kind": "symmetric"}}))
    assert state(read_runs([tmp_path])[0], "swapped") == "not measured"
    with Ledger(tmp_path / LEDGER, run=".") as ledger:
        BothOrders(First(ledger)).compare(pairs(40))
    record, lines = report_of(tmp_path)
    assert state(record, "swapped") == "warning"
    assert said(record, "swapped").startswith("first: another verdict in 100.0% (")
    assert said(record, "swapped").endswith("from the ledger")
    assert lines == [said(record, "swapped")]
    assert "of 40 pairs, first wins with 90.0%" in lines[0]


def test_without_a_ledger_the_audit_or_the_wrapper_says_it() -> None:
    low = {"mean": 0.1, "low": 0.05, "high": 0.2, "n": 64}
    audited = {"oracle_swap": {"kind": "both_orders", "disagreement": low, "first_wins": {"mean": 0.52}}}
    record = RunRecord("r", config=DPR, audit=audited)
    assert (
        said(record, "swapped")
        == "another verdict in 10.0% (5.0% to 20.0%) of 64 pairs, first wins with 52.0%"
    )
    assert state(record, "swapped") == "fine"
    counts = {"asked": 200, "answered": 200, "first_place_wins_both": 90, "second_place_wins_both": 10}
    counted = RunRecord(
        "r",
        config=DPR,
        audit={"oracle_swap": {"kind": "both_orders"}},
        results={"oracle": {"both_orders": counts}},
    )
    assert state(counted, "swapped") == "warning"
    assert "another verdict in 50.0%" in said(counted, "swapped")
    for kind, words in (
        ("scores", "scores each response by itself"),
        ("symmetric", "symmetric by construction"),
    ):
        assert words in said(RunRecord("r", config=DPR, audit={"oracle_swap": {"kind": kind}}), "swapped")
    for kind in ("both_orders", "one_order"):
        assert (
            state(RunRecord("r", config=DPR, audit={"oracle_swap": {"kind": kind}}), "swapped")
            == "not measured"
        )


@pytest.mark.parametrize(("mean", "expected"), [(0.55, "fine"), (0.7, "warning"), (0.3, "warning")])
def test_of_one_order_the_least_share_of_turned_verdicts_is_judged(mean: float, expected: str) -> None:
    """1/2 + b for a place turns 2 b at least: the limit of a quarter is reached at .625, by the whole interval."""
    first = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 300}
    row = {"oracle": "j", "order": "one_order", "first_wins": first, "disagreement": None}
    assert state(RunRecord("r", config=DPR, orders=[row]), "swapped") == expected
