"""The file of people's labels: one SQLite file that a page writes, a run reads, and neither a kill nor a reload empties.

A pair has one stored order, by content hash, whatever order it was asked in; a label says which of those two texts was preferred.
Every label is a committed row of its own. Nothing here deletes or rewrites a label: to undo one is to flag it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sail.annotate.items import Item, Label, Progress, Verdict, shown_left, verdict_of
from sail.errors import OracleError
from sail.sqlite_files import BUSY_SECONDS, head_of, write_ahead

ANNOTATIONS = "annotations.sqlite"
"""The file of a run whose oracle is people."""
VERSION = 1
APPLICATION = 0x5341494E
"""Marks a SQLite file as one of labels, so that no other program's file is ever written to."""
HOLD_SECONDS = 90.0
"""A pair on somebody's screen is kept from others so long after that page last gave a sign of life."""
LEFT_SECONDS = 3.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pairs (
    hash TEXT PRIMARY KEY, prompt TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS queue (
    pair TEXT PRIMARY KEY REFERENCES pairs(hash),
    place INTEGER NOT NULL,
    wanted INTEGER NOT NULL CHECK (wanted > 0),
    given REAL CHECK (given BETWEEN 0 AND 1),
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'answered', 'expired')),
    probability REAL CHECK (probability BETWEEN 0 AND 1),
    reason TEXT,
    asked_at REAL NOT NULL,
    taken_at REAL
);
CREATE INDEX IF NOT EXISTS queue_order ON queue (state, place);
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    pair TEXT NOT NULL REFERENCES pairs(hash),
    annotator TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('first', 'second', 'tie', 'skip')),
    seconds REAL NOT NULL,
    shown_left TEXT NOT NULL CHECK (shown_left IN ('first', 'second')),
    given_at REAL NOT NULL,
    undone INTEGER NOT NULL DEFAULT 0 CHECK (undone IN (0, 1))
);
CREATE UNIQUE INDEX IF NOT EXISTS one_standing_label ON labels (pair, annotator) WHERE undone = 0;
CREATE INDEX IF NOT EXISTS labels_of ON labels (annotator, undone);
CREATE TABLE IF NOT EXISTS holds (annotator TEXT PRIMARY KEY, pair TEXT NOT NULL, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Annotations:
    """The file. Safe to use from several threads; several processes may share it."""

    def __init__(self, path: Path | str) -> None:
        """Open or make it. OracleError, naming the file, if it is none that this version can read."""
        self.path = Path(path)
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS
            )
            self._db.row_factory = sqlite3.Row
            head = head_of(self._db)
            if head.tables and head.application != APPLICATION:
                raise OracleError(
                    f"{self.path} is the file of another program, or a ledger, and not one of labels. Name another file."
                )
            if head.version not in (0, VERSION):
                raise OracleError(
                    f"The labels in {self.path} have version {head.version}, and this sail writes version {VERSION}. Use the "
                    "sail that wrote them, or another file."
                )
            write_ahead(self._db)
            # A label is seconds of a person's life: it is on the disk before the page says so, whatever happens to the power.
            self._db.execute("PRAGMA synchronous=FULL")
            if head.version == 0:
                self._db.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
                )
        except (OSError, sqlite3.Error) as error:
            raise OracleError(
                f"The labels in {self.path} cannot be opened: {error}. Check that the folder can be written and that the file is "
                "one of sail annotate."
            ) from error

    # ---- what is to be labelled

    def offer(self, items: Sequence[Item], wanted: int) -> None:
        """Make `items` the pairs to be labelled, in this order, `wanted` labels each; labels given before count.

        OracleError if a run asks people through this file: its queue and its verdicts, which a resume needs, are not to be lost.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM facts WHERE name = 'kind' AND value = 'training'").fetchone():
                raise OracleError(
                    f"{self.path} holds the pairs and verdicts of a run that asks people, and other pairs would replace them. "
                    "Give another file with --labels, or label the run itself: sail annotate RUN."
                )
            db.execute("DELETE FROM queue")
            self._enqueue(db, items, wanted, 0)

    def ask(self, items: Sequence[Item], wanted: int) -> None:
        """Add the pairs that were never asked, after those that were; the others stay as they are."""
        with self._transaction() as db:
            last = db.execute("SELECT coalesce(max(place), -1) FROM queue").fetchone()[0]
            self._enqueue(db, items, wanted, last + 1)

    def _enqueue(self, db: sqlite3.Connection, items: Sequence[Item], wanted: int, start: int) -> None:
        now = time.time()
        rows = [
            (item.hash, json.dumps(item.prompt), json.dumps(item.first), json.dumps(item.second))
            for item in items
        ]
        db.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?, ?, ?)", rows)
        db.executemany(
            "INSERT OR IGNORE INTO queue (pair, place, wanted, given, asked_at) VALUES (?, ?, ?, ?, ?)",
            [(item.hash, start + place, wanted, item.given, now) for place, item in enumerate(items)],
        )

    def forget_queue(self) -> None:
        """Nothing is asked any more, and no verdict stands; the labels stay, and count when their pair is asked again."""
        with self._transaction() as db:
            db.execute("DELETE FROM queue")
            db.execute("DELETE FROM holds")

    # ---- an annotator's side

    def next(self, annotator: str) -> Item | None:
        """The pair that this annotator is to label now, kept from others for a while; None if there is none.

        A pair that still lacks labels and that nobody else has on the screen; after a reload, the same one again.
        """
        now = time.time()
        mine = (
            "SELECT 1 FROM labels WHERE labels.pair = queue.pair AND annotator = :who AND undone = 0 LIMIT 1"
        )
        with self._transaction() as db:
            row = db.execute(
                f"SELECT holds.pair FROM holds JOIN queue ON queue.pair = holds.pair WHERE annotator = :who AND state = 'open' "
                f"AND NOT EXISTS ({mine})",
                {"who": annotator},
            ).fetchone()
            row = (
                row
                or db.execute(
                    f"SELECT pair FROM queue WHERE state = 'open' AND NOT EXISTS ({mine}) "
                    "AND (SELECT count(*) FROM labels WHERE labels.pair = queue.pair AND undone = 0) "
                    "+ (SELECT count(*) FROM holds WHERE holds.pair = queue.pair AND annotator <> :who AND until > :now) "
                    "< wanted ORDER BY place LIMIT 1",
                    {"who": annotator, "now": now},
                ).fetchone()
            )
            if row is None:
                db.execute("DELETE FROM holds WHERE annotator = ?", (annotator,))
                return None
            self._hold(db, annotator, row["pair"])
            return self._item(db, row["pair"])

    def hold(self, annotator: str, pair: str) -> bool:
        """The pair is still on this annotator's screen. Returns whether a label for it is still waited for."""
        with self._transaction() as db:
            row = db.execute("SELECT 1 FROM queue WHERE pair = ? AND state = 'open'", (pair,)).fetchone()
            if row is not None:
                self._hold(db, annotator, pair)
            return row is not None

    def leave(self, annotator: str) -> None:
        """The page was closed, or is being loaded anew: its pair is kept for a moment only."""
        with self._transaction() as db:
            db.execute(
                "UPDATE holds SET until = min(until, ?) WHERE annotator = ?",
                (time.time() + LEFT_SECONDS, annotator),
            )

    def _hold(self, db: sqlite3.Connection, annotator: str, pair: str) -> None:
        until = time.time() + HOLD_SECONDS
        db.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?)", (annotator, pair, until))

    def label(self, annotator: str, pair: str, verdict: str, seconds: float, key: str) -> str:
        """Commit a label; `key` is made by who sends it, so that one sent twice is one label. Returns what became of it:

        "saved"; "late": saved, but the run has gone on without it; "again": this annotator's label on that pair stands already;
        "unknown": there is no such pair.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM labels WHERE key = ?", (key,)).fetchone():
                return "saved"
            if not db.execute("SELECT 1 FROM pairs WHERE hash = ?", (pair,)).fetchone():
                return "unknown"
            try:
                db.execute(
                    "INSERT INTO labels (key, pair, annotator, verdict, seconds, shown_left, given_at) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key, pair, annotator, verdict, seconds, shown_left(annotator, pair), time.time()),
                )
            except sqlite3.IntegrityError:
                return "again"
            db.execute("DELETE FROM holds WHERE annotator = ?", (annotator,))
            still = db.execute("SELECT 1 FROM queue WHERE pair = ? AND state = 'open'", (pair,)).fetchone()
            return "saved" if still else "late"

    def undo(self, annotator: str) -> str:
        """Flag this annotator's last standing label, and put its pair back on their screen. Returns "undone"; "nothing": there is
        none; "used": the run has used it."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT id, labels.pair, state FROM labels LEFT JOIN queue ON queue.pair = labels.pair "
                "WHERE annotator = ? AND undone = 0 ORDER BY id DESC LIMIT 1",
                (annotator,),
            ).fetchone()
            if row is None or row["state"] is None:
                return "nothing"
            if row["state"] != "open":
                return "used"
            db.execute("UPDATE labels SET undone = 1 WHERE id = ?", (row["id"],))
            self._hold(db, annotator, row["pair"])
            return "undone"

    def progress(self, annotator: str) -> Progress:
        """How far the open pairs are, together and for one annotator."""
        with self._lock:
            row = self._db.execute(
                "SELECT coalesce(sum(wanted), 0) AS wanted, coalesce(sum(min(wanted, have)), 0) AS given, "
                "coalesce(sum(mine), 0) AS mine, coalesce(sum(NOT mine AND have < wanted), 0) AS left FROM (SELECT wanted, "
                "(SELECT count(*) FROM labels WHERE labels.pair = queue.pair AND undone = 0) AS have, "
                "EXISTS (SELECT 1 FROM labels WHERE labels.pair = queue.pair AND undone = 0 AND annotator = ?) AS mine "
                "FROM queue WHERE state = 'open')",
                (annotator,),
            ).fetchone()
            paces = self._db.execute(
                "SELECT seconds FROM labels WHERE annotator = ? AND undone = 0 ORDER BY id DESC LIMIT 20",
                (annotator,),
            ).fetchall()
            busy = self._db.execute(
                "SELECT count(DISTINCT annotator) FROM labels WHERE given_at > ? AND annotator <> ?",
                (time.time() - 600, annotator),
            ).fetchone()[0]
        # Those who labelled within ten minutes are taken to go on, at this annotator's pace.
        share = min(row["left"], -(-(row["wanted"] - row["given"]) // (busy + 1)))
        pace = sorted(one["seconds"] for one in paces)[len(paces) // 2] if len(paces) >= 3 else None
        seconds = None if pace is None else share * pace
        return Progress(row["given"], row["wanted"], row["mine"], row["left"], seconds)

    # ---- the run's side

    def settle(self, pairs: Sequence[str], *, late: str | None = None) -> int:
        """Fix the verdicts of the pairs once all of them have their labels, and return how many lack any still.

        With `late`, the reason to give, they are fixed as they are: those without a verdict abstain. A fixed verdict never
        changes, so that a run that is killed and resumed trains on the same labels.
        """
        with self._lock:
            # Read first: a run looks several times a second, and only a transaction that writes is in the page's way.
            missing = sum(row["have"] < row["wanted"] for row in self._waiting(self._db, pairs))
        if missing and late is None:
            return missing
        with self._transaction() as db:
            waiting = self._waiting(db, pairs)
            missing = sum(row["have"] < row["wanted"] for row in waiting)
            if missing and late is None:
                return missing  # somebody took a label back just now
            for row in waiting:
                verdict, expired = self._verdict(db, row["pair"]), row["have"] < row["wanted"]
                reason = late if verdict.probability is None and expired else verdict.reason
                db.execute(
                    "UPDATE queue SET state = ?, probability = ?, reason = ?, taken_at = ? WHERE pair = ?",
                    (
                        "expired" if expired else "answered",
                        verdict.probability,
                        reason,
                        time.time(),
                        row["pair"],
                    ),
                )
            return 0

    def verdicts(self, pairs: Sequence[str]) -> dict[str, Verdict]:
        """The fixed verdicts of those pairs that have one."""
        found = {}
        with self._lock:
            for pair in pairs:
                row = self._db.execute(
                    "SELECT probability, reason, state FROM queue WHERE pair = ? AND state <> 'open'", (pair,)
                ).fetchone()
                if row is not None:
                    found[pair] = Verdict(row["probability"], row["reason"], row["state"] == "expired")
        return found

    def _waiting(self, db: sqlite3.Connection, pairs: Sequence[str]) -> list[sqlite3.Row]:
        """Those of the pairs that have no fixed verdict, with the labels they have and want."""
        found = [
            db.execute(
                "SELECT pair, wanted, (SELECT count(*) FROM labels WHERE labels.pair = queue.pair AND undone = 0) AS have "
                "FROM queue WHERE pair = ? AND state = 'open'",
                (pair,),
            ).fetchone()
            for pair in pairs
        ]
        return [row for row in found if row is not None]

    def _verdict(self, db: sqlite3.Connection, pair: str) -> Verdict:
        rows = db.execute("SELECT verdict FROM labels WHERE pair = ? AND undone = 0", (pair,)).fetchall()
        return verdict_of([row["verdict"] for row in rows])

    # ---- the whole

    def labels(self) -> list[Label]:
        """Every standing label, in the order of giving."""
        with self._lock:
            rows = self._db.execute(
                "SELECT pair, annotator, verdict, seconds, shown_left FROM labels WHERE undone = 0 ORDER BY id"
            ).fetchall()
        return [Label(*row) for row in rows]

    def items(self) -> dict[str, Item]:
        """Every pair that is or was asked, by its hash, in the order of asking."""
        with self._lock:
            rows = self._db.execute(
                "SELECT hash, prompt, first, second, given FROM queue JOIN pairs ON hash = pair ORDER BY place"
            ).fetchall()
        return {row["hash"]: _item_of(row) for row in rows}

    def last_change(self) -> tuple[int, int]:
        """Two numbers that change with every label and every undo."""
        with self._lock:
            row = self._db.execute("SELECT count(*), coalesce(sum(undone), 0) FROM labels").fetchone()
        return int(row[0]), int(row[1])

    def fact(self, name: str, value: str | None = None) -> str:
        """Something the page is to know (kind, source, question): set if a value is given; "" if it never was."""
        with self._lock:
            if value is not None:
                self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return "" if row is None else str(row["value"])

    def close(self) -> None:
        """Close the file; what was committed is in it."""
        with self._lock:
            self._db.close()

    def _item(self, db: sqlite3.Connection, pair: str) -> Item:
        return _item_of(
            db.execute(
                "SELECT prompt, first, second, given FROM pairs LEFT JOIN queue ON pair = hash WHERE hash = ?",
                (pair,),
            ).fetchone()
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _item_of(row: Any) -> Item:
    return Item(json.loads(row["prompt"]), json.loads(row["first"]), json.loads(row["second"]), row["given"])
