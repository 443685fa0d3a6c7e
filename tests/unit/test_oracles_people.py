"""People as an oracle, scripted over real HTTP: what is said, what is waited for, and what survives a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from annotators import Worker, hear_ctrl_c

from sail.annotate.items import Item
from sail.annotate.store import Annotations
from sail.errors import ConfigError, OracleError
from sail.oracles import ask, without_people
from sail.oracles.people import UNANSWERED_IN_A_ROW, People
from sail.types import Pair, Preference

PAIRS = [Pair(f"prompt {number}", f"w3 {number}", f"w1 {number} more") for number in range(6)]

Made = Callable[..., People]


@pytest.fixture
def people(tmp_path: Path) -> Iterator[Made]:
    """people(**options) -> an oracle over the test's folder, on a free port; closed at the end."""
    made: list[People] = []

    def make(folder: Path = tmp_path, **options: object) -> People:
        made.append(People(folder, **{"port": 0, "poll": 0.01, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def workers() -> Iterator[Callable[..., Worker]]:
    """workers(oracle, name, ...) -> somebody at that oracle's page, once it is open."""
    made: list[Worker] = []

    def start(oracle: People, name: str, *rest: object, **more: object) -> Worker:
        oracle._opened()
        made.append(Worker(oracle._server.link, name, *rest, **more))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


def given(oracle: People) -> int:
    """How many labels the file holds; the sender may not have heard yet that the last one is in."""
    return len(Annotations(oracle.path).labels())


def test_labels_reach_the_right_response(people: Made, workers: Callable[..., Worker]) -> None:
    """The liked text in both places, and swapping gives 1 - p without asking again."""
    oracle = people()
    workers(oracle, "ann")
    mixed = [pair if place % 2 else pair.swap() for place, pair in enumerate(PAIRS)]
    told = [answer.first_wins for answer in oracle.compare(mixed)]
    assert told == [float(place % 2) for place in range(6)]
    assert [answer.first_wins for answer in oracle.compare([pair.swap() for pair in mixed])] == [
        1 - p for p in told
    ]
    assert given(oracle) == 6


def test_splitting_the_batch_and_repeating_a_pair_change_nothing(
    people: Made, workers: Callable[..., Worker], tmp_path: Path
) -> None:
    whole, parts = people(tmp_path / "whole"), people(tmp_path / "parts")
    for oracle in (whole, parts):
        workers(oracle, "ann")
    rows = [*PAIRS, PAIRS[0], PAIRS[1].swap()]
    together = whole.compare(rows)
    apart = [answer for start in range(0, len(rows), 3) for answer in parts.compare(rows[start : start + 3])]
    assert together == apart
    assert given(whole) == given(parts) == 6


def test_ties_skips_and_identical_responses(people: Made, workers: Callable[..., Worker]) -> None:
    oracle = people()
    answers = {"prompt 0": "tie", "prompt 1": "skip"}
    workers(oracle, "ann", lambda prompt, left, right: answers.get(prompt[0]["content"], "left"))
    told, calls = ask(oracle, [*PAIRS[:2], Pair("p", "same", "same")])
    assert [answer.first_wins for answer in told] == [0.5, None, 0.5]
    assert told[1].reason == "skipped by 1 of 1 people"
    assert calls == 2
    assert given(oracle) == 2


def test_votes_of_several_people_are_a_share(people: Made, workers: Callable[..., Worker]) -> None:
    """Three want every pair: two like w3, one is against it. p = 2/3; with a tie instead of the third vote 5/6."""
    oracle = people(annotators=3)

    def contrary(prompt: object, left: str, right: str) -> str:
        return "tie" if "prompt 0" in str(prompt) else "left" if left.startswith("w1") else "right"

    for name, rule in (("ann", None), ("ben", None), ("cem", contrary)):
        workers(oracle, name, *([] if rule is None else [rule]))
    told = [answer.first_wins for answer in oracle.compare(PAIRS)]
    assert told == pytest.approx([5 / 6] + [2 / 3] * 5)


def test_after_the_deadline_unanswered_pairs_abstain(people: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = people(deadline=0.5, serve=False)
    labels = oracle._opened()
    items = [Item.of(pair.prompt, pair.first, pair.second)[0] for pair in PAIRS]
    labels.ask(items, 1)
    for place in (1, 4):
        labels.label("ann", items[place].hash, "tie", 1.0, f"key {place}")
    began = time.monotonic()
    told = oracle.compare(PAIRS)
    assert time.monotonic() - began >= 0.5
    assert [answer.first_wins for answer in told] == [None, 0.5, None, None, 0.5, None]
    assert {answer.reason for answer in told if answer.first_wins is None} == {"no label within 0.5 s"}
    assert [answer.passing for answer in told] == [answer.first_wins is None for answer in told]
    # what abstained stays so: a resumed run gets the same labels, without waiting
    monkeypatch.setattr(oracle, "_wait", None)
    assert oracle.compare(PAIRS) == told


def test_a_run_that_nobody_looks_after_stops(people: Made) -> None:
    oracle = people(deadline=0.05, serve=False)
    for pair in PAIRS[: UNANSWERED_IN_A_ROW - 1]:
        assert oracle.compare([pair])[0].first_wins is None
    with pytest.raises(OracleError, match="Nobody has labelled"):
        oracle.compare([PAIRS[-1]])


def test_labels_given_while_the_run_was_stopped_count(people: Made, tmp_path: Path) -> None:
    """Queued, then killed; labelled over the file by `sail annotate`; the next process finds them and asks nothing twice."""
    first = people(deadline=0.05, serve=False)
    labels = Annotations(first.path)
    items = [Item.of(pair.prompt, pair.first, pair.second)[0] for pair in PAIRS]
    labels.ask(items, 1)  # what compare does before it waits
    for place, one in enumerate(items[:4]):
        assert labels.next("ann") == one
        labels.label(
            "ann", one.hash, "first" if one.first.startswith("w3") else "second", 1.0, f"key {place}" * 2
        )
    second = people(serve=False)

    def rest() -> None:
        for place, one in enumerate(items[4:]):
            labels.label("ben", one.hash, "tie", 1.0, f"rest {place}" * 2)

    late = threading.Timer(0.2, rest)
    late.start()
    assert [answer.first_wins for answer in second.compare(PAIRS)] == [1.0] * 4 + [0.5] * 2
    late.join()
    assert len(labels.items()) == 6


def test_nothing_is_opened_before_something_is_asked(people: Made, tmp_path: Path) -> None:
    oracle = people(tmp_path / "new")
    assert oracle.settings()["annotators"] == 1
    assert not (tmp_path / "new").exists()
    assert without_people(oracle) is None


def test_pairs_that_vanish_while_they_are_waited_for_are_said(people: Made) -> None:
    oracle = people(serve=False)
    labels = oracle._opened()
    settle = labels.settle

    def vanish(pairs: Sequence[str], *, late: str | None = None) -> int:
        labels.forget_queue()  # somebody else's hand
        return settle(pairs, late=late)

    labels.settle = vanish  # type: ignore[method-assign]
    with pytest.raises(OracleError, match=r"2 of 2 pairs have vanished from .*annotations\.sqlite"):
        oracle.compare(PAIRS[:2])


@pytest.mark.parametrize("options", [{"annotators": 0}, {"deadline": 0}, {"deadline": float("nan")}])
def test_impossible_settings_are_refused(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        People(tmp_path, **options)  # type: ignore[arg-type]


SCRIPT = """
import sys
from sail.oracles.people import People
from sail.types import Pair
People(sys.argv[1], serve=False, poll=0.01).compare([Pair("p", "a", "b")])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_at_once(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    end, seen = time.monotonic() + 60, ""
    assert process.stderr is not None
    while "open" not in seen and time.monotonic() < end:
        seen += process.stderr.readline()
    assert "people: 1 of 1 pairs open, at sail annotate" in seen
    process.send_signal(number)
    rest = process.communicate(timeout=20)[1]
    assert "Every label is kept" in rest
    assert "KeyboardInterrupt" in rest
    assert len(Annotations(tmp_path / "annotations.sqlite").items()) == 1


def test_processes_of_one_run_share_the_file_and_one_serves(
    people: Made, workers: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks about rows of its own; a pair that both have is asked once."""
    main = people()
    monkeypatch.setenv("RANK", "1")
    other = people()
    assert main.serve
    assert not other.serve
    told: list[Preference] = []
    thread = threading.Thread(target=lambda: told.extend(other.compare(PAIRS[2:])))
    thread.start()
    workers(main, "ann")
    assert [answer.first_wins for answer in main.compare(PAIRS[:4])] == [1.0] * 4
    thread.join(timeout=20)
    assert [answer.first_wins for answer in told] == [1.0] * 4
    assert given(main) == 6


def test_in_a_thread_waiting_works_too(people: Made, workers: Callable[..., Worker]) -> None:
    oracle = people()
    told: list[Preference] = []
    thread = threading.Thread(target=lambda: told.extend(oracle.compare(PAIRS[:2])))
    workers(oracle, "ann")
    thread.start()
    thread.join(timeout=20)
    assert [answer.first_wins for answer in told] == [1.0, 1.0]
