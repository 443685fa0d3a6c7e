"""Two gloo processes, one of them killed with SIGKILL: the other one ends soon and says so, and the run goes on exactly."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from resume_run import STATE_FILE, Server, server

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_ranks.py")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def both(servers: tuple[Server, Server], folder: Path, seconds: float = 0.0) -> list[int]:
    """Start the two processes; their ids. Each writes what it says beside a folder of its own name."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    return [one.start(folder, f"{rank}:{port}", seconds) for rank, one in enumerate(servers)]


def test_a_killed_process_ends_the_run_and_it_resumes(tmp_path: Path) -> None:
    with server(SCRIPT) as first, server(SCRIPT) as second:
        servers = (first, second)
        both(servers, tmp_path / "whole")
        assert [one.wait() for one in servers] == [0, 0], (tmp_path / "whole.txt").read_text()[-3000:]

        folder = tmp_path / "killed"
        processes = both(servers, folder, seconds=0.2)
        end = time.monotonic() + 60
        while not (folder / "checkpoint-2" / STATE_FILE).exists() and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.3)
        os.kill(processes[1], signal.SIGKILL)
        assert second.wait() == -signal.SIGKILL
        killed_at = time.monotonic()
        assert first.wait() == 1
        assert time.monotonic() - killed_at < 20
        said = (tmp_path / "killed.txt").read_text()
        assert "Another process of the run has ended, or does not answer" in said
        assert "continue from it with --resume" in said
        assert not (folder / "end.pt").exists()

        both(servers, folder)
        assert [one.wait() for one in servers] == [0, 0], (tmp_path / "killed.txt").read_text()[-3000:]
    there, here = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(there[name], here[name]) for name in there)
