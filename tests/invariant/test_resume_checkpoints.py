"""Resuming beside checkpoints that are incomplete, or that belong to another run in the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_resume import Interrupt, Interrupted, assert_same_run, trainer, uninterrupted

from sail.errors import CheckpointError
from sail.training.checkpoints import STATE_FILE, is_complete, latest_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return uninterrupted(tmp_path_factory)


# ---- incomplete checkpoints


def break_off(checkpoint: Path, what: str) -> None:
    """What a kill leaves behind: no state file, half a state file, or a folder that is half deleted."""
    state = checkpoint / STATE_FILE
    if what == "no state":
        state.unlink()
    elif what == "half a state":
        state.write_text(state.read_text()[:100])
    elif what == "half deleted":
        (checkpoint / "optimizer.pt").unlink()


BROKEN = ("no state", "half a state", "half deleted")


@pytest.mark.parametrize("what", BROKEN)
def test_an_incomplete_checkpoint_is_moved_aside(
    whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(4)).train()
    break_off(tmp_path / "checkpoint-4", what)
    trainer(tmp_path).train(resume_from_checkpoint=True)
    said = capsys.readouterr().out
    assert "checkpoint-4 was not written completely" in said
    assert (tmp_path / "incomplete-checkpoint-4").is_dir()
    assert_same_run(whole(), tmp_path)


@pytest.mark.parametrize("what", BROKEN)
def test_an_incomplete_checkpoint_given_by_name_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(2)).train()
    break_off(tmp_path / "checkpoint-2", what)
    with pytest.raises(CheckpointError, match="incomplete"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (tmp_path / "checkpoint-2").is_dir()


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_all_incomplete(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(2)).train()
    for name in ("checkpoint-1", "checkpoint-2"):
        break_off(tmp_path / name, "no state")
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert_same_run(whole(), tmp_path)


# ---- checkpoints of another continuation in the same folder


def test_continuing_from_an_older_checkpoint(whole: Any, tmp_path: Path) -> None:
    """Newer checkpoints belong to the past that is being replaced: none of them may be picked up later."""
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(6)).train()
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(3)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-3"
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert_same_run(whole(), tmp_path)


def test_starting_afresh_in_a_used_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that starts over and dies is continued from its own checkpoints, not from those of the run before it."""
    trainer(tmp_path / "used", preset="sail-dpr").train()
    with pytest.raises(Interrupted):
        trainer(tmp_path / "used", Interrupt(3)).train()
    assert "moved aside" in capsys.readouterr().out
    trainer(tmp_path / "used").train(resume_from_checkpoint=True)
    trainer(tmp_path / "whole").train()
    assert_same_run(tmp_path / "whole", tmp_path / "used")


def test_a_checkpoint_being_overwritten_is_incomplete(tmp_path: Path) -> None:
    """While a checkpoint is written over an older one of the same name, the old state must not vouch for it."""
    first = trainer(tmp_path, max_steps=1)
    first.train()
    checkpoint = tmp_path / "checkpoint-1"
    assert is_complete(checkpoint)
    first.save_model(str(checkpoint), _internal_call=True)
    assert not is_complete(checkpoint)


def test_weights_without_an_optimizer_are_refused(tmp_path: Path) -> None:
    """Trainer would go on with a fresh optimizer and say nothing."""
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(2), save_only_model=True).train()
    with pytest.raises(CheckpointError, match="save_only_model"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
