"""What every SQLite file of sail does alike: whose it is, its write-ahead log, and its transactions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BUSY_SECONDS = 60.0
"""How long one process waits for another one's transaction."""


@dataclass(frozen=True)
class Head:
    """What a file says of itself: the program that made it, the version of its tables, and how many it has."""

    application: int
    version: int
    tables: int


def head_of(db: sqlite3.Connection) -> Head:
    """All three at one moment of the file: another process may be making its tables right now."""
    db.execute("BEGIN")
    try:
        queries = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        return Head(*(int(db.execute(query).fetchone()[0]) for query in queries))
    finally:
        if db.in_transaction:
            db.execute("COMMIT")


def write_ahead(db: sqlite3.Connection) -> None:
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
