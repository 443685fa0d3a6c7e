"""A run interrupted within a round ends as the uninterrupted one does, to the last bit; the missing file of a round is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from test_resume import (
    STEPS,
    Interrupt,
    Interrupted,
    assert_same_run,
    interrupted_and_resumed,
    trainer,
    uninterrupted,
)

from sail.errors import CheckpointError
from sail.training.checkpoints import REFERENCE_FILE
from sail.training.rounds import FOLDER

CORRECTED = {"preset": "sail-mix", "refresh": "round", "round_steps": 3}
MOVING = {
    "preset": None, "routes": {"data": 0.3, "spin": 0.3, "dpr": {"weight": 0.4, "coefficient": 0.5}},
    "refresh": "round", "round_steps": 3, "ref_update": "round", "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return uninterrupted(tmp_path_factory)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7])
def test_any_step_of_a_round(whole: Any, tmp_path: Path, step: int) -> None:
    """Rounds of 3 steps that span epochs: within one, at its first step, behind its last. Oracle calls are counted once."""
    interrupted_and_resumed(tmp_path, step, **CORRECTED)
    assert_same_run(whole(**CORRECTED), tmp_path)


def test_checkpoints_rarer_than_rounds(whole: Any, tmp_path: Path) -> None:
    """Rounds of 1 or 2 steps, saved every 3: when step 7 is interrupted, the round of the last checkpoint is long over."""
    options = {**CORRECTED, "round_steps": 2, "save_steps": 3}
    interrupted_and_resumed(tmp_path, 7, **options)
    assert_same_run(whole(**options), tmp_path)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("step", [2, 4, 6])
def test_with_a_reference_that_follows(whole: Any, tmp_path: Path, step: int, adapter: bool) -> None:
    interrupted_and_resumed(tmp_path, step, adapter=adapter, **MOVING)
    assert_same_run(whole(adapter=adapter, **MOVING), tmp_path)
    last = tmp_path / f"checkpoint-{STEPS}" / REFERENCE_FILE
    expected = whole(adapter=adapter, **MOVING) / f"checkpoint-{STEPS}" / REFERENCE_FILE
    assert last.read_bytes() == expected.read_bytes()
    assert not (tmp_path / "checkpoint-3" / REFERENCE_FILE).exists()
    assert (tmp_path / "checkpoint-4" / REFERENCE_FILE).exists()


def test_with_remembered_log_probs(whole: Any, tmp_path: Path) -> None:
    options = {**MOVING, "precompute_ref_log_probs": True}
    interrupted_and_resumed(tmp_path, 5, **options)
    assert_same_run(whole(**options), tmp_path)


def test_best_of_n(whole: Any, tmp_path: Path) -> None:
    options = {"preset": "iterative-dpo", "round_steps": 3}
    interrupted_and_resumed(tmp_path, 5, **options)
    assert_same_run(whole(**options), tmp_path)


def test_steps_behind_the_checkpoint_are_taken_from_the_round_before(whole: Any, tmp_path: Path) -> None:
    """The checkpoint is in round 1, the interruption in round 2, whose first step is done again."""
    options = {**MOVING, "save_steps": 4}
    interrupted_and_resumed(tmp_path, 7, **options)
    assert_same_run(whole(**options), tmp_path)


def test_a_missing_round_is_named(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(5), **{**CORRECTED, "save_steps": 5}).train()
    shutil.rmtree(tmp_path / FOLDER)
    with pytest.raises(
        CheckpointError, match=r"saved within round 1, .* Put the folder rounds of that run back"
    ):
        trainer(tmp_path, **CORRECTED).train(resume_from_checkpoint=True)


def test_at_the_first_step_of_a_round_no_file_is_needed(whole: Any, tmp_path: Path) -> None:
    """The weights that are to sample are there: the round is made anew, and is the same."""
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(3), **CORRECTED).train()
    shutil.rmtree(tmp_path / FOLDER)
    trainer(tmp_path, **CORRECTED).train(resume_from_checkpoint=True)
    assert_same_run(whole(**CORRECTED), tmp_path)
