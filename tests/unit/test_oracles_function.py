"""Callables as oracles: both forms, and what is said when one misbehaves."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sail.errors import ConfigError, OracleError
from sail.oracles import Oracle, PreferenceFunction, RewardFunction, as_oracle, ask, load_callable
from sail.types import Pair

PAIRS = [
    Pair("first prompt", "a a a", "b"),
    Pair("second prompt", "b b", "a"),
    Pair([{"role": "user", "content": "third prompt"}], "a", "c c c c"),
]
ROWS = ("row 0", "row 1", "row 2", "first prompt", "second prompt", "third prompt")


def reward(prompts: list[Any], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def prefers(prompts: list[Any], first: list[str], second: list[str]) -> list[float | None]:
    return [
        None if "c" in b else (0.9 if len(a) > len(b) else 0.1) for a, b in zip(first, second, strict=True)
    ]


def refusal(oracle: Oracle, pairs: list[Pair] = PAIRS) -> str:
    with pytest.raises(OracleError) as refused:
        ask(oracle, pairs)
    return str(refused.value)


def returning(values: Any) -> Oracle:
    """A preference callable that returns just this."""
    return PreferenceFunction(lambda prompts, first, second: values, name="mine")


# ---- the two forms


def test_reward_is_bradley_terry_in_one_call() -> None:
    calls = []

    def counted(prompts: list[Any], responses: list[str]) -> list[float]:
        calls.append((prompts, responses))
        return reward(prompts, responses)

    preferences = RewardFunction(counted, temperature=2.0).compare(PAIRS)
    differences = [len(pair.first) - len(pair.second) for pair in PAIRS]
    expected = [1 / (1 + math.exp(-one / 2.0)) for one in differences]
    assert [one.first_wins for one in preferences] == pytest.approx(expected, abs=1e-15)
    assert len(calls) == 1
    assert calls[0][0] == [pair.prompt for pair in PAIRS] * 2
    assert calls[0][1] == [pair.first for pair in PAIRS] + [pair.second for pair in PAIRS]


def test_prefers_gives_probabilities_and_abstentions() -> None:
    preferences = PreferenceFunction(prefers).compare(PAIRS)
    assert [one.first_wins for one in preferences] == [0.9, 0.9, None]
    assert preferences[2].reason == "prefers abstained"


def test_forms_are_told_apart_by_their_arguments() -> None:
    assert isinstance(as_oracle(reward), RewardFunction)
    assert isinstance(as_oracle(prefers), PreferenceFunction)
    assert as_oracle(reward).may_abstain is False
    assert as_oracle(prefers).may_abstain is True

    class Judge:
        def __call__(self, prompts: list[Any], responses: list[str], strict: bool = False) -> list[float]:
            return [0.0] * len(prompts)

    assert isinstance(as_oracle(Judge()), RewardFunction)
    assert as_oracle(Judge()).name == "Judge"
    assert isinstance(as_oracle(functools.partial(prefers)), PreferenceFunction)
    oracle = as_oracle(reward)
    assert as_oracle(oracle) is oracle


@pytest.mark.parametrize("what", [list, lambda one: [], lambda a, b, c, d: [], lambda *all: []])
def test_other_numbers_of_arguments_are_refused(what: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"reward\(prompts, responses\)"):
        as_oracle(what)


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(ConfigError, match="it was given int"):
        as_oracle(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        RewardFunction(reward, temperature=temperature)


# ---- properties


@pytest.mark.parametrize(
    "oracle", [RewardFunction(reward), RewardFunction(lambda p, r: [1e6 * len(x) for x in r])]
)
def test_swapping_gives_the_complement(oracle: Oracle) -> None:
    forward = oracle.compare(PAIRS)
    backward = oracle.compare([pair.swap() for pair in PAIRS])
    for one, other in zip(forward, backward, strict=True):
        assert one.first_wins == pytest.approx(1 - other.first_wins, abs=1e-15)
        assert one.swap().first_wins == pytest.approx(other.first_wins, abs=1e-15)


@pytest.mark.parametrize("oracle", [RewardFunction(reward), PreferenceFunction(prefers)])
def test_splitting_the_batch_changes_nothing(oracle: Oracle) -> None:
    assert oracle.compare(PAIRS) == [oracle.compare([pair])[0] for pair in PAIRS]


def test_identical_responses_are_not_asked() -> None:
    seen: list[str] = []

    def watched(prompts: list[Any], first: list[str], second: list[str]) -> list[float]:
        seen.extend(first)
        return [0.9] * len(prompts)

    same = Pair("p", "twice", "twice")
    preferences, calls = ask(PreferenceFunction(watched), [PAIRS[0], same, PAIRS[1]])
    assert [one.first_wins for one in preferences] == [0.9, 0.5, 0.9]
    assert preferences[1].reason == "identical responses"
    assert calls == 2
    assert seen == [PAIRS[0].first, PAIRS[1].first]


def test_nothing_to_ask_is_no_call() -> None:
    def never(prompts: list[Any], responses: list[str]) -> list[float]:
        raise AssertionError("asked")

    assert ask(RewardFunction(never), [Pair("p", "x", "x")])[1] == 0
    assert ask(RewardFunction(never), []) == ([], 0)


def test_huge_and_extreme_rewards_stay_probabilities() -> None:
    for scale in (1e6, 1e300):
        oracle = RewardFunction(
            lambda prompts, responses, scale=scale: [scale * len(one) for one in responses]
        )
        assert [one.first_wins for one in oracle.compare(PAIRS)] == pytest.approx([1.0, 1.0, 0.0])


def test_a_callable_cannot_change_the_pairs() -> None:
    def greedy(prompts: list[Any], first: list[str], second: list[str]) -> list[float]:
        count = len(prompts)
        prompts.clear()
        first.clear()
        return [0.5] * count

    pairs = list(PAIRS)
    PreferenceFunction(greedy).compare(pairs)
    assert pairs == PAIRS


@pytest.mark.parametrize(
    "values", [np.array([0.1, 0.5, 1.0], dtype=np.float32), torch.tensor([0.1, 0.5, 1.0]), (0.1, 0.5, 1)]
)
def test_arrays_and_their_scalars_are_numbers(values: Any) -> None:
    given = returning(values).compare(PAIRS)
    assert [one.first_wins for one in given] == pytest.approx([0.1, 0.5, 1.0], abs=1e-7)
    assert all(type(one.first_wins) is float for one in given)
    assert [one.first_wins for one in returning(list(values)).compare(PAIRS)] == [
        one.first_wins for one in given
    ]


def test_a_generator_will_do() -> None:
    assert [one.first_wins for one in returning(x for x in (0.1, 0.2, 0.3)).compare(PAIRS)] == [0.1, 0.2, 0.3]


# ---- misbehaviour, always with the rows


def test_raising_names_cause_and_rows() -> None:
    def broken(prompts: list[Any], responses: list[str]) -> list[float]:
        return [1 / 0 for _ in prompts]

    message = refusal(as_oracle(broken))
    assert "broken raised ZeroDivisionError: division by zero" in message
    assert all(name in message for name in ("row 0", "first prompt"))
    with pytest.raises(OracleError) as refused:
        as_oracle(broken).compare(PAIRS)
    assert isinstance(refused.value.__cause__, ZeroDivisionError)


def test_a_generator_that_raises_is_an_oracle_that_raises() -> None:
    def lazily(prompts: list[Any], responses: list[str]) -> Any:
        yield 1.0
        raise ConnectionError("no answer")

    assert "raised ConnectionError: no answer" in refusal(as_oracle(lazily))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_answers(count: int) -> None:
    message = refusal(returning([0.5] * count))
    assert f"was asked about 3 rows and gave {count} answers" in message
    assert all(name in message for name in ROWS)


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), "0.7", "A", b"1", True, [0.5], {}, 1j, np.nan]
)
def test_what_is_no_finite_number(bad: Any) -> None:
    message = refusal(returning([0.5, bad, 0.5]))
    assert "row 1 ('second prompt')" in message
    assert "row 0" not in message
    assert repr(bad) in message
    with pytest.raises(OracleError, match="a finite reward"):
        RewardFunction(lambda prompts, responses: [bad] * len(prompts)).compare(PAIRS)


@pytest.mark.parametrize("bad", [-0.01, 1.0001, 10])
def test_outside_the_unit_interval(bad: float) -> None:
    message = refusal(returning([bad, 0.5, bad]))
    assert "row 0 ('first prompt'), row 2 ('third prompt')" in message
    assert "reward(prompts, responses)" in message


def test_none_is_no_reward() -> None:
    with pytest.raises(OracleError, match="returned None"):
        RewardFunction(lambda prompts, responses: [None] * len(prompts)).compare(PAIRS)


@pytest.mark.parametrize("values", [None, 0.5, "abc", {0.1, 0.2, 0.3}, {1: 0.1, 2: 0.2, 3: 0.3}])
def test_what_is_no_list(values: Any) -> None:
    """Of a set the order is lost, so a row would get another row's answer."""
    message = refusal(returning(values))
    assert "must return a list with one value per row" in message
    assert "row 0" in message


