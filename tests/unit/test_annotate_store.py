"""The file of labels: who is shown what, what counts, what is fixed, and that nothing is ever lost or rewritten."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from sail.annotate import store
from sail.annotate.items import Item, shown_left, verdict_of
from sail.annotate.store import Annotations
from sail.errors import OracleError


def item(number: int) -> Item:
    return Item.of(f"prompt {number}", f"answer {number}", f"another {number}")[0]


ITEMS = [item(number) for number in range(4)]


@pytest.fixture
def labels(tmp_path: Path) -> Annotations:
    return Annotations(tmp_path / "annotations.sqlite")


def give(labels: Annotations, who: str, pair: Item | None, verdict: str, key: str | None = None) -> str:
    assert pair is not None
    return labels.label(who, pair.hash, verdict, 1.0, key or uuid.uuid4().hex)


def test_the_stored_order_does_not_depend_on_the_asked_one() -> None:
    one, swapped = Item.of("p", "a", "b", 0.8)
    other, swapped_too = Item.of("p", "b", "a", 0.2)
    assert one.hash == other.hash
    assert swapped != swapped_too
    assert (one.first, one.second, one.given) == (other.first, other.second, pytest.approx(other.given))
    assert one.given == pytest.approx(0.8 if one.first == "a" else 0.2)
    assert Item.of("q", "a", "b")[0].hash != one.hash
    assert Item.of([{"role": "user", "content": "p"}], "a", "b")[0].hash != one.hash


def test_left_and_right_are_a_fair_coin_per_annotator_and_pair() -> None:
    """Of 2,000 tosses 1,000 are expected, with a standard deviation of 22; so also for two people's agreement."""
    hashes = [f"{number:064x}" for number in range(2000)]
    ann, ben = ([shown_left(who, one) for one in hashes] for who in ("ann", "ben"))
    assert abs(ann.count("first") - 1000) < 90
    assert abs(sum(a == b for a, b in zip(ann, ben, strict=True)) - 1000) < 90
    assert ann == [shown_left("ann", one) for one in hashes]


def test_a_reload_shows_the_same_pair_and_others_another(labels: Annotations) -> None:
    labels.offer(ITEMS, 1)
    assert labels.next("ann") == labels.next("ann") == ITEMS[0]
    assert labels.next("ben") == ITEMS[1]
    give(labels, "ann", ITEMS[0], "first")
    assert labels.next("ann") == ITEMS[2]
    give(labels, "ben", ITEMS[1], "tie")
    give(labels, "ann", ITEMS[2], "skip")
    assert labels.next("ann") == ITEMS[3]
    assert labels.next("ben") is None


