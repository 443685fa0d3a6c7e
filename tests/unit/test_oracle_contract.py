"""What every oracle promises, asked of every oracle and every wrapper (tests/oracle_cases.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from oracle_cases import CASES, Case, pairs, reward

from sail.errors import OracleError
from sail.oracles import Oracle, PreferenceFunction, RewardFunction
from sail.oracles.function import MOST_IN_A_ROW
from sail.types import Pair, Preference

PAIRS = pairs(9)
SILENT = Pair("silent question", "worth 5", "worth 4")
BROKEN = Pair("broken question", "worth 5", "worth 4")

Fresh = Callable[[], Oracle]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def fresh(case: Case, tmp_path: Path) -> Iterator[Fresh]:
    """fresh() -> another oracle of the case that has seen nothing yet."""
    with ExitStack() as stack:
        made: list[Oracle] = []

        def make() -> Oracle:
            made.append(stack.enter_context(case.make(tmp_path / str(len(made)))))
            return made[-1]

        yield make


def said(oracle: Oracle, asked: list[Pair]) -> list[float | None]:
    return [one.first_wins for one in oracle.compare(asked)]


def test_a_probability_or_an_abstention_with_its_reason(case: Case, fresh: Fresh) -> None:
    given = fresh().compare([*PAIRS, *[SILENT] * case.silent, *[BROKEN] * case.broken])
    assert all(isinstance(one, Preference) for one in given)
    for one in given:
        assert one.first_wins is None or 0.0 <= one.first_wins <= 1.0
        assert one.first_wins is not None or one.reason
    # It is about this world: not everything is the same.
    assert len({one.first_wins for one in given}) > 1


def test_swapping_gives_the_complement_where_it_says_so(fresh: Fresh) -> None:
    oracle = fresh()
    forward, backward = said(oracle, PAIRS), said(fresh(), [pair.swap() for pair in PAIRS])
    complement = [None if p is None else 1.0 - p for p in backward]
    if oracle.symmetric:
        assert complement == pytest.approx(forward, abs=1e-6)
    else:
        # Every oracle here that does not promise it has a bias, so that the promise is not kept by chance.
        assert complement != pytest.approx(forward, abs=1e-6)


def test_splitting_the_batch_changes_nothing(case: Case, fresh: Fresh) -> None:
    whole = fresh().compare(PAIRS)
    halves, singly = fresh(), fresh()
    split = halves.compare(PAIRS[:4]) + halves.compare(PAIRS[4:])
    alone = [singly.compare([pair])[0] for pair in PAIRS]
    if case.exact:
        assert split == alone == whole
    for given in (split, alone):
        assert [one.first_wins for one in given] == pytest.approx([one.first_wins for one in whole], abs=1e-6)


def test_the_order_of_rows_is_kept(fresh: Fresh) -> None:
    forward, backward = said(fresh(), PAIRS), said(fresh(), PAIRS[::-1])
    assert backward == pytest.approx(forward[::-1], abs=1e-6)


def test_a_repeated_pair_gets_one_answer(fresh: Fresh) -> None:
    given = fresh().compare([PAIRS[0], PAIRS[1], PAIRS[0]])
    assert given[0] == given[2]


def test_nothing_asked_is_nothing_answered(fresh: Fresh) -> None:
    assert fresh().compare([]) == []


def test_an_abstention_survives_and_touches_no_other_row(case: Case, fresh: Fresh) -> None:
    if not case.silent:
        pytest.skip("does not abstain on a row of this world")
    oracle = fresh()
    assert oracle.may_abstain
    given = oracle.compare([*PAIRS[:3], SILENT, *PAIRS[3:]])
    assert given[3].first_wins is None
    assert given[:3] + given[4:] == fresh().compare(PAIRS)
    # It is a verdict like any other, and stays one when it is asked for again.
    assert oracle.compare([SILENT])[0].first_wins is None


def test_a_failing_row_costs_that_row_only(case: Case, fresh: Fresh) -> None:
    if not case.broken:
        pytest.skip("no row makes it fail")
    given = fresh().compare([*PAIRS[:3], BROKEN, *PAIRS[3:]])
    if given[3].first_wins is None:
        assert given[3].reason
    assert given[3].passing, "a failure is no verdict to keep"
    assert given[:3] + given[4:] == fresh().compare(PAIRS)


def test_its_settings_tell_it_apart_and_hold_for_every_instance(fresh: Fresh) -> None:
    oracle, other = fresh(), fresh()
    settings = json.loads(json.dumps(oracle.settings()))
    assert settings == oracle.settings()
    assert settings
    if "127.0.0.1" not in json.dumps(settings):  # each test server has a port of its own
        assert settings == other.settings()
    assert oracle.name
    json.dumps(oracle.report())


# --- Callables that raise: a row, or the callable? --------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: RewardFunction(always), lambda: PreferenceFunction(always_too)])
def test_a_callable_that_has_only_ever_raised_is_an_error_at_once(make: Fresh) -> None:
    with pytest.raises(
        OracleError, match=r"raised ValueError: never \(.*asked about \d rows: row 0 \('question 0'\)"
    ):
        make().compare(PAIRS[:2])
    with pytest.raises(OracleError, match="raised ValueError"):
        make().compare(PAIRS[:1])


def always(prompts: object, responses: object) -> list[float]:
    raise ValueError("never")


def always_too(prompts: object, first: object, second: object) -> list[float]:
    raise ValueError("never")


def test_a_callable_that_stops_working_is_an_error_after_some_rows() -> None:
    broken = [Pair(f"broken {number}", "worth 1", "worth 2") for number in range(2 * MOST_IN_A_ROW)]
    oracle = RewardFunction(reward)
    assert None not in said(oracle, PAIRS)
    assert said(oracle, broken[: MOST_IN_A_ROW - 1]) == [None] * (MOST_IN_A_ROW - 1)
    with pytest.raises(OracleError, match="a broken row"):
        oracle.compare(broken[MOST_IN_A_ROW - 1 : MOST_IN_A_ROW])
    # An answer in between begins the count anew, however the rows are split.
    oracle = RewardFunction(reward)
    oracle.compare(PAIRS[:1])
    mixed = [pair for number in range(4) for pair in (*broken[: MOST_IN_A_ROW - 1], PAIRS[number])]
    assert said(oracle, mixed).count(None) == 4 * (MOST_IN_A_ROW - 1)
    for pair in mixed:
        oracle.compare([pair])


def test_what_a_callable_returns_in_a_wrong_form_is_always_an_error() -> None:
    oracle = RewardFunction(lambda prompts, responses: [float("nan") for _ in responses])
    with pytest.raises(OracleError, match="must return a finite reward for each row"):
        oracle.compare(PAIRS)
