"""The ledger: what it keeps, what it refuses to touch, several processes on one file, and SIGKILL at random moments."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from sail.errors import OracleError
from sail.oracles.ledger import VERSION, Answer, Call, Ledger, Spent, hash_of

CALL = Call("a question", "yes", "no")
ASKER = Path(__file__).parents[1] / "ask_oracle.py"


def answered(ledger: Ledger, oracle: int, call: Call, answer: Answer) -> None:
    ledger.settle(ledger.intend(oracle, call), answer)


# --- One call -------------------------------------------------------------------------------------------------


def test_an_answer_is_found_again_by_its_texts_order_and_settings(tmp_path: Path) -> None:
    said = Answer(0.75, "because", "[[A]]", 10, 2, 0.5, 0.25)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        oracle = ledger.oracle("judge", {"model": "m", "temperature": 0})
        answered(ledger, oracle, CALL, said)
    with Ledger(tmp_path / "l.sqlite") as again:
        same = again.oracle("judge", {"temperature": 0, "model": "m"})
        assert again.find(same, CALL) == said
        assert again.find(same, Call("a question", "no", "yes")) is None
        assert again.find(again.oracle("judge", {"model": "m", "temperature": 1}), CALL) is None
        assert again.find(same, Call([{"role": "user", "content": "a question"}], "yes", "no")) is None


def test_an_abstention_is_an_answer_and_a_failure_is_none() -> None:
    ledger = Ledger(":memory:")
    oracle = ledger.oracle("judge", {})
    ledger.settle(ledger.intend(oracle, CALL), Answer(None, "HTTP 500", tokens_in=3), failed=True)
    assert ledger.find(oracle, CALL) is None
    answered(ledger, oracle, CALL, Answer(None, "unreadable"))
    found = ledger.find(oracle, CALL)
    assert found is not None
    assert (found.probability, found.reason) == (None, "unreadable")
    assert [row["state"] for row in ledger.rows()] == ["failed", "answered"]
    spent = ledger.spent()
    assert (spent.calls, spent.tokens, spent.failed, spent.open) == (2, 3, 1, 0)


def test_what_is_spent_is_counted_by_run_and_oracle(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path, run="a") as first, Ledger(path, run="b") as second:
        one, two = first.oracle("one", {"n": 1}), first.oracle("two", {"n": 2})
        answered(first, one, CALL, Answer(1.0, tokens_in=5, tokens_out=2, cost=0.1))
        answered(first, two, CALL, Answer(1.0, tokens_in=1, cost=0.3))
        second.intend(one, Call("other", "x", "y"))
        assert first.spent() == Spent(2, 8, pytest.approx(0.4), dearest_tokens=7, dearest_cost=0.3)
        assert first.spent(one) == Spent(1, 7, 0.1, dearest_tokens=7, dearest_cost=0.1)
        assert second.spent() == Spent(1, 0, 0.0, open=1)
        assert [row["run"] for row in first.possibly_paid()] == ["b"]


def test_a_run_begun_anew_has_spent_nothing_and_its_answers_stay() -> None:
    ledger = Ledger(":memory:", run="a")
    oracle = ledger.oracle("judge", {})
    answered(ledger, oracle, CALL, Answer(1.0))
    ledger.retire()
    assert ledger.spent() == Spent()
    assert ledger.find(oracle, CALL) is not None
    assert next(iter(ledger.rows()))["run"].startswith("a until 20")


def test_the_first_of_two_answers_stands() -> None:
    """Two processes that ask the same at the same moment: both are paid, one label is used by both."""
    ledger = Ledger(":memory:")
    oracle = ledger.oracle("judge", {})
    one, two = ledger.intend(oracle, CALL), ledger.intend(oracle, CALL)
    assert ledger.settle(one, Answer(1.0, "first", cost=1.0)) == Answer(1.0, "first", cost=1.0)
    assert ledger.settle(two, Answer(0.0, "second", cost=2.0)).reason == "first"
    assert Counter(row["state"] for row in ledger.rows()) == {"answered": 1, "failed": 1}
    assert ledger.spent().cost == 3.0


def test_remembered_answers_cost_no_call_and_the_first_one_stands() -> None:
    ledger = Ledger(":memory:")
    oracle = ledger.oracle("f", {})
    ledger.remember(oracle, [(CALL, Answer(0.25)), (Call("b", "x", "y"), Answer(None, "no idea"))])
    ledger.remember(oracle, [(CALL, Answer(0.5))])
    found = ledger.find(oracle, CALL)
    assert found is not None
    assert found.probability == 0.25
    assert (ledger.spent().calls, ledger.spent().remembered) == (0, 2)


@pytest.mark.parametrize(
    "call",
    [
        Call("lone \ud800 surrogate", "\udfff", "x"),
        Call([{"role": "user", "content": "lone \ud83d"}], "zero \x00 byte", "\U0001f600 é 漢"),
        Call("", "", ""),
    ],
)
def test_any_text_can_be_kept(call: Call) -> None:
    ledger = Ledger(":memory:")
    oracle = ledger.oracle("judge \ud800", {"rubric": "\udcff"})
    answered(ledger, oracle, call, Answer(0.5, "reason \ud800", "raw \ud800"))
    found = ledger.find(oracle, call)
    assert found is not None
    assert (found.reason, found.raw) == ("reason ?", "raw ?")
    row = next(iter(ledger.rows()))
    assert row["hash"] == call.key
    assert row["second"] == call.second or "\ud800" in str(call)


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1})
    assert hash_of(["a", "b", "c"]) != hash_of(["ab", "", "c"])
    # printf '["a"]' | sha256sum
    assert hash_of(["a"]) == "0eb5b8d6f81bc677da8a08567cc4fa9a06a57e9ec8da85ed73a7f62727996002"


# --- Reading --------------------------------------------------------------------------------------------------


def test_rows_are_filtered() -> None:
    ledger = Ledger(":memory:", run="a")
    one, two = ledger.oracle("one", {"n": 1}), ledger.oracle("two", {"n": 2})
    for step in range(4):
        ledger.step = step
        answered(
            ledger, one, Call(f"p{step}", "x", "y"), Answer(None if step == 1 else 1.0, raw=f"Raw {step}")
        )
    ledger.settle(ledger.intend(two, Call("P9", "x", "y")), Answer(None, "HTTP 500"), failed=True)

    def prompts(**where: object) -> list[str]:
        return [row["prompt"] for row in ledger.rows(**where)]

    assert prompts(oracle="one", step=(1, 2)) == ["p1", "p2"]
    assert prompts(step=(2, None)) == ["p2", "p3", "P9"]
    assert prompts(step=(None, 0)) == ["p0"]
    assert prompts(step=3) == ["p3", "P9"]
    assert prompts(abstained=True) == ["p1"]
    assert prompts(state="failed") == ["P9"]
    assert prompts(search="raw 2") == ["p2"]
    assert prompts(search="p") == ["p0", "p1", "p2", "p3", "P9"]
    assert prompts(search="100%") == []
    assert prompts(oracle=hash_of({"n": 2})[:8]) == ["P9"]
    assert prompts(run="b") == []


def test_more_rows_than_are_read_at_once() -> None:
    ledger = Ledger(":memory:")
    oracle = ledger.oracle("f", {})
    ledger.remember(oracle, [(Call(str(n), "x", "y"), Answer(1.0)) for n in range(1001)])
    assert [row["prompt"] for row in ledger.rows()] == [str(n) for n in range(1001)]


# --- Files that it must not touch -----------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(OracleError) as caught:
        Ledger(path)
    return str(caught.value)


def test_a_file_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    assert f"has version {VERSION + 1}, and this sail reads and writes version {VERSION}" in refusal(path)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE cakes (name TEXT)")
    db.close()
    before = path.read_bytes()
    assert "a SQLite file of another program" in refusal(path)
    assert path.read_bytes() == before


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    path.write_text("labels, labels, labels")
    assert "is not a ledger: it is no SQLite file" in refusal(path)
    assert path.read_text() == "labels, labels, labels"
    path.unlink()
    with Ledger(path) as ledger:
        oracle = ledger.oracle("f", {})
        ledger.remember(oracle, [(Call(str(n), "x" * 50, "y"), Answer(1.0)) for n in range(500)])
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    with pytest.raises(
        OracleError, match=r"cannot be (read or written|opened): .*(malformed|not a database|disk image)"
    ):
        list(Ledger(path).rows())


def test_a_folder_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be opened" in refusal(tmp_path / "file" / "l.sqlite")


def test_use_after_closing_is_an_error_in_words() -> None:
    ledger = Ledger(":memory:")
    ledger.close()
    with pytest.raises(OracleError, match="cannot be read or written"):
        ledger.spent()


# --- Several processes ----------------------------------------------------------------------------------------


def start(path: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ASKER), str(path), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_begin_at_once_share_a_file_and_its_caps(tmp_path: Path) -> None:
    """Four processes, each with rows of its own; together exactly the 500 calls of the cap."""
    path = tmp_path / "l.sqlite"
    askers = [
        start(path, "--rows", 150, "--first", 150 * n, "--calls", 500, "--seconds", 0) for n in range(4)
    ]
    for asker in askers:
        asker.communicate(timeout=60)
        assert asker.returncode == 0
    with Ledger(path, run="r") as ledger:
        assert ledger.spent().calls == 500
        assert ledger.spent().open == 0
        assert Counter(row["state"] for row in ledger.rows()) == {"answered": 500}


def test_kills_at_random_moments_lose_no_answer_and_pay_none_twice(tmp_path: Path) -> None:
    """SIGKILL again and again, concurrency 8: every answer that was committed is there once, at most 8 intents open per kill, and
    the last start finds the answers and asks the rest. The server's own count (a line per call) is the other side."""
    path, served, rows = tmp_path / "l.sqlite", tmp_path / "served.txt", 400
    rng = random.Random(7)
    committed: dict[str, float] = {}
    found = open_calls = 0
    for _ in range(6):
        asker = start(path, "--rows", rows, "--seconds", 0.02, "--served", served)
        assert asker.stdout is not None
        asker.stdout.readline()  # it is about to ask
        time.sleep(rng.uniform(0.0, 0.12))
        asker.send_signal(signal.SIGKILL)
        asker.communicate()
        with Ledger(path, run="r") as ledger:
            answers = [(row["hash"], row["probability"]) for row in ledger.rows(state="answered")]
            assert len(dict(answers)) == len(answers)
            assert committed.items() <= dict(answers).items()
            assert len(ledger.possibly_paid()) - open_calls <= 8
            assert ledger.spent().open == len(ledger.possibly_paid())
            committed, open_calls, found = dict(answers), ledger.spent().open, ledger.spent().found
    assert 0 < len(committed) < rows
    assert open_calls > 0
    last = start(path, "--rows", rows, "--seconds", 0.001, "--served", served)
    last.communicate(timeout=60)
    with Ledger(path, run="r") as ledger:
        answers = [(row["hash"], row["probability"]) for row in ledger.rows(state="answered")]
        assert len(answers) == len(dict(answers)) == rows
        assert committed.items() <= dict(answers).items()
        assert ledger.spent().found == found + len(committed)
        assert ledger.spent().open == open_calls
    calls = Counter(served.read_text().split())
    assert set(calls) == {f"p{row}" for row in range(rows)}
    # What the server saw more than once was in flight at a kill: never an answer that had been committed.
    assert sum(calls.values()) <= rows + open_calls


def test_nobody_else_is_admitted_between_the_look_at_what_is_spent_and_the_intent(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as mine, Ledger(path) as theirs:
        oracle = mine.oracle("f", {})
        other = threading.Thread(target=lambda: theirs.intend(oracle, Call("other", "x", "y")))

        def admit(spent: Spent) -> None:
            other.start()
            other.join(0.2)
            assert other.is_alive()

        mine.intend(oracle, CALL, admit)
        other.join(10)
        assert [row["prompt"] for row in mine.rows()] == ["a question", "other"]
