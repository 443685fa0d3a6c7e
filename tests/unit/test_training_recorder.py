"""metrics.jsonl and pairs.jsonl.gz: what is written, and how both are cut back on resume."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import make_pairs, make_trainer

from sail.mixture import mixture_of
from sail.training.memory import Memory
from sail.training.recorder import METRICS, PAIRS, RunRecorder
from sail.training.tracking import Tracker


def recorder(folder: Path, *, writes: bool = True) -> RunRecorder:
    return RunRecorder(folder, Tracker(mixture_of("sail-dpr", None)), Memory(), writes=writes)


def begin(one: RunRecorder) -> None:
    one.on_train_begin(None, state(0), None)


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, epoch=step / 5)


def log(one: RunRecorder, step: int, **numbers: Any) -> None:
    one.on_log(None, state(step), None, logs=numbers)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def pairs(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / PAIRS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_a_line_per_log(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    begin(one)
    log(one, 3, loss=0.5, epoch=0.6, calls=2)
    line = lines(tmp_path)[0]
    assert line.pop("time") >= 0
    assert line == {"step": 3, "epoch": 0.6, "loss": 0.5, "calls": 2}


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    """JSON has no NaN: a line with one could not be read by others."""
    one = recorder(tmp_path)
    begin(one)
    log(one, 1, loss=float("nan"), norm=float("inf"), low=-float("inf"), none=None, text="é", other=Path("x"))
    assert "NaN" not in (tmp_path / METRICS).read_text()
    line = lines(tmp_path)[0]
    assert [line[name] for name in ("loss", "norm", "low", "none")] == [None] * 4
    assert (line["text"], line["other"]) == ("é", "x")


def test_pairs_are_one_member_per_step(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    begin(one)
    one.write_pairs(0, [{"index": 4, "prompt": "é"}, {"index": 5, "prompt": "y"}])
    size = (tmp_path / PAIRS).stat().st_size
    one.write_pairs(1, [{"index": 6, "prompt": "z"}])
    one.write_pairs(2, [])
    assert [(pair["step"], pair["index"]) for pair in pairs(tmp_path)] == [(0, 4), (0, 5), (1, 6)]
    # The first member alone is a valid file: a truncated one can be read.
    assert len(gzip.decompress((tmp_path / PAIRS).read_bytes()[:size]).splitlines()) == 2


def test_equal_pairs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        one = recorder(tmp_path / name)
        begin(one)
        one.write_pairs(0, [{"index": 4}])
    assert (tmp_path / "a" / PAIRS).read_bytes() == (tmp_path / "b" / PAIRS).read_bytes()


def test_a_resumed_run_cuts_its_files_back(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    begin(one)
    log(one, 1, loss=0.5)
    one.write_pairs(0, [{"index": 1}])
    one.tracker.counters.oracle_calls = 7
    kept = json.loads(json.dumps(one.state()))
    before = [(tmp_path / name).read_bytes() for name in (METRICS, PAIRS)]
    log(one, 2, loss=0.4)
    one.write_pairs(1, [{"index": 2}])
    with (tmp_path / PAIRS).open("ab") as file:
        file.write(b"\x1f\x8b half a member")

    resumed = recorder(tmp_path)
    resumed.continue_from(kept)
    begin(resumed)
    assert [(tmp_path / name).read_bytes() for name in (METRICS, PAIRS)] == before
    assert resumed.tracker.counters.oracle_calls == 7
    log(resumed, 2, loss=0.3)
    resumed.write_pairs(1, [{"index": 3}])
    assert [line["loss"] for line in lines(tmp_path)] == [0.5, 0.3]
    assert [pair["index"] for pair in pairs(tmp_path)] == [1, 3]


def test_time_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one.continue_from({**one.state(), "seconds": 1000.0})
    begin(one)
    log(one, 1, loss=0.1)
    assert 1000 <= lines(tmp_path)[0]["time"] < 1010


def test_a_run_that_starts_afresh_starts_its_files_afresh(tmp_path: Path) -> None:
    for _ in range(2):
        one = recorder(tmp_path)
        one.tracker.counters.oracle_calls = 3
        begin(one)
        assert one.tracker.counters.oracle_calls == 0
        log(one, 1, loss=0.5)
        one.write_pairs(0, [{"index": 1}])
    assert len(lines(tmp_path)) == len(pairs(tmp_path)) == 1


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    one = recorder(tmp_path, writes=False)
    begin(one)
    log(one, 1, loss=0.5)
    one.write_pairs(0, [{"index": 1}])
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_log_is_no_line(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    begin(one)
    one.on_log(None, state(1), None, logs=None)
    assert not (tmp_path / METRICS).exists()


@pytest.mark.parametrize("preset", ["sail-dpr", "self-dpo"])
def test_what_a_recorded_pair_says(tmp_path: Path, preset: str) -> None:
    """Prompt, both responses, label, probability, who gave it, step: of every on-policy pair, of no other."""
    trainer = make_trainer(tmp_path, rows=make_pairs(16), preset=preset, max_steps=6, learning_rate=1e-2)
    trainer.train()
    found = pairs(tmp_path)
    assert len(found) > 5
    prompts = [row["prompt"] for row in make_pairs(16)]
    for pair in found:
        assert pair["prompt"] == prompts[pair["index"]]
        assert 0 <= pair["step"] < 6
        assert pair["first_length"] >= len(pair["first"].split())
        assert 0 <= pair["probability"] <= 1
        if preset == "sail-dpr":
            assert (pair["route"], pair["source"]) == ("dpr", "oracle:reward")
            assert pair["label"] == pair["probability"]
        else:
            assert (pair["route"], pair["source"]) == ("dpp", "policy")
            assert pair["label"] in (0.0, 0.5, 1.0, None)
    assert sum(line["route/" + found[0]["route"]] * 8 for line in lines(tmp_path) if "loss" in line) == len(
        found
    )


def test_no_record_if_none_is_wanted(tmp_path: Path) -> None:
    make_trainer(tmp_path, record_pairs=False, max_steps=1).train()
    assert not (tmp_path / PAIRS).exists()
    assert (tmp_path / METRICS).exists()