def test_many_rows_are_abbreviated() -> None:
    pairs = [Pair(f"prompt {number} " + "x" * 200, "a", "b") for number in range(50)]
    message = refusal(returning([float("nan")] * 50), pairs)
    assert "and 47 more" in message
    assert len(message) < 500


# ---- from a file


def test_load_callable(tmp_path: Path) -> None:
    file = tmp_path / "my reward.py"
    file.write_text(
        "SCALE = 2\ndef reward(prompts, responses):\n    return [SCALE * len(r) for r in responses]\n"
    )
    assert as_oracle(load_callable(f"{file}:reward")).compare(PAIRS[:1])[0].first_wins > 0.9


@pytest.mark.parametrize("path", ["reward.py", ":reward", "reward.py:", ""])
def test_a_path_of_another_form(path: str) -> None:
    with pytest.raises(ConfigError, match=r"path/to/file.py:name"):
        load_callable(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_callable(f"{tmp_path / 'nowhere.py'}:reward")
    with pytest.raises(ConfigError, match="does not exist"):
        load_callable(f"{tmp_path}:reward")


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text("def score(a, b): ...\ndef other(a, b): ...\n_hidden = len\nnumber = 3\n")
    with pytest.raises(ConfigError, match="no callable 'reward'; it has other, score"):
        load_callable(f"{file}:reward")
    with pytest.raises(ConfigError, match="no callable 'number'"):
        load_callable(f"{file}:number")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import a_module_that_is_nowhere", "ModuleNotFoundError"),
        ("def reward(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_to_load(tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "r.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"failed to load: {cause}"):
        load_callable(f"{file}:reward")


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    file = tmp_path / "reward.txt"
    file.write_text("hello")
    with pytest.raises(ConfigError, match="not a Python file"):
        load_callable(f"{file}:reward")
