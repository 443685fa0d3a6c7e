"""A Python callable as an oracle.

Two forms, told apart by the number of their arguments:
    reward(prompts, responses) -> list[float]                    p = sigmoid((reward(first) - reward(second)) / temperature)
    prefers(prompts, first, second) -> list[float | None]        p directly; None abstains

A callable that raises is asked again row by row, and a row for which it raises again abstains. It is an error of the run, naming
the rows, when it has raised for every row so far, or for MOST_IN_A_ROW rows in a row: then the callable is ill, not the
rows. What is returned in a wrong form (too few values, a NaN, a probability of 2) is always an error: such a callable is wrong.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from sail.errors import ConfigError, OracleError
from sail.oracles.base import Oracle, ScoringOracle, check_count, describe, number_or_none, sigmoid
from sail.types import Pair, Preference, Prompt

MOST_IN_A_ROW = 8
"""Rows in a row for which a callable may raise."""

_log = logging.getLogger(__name__)


class _Raised(OracleError):
    """The callable itself has raised."""


class _RowByRow:
    """Asks a callable about many rows at once and, where it raises, about each by itself."""

    def __init__(self) -> None:
        self.ever_answered = False
        self.lost_in_a_row = 0

    def ask(
        self, name: str, pairs: Sequence[Pair], compare: Callable[[Sequence[Pair]], list[Preference]]
    ) -> list[Preference]:
        """`compare` of all pairs; a row for which it raises alone abstains."""
        try:
            given = compare(pairs)
        except _Raised as error:
            return self._singly(name, pairs, compare, error)
        self.ever_answered, self.lost_in_a_row = True, 0
        return given

    def _singly(
        self,
        name: str,
        pairs: Sequence[Pair],
        compare: Callable[[Sequence[Pair]], list[Preference]],
        error: _Raised,
    ) -> list[Preference]:
        given = []
        for pair in pairs:
            try:
                given += compare([pair]) if len(pairs) > 1 else _reraise(error)
                self.ever_answered, self.lost_in_a_row = True, 0
            except _Raised as alone:
                given.append(Preference(None, str(alone), passing=True))
                self.lost_in_a_row += 1
                if self.lost_in_a_row >= MOST_IN_A_ROW:
                    raise error from error.__cause__
        if not self.ever_answered:
            raise error from error.__cause__
        lost = [row for row, one in enumerate(given) if one.passing]
        _log.warning("sail: oracle %s raised for %s; that abstains: %s", name, describe(pairs, lost), error)
        return given


def _reraise(error: _Raised) -> list[Preference]:
    raise error


class RewardFunction(ScoringOracle):
    """Bradley-Terry preference on a reward callable: p = sigmoid((r(first) - r(second)) / temperature).

    Rewards are in any unit; `temperature` is the reward difference that gives odds of e to 1. It never abstains of itself.
    """

    may_abstain = False

    def __init__(
        self, function: Callable[..., Any], *, temperature: float = 1.0, name: str | None = None
    ) -> None:
        if not temperature > 0:
            raise ConfigError(f"The oracle's temperature must be above 0; it is {temperature!r}.")
        self.function = function
        self._source = _source_hash(function)  # now: the file may be edited while this callable is at work
        self.temperature = temperature
        self.name = name or _name_of(function)
        self._rows = _RowByRow()

    def settings(self) -> dict[str, Any]:
        """Name, temperature and a hash of the callable's file: another version of it is another oracle."""
        return {"name": self.name, "temperature": self.temperature, "source": self._source}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """The callable's rewards; OracleError naming the rows if it raises or returns anything but finite numbers."""
        rows = [Pair(prompt, response, "") for prompt, response in zip(prompts, responses, strict=True)]
        values = _call(self.name, self.function, rows, list(prompts), list(responses))
        return _numbers(self.name, rows, values, "a finite reward")

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Both responses of all pairs scored in one call."""
        return self._rows.ask(self.name, pairs, self._compare)

    def _compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        prompts = [pair.prompt for pair in pairs]
        responses = [pair.first for pair in pairs] + [pair.second for pair in pairs]
        rewards = self.score(prompts + prompts, responses)
        first, second = rewards[: len(pairs)], rewards[len(pairs) :]
        return [self.preference(a, b) for a, b in zip(first, second, strict=True)]

    def preference(self, first: float, second: float) -> Preference:
        """p = sigmoid((first - second) / temperature)."""
        return Preference(sigmoid((first - second) / self.temperature))


class PreferenceFunction(Oracle):
    """A callable that returns the probability that the first response wins, or None to abstain."""

    may_abstain = True

    def __init__(self, function: Callable[..., Any], *, name: str | None = None) -> None:
        self.function = function
        self._source = _source_hash(function)  # now: the file may be edited while this callable is at work
        self.name = name or _name_of(function)
        self._rows = _RowByRow()

    def settings(self) -> dict[str, Any]:
        """Name and a hash of the callable's file: another version of it is another oracle."""
        return {"name": self.name, "source": self._source}

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """The callable's probabilities; OracleError naming the rows that are not in [0, 1]."""
        return self._rows.ask(self.name, pairs, self._compare)

    def _compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        values = _call(
            self.name,
            self.function,
            pairs,
            [pair.prompt for pair in pairs],
            [pair.first for pair in pairs],
            [pair.second for pair in pairs],
        )
        given = [0.5 if value is None else value for value in values]
        numbers = _numbers(self.name, pairs, given, "a probability in [0, 1] or None")
        outside = [row for row, number in enumerate(numbers) if not 0.0 <= number <= 1.0]
        if outside:
            raise OracleError(
                f"Oracle {self.name} must return a probability in [0, 1] or None for each row; it returned "
                f"{values[outside[0]]!r} for {describe(pairs, outside)}. If it scores single responses, give it the form "
                "reward(prompts, responses)."
            )
        return [
            Preference(None, f"{self.name} abstained") if value is None else Preference(number)
            for value, number in zip(values, numbers, strict=True)
        ]


