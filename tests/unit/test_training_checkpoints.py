"""Which checkpoint can be continued from, and what happens to the others. Real ones are killed in test_resume_kill.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sail.errors import CheckpointError
from sail.training.checkpoints import (
    REFERENCE_FILE,
    RUN_STATE_FILE,
    STATE_FILE,
    begin_checkpoint,
    checkpoints,
    is_complete,
    latest_checkpoint,
    reference_of,
    require_complete,
    run_state,
    set_newer_aside,
    step_of,
    write_run_state,
)

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def make(folder: Path, step: int, *, weights_only: bool = False, without: str | None = None) -> Path:
    """A checkpoint with the files that matter."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in FILES[:1] if weights_only else FILES:
        (path / name).touch()
    write_run_state(path, {"weights_only": weights_only, "sizes": {"metrics.jsonl": 5}})
    (path / STATE_FILE).write_text(json.dumps({"global_step": step}))
    if without:
        (path / without).unlink()
    return path


def test_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert [step_of(path) for path in checkpoints(tmp_path)] == [100, 20, 9]
    assert latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-100", [])


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") == (None, [])
    assert latest_checkpoint(tmp_path) == (None, [])
    assert set_newer_aside(tmp_path / "nowhere", 0) == []


@pytest.mark.parametrize("name", [*sorted(set(FILES) - {"scheduler.pt"}), STATE_FILE, RUN_STATE_FILE])
def test_a_checkpoint_without_one_of_its_files(tmp_path: Path, name: str) -> None:
    """A kill while saving leaves the last ones unwritten, a kill while deleting leaves any of them."""
    path = make(tmp_path, 3, without=name)
    assert not is_complete(path)
    with pytest.raises(CheckpointError, match="incomplete"):
        require_complete(path)


@pytest.mark.parametrize("text", ["", "{", '{"global_step": 3', "[]", "null", "{}", "\x00\x00"])
def test_a_state_that_does_not_parse(tmp_path: Path, text: str) -> None:
    path = make(tmp_path, 3)
    (path / STATE_FILE).write_text(text)
    assert not is_complete(path)


def test_incomplete_ones_are_moved_aside_until_a_complete_one(tmp_path: Path) -> None:
    for step in (2, 4):
        make(tmp_path, step)
    for step in (3, 5, 6):
        make(tmp_path, step, without=STATE_FILE)
    found, messages = latest_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-4"
    assert len(messages) == 2
    assert "checkpoint-6 was not written completely" in messages[0]
    assert "moved aside to incomplete-checkpoint-6" in messages[0]
    # An older one is in nobody's way.
    assert (tmp_path / "checkpoint-3").is_dir()
    assert latest_checkpoint(tmp_path) == (found, [])


def test_nothing_is_overwritten_when_moved_aside(tmp_path: Path) -> None:
    for _ in range(3):
        make(tmp_path, 6, without=STATE_FILE)
        assert latest_checkpoint(tmp_path)[0] is None
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"incomplete-checkpoint-6{ending}" for ending in ("", "-2", "-3")]


def test_newer_ones_are_set_aside(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        make(tmp_path, step)
    messages = set_newer_aside(tmp_path, 4)
    assert messages == [
        "checkpoint-6 is of an earlier run in this folder; moved aside to superseded-checkpoint-6."
    ]
    assert len(set_newer_aside(tmp_path, 0)) == 2
    assert latest_checkpoint(tmp_path) == (None, [])


def test_weights_alone_cannot_be_continued_from(tmp_path: Path) -> None:
    path = make(tmp_path, 3, weights_only=True)
    assert is_complete(path)
    for ask in (lambda: require_complete(path), lambda: latest_checkpoint(tmp_path)):
        with pytest.raises(CheckpointError, match="save_only_model"):
            ask()
    assert path.is_dir()


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        require_complete(tmp_path / "checkpoint-1")


def test_begin_takes_the_old_state_away(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    begin_checkpoint(path)
    assert not is_complete(path)
    begin_checkpoint(path)
    begin_checkpoint(tmp_path / "checkpoint-4")


def test_run_state_is_read_back(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    assert run_state(path)["sizes"] == {"metrics.jsonl": 5}
    assert run_state(tmp_path) == {}
    assert require_complete(path) == path


@pytest.mark.parametrize(
    "names",
    [
        ("rng_state_0.pth", "rng_state_1.pth", "optimizer_0", "pytorch_model_fsdp_0", "scheduler.pt"),
        ("rng_state_0.pth", "global_step3", "latest"),
        ("rng_state.pth", "optimizer.pt", "adapter_model.safetensors"),
        ("rng_state.pth", "optimizer.bin", "pytorch_model.bin"),
    ],
)
def test_files_of_sharded_and_adapter_checkpoints(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    write_run_state(tmp_path, {})
    (tmp_path / STATE_FILE).write_text('{"global_step": 3}')
    assert is_complete(tmp_path)


def test_a_reference_that_was_replaced_must_be_there_and_is_not_the_model(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    write_run_state(path, {"reference": True})
    assert not is_complete(path)
    (path / REFERENCE_FILE).touch()
    assert is_complete(path)
    assert reference_of(path) == path / REFERENCE_FILE
    (path / "model.safetensors").unlink()
    assert not is_complete(path)
    write_run_state(path, {"reference": False})
    assert reference_of(path) is None
    assert reference_of(None) is None
