"""What a ledger holds, read: filtered calls one after the other, and their sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

AT_ONCE = 500
_COLUMNS = (
    "id",
    "oracle",
    "oracle_hash",
    "settings",
    "run",
    "step",
    "state",
    "asked_at",
    "seconds",
    "probability",
    "reason",
    "raw",
    "tokens_in",
    "tokens_out",
    "cost",
    "hash",
    "prompt",
    "first",
    "second",
)
_FROM = "FROM calls JOIN comparisons ON comparisons.id = comparison JOIN oracles ON oracles.id = oracle"
_SELECT = (
    "SELECT calls.id, oracles.name, oracles.hash, settings, run, step, state, asked_at, seconds, probability, reason, raw, "
    f"tokens_in, tokens_out, cost, comparisons.hash, prompt, first, second {_FROM}"
)
_SUMMARY = (
    "SELECT oracles.name, oracles.hash, sum(state != 'remembered'), sum(state = 'answered' AND probability IS NOT NULL), "
    "sum(state = 'answered' AND probability IS NULL), sum(state = 'failed'), sum(state = 'sent'), sum(state = 'remembered'), "
    f"sum(tokens_in), sum(tokens_out), sum(cost), avg(CASE WHEN state = 'answered' THEN seconds END) {_FROM}"
)

Execute = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]
"""Runs a query and returns all its rows."""


@dataclass(frozen=True)
class Filter:
    """Which calls; None is all. state: sent, answered, failed, remembered. oracle: its name, or the beginning of its hash.
    step: a number, or (first, last), both included. search: text in prompt, responses, raw reply or reason."""

    state: str | None = None
    run: str | None = None
    oracle: str | None = None
    step: int | tuple[int | None, int | None] | None = None
    abstained: bool = False
    search: str | None = None

    def clause(self) -> tuple[str, list[Any]]:
        """The condition in SQL, and its values."""
        parts: list[str] = ["1"]
        values: list[Any] = []
        for column, value in (("calls.state", self.state), ("calls.run", self.run)):
            if value is not None:
                parts.append(f"{column} = ?")
                values.append(value)
        if self.oracle is not None:
            parts.append("(oracles.name = ? OR substr(oracles.hash, 1, ?) = ?)")
            values += [self.oracle, max(len(self.oracle), 4), self.oracle]
        first, last = self.step if isinstance(self.step, tuple) else (self.step, self.step)
        for sign, bound in ((">=", first), ("<=", last)):
            if bound is not None:
                parts.append(f"calls.step {sign} ?")
                values.append(bound)
        if self.abstained:
            parts.append("(state IN ('answered', 'remembered') AND probability IS NULL)")
        if self.search is not None:
            texts = ("prompt", "first", "second", "coalesce(raw, '')", "coalesce(reason, '')")
            parts.append("(" + " OR ".join(f"instr(lower({text}), lower(?))" for text in texts) + ")")
            values += [self.search] * len(texts)
        return " AND ".join(parts), values


def read_rows(execute: Execute, wanted: Filter) -> Iterator[dict[str, Any]]:
    """The calls in the order of asking, a few hundred at a time: a ledger may be larger than memory."""
    clause, values = wanted.clause()
    last = 0
    while True:
        found = execute(
            f"{_SELECT} WHERE {clause} AND calls.id > ? ORDER BY calls.id LIMIT {AT_ONCE}", (*values, last)
        )
        for row in found:
            one = dict(zip(_COLUMNS, row, strict=True))
            yield {**one, "prompt": json.loads(one["prompt"]), "settings": json.loads(one["settings"])}
        if len(found) < AT_ONCE:
            return
        last = found[-1][0]


def read_summary(execute: Execute, wanted: Filter) -> list[dict[str, Any]]:
    """The sums of the calls of each oracle. seconds: mean of the answered ones, None without any."""
    clause, values = wanted.clause()
    names = (
        "oracle",
        "oracle_hash",
        "calls",
        "answered",
        "abstained",
        "failed",
        "possibly_paid",
        "remembered",
    )
    names += ("tokens_in", "tokens_out", "cost", "seconds")  # type: ignore[assignment]
    found = execute(f"{_SUMMARY} WHERE {clause} GROUP BY oracles.id ORDER BY oracles.id", tuple(values))
    return [dict(zip(names, row, strict=True)) for row in found]