def test_a_pair_that_nobody_looks_at_any_more_is_given_to_others(
    labels: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels.offer(ITEMS[:1], 1)
    monkeypatch.setattr(store, "HOLD_SECONDS", -1.0)
    assert labels.next("ann") == ITEMS[0]
    assert labels.next("ben") == ITEMS[0]
    assert give(labels, "ann", ITEMS[0], "first") == "saved"
    assert (
        give(labels, "ben", ITEMS[0], "second") == "saved"
    )  # both counted: a label is never refused for being late


def test_a_closed_page_gives_its_pair_back(labels: Annotations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LEFT_SECONDS", 0.0)
    labels.offer(ITEMS[:1], 1)
    assert labels.next("ann") == ITEMS[0]
    assert labels.next("ben") is None
    labels.leave("ann")
    assert labels.next("ben") == ITEMS[0]


def test_every_pair_gets_as_many_people_as_wanted(labels: Annotations) -> None:
    labels.offer(ITEMS, 2)
    seen: dict[str, list[str]] = {}
    busy = ["ann", "ben", "cem"]
    while busy:
        for who in list(busy):
            shown = labels.next(who)
            if shown is None:
                busy.remove(who)
                continue
            seen.setdefault(shown.hash, []).append(who)
            give(labels, who, shown, "first")
    assert sorted(len(people) for people in seen.values()) == [2, 2, 2, 2]
    assert all(len(set(people)) == 2 for people in seen.values())


def test_a_label_sent_twice_is_one(labels: Annotations) -> None:
    labels.offer(ITEMS, 3)
    assert give(labels, "ann", ITEMS[0], "first", "key 1") == "saved"
    assert give(labels, "ann", ITEMS[0], "first", "key 1") == "saved"
    assert give(labels, "ann", ITEMS[0], "second", "key 2") == "again"
    assert [label.verdict for label in labels.labels()] == ["first"]
    assert labels.label("ann", "no such hash", "first", 1.0, "key 3") == "unknown"


def test_undo_flags_and_keeps(labels: Annotations) -> None:
    labels.offer(ITEMS, 1)
    for pair, verdict in zip(ITEMS[:2], ("first", "second"), strict=True):
        give(labels, "ann", pair, verdict)
    assert labels.undo("ben") == "nothing"
    assert labels.undo("ann") == "undone"
    assert labels.next("ann") == ITEMS[1]
    assert labels.undo("ann") == "undone"
    assert labels.next("ann") == ITEMS[0]
    assert labels.undo("ann") == "nothing"
    give(labels, "ann", ITEMS[0], "tie")
    assert [label.verdict for label in labels.labels()] == ["tie"]
    rows = sqlite3.connect(labels.path).execute("SELECT verdict, undone FROM labels ORDER BY id").fetchall()
    assert rows == [("first", 1), ("second", 1), ("tie", 0)]


@pytest.mark.parametrize(
    ("verdicts", "p"),
    [
        (["first"], 1.0),
        (["second"], 0.0),
        (["tie"], 0.5),
        (["first", "second", "first"], 2 / 3),
        (["first", "tie"], 0.75),
        (["skip", "second"], 0.0),
        (["skip", "skip"], None),
        ([], None),
    ],
)
def test_votes(verdicts: list[str], p: float | None) -> None:
    found = verdict_of(verdicts)
    assert found.probability == (None if p is None else pytest.approx(p))
    assert (found.reason is None) == (p is not None)


def test_verdicts_are_fixed_when_the_batch_is_complete_and_never_change(labels: Annotations) -> None:
    batch = [one.hash for one in ITEMS[:2]]
    labels.ask(ITEMS[:2], 1)
    assert labels.settle(batch) == 2
    give(labels, "ann", ITEMS[0], "first")
    assert labels.settle(batch) == 1
    assert labels.verdicts(batch) == {}  # one of two: nothing is fixed, and undo still works
    assert labels.undo("ann") == "undone"
    give(labels, "ann", ITEMS[0], "second")
    give(labels, "ann", ITEMS[1], "tie")
    assert labels.settle(batch) == 0
    fixed = {one.hash: p for one, p in zip(ITEMS[:2], (0.0, 0.5), strict=True)}
    assert {pair: verdict.probability for pair, verdict in labels.verdicts(batch).items()} == fixed
    assert labels.undo("ann") == "used"
    assert give(labels, "ben", ITEMS[0], "first") == "late"
    labels.ask(ITEMS[:2], 1)  # a resumed run asks again
    assert labels.settle(batch) == 0
    assert {pair: verdict.probability for pair, verdict in labels.verdicts(batch).items()} == fixed
    assert labels.next("cem") is None


def test_after_the_deadline_what_is_there_counts(labels: Annotations) -> None:
    batch = [one.hash for one in ITEMS[:3]]
    labels.ask(ITEMS[:3], 2)
    give(labels, "ann", ITEMS[0], "first")
    give(labels, "ann", ITEMS[1], "skip")
    assert labels.settle(batch, late="too late") == 0
    found = labels.verdicts(batch)
    assert [found[pair].probability for pair in batch] == [1.0, None, None]
    assert [found[pair].reason for pair in batch] == [None, "too late", "too late"]


def test_a_new_run_forgets_verdicts_and_keeps_labels(labels: Annotations) -> None:
    labels.ask(ITEMS[:2], 1)
    give(labels, "ann", ITEMS[0], "first")
    labels.settle([one.hash for one in ITEMS[:2]], late="too late")
    labels.forget_queue()
    assert labels.next("ben") is None
    labels.ask(ITEMS[:2], 1)
    assert labels.next("ben") == ITEMS[1]  # the other has its label already, and the abstention is gone
    give(labels, "ben", ITEMS[1], "second")
    assert labels.settle([one.hash for one in ITEMS[:2]]) == 0


def test_progress_and_time(labels: Annotations) -> None:
    labels.offer(ITEMS, 2)
    assert labels.progress("ann").__dict__ == {
        "given": 0,
        "wanted": 8,
        "mine": 0,
        "left_for_me": 4,
        "seconds_left": None,
    }
    for place, seconds in enumerate((2.0, 10.0, 4.0)):
        labels.label("ann", ITEMS[place].hash, "first", seconds, f"key {place}")
    now = labels.progress("ann")
    assert (now.given, now.mine, now.left_for_me, now.seconds_left) == (
        3,
        3,
        1,
        4.0,
    )  # the median pace, for one pair
    assert labels.progress("ben").left_for_me == 4


def test_any_text_survives(labels: Annotations) -> None:
    """Lone surrogates, null characters, other line ends: what a model may say is what people see."""
    strange = "\ud800 \x00 \u2028 \r\n 𝔘 ‮"
    pair, _ = Item.of([{"role": "user", "content": strange}], strange, "plain")
    labels.offer([pair], 1)
    shown = labels.next("ann")
    assert shown == pair
    assert shown.hash == pair.hash


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    path.write_text("no database, but long enough to be read as one " * 40)
    with pytest.raises(OracleError, match="cannot be opened"):
        Annotations(path)
    path.unlink()
    Annotations(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(OracleError, match="version 99"):
        Annotations(path)


def test_a_file_that_others_make_at_the_same_moment(tmp_path: Path) -> None:
    """Eight processes open a file that is not there, twelve times over: none is refused."""
    code = (
        "import sys, time; from sail.annotate.store import Annotations\n"
        "for name in sys.argv[2:]:\n"
        "    time.sleep(max(0, float(sys.argv[1]) - time.time())); sys.argv[1] = str(float(sys.argv[1]) + 0.15)\n"
        "    Annotations(name).fact('kind', 'file')"
    )
    names, begin = [str(tmp_path / f"{number}.sqlite") for number in range(12)], time.time() + 3.0
    argv = [sys.executable, "-c", code, str(begin), *names]
    made = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    said = [process.communicate(timeout=120)[1] for process in made]
    assert [process.returncode for process in made] == [0] * 8, said


def test_the_queue_of_a_run_is_not_replaced(labels: Annotations) -> None:
    labels.fact("kind", "training")
    labels.ask(ITEMS[:2], 1)
    labels.settle([one.hash for one in ITEMS[:2]], late="late")
    with pytest.raises(OracleError, match=r"verdicts of a run that asks people.*--labels"):
        labels.offer(ITEMS[2:], 1)
    assert labels.verdicts([one.hash for one in ITEMS]).keys() == {one.hash for one in ITEMS[:2]}


def test_many_people_and_processes_at_once(tmp_path: Path) -> None:
    """Six connections to one file: each pair is labelled once by one of them, none is left, none is given twice."""
    path, items = tmp_path / "a.sqlite", [item(number) for number in range(40)]
    Annotations(path).offer(items, 1)

    def work(who: str) -> None:
        mine = Annotations(path)
        while (shown := mine.next(who)) is not None:
            assert give(mine, who, shown, "first") == "saved"

    people = [threading.Thread(target=work, args=(f"person {number}",)) for number in range(6)]
    for person in people:
        person.start()
    for person in people:
        person.join(timeout=60)
    assert sorted(label.pair for label in Annotations(path).labels()) == sorted(one.hash for one in items)
