"""The ledger: one SQLite file that holds every call an oracle was asked and every answer it gave.

It is the cache (an answered call is never sent again, by any run that points at the same file), the audit, and the resume: the
intent of a call is committed before it is sent and its answer when it arrives, so that a kill at any moment loses no committed
answer and leaves at most as many open intents as calls were in flight: those may have been paid for.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from sail.errors import OracleError
from sail.oracles.ledger_file import VERSION, open_file, transaction
from sail.oracles.ledger_reading import Filter, read_rows, read_summary
from sail.types import Prompt

__all__ = ["LEDGER", "VERSION", "Answer", "Call", "Filter", "Ledger", "Spent", "hash_of"]

LEDGER = "ledger.sqlite"
_ANSWER = "SELECT probability, reason, raw, tokens_in, tokens_out, cost, seconds FROM calls"
_HAS_ANSWER = "state IN ('answered', 'remembered')"


@dataclass(frozen=True)
class Call:
    """One question to an oracle: which of two responses, in this order, is better?"""

    prompt: Prompt
    first: str
    second: str

    @cached_property
    def key(self) -> str:
        """sha256 (hex) of prompt and both texts in this order: the same in every process and on every machine."""
        return hash_of([self.prompt, self.first, self.second])


@dataclass(frozen=True)
class Answer:
    """What came back: the probability that the first response wins, or None with the reason; what was said, and what it cost.

    cost is in the currency of the oracle's prices; seconds is wall time from sending to the last byte.
    """

    probability: float | None
    reason: str | None = None
    raw: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Spent:
    """What a run has spent: calls sent (answered, failed, or in flight when it was killed), tokens, money.

    open: calls sent and not settled, each counted as the dearest one so far where a cap is checked. found: pairs answered from
    the ledger. remembered: answers kept for an oracle that makes no paid calls of its own.
    """

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    open: int = 0
    failed: int = 0
    found: int = 0
    remembered: int = 0
    dearest_tokens: int = 0
    dearest_cost: float = 0.0
    in_flight: int = 0
    """Of the open calls, those sent since a moment that whoever asks has named: the others are of processes that have died."""


@dataclass(frozen=True)
class Use:
    """That a run asks an oracle: at a place of its settings ("" = none), and in which orders by what is around it.

    orders: both_orders, one_order, as_given, or symmetric where the oracle itself sees to it.
    """

    run: str
    place: str
    oracle_hash: str
    orders: str


def hash_of(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """The calls of one or several runs. Safe to use from several threads; several processes of one machine may share the file."""

    def __init__(self, path: Path | str, *, run: str = "", at_once: bool = True) -> None:
        """Open or make the file at `path` (":memory:" keeps nothing). `run`: who asks, for its caps. Raises OracleError.

        With at_once = False it is opened when it is first used, or by `open`: nothing is made by a run that does not begin.
        """
        self.path, self.run = path, run
        self.step: int | None = None
        """The optimiser step that asks, for the audit; set by the trainer."""
        self._lock = threading.RLock()
        self._file: sqlite3.Connection | None = None
        if at_once:
            self.open()

    def open(self) -> None:
        """Open or make the file, unless it is open."""
        with self._lock:
            if self._file is None:
                self._file = open_file(self.path)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._file is None:
            self.open()
        assert self._file is not None
        return self._file

    # ---- one call

    def oracle(
        self, name: str, settings: dict[str, Any], *, place: str = "", orders: str | None = None
    ) -> int:
        """The id of the oracle with these settings; it is entered when it is new. `place` and `orders`: as in Use, which is
        entered for this run where `orders` is given."""
        key, text = hash_of(settings), json.dumps(settings, ensure_ascii=False, sort_keys=True)
        with self._guarded(), transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO oracles (hash, name, settings) VALUES (?, ?, ?)",
                (key, _storable(name), _storable(text)),
            )
            known = int(self._one("SELECT id FROM oracles WHERE hash = ?", key)[0])
            if orders is not None:
                self._db.execute(
                    "INSERT OR REPLACE INTO uses (run, place, oracle, orders) VALUES (?, ?, ?, ?)",
                    (self.run, place, known, orders),
                )
            return known

    def uses(self) -> list[Use]:
        """Which run asks which oracle, and how; of files that were begun by an older sail, what was entered since."""
        query = "SELECT run, place, oracles.hash, orders FROM uses JOIN oracles ON oracles.id = oracle"
        return [Use(*row) for row in self._all(query, ())]

    def find(self, oracle: int, call: Call) -> Answer | None:
        """The answer that this oracle once gave to this call, or None."""
        with self._guarded():
            row = self._db.execute(
                f"{_ANSWER} JOIN comparisons ON comparisons.id = comparison WHERE oracle = ? AND {_HAS_ANSWER} "
                "AND comparisons.hash = ?",
                (oracle, call.key),
            ).fetchone()
        return None if row is None else Answer(*row)

    def intend(
        self,
        oracle: int,
        call: Call,
        admit: Callable[[Spent], None] | None = None,
        *,
        place: str = "",
        since: float = 0.0,
    ) -> int:
        """Commit that the call is about to be sent; returns its id.

        `admit` sees what the run has spent with this oracle, and with those that stood at the same `place` before, and may raise:
        then nothing is written. It is part of the same transaction, so that several processes together stay within a cap.
        since: the time.time() from which on open calls are in flight.
        """
        with self._guarded(), transaction(self._db):
            if admit is not None:
                admit(self._spent_at(place, oracle, since))
            call_id = self._insert(oracle, call, "sent", Answer(None))
            self._add(oracle, calls=1, open=1)
            return call_id

    def settle(self, call_id: int, answer: Answer, *, failed: bool = False) -> Answer:
        """Commit what came of a call; returns the answer that stands. A failed one (no reply, or none worth keeping) is asked
        again when it is met again."""
        with self._guarded(), transaction(self._db):
            run, oracle, comparison = self._one(
                "SELECT run, oracle, comparison FROM calls WHERE id = ?", call_id
            )
            first = None if failed else self._standing(oracle, comparison)
            if first is not None:
                # Another process asked the same at the same time and was first: its answer stands; what this one cost is counted.
                failed, answer = True, replace(answer, probability=None, reason="answered twice at once")
            self._db.execute(
                "UPDATE calls SET state = ?, probability = ?, reason = ?, raw = ?, tokens_in = ?, tokens_out = ?, cost = ?, "
                "seconds = ? WHERE id = ?",
                ("failed" if failed else "answered", *_columns(answer), call_id),
            )
            tokens = answer.tokens_in + answer.tokens_out
            self._db.execute(
                "UPDATE totals SET open = open - 1, failed = failed + ?, tokens = tokens + ?, cost = cost + ?, "
                "dearest_tokens = max(dearest_tokens, ?), dearest_cost = max(dearest_cost, ?) WHERE run = ? AND oracle = ?",
                (int(failed), tokens, answer.cost, tokens, answer.cost, run, oracle),
            )
            return first or answer

    def remember(self, oracle: int, answered: Sequence[tuple[Call, Answer]]) -> None:
        """Commit answers that cost no call of their own, all of them or none; one that is there already stands."""
        with self._guarded(), transaction(self._db):
            new = 0
            for call, answer in answered:
                comparison = self._comparison(call)
                if self._standing(oracle, comparison) is None:
                    self._insert(oracle, call, "remembered", answer)
                    new += 1
            self._add(oracle, remembered=new)

    def claim(self, place: str, oracle: int, pairs: Sequence[str], limit: int) -> set[str]:
        """Those of the pairs (keys of calls) that a budget of `limit` pairs admits at that place of this run, committed before
        they are asked; a pair that was admitted once stays so. What was remembered before there was a budget counts for it."""
        with self._guarded(), transaction(self._db):
            where = (self.run, place)
            if not self._db.execute("SELECT 1 FROM claims WHERE run = ? AND place = ?", where).fetchone():
                self._db.execute(
                    "INSERT OR IGNORE INTO claims SELECT run, ?, comparisons.hash FROM calls JOIN comparisons "
                    "ON comparisons.id = comparison WHERE run = ? AND oracle = ? AND state = 'remembered'",
                    (place, self.run, oracle),
                )
            taken = int(self._one("SELECT count(*) FROM claims WHERE run = ? AND place = ?", *where)[0])
            admitted = set()
            for pair in dict.fromkeys(pairs):
                row = self._db.execute(
                    "SELECT 1 FROM claims WHERE run = ? AND place = ? AND pair = ?", (*where, pair)
                ).fetchone()
                if row is None and taken >= limit:
                    continue
                if row is None:
                    self._db.execute("INSERT INTO claims VALUES (?, ?, ?)", (*where, pair))
                    taken += 1
                admitted.add(pair)
            return admitted

    def note_found(self, oracle: int, count: int) -> None:
        """Count pairs that were answered from the ledger."""
        with self._guarded(), transaction(self._db):
            self._add(oracle, found=count)

    # ---- the whole

    def spent(self, oracle: int | None = None) -> Spent:
        """What this run has spent so far, in all its processes and resumes; with one oracle, or with all."""
        with self._guarded():
            if oracle is None:
                return self._spent("run = ?", self.run)
            return self._spent("run = ? AND oracle = ?", self.run, oracle)

    def retire(self) -> None:
        """Begin anew under this run's name: what was spent under it is kept under another name and counts for no cap."""
        aside = f"{self.run} until {datetime.now().isoformat(timespec='microseconds')}"
        with self._guarded(), transaction(self._db):
            for table in ("calls", "totals", "uses", "claims"):
                self._db.execute(f"UPDATE {table} SET run = ? WHERE run = ?", (aside, self.run))

    def possibly_paid(self) -> list[dict[str, Any]]:
        """Calls that were sent and never settled: in flight when a run was killed (or, while one is running, right now)."""
        return list(self.rows(state="sent"))

    def rows(self, **where: Any) -> Iterator[dict[str, Any]]:
        """Every call as a dict, in the order of asking; `where` are the fields of Filter: state, run, oracle, step, ..."""
        return read_rows(self._all, Filter(**where))

    def summary(self, **where: Any) -> list[dict[str, Any]]:
        """The sums of each oracle's calls; `where` as in `rows`."""
        return read_summary(self._all, Filter(**where))

    def close(self) -> None:
        """Close the file; what was committed is in it."""
        with self._lock:
            if self._file is not None:
                self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside a transaction

    def _comparison(self, call: Call) -> int:
        prompt = json.dumps(call.prompt, ensure_ascii=False)
        texts = (call.key, _storable(prompt), _storable(call.first), _storable(call.second))
        self._db.execute(
            "INSERT OR IGNORE INTO comparisons (hash, prompt, first, second) VALUES (?, ?, ?, ?)", texts
        )
        return int(self._one("SELECT id FROM comparisons WHERE hash = ?", call.key)[0])

    def _insert(self, oracle: int, call: Call, state: str, answer: Answer) -> int:
        made = self._db.execute(
            "INSERT INTO calls (comparison, oracle, run, step, state, asked_at, probability, reason, raw, tokens_in, tokens_out, "
            "cost, seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._comparison(call), oracle, self.run, self.step, state, time.time(), *_columns(answer)),
        )
        return int(made.lastrowid or 0)

    def _standing(self, oracle: int, comparison: int) -> Answer | None:
        row = self._db.execute(
            f"{_ANSWER} WHERE comparison = ? AND oracle = ? AND {_HAS_ANSWER}",
            (comparison, oracle),
        ).fetchone()
        return None if row is None else Answer(*row)

    def _add(self, oracle: int, **counts: int) -> None:
        names, marks = ", ".join(counts), ", ".join("?" for _ in counts)
        grown = ", ".join(f"{name} = {name} + excluded.{name}" for name in counts)
        self._db.execute(
            f"INSERT INTO totals (run, oracle, {names}) VALUES (?, ?, {marks}) ON CONFLICT (run, oracle) DO UPDATE SET {grown}",
            (self.run, oracle, *counts.values()),
        )

    def _spent_at(self, place: str, oracle: int, since: float) -> Spent:
        """What this run has spent with an oracle, and with those that stood at its place before."""
        if place:
            known = "oracle = ? OR oracle IN (SELECT oracle FROM uses WHERE run = ? AND place = ?)"
            values: tuple[Any, ...] = (oracle, self.run, place)
        else:
            known, values = "oracle = ?", (oracle,)
        spent = self._spent(f"run = ? AND ({known})", self.run, *values)
        if not spent.open:
            return spent
        recent = self._one(
            f"SELECT count(*) FROM calls WHERE state = 'sent' AND run = ? AND ({known}) AND asked_at >= ?",
            *(self.run, *values, since),
        )
        return replace(spent, in_flight=int(recent[0]))

    def _spent(self, clause: str, *values: Any) -> Spent:
        sums = ("calls", "tokens", "cost", "open", "failed", "found", "remembered")
        columns = [f"coalesce(sum({name}), 0)" for name in sums]
        columns += [f"coalesce(max({name}), 0)" for name in ("dearest_tokens", "dearest_cost")]
        return Spent(*self._one(f"SELECT {', '.join(columns)} FROM totals WHERE {clause}", *values))

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._db.execute(query, values).fetchone()
        return found

    def _all(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One thread at a time; SQLite's errors in words."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise OracleError(
                    f"The ledger {self.path} cannot be read or written: {error}. What was committed is in it; see that the "
                    "disk has room and the file is whole (sqlite3 FILE 'PRAGMA integrity_check'), then resume."
                ) from error


def _columns(answer: Answer) -> tuple[Any, ...]:
    return (
        answer.probability,
        None if answer.reason is None else _storable(answer.reason),
        None if answer.raw is None else _storable(answer.raw),
        answer.tokens_in,
        answer.tokens_out,
        answer.cost,
        answer.seconds,
    )


def _storable(text: str) -> str:
    """A lone surrogate (a broken response may hold one) cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