def as_oracle(
    what: Oracle | Callable[..., Any], *, temperature: float = 1.0, name: str | None = None
) -> Oracle:
    """An oracle from an oracle, or from a callable in one of the two forms."""
    if isinstance(what, Oracle):
        return what
    if not callable(what):
        raise ConfigError(f"An oracle is a callable or an Oracle; it was given {type(what).__name__}.")
    count = _positional_arguments(what)
    if count == 2:
        return RewardFunction(what, temperature=temperature, name=name)
    if count == 3:
        if temperature != 1.0:
            raise ConfigError(
                "oracle.temperature turns rewards into probabilities; prefers(...) gives them itself. Remove it."
            )
        return PreferenceFunction(what, name=name)
    raise ConfigError(
        f"The oracle {name or _name_of(what)} takes {count} arguments. Write it as reward(prompts, responses) or as "
        "prefers(prompts, first, second)."
    )


def load_callable(path: str) -> Callable[..., Any]:
    """The callable named by `path/to/file.py:name`."""
    file_name, separator, attribute = path.rpartition(":")
    if not separator or not file_name or not attribute:
        raise ConfigError(f"An oracle path has the form path/to/file.py:name; it was given {path!r}.")
    file = Path(file_name)
    if not file.is_file():
        raise ConfigError(f"The oracle file {file_name} does not exist. Check oracle.path in the run config.")
    spec = importlib.util.spec_from_file_location(f"sail_oracle_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"The oracle file {file_name} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"The oracle file {file_name} failed to load: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = sorted(
            key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
        )
        raise ConfigError(f"{file_name} has no callable {attribute!r}; it has {', '.join(names) or 'none'}.")
    return function


def _call(name: str, function: Callable[..., Any], pairs: Sequence[Pair], *arguments: list[Any]) -> list[Any]:
    try:
        values = function(*arguments)
        # In the same block: a generator only runs, and fails, when its values are taken.
        listed = list(values) if _in_order(values) else None
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise _Raised(
            f"Oracle {name} raised {type(error).__name__}: {error} ({Path(where.filename).name} line {where.lineno}; asked "
            f"about {len(pairs)} rows: {describe(pairs, range(len(pairs)))})"
        ) from error
    if listed is None:
        raise OracleError(
            f"Oracle {name} must return a list with one value per row; it returned {values!r} (asked about {len(pairs)} "
            f"rows: {describe(pairs, range(len(pairs)))})"
        )
    check_count(name, pairs, listed)
    return listed


def _in_order(values: Any) -> bool:
    """Whether it holds one value after the other; a set or a dict has lost the order of the rows."""
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | Set)


def _numbers(name: str, pairs: Sequence[Pair], values: Sequence[Any], wanted: str) -> list[float]:
    numbers = [number_or_none(value) for value in values]
    bad = [row for row, number in enumerate(numbers) if number is None]
    if bad:
        raise OracleError(
            f"Oracle {name} must return {wanted} for each row; it returned {values[bad[0]]!r} for {describe(pairs, bad)}."
        )
    return [number for number in numbers if number is not None]


def _positional_arguments(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return -1
    return sum(
        parameter.kind in kinds and parameter.default is inspect.Parameter.empty for parameter in parameters
    )


def _source_hash(function: Any) -> str | None:
    """sha256 of the file that holds the callable; None where there is none to be found, as in a shell."""
    seen = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    try:
        return hashlib.sha256(Path(inspect.getfile(inspect.unwrap(seen))).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
