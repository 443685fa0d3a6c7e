"""Which checkpoint can be continued from.

Trainer writes trainer_state.json after everything else of a checkpoint, and deletes old checkpoints only after that.
A checkpoint is therefore complete exactly if that file is there and parses, and a kill at any moment leaves a complete
one if ever there was one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from sail.errors import CheckpointError

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def is_complete(checkpoint: Path) -> bool:
    """Whether everything of the checkpoint had been written."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "global_step" in state


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders, the newest (by step) first."""
    if not folder.is_dir():
        return []
    found = [
        (int(match.group(1)), path)
        for path in folder.iterdir()
        if (match := _NAME.match(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a message for each incomplete newer one, which is moved aside, never deleted."""
    messages: list[str] = []
    for path in checkpoints(folder):
        if is_complete(path):
            return path, messages
        aside = _free_name(path)
        path.rename(aside)
        messages.append(
            f"{path.name} was not written completely (the run was killed while saving); moved aside to {aside.name}."
        )
    return None, messages


def require_complete(checkpoint: Path) -> Path:
    """The checkpoint itself; CheckpointError if it cannot be continued from."""
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"There is no checkpoint {checkpoint}. Resume with True for the newest complete one."
        )
    if not is_complete(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is incomplete ({STATE_FILE} is missing or broken), so it cannot be continued from. Use an earlier "
            "one, or resume with True for the newest complete one."
        )
    return checkpoint


def _free_name(path: Path) -> Path:
    number = 1
    while (
        aside := path.with_name(f"incomplete-{path.name}" + ("" if number == 1 else f"-{number}"))
    ).exists():
        number += 1
    return aside
