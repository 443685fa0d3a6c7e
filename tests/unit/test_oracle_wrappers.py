"""Wrappers: each against its definition, alone and one in another."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sail.errors import OracleError
from sail.oracles import Oracle, PreferenceFunction, RewardFunction
from sail.oracles.calls import Answer, Call, CallOracle, Caps
from sail.oracles.ledger import Ledger
from sail.oracles.wrappers import BothOrders, Budgeted, Committee, Noise, OneOrder, Remember
from sail.types import Pair, Preference


class Says(Oracle):
    """An oracle that says what a function of the pair says, and counts what it was asked."""

    name = "says"
    may_abstain = True

    def __init__(self, say: Callable[[Pair], float | Preference | None]) -> None:
        self.say, self.asked = say, list[Pair]()

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        self.asked += pairs
        given = [self.say(pair) for pair in pairs]
        return [one if isinstance(one, Preference) else Preference(one, "so it is") for one in given]


def pairs(count: int) -> list[Pair]:
    return [Pair(f"p{number}", f"a{number}", f"b{number}") for number in range(count)]


def said(oracle: Oracle, asked: list[Pair]) -> list[float | None]:
    return [one.first_wins for one in oracle.compare(asked)]


# --- Orders ---------------------------------------------------------------------------------------------------


def first_place(pair: Pair) -> float:
    """.8 for a, plus .1 for whatever stands first."""
    return (0.8 if pair.first.startswith("a") else 0.2) + 0.1


def test_both_orders_take_a_bias_for_a_place_away() -> None:
    """By hand: ((.8 + .1) + 1 - (.2 + .1)) / 2 = .8."""
    inner = Says(first_place)
    oracle = BothOrders(inner)
    assert said(oracle, pairs(2)) == pytest.approx([0.8, 0.8])
    # The two of a pair next to each other: a cap in between costs half a pair.
    assert inner.asked == [one for pair in pairs(2) for one in (pair, pair.swap())]
    assert oracle.symmetric
    assert oracle.settings() == {"both_orders": {"name": "says"}}


def test_both_orders_count_the_place_that_always_wins() -> None:
    answers = {("p0", "a0"): 0.9, ("p0", "b0"): 0.9, ("p1", "a1"): 0.1, ("p1", "b1"): 0.1, ("p2", "a2"): 0.9}
    answers |= {("p2", "b2"): 0.1, ("p3", "a3"): 0.5, ("p3", "b3"): 0.9}
    answers |= {("p4", "a4"): 0.8, ("p4", "b4"): 0.6}
    oracle = BothOrders(Says(lambda pair: answers[str(pair.prompt), pair.first]))
    assert said(oracle, pairs(5)) == pytest.approx([0.5, 0.5, 0.9, 0.3, 0.6])
    counts = {"asked": 5, "answered": 5, "first_place_wins_both": 2, "second_place_wins_both": 1}
    assert oracle.report() == {"both_orders": counts}


def test_both_orders_abstain_with_the_reason_of_the_order_that_did() -> None:
    oracle = BothOrders(Says(lambda pair: None if pair.first.startswith("b") else 1.0))
    given = oracle.compare(pairs(1))
    assert given == [Preference(None, "swapped: so it is")]
    assert (
        BothOrders(Says(lambda pair: None)).compare(pairs(1))[0].reason
        == "as given: so it is; swapped: so it is"
    )
    assert oracle.report()["both_orders"]["answered"] == 0
    passing = BothOrders(
        Says(lambda pair: Preference(None, "down", True) if pair.first[0] == "b" else Preference(1.0))
    )
    assert passing.compare(pairs(1))[0].passing


def test_one_order_asks_once_and_gives_the_complement_for_the_other() -> None:
    inner = Says(first_place)
    oracle = OneOrder(inner)
    forward = said(oracle, pairs(200))
    backward = said(oracle, [pair.swap() for pair in pairs(200)])
    assert [1.0 - float(p or 0) for p in backward] == pytest.approx([float(p or 0) for p in forward])
    assert inner.asked[:200] == inner.asked[200:]
    # The bias falls on either side: a binomial of 200 at 1/2 lies within 4 standard deviations, 28, of 100.
    assert abs(sum(math.isclose(float(p or 0), 0.9) for p in forward) - 100) <= 28


# --- Noise ----------------------------------------------------------------------------------------------------


def test_noise_flips_a_share_of_the_pairs_and_always_the_same_ones() -> None:
    clean = Says(lambda pair: 0.9 if pair.first[0] == "a" else 0.1)
    oracle = Noise(clean, 0.2)
    given = said(oracle, pairs(1000))
    flipped = [p is not None and p < 0.5 for p in given]
    assert abs(sum(flipped) - 200) <= 4 * math.sqrt(1000 * 0.2 * 0.8)
    assert {round(float(p or 0), 9) for p in given} == {0.1, 0.9}
    assert said(oracle, list(reversed(pairs(1000)))) == list(reversed(given))
    assert said(oracle, [pair.swap() for pair in pairs(1000)]) == pytest.approx(
        [1.0 - float(p or 0) for p in given]
    )
    assert oracle.report() == {"noise": {"asked": 3000, "flipped": 3 * sum(flipped)}}
    other = said(Noise(clean, 0.2, seed=1), pairs(1000))
    assert 0 < sum(a != b for a, b in zip(given, other, strict=True)) < 500


@pytest.mark.parametrize(("flip", "expected"), [(0.0, 0.9), (1.0, 0.1)])
def test_no_noise_and_nothing_but_noise(flip: float, expected: float) -> None:
    assert said(Noise(Says(lambda pair: 0.9), flip), pairs(20)) == pytest.approx([expected] * 20)


def test_noise_keeps_abstentions_and_is_another_oracle() -> None:
    oracle = Noise(Says(lambda pair: None), 1.0, seed=3)
    assert oracle.compare(pairs(1)) == [Preference(None, "so it is")]
    assert oracle.settings() == {"noise": 1.0, "seed": 3, "of": {"name": "says"}}
    with pytest.raises(OracleError, match=r"it is 1\.5"):
        Noise(Says(first_place), 1.5)


# --- Remember, Budgeted ---------------------------------------------------------------------------------------


def test_what_is_remembered_is_not_asked_again_also_by_another_run(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    inner = Says(lambda pair: None if pair.prompt == "p1" else 0.25)
    with Ledger(path, run="a") as ledger:
        oracle = Remember(inner, ledger)
        assert said(oracle, pairs(3) + pairs(3)) == [0.25, None, 0.25] * 2
        assert inner.asked == pairs(3)
    with Ledger(path, run="b") as ledger:
        again = Remember(inner, ledger)
        assert again.compare(pairs(4))[1] == Preference(None, "so it is")
        assert inner.asked == [*pairs(3), pairs(4)[3]]
        assert (ledger.spent().found, ledger.spent().remembered, ledger.spent().calls) == (3, 1, 0)
        assert Remember(Noise(inner, 0.5), ledger).known(pairs(1)) == [None]


def test_what_may_pass_is_not_remembered() -> None:
    ill = True
    oracle = Remember(
        Says(lambda pair: Preference(None, "down", passing=True) if ill else Preference(1.0)),
        Ledger(":memory:"),
    )
    assert said(oracle, pairs(1)) == [None]
    ill = False
    assert said(oracle, pairs(1)) == [1.0]


class Paid(CallOracle):
    def send(self, call: Call) -> Answer:
        return Answer(0.75, "paid", tokens_in=1)


def test_paid_calls_and_what_is_remembered_of_them_share_a_ledger() -> None:
    ledger = Ledger(":memory:")
    oracle = Remember(BothOrders(Paid("paid", ledger=ledger, caps=Caps(calls=3), concurrency=1)), ledger)
    given = oracle.compare(pairs(2))
    assert [one.first_wins for one in given] == [0.5, None]
    assert given[1].passing
    assert (ledger.spent().calls, ledger.spent().remembered) == (3, 1)
    assert said(Remember(Paid("paid", ledger=ledger), ledger), pairs(1)) == [0.75]
    assert (ledger.spent().calls, ledger.spent().remembered) == (3, 2)
    raised = Remember(BothOrders(Paid("paid", ledger=ledger, caps=Caps(calls=4))), ledger)
    assert said(raised, pairs(2)) == [0.5, 0.5]
    assert ledger.spent().calls == 4


def test_a_budget_admits_so_many_pairs_in_the_order_of_rows_and_over_resumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = Says(lambda pair: 0.25)
    asked = pairs(5)
    with Ledger(tmp_path / "l.sqlite", run="a") as ledger, caplog.at_level(logging.WARNING):
        oracle = Budgeted(Remember(inner, ledger), 3)
        given = oracle.compare([asked[0], asked[1], asked[2], asked[0], asked[3]])
        assert [one.first_wins for one in given] == [0.25] * 4 + [None]
        assert given[4] == Preference(None, "the budget of 3 pairs is spent", passing=True)
        assert oracle.may_abstain
        assert said(oracle, asked) == [0.25] * 3 + [None] * 2
        assert [record.getMessage() for record in caplog.records] == [
            "sail: oracle says: the budget of 3 pairs is spent; further pairs abstain."
        ]
    with Ledger(tmp_path / "l.sqlite", run="a") as ledger:
        assert said(Budgeted(Remember(inner, ledger), 4), asked) == [0.25] * 4 + [None]
    assert len(inner.asked) == 4
    with Ledger(tmp_path / "l.sqlite", run="b") as ledger:
        # What another run has paid for is free.
        assert said(Budgeted(Remember(inner, ledger), 0), asked) == [0.25] * 4 + [None]


def test_a_budget_counts_pairs_whose_answers_are_not_kept(tmp_path: Path) -> None:
    """The answers pass, so nothing is remembered; still no more than three pairs are asked about, over two processes."""
    inner = Says(lambda pair: Preference(None, "down", passing=True))
    for run in range(3):
        with Ledger(tmp_path / "l.sqlite", run="a") as ledger:
            oracle = Budgeted(Remember(inner, ledger), 3)
            oracle.place = "oracle"
            for batch in (pairs(2), pairs(40)[2 + 10 * run : 12 + 10 * run]):
                assert {one.passing for one in oracle.compare(batch)} == {True}
    # pairs(2) is asked again each time, and p2 was the third one.
    assert sorted({str(pair.prompt) for pair in inner.asked}) == ["p0", "p1", "p2"]


def test_a_budget_goes_by_the_place_and_not_by_the_address(tmp_path: Path) -> None:
    asked = 0
    for address in ("one", "two"):
        with Ledger(tmp_path / "l.sqlite", run="a") as ledger:
            inner = Says(lambda pair: 0.25)
            inner.name = address
            oracle = Budgeted(Remember(inner, ledger), 3)
            oracle.place = oracle.inner.place = "oracle"
            oracle.compare(pairs(40)[asked : asked + 2])
            asked += 2
        assert len(inner.asked) == {"one": 2, "two": 1}[address]


def test_a_budget_may_stop_the_run_and_what_was_asked_is_kept() -> None:
    ledger = Ledger(":memory:")
    oracle = Budgeted(Remember(Says(lambda pair: 0.25), ledger), 2, at_cap="stop")
    with pytest.raises(OracleError, match=r"the budget of 2 pairs is spent, and at_cap is stop\."):
        oracle.compare(pairs(3))
    assert ledger.spent().remembered == 2


# --- Committee ------------------------------------------------------------------------------------------------


def of(p: float | None, name: str) -> Oracle:
    return PreferenceFunction(lambda prompts, first, second: [p] * len(prompts), name=name)


def test_a_committee_is_the_mean_and_keeps_what_its_members_said() -> None:
    oracle = Committee([of(0.9, "x"), of(0.4, "y"), of(None, "z")])
    given = oracle.compare(pairs(2))
    assert [one.first_wins for one in given] == pytest.approx([0.65, 0.65])
    assert given[0].reason == "x: 0.90; y: 0.40; z: abstained (z abstained)"
    counts = oracle.report()["committee"]
    assert {key: counts[key] for key in ("asked", "compared", "split")} == {
        "asked": 2,
        "compared": 2,
        "split": 2,
    }
    assert counts["mean_disagreement"] == pytest.approx(0.5)
    assert [member["name"] for member in counts["members"]] == ["x", "y", "z"]


def test_a_committee_abstains_where_it_disagrees_too_much() -> None:
    assert said(Committee([of(0.9, "x"), of(0.4, "y")], abstain_above=0.6), pairs(1)) == pytest.approx([0.65])
    oracle = Committee([of(0.9, "x"), of(0.4, "y")], abstain_above=0.4)
    given = oracle.compare(pairs(1))[0]
    assert given == Preference(None, "the members disagree by 0.50: x: 0.90; y: 0.40")
    assert oracle.report()["committee"]["abstained_for_disagreement"] == 1
    assert oracle.may_abstain


def test_one_member_alone_cannot_disagree() -> None:
    """.9, and two that abstain: with a threshold two must answer, without one a lone verdict counts, as asked for."""
    members = [of(0.9, "x"), of(None, "y"), of(None, "z")]
    strict = Committee(members, abstain_above=0.1)
    given = strict.compare(pairs(1))[0]
    assert given.first_wins is None
    assert (given.reason or "").startswith("1 of 2 members answered: x: 0.90; y: abstained")
    assert strict.report()["committee"]["lone"] == 1
    assert said(Committee(members, abstain_above=0.1, at_least=1), pairs(1)) == [0.9]
    assert said(Committee(members), pairs(1)) == [0.9]
    three = [of(0.9, "x"), of(0.8, "y"), of(None, "z")]
    assert said(Committee(three, at_least=3), pairs(1)) == [None]
    assert said(Committee(three, abstain_above=0.2), pairs(1)) == pytest.approx([0.85])
    assert Committee(three, at_least=3).may_abstain
    with pytest.raises(OracleError, match="cannot wait for 4"):
        Committee(three, at_least=4)


def test_a_committee_of_silence_abstains() -> None:
    given = Committee([of(None, "x"), of(None, "y")]).compare(pairs(1))[0]
    assert given == Preference(None, "x: abstained (x abstained); y: abstained (y abstained)")


def test_what_a_committee_is() -> None:
    reward = RewardFunction(lambda prompts, responses: [float(len(text)) for text in responses], name="r")
    assert Committee([reward, BothOrders(of(0.9, "x"))]).symmetric
    assert not Committee([reward, of(0.9, "x")]).symmetric
    assert not Committee([reward, of(0.9, "x")]).may_abstain
    settings = Committee([of(0.9, "x"), Noise(of(0.1, "y"), 0.5)], abstain_above=0.25).settings()
    assert settings["abstain_above"] == 0.25
    assert settings["committee"][1]["of"]["name"] == "y"
    with pytest.raises(OracleError, match="no members"):
        Committee([])


# --- One in another -------------------------------------------------------------------------------------------


def test_wrappers_apply_from_the_inside_outwards() -> None:
    def settings(oracle: Oracle) -> Any:
        return oracle.settings()

    inner = Says(first_place)
    assert settings(Noise(BothOrders(inner), 0.5))["of"] == {"both_orders": {"name": "says"}}
    assert settings(Remember(BothOrders(inner), Ledger(":memory:"))) == {"both_orders": {"name": "says"}}
    oracle = Noise(BothOrders(Remember(inner, Ledger(":memory:"))), 1.0)
    assert said(oracle, pairs(2)) == pytest.approx([0.2, 0.2])
    assert said(oracle, pairs(2)) == pytest.approx([0.2, 0.2])
    assert len(inner.asked) == 4
    assert oracle.report().keys() == {"both_orders", "noise"}
    assert oracle.name == "says"
