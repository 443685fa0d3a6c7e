"""A real dpr run whose labels come from people over HTTP: it learns what they said, and a stop in the middle changes nothing."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from annotators import Worker
from people_run import STEPS, make_run
from tiny import largest_difference, weights_of

from sail.annotate.server import PageServer
from sail.annotate.store import Annotations

pytestmark = pytest.mark.slow


def pairs_of(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def liked(first: str, second: str) -> float:
    """What the scripted people say (tests/annotators.py), written again: more w3, then shorter, else a tie."""
    one, other = ((text.split().count("w3"), -len(text.split())) for text in (first, second))
    return 0.5 if one == other else float(one > other)


def finish(folder: Path) -> dict[str, torch.Tensor]:
    """Start or resume the run and let one person label all it asks; the final weights."""
    trainer, people = make_run(folder)
    people._opened()
    worker = Worker(people._server.link, "ann")
    worker.start()
    try:
        trainer.train(resume_from_checkpoint=True)
    finally:
        worker.stop()
        people.close()
    assert worker.error is None
    assert trainer.state.global_step == STEPS
    return weights_of(trainer.model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, finish(folder)


def assert_same(
    whole: tuple[Path, dict[str, torch.Tensor]], folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    assert (folder / "pairs.jsonl.gz").read_bytes() == (whole[0] / "pairs.jsonl.gz").read_bytes()
    assert largest_difference(whole[1], weights) == 0.0
    asked = [list(Annotations(one / "annotations.sqlite").items()) for one in (whole[0], folder)]
    assert sorted(asked[0]) == sorted(asked[1])  # no pair was queued twice, or under another name
    labels = Annotations(folder / "annotations.sqlite").labels()
    assert len(labels) == len({label.pair for label in labels}) == len(asked[0])


def test_the_labels_are_the_peoples(whole: tuple[Path, dict[str, torch.Tensor]]) -> None:
    rows = pairs_of(whole[0])
    different = [row for row in rows if row["first"] != row["second"]]
    assert len(different) >= 8
    assert {row["source"] for row in different} == {"oracle:people"}
    assert [row["probability"] for row in different] == [
        liked(row["first"], row["second"]) for row in different
    ]
    assert [row["label"] for row in different] == [row["probability"] for row in different]
    # the control: were first and second exchanged, most labels would be wrong
    assert (
        sum(row["probability"] == liked(row["second"], row["first"]) for row in different)
        < len(different) / 2
    )
    metrics = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("oracle/calls", 0) for line in metrics if "loss" in line) > 0


def test_ctrl_c_while_people_are_asked(whole: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """Somebody labels a few pairs and leaves; Ctrl-C ends the waiting at once; the rest is labelled later."""
    trainer, people = make_run(tmp_path / "run")
    people._opened()
    worker = Worker(people._server.link, "ann", most=4)
    worker.start()

    def interrupt() -> None:
        worker.join(timeout=60)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before
    people.close()
    assert trainer.state.global_step < STEPS
    assert_same(whole, tmp_path / "run", finish(tmp_path / "run"))


def test_killed_while_waiting_and_labelled_meanwhile(
    whole: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """SIGKILL while it waits for its first labels, `sail annotate`'s server over the same file until nothing is open, then on."""
    folder = tmp_path / "run"
    script = Path(__file__).with_name("people_run.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    file, end = folder / "annotations.sqlite", time.monotonic() + 120
    while not (file.exists() and Annotations(file).items()):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    asked = len(Annotations(file).items())
    server = PageServer(file, port=0).start()
    worker = Worker(server.link, "ann", most=asked)
    worker.start()
    worker.join(timeout=60)
    server.stop()
    assert len(Annotations(file).labels()) == asked
    assert_same(whole, folder, finish(folder))


def test_nobody_is_asked_beside_training(tmp_path: Path) -> None:
    """The trial before a run, its end and its audit ask an oracle about pairs too; people would be waited for without end."""
    from tiny import make_pairs, make_trainer

    from sail.build_oracle import ask_once
    from sail.config import config_from_dict
    from sail.oracles.people import People
    from sail.results import audit_run, final_results

    oracle = People(tmp_path, serve=False)
    trainer = make_trainer(tmp_path, oracle=oracle, trainer_options={"eval_dataset": make_pairs(4)})
    config = config_from_dict(
        {
            "model": "m",
            "data": {"train": "p.jsonl"},
            "oracle": {"kind": "people"},
            "train": {"preset": "sail-dpr"},
        }
    )
    assert ask_once(oracle, trainer.train_dataset, config) == []
    found = final_results(trainer, {})
    assert "win_rate" not in found["metrics"]
    assert found["metrics"]["length"]["n"] == 4
    assert "People were asked in training only, so nobody judged the held-out answers." in found["notes"]
    audit_run(trainer, tmp_path, found)
    assert found["oracle_calls_in_evaluation"] == 0
    assert not (tmp_path / "annotations.sqlite").exists()
