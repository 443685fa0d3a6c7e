"""The file behind a ledger: its tables, and how it is opened, checked and made."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sail.errors import OracleError

VERSION = 1
APPLICATION = 0x5341494C
"""Marks a SQLite file as a ledger of sail ("SAIL"), so that no other program's file is ever written to."""
BUSY_SECONDS = 60.0
"""How long one process waits for another one's transaction."""
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


def open_file(path: Path | str) -> sqlite3.Connection:
    """A connection to the ledger at `path` (":memory:" keeps nothing), made if there is none. Raises OracleError."""
    try:
        if path != ":memory:":
            _refuse_other_files(Path(path))
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS)
        try:
            is_new = _is_new(db, path)
            _write_ahead(db)
            # With a write-ahead log a committed transaction survives the death of the process; power loss may cost the last ones.
            db.execute("PRAGMA synchronous=NORMAL")
            if is_new:
                _make_tables(db)
        except BaseException:
            db.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise OracleError(
            f"The ledger {path} cannot be opened: {error}. Check the path and its rights, or point oracle.ledger elsewhere."
        ) from error
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE ... COMMIT, rolled back on an error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has rolled it back already
            db.execute("ROLLBACK")
        raise


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
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")


def _is_new(db: sqlite3.Connection, path: Path | str) -> bool:
    """Whether the file has no tables yet; OracleError where it has others than ours."""
    # One moment of the file: another process may be making its tables right now.
    db.execute("BEGIN")
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    db.execute("COMMIT")
    if application == APPLICATION and version == VERSION:
        return False
    if application == APPLICATION:
        raise OracleError(
            f"The ledger {path} has version {version}, and this sail reads and writes version {VERSION}. Use the sail that wrote "
            "it, or another file."
        )
    if tables:
        raise OracleError(
            f"{path} is a SQLite file of another program. It is left as it is; point oracle.ledger elsewhere."
        )
    return True


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch the log on. SQLite does not wait for others here, so that several processes that begin at once must."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
