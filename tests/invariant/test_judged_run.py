"""A run labelled by a judge over HTTP: through faults, and killed with SIGKILL, its labels are those of a calm one and nothing is
paid twice that was committed. benchmarks/judge_kills.py does the same a hundred times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_judge import FakeJudge
from judged_run import SCRIPT, audit, kill_during_calls, labels
from resume_run import Server, fingerprints, kill_and_resume, server

pytestmark = pytest.mark.slow

FAULTS = ("500", "limited:0.02", "cut_stream", "garbage", "html:502", "reset", 'json:{"choices": []}', "503")


def faulty(question: str, attempt: int) -> str:
    """Half of the questions meet one or two faults first."""
    number = int(question[:8], 16)
    return FAULTS[(number + attempt) % len(FAULTS)] if attempt < number % 4 - 1 else "ok"


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with server(SCRIPT) as one:
        yield one


@pytest.fixture(scope="module")
def calm(one_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run with a judge that never fails."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    with FakeJudge() as judge:
        run(one_server, folder, judge)
        assert set(judge.paid.values()) == {1}
        assert audit(folder, 0)["answers"] == len(judge.paid) > 20
    return folder


def run(one: Server, folder: Path, judge: FakeJudge) -> None:
    one.start(folder, judge.url)
    assert one.wait() == 0, folder.with_suffix(".txt").read_text()[-3000:]


def test_faults_cost_no_label_and_no_money(one_server: Server, calm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with FakeJudge(faulty) as judge:
        run(one_server, folder, judge)
    assert labels(folder) == labels(calm)
    assert fingerprints(folder) == fingerprints(calm)
    assert set(judge.paid.values()) == {1}
    told = audit(folder, 0)
    assert told["calls"] == sum(judge.asked.values()) > told["answers"] == len(judge.paid)


def test_killed_and_resumed(one_server: Server, calm: Path, tmp_path: Path) -> None:
    """Kills hit calls on their way, saves and random moments. What the judge answered again is listed as possibly paid."""
    chance, expected, kills, in_flight = random.Random(4), fingerprints(calm), 0, 0
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        with FakeJudge(faulty, latency=0.03) as judge:
            hit = kill_during_calls(one_server, folder, judge, chance, kills=2)
            told = kill_and_resume(one_server, folder, judge.url, chance, kills=2)
        assert told.sums == expected
        assert labels(folder) == labels(calm)
        open_intents = audit(folder, hit + told.kills)["possibly_paid"]
        assert sum(judge.paid.values()) - len(judge.paid) <= open_intents
        kills, in_flight = kills + hit + told.kills, in_flight + open_intents
        if kills >= 4 and in_flight:
            return
    pytest.fail(f"{kills} kills hit a run, {in_flight} calls were in flight")


def test_a_finished_run_costs_nothing_when_it_is_resumed(
    one_server: Server, calm: Path, tmp_path: Path
) -> None:
    """Its ledger alone is enough: another run of the same seed is labelled without the judge, which is not even there."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        if (calm / name).exists():
            (folder / name).write_bytes((calm / name).read_bytes())
    with FakeJudge(lambda question, attempt: "500") as judge:
        # The address is part of the settings, and another server may serve another model: the same one is needed.
        address = _address_of(calm)
        one_server.start(folder, address)
        assert one_server.wait() == 0, folder.with_suffix(".txt").read_text()[-3000:]
        assert not judge.asked
    assert fingerprints(folder) == fingerprints(calm)


def _address_of(folder: Path) -> str:
    import json
    import sqlite3

    with sqlite3.connect(folder / "ledger.sqlite") as db:
        return str(json.loads(db.execute("SELECT settings FROM oracles").fetchone()[0])["url"])
