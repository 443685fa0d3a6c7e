"""The ledger: one SQLite file that holds every call an oracle was asked and every answer it gave.

It is the cache (an answered call is never sent again, by any run that points at the same file), the audit, and the resume: the intent
of a call is committed before it is sent and its answer when it arrives, so that a kill at any moment loses no committed answer
and leaves at most as many open intents as calls were in flight: those may have been paid for.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sail.errors import OracleError
from sail.types import Prompt

LEDGER = "ledger.sqlite"
VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS oracles (
    id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, name TEXT NOT NULL, settings TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS comparisons (
    id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    comparison INTEGER NOT NULL REFERENCES comparisons(id),
    oracle INTEGER NOT NULL REFERENCES oracles(id),
    run TEXT NOT NULL,
    step INTEGER,
    state TEXT NOT NULL CHECK (state IN ('sent', 'answered', 'failed')),
    asked_at REAL NOT NULL,
    seconds REAL,
    probability REAL CHECK (probability BETWEEN 0 AND 1),
    reason TEXT,
    raw TEXT,
    tokens_in INTEGER NOT NULL DEFAULT 0,
    tokens_out INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS one_answer ON calls (comparison, oracle) WHERE state = 'answered';
CREATE INDEX IF NOT EXISTS calls_of_run ON calls (run, state);
"""


@dataclass(frozen=True)
class Call:
    """One question to an oracle: which of two responses, in this order, is better?"""

    prompt: Prompt
    first: str
    second: str

    @property
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
    """What a run has spent: calls sent (answered, failed, or in flight when it was killed), tokens, money."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0


def hash_of(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """The calls of one or several runs. Safe to use from several threads; several processes may share the file."""

    def __init__(self, path: Path | str, *, run: str = "") -> None:
        """Open or make the file at `path` (":memory:" keeps nothing). `run` names who asks, for its caps."""
        self.path, self.run = path, run
        self.step: int | None = None
        self._lock = threading.Lock()
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
            self._db.execute("PRAGMA journal_mode=WAL")
            # With a write-ahead log a committed transaction survives the death of the process; only power loss may cost the last ones.
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise OracleError(
                    f"The ledger {path} has version {version}, and this sail writes version {VERSION}. Use the sail that wrote it, "
                    "or another file."
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error as error:
            raise OracleError(
                f"The ledger {path} cannot be opened: {error}. Check the path, or point oracle.ledger elsewhere."
            ) from error

    # ---- one call

    def oracle(self, name: str, settings: dict[str, Any]) -> int:
        """The id of the oracle with these settings; it is entered when it is new."""
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO oracles (hash, name, settings) VALUES (?, ?, ?)",
                (hash_of(settings), name, json.dumps(settings, ensure_ascii=False, sort_keys=True)),
            )
            return int(
                self._db.execute("SELECT id FROM oracles WHERE hash = ?", (hash_of(settings),)).fetchone()[0]
            )

    def find(self, oracle: int, call: Call) -> Answer | None:
        """The answer that this oracle once gave to this call, or None."""
        with self._lock:
            row = self._db.execute(
                "SELECT probability, reason, raw, tokens_in, tokens_out, cost, seconds FROM calls JOIN comparisons "
                "ON comparisons.id = comparison WHERE oracle = ? AND state = 'answered' AND comparisons.hash = ?",
                (oracle, call.key),
            ).fetchone()
        return None if row is None else Answer(*row)

    def intend(self, oracle: int, call: Call) -> int:
        """Commit that the call is about to be sent; returns its id."""
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO comparisons (hash, prompt, first, second) VALUES (?, ?, ?, ?)",
                (
                    call.key,
                    json.dumps(call.prompt, ensure_ascii=False),
                    _storable(call.first),
                    _storable(call.second),
                ),
            )
            comparison = self._db.execute(
                "SELECT id FROM comparisons WHERE hash = ?", (call.key,)
            ).fetchone()[0]
            made = self._db.execute(
                "INSERT INTO calls (comparison, oracle, run, step, state, asked_at) VALUES (?, ?, ?, ?, 'sent', ?)",
                (comparison, oracle, self.run, self.step, time.time()),
            )
            return int(made.lastrowid or 0)

    def settle(self, call_id: int, answer: Answer, *, failed: bool = False) -> None:
        """Commit what came of a call. A failed one (no reply, or none worth keeping) is asked again when it is met again."""
        state = "failed" if failed else "answered"
        with self._lock:
            try:
                self._db.execute(
                    "UPDATE calls SET state = ?, probability = ?, reason = ?, raw = ?, tokens_in = ?, tokens_out = ?, cost = ?, "
                    "seconds = ? WHERE id = ?",
                    (
                        state,
                        answer.probability,
                        answer.reason,
                        None if answer.raw is None else _storable(answer.raw),
                        answer.tokens_in,
                        answer.tokens_out,
                        answer.cost,
                        answer.seconds,
                        call_id,
                    ),
                )
            except sqlite3.IntegrityError:
                # Another run asked the same at the same time and was first: its answer stands, what this one cost is still counted.
                self._db.execute(
                    "UPDATE calls SET state = 'failed', reason = 'answered twice at once', tokens_in = ?, tokens_out = ?, "
                    "cost = ?, seconds = ? WHERE id = ?",
                    (answer.tokens_in, answer.tokens_out, answer.cost, answer.seconds, call_id),
                )

    # ---- the whole

    def spent(self) -> Spent:
        """What this run has spent so far, in this and in earlier processes."""
        with self._lock:
            row = self._db.execute(
                "SELECT count(*), coalesce(sum(tokens_in + tokens_out), 0), coalesce(sum(cost), 0) FROM calls WHERE run = ?",
                (self.run,),
            ).fetchone()
        return Spent(*row)

    def possibly_paid(self) -> list[dict[str, Any]]:
        """Calls that were sent and never settled: in flight when a run was killed (or, while one is running, right now)."""
        return list(self.rows(state="sent"))

    def rows(self, **where: Any) -> Iterator[dict[str, Any]]:
        """Every call as a dict, in the order of asking; `where` filters by state, run, step or oracle (its name)."""
        columns = {"state": "calls.state", "run": "calls.run", "step": "calls.step", "oracle": "oracles.name"}
        clauses = " AND ".join(f"{columns[name]} = ?" for name in where) or "1"
        with self._lock:
            found = self._db.execute(
                "SELECT calls.id, oracles.name, oracles.hash, run, step, state, asked_at, seconds, probability, reason, raw, tokens_in, "
                "tokens_out, cost, prompt, first, second, comparisons.hash FROM calls JOIN comparisons ON comparisons.id = comparison "
                f"JOIN oracles ON oracles.id = oracle WHERE {clauses} ORDER BY calls.id",
                tuple(where.values()),
            ).fetchall()
        names = (
            "id",
            "oracle",
            "oracle_hash",
            "run",
            "step",
            "state",
            "asked_at",
            "seconds",
            "probability",
            "reason",
            "raw",
        )
        names += ("tokens_in", "tokens_out", "cost", "prompt", "first", "second", "hash")
        for row in found:
            one = dict(zip(names, row, strict=True))
            yield {**one, "prompt": json.loads(one["prompt"])}

    def close(self) -> None:
        """Close the file; what was committed is in it."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, rolled back on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __enter__(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.db.execute("COMMIT" if kind is None else "ROLLBACK")


def _storable(text: str) -> str:
    """A lone surrogate (a broken response may hold one) cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
