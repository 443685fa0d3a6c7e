"""Real processes killed at bad moments, resumed until finished: the final bits are the uninterrupted run's.

benchmarks/kills.py does the same in larger numbers.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import resume_run
from resume_run import ALIGNED, SCRIPT, STATE_FILE, STEPS, Server, fingerprints, kill_and_resume, server

pytestmark = pytest.mark.slow

PRESETS = ("sail-ddp", "sail-mix", "iterative-dpo", "spin")
"""The last two by rounds; spin replaces its reference in each."""


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with server() as one:
        yield one


@pytest.fixture(scope="module")
def whole(one_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Fingerprints of the uninterrupted runs."""
    found = {}
    for preset in PRESETS:
        folder = tmp_path_factory.mktemp("whole") / preset
        one_server.start(folder, preset)
        assert one_server.wait() == 0, folder.with_suffix(".txt").read_text()
        found[preset] = fingerprints(folder)
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_killed_again_and_again(
    one_server: Server, whole: dict[str, dict[str, str]], tmp_path: Path, preset: str
) -> None:
    """A kill aimed at a run that has ended by then is none, on a fast machine, so runs go on until enough have hit."""
    chance, kills = random.Random(preset), 0
    for attempt in range(10):
        told = kill_and_resume(one_server, tmp_path / str(attempt), preset, chance, kills=4)
        assert told.sums == whole[preset]
        kills += told.kills
        if kills >= 2:
            return
    pytest.fail(f"{kills} of 40 kills hit a run")


def test_killed_while_saving(one_server: Server, whole: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """At least one checkpoint is caught half written; it is moved aside, with a message, and not used."""
    chance = random.Random(3)
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        told = kill_and_resume(one_server, folder, "sail-mix", chance, kills=1)
        assert told.sums == whole["sail-mix"]
        if told.while_saving:
            break
    else:
        pytest.fail("no kill came while a checkpoint was being written")
    aside = list(folder.glob("incomplete-checkpoint-*"))
    assert len(aside) == 1
    assert not (aside[0] / STATE_FILE).exists()
    assert "was not written completely" in folder.with_suffix(".txt").read_text()


def test_ctrl_c_in_a_process_of_its_own(whole: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """SIGINT finishes the step, leaves a checkpoint that is no multiple of save_steps, and the rest is exact."""
    folder = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), str(folder), "sail-mix"]
    process = subprocess.Popen(
        [*command, "0.3"],
        env=resume_run.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 60
    while not (folder / "checkpoint-2" / STATE_FILE).exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "saving a checkpoint" in said
    step = max(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    assert step < STEPS
    assert json.loads((folder / f"checkpoint-{step}" / STATE_FILE).read_text())["global_step"] == step
    assert not (folder / ALIGNED).exists()
    subprocess.run([*command, "0"], env=resume_run.environment(), check=True, capture_output=True)
    assert fingerprints(folder) == whole["sail-mix"]
