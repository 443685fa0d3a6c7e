"""The file behind a ledger: its tables, and how it is opened, checked and made."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sail.errors import OracleError
from sail.sqlite_files import BUSY_SECONDS, head_of, transaction, write_ahead

__all__ = ["APPLICATION", "VERSION", "open_file", "transaction"]

VERSION = 1
APPLICATION = 0x5341494C
"""Marks a SQLite file as a ledger of sail ("SAIL"), so that no other program's file is ever written to."""
_MAGIC = b"SQLite format 3\x00"

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS oracles (
        id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, name TEXT NOT NULL, settings TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS comparisons (
        id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS calls (
        id INTEGER PRIMARY KEY,
        comparison INTEGER NOT NULL REFERENCES comparisons(id),
        oracle INTEGER NOT NULL REFERENCES oracles(id),
        run TEXT NOT NULL,
        step INTEGER,
        state TEXT NOT NULL CHECK (state IN ('sent', 'answered', 'failed', 'remembered')),
        asked_at REAL NOT NULL,
        seconds REAL,
        probability REAL CHECK (probability BETWEEN 0 AND 1),
        reason TEXT,
        raw TEXT,
        tokens_in INTEGER NOT NULL DEFAULT 0,
        tokens_out INTEGER NOT NULL DEFAULT 0,
        cost REAL NOT NULL DEFAULT 0)""",
    # What each run has spent with each oracle, kept with every call: a cap is checked without adding up the whole file.
    """CREATE TABLE IF NOT EXISTS totals (
        run TEXT NOT NULL,
        oracle INTEGER NOT NULL REFERENCES oracles(id),
        calls INTEGER NOT NULL DEFAULT 0,
        open INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        found INTEGER NOT NULL DEFAULT 0,
        remembered INTEGER NOT NULL DEFAULT 0,
        tokens INTEGER NOT NULL DEFAULT 0,
        cost REAL NOT NULL DEFAULT 0,
        dearest_tokens INTEGER NOT NULL DEFAULT 0,
        dearest_cost REAL NOT NULL DEFAULT 0,
        PRIMARY KEY (run, oracle)) WITHOUT ROWID""",
    """CREATE UNIQUE INDEX IF NOT EXISTS one_answer ON calls (comparison, oracle)
        WHERE state IN ('answered', 'remembered')""",
)
_ADDED = (
    # Which oracle stood where in a run's settings (its caps go by the place: its address may change), and how it was asked.
    """CREATE TABLE IF NOT EXISTS uses (
        run TEXT NOT NULL, place TEXT NOT NULL, oracle INTEGER NOT NULL REFERENCES oracles(id), orders TEXT NOT NULL,
        PRIMARY KEY (run, place, oracle)) WITHOUT ROWID""",
    # Pairs that a budget has admitted, whatever came of them.
    """CREATE TABLE IF NOT EXISTS claims (
        run TEXT NOT NULL, place TEXT NOT NULL, pair TEXT NOT NULL, PRIMARY KEY (run, place, pair)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS open_calls ON calls (run, oracle) WHERE state = 'sent'",
)
"""What version 1 did not have from the beginning; a sail that does not know it can read and write the file all the same."""


def open_file(path: Path | str) -> sqlite3.Connection:
    """A connection to the ledger at `path` (":memory:" keeps nothing), made if there is none. Raises OracleError."""
    try:
        if path != ":memory:":
            _refuse_other_files(Path(path))
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS)
        try:
            is_new = _is_new(db, path)
            write_ahead(db)
            # With a write-ahead log a committed transaction survives the death of the process; power loss may cost the last ones.
            db.execute("PRAGMA synchronous=NORMAL")
            if is_new:
                _make_tables(db)
            elif not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'open_calls'").fetchone():
                _add_tables(db)
        except BaseException:
            db.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise OracleError(
            f"The ledger {path} cannot be opened: {error}. Check the path and its rights, or point oracle.ledger elsewhere."
        ) from error
    return db


def _refuse_other_files(path: Path) -> None:
    if path.is_dir():
        raise OracleError(
            f"The ledger {path} is a folder. Give a file, for example {path / 'ledger.sqlite'}."
        )
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise OracleError(
                f"{path} is not a ledger: it is no SQLite file, or its beginning is damaged. It is left as it is; move it away, "
                "or point oracle.ledger elsewhere."
            )


def _make_tables(db: sqlite3.Connection) -> None:
    with transaction(db):
        for statement in (*_SCHEMA, *_ADDED):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")


def _add_tables(db: sqlite3.Connection) -> None:
    with transaction(db):
        for statement in _ADDED:
            db.execute(statement)


def _is_new(db: sqlite3.Connection, path: Path | str) -> bool:
    """Whether the file has no tables yet; OracleError where it has others than ours."""
    head = head_of(db)
    if head.application == APPLICATION and head.version == VERSION:
        return False
    if head.application == APPLICATION:
        raise OracleError(
            f"The ledger {path} has version {head.version}, and this sail reads and writes version {VERSION}. Use the sail "
            "that wrote it, or another file."
        )
    if head.tables:
        raise OracleError(
            f"{path} is a SQLite file of another program. It is left as it is; point oracle.ledger elsewhere."
        )
    return True
