"""Which checkpoint can be continued from.

Trainer writes trainer_state.json after everything else of a checkpoint, and deletes old checkpoints only after that. A kill
at any moment therefore leaves a complete checkpoint if ever there was one: a checkpoint whose state files parse. The other
files are looked for as well, because a kill while an old checkpoint is being deleted leaves a part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sail.errors import CheckpointError
from sail.oracles.ledger import hash_of

STATE_FILE = "trainer_state.json"
RUN_STATE_FILE = "sail_state.json"
"""Beside Trainer's own files: sizes of the run's files, counters, rows since the last log line."""
REFERENCE_FILE = "sail_reference.safetensors"
"""The reference, where it was replaced during the run; `reference` in the run's state says whether it was."""

_NAME = re.compile(r"^checkpoint-(\d+)$")
# One of each group must be there; the last names of a group are those of FSDP and DeepSpeed.
_PARTS = (
    ("rng_state*.pth",),
    ("optimizer*", "global_step*"),
    ("*.safetensors", "*.bin", "pytorch_model_fsdp*", "global_step*"),
)


def is_complete(checkpoint: Path) -> bool:
    """Whether everything of the checkpoint had been written, and nothing deleted since."""
    state, run_state = (_json(checkpoint / name) for name in (STATE_FILE, RUN_STATE_FILE))
    if state is None or "global_step" not in state or run_state is None:
        return False
    if run_state.get("weights_only"):
        return True
    # Every process writes its random state, the last ones perhaps after the state files.
    if len(list(checkpoint.glob("rng_state*.pth"))) < len(run_state.get("tracked", [])):
        return False
    if run_state.get("reference") and not (checkpoint / REFERENCE_FILE).is_file():
        return False
    # What is sharded lies in folders, whose list of contents is written last.
    folders = [path for path in checkpoint.iterdir() if path.is_dir() and fnmatch(path.name, "*_[0-9]")]
    if any(not (path / ".metadata").is_file() for path in folders):
        return False
    # The reference's weights must not stand for the model's.
    there = [path.name for path in checkpoint.iterdir() if path.name != REFERENCE_FILE]
    return all(any(fnmatch(one, name) for one in there for name in names) for names in _PARTS)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def step_of(checkpoint: Path) -> int:
    """The optimiser steps done in a complete checkpoint."""
    state = _json(checkpoint / STATE_FILE)
    return 0 if state is None else int(state["global_step"])


def run_state(checkpoint: Path) -> dict[str, Any]:
    """What sail itself keeps in a complete checkpoint."""
    return _json(checkpoint / RUN_STATE_FILE) or {}


def reference_of(checkpoint: Path | None) -> Path | None:
    """The file with the reference of a checkpoint, where it is another than the run began with."""
    there = checkpoint is not None and run_state(checkpoint).get("reference")
    return checkpoint / REFERENCE_FILE if checkpoint is not None and there else None


def write_run_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Before Trainer's state file is written, so that a complete checkpoint has it."""
    # Sharded weights are written later, and nobody has made the folder yet.
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / RUN_STATE_FILE).write_text(json.dumps(state), encoding="utf-8")


def begin_checkpoint(checkpoint: Path) -> None:
    """A checkpoint of that name may be there already: its old state must not vouch for what is now written over it."""
    (checkpoint / STATE_FILE).unlink(missing_ok=True)


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
            return _with_optimizer(path), messages
        aside = _move_aside(path, "incomplete")
        messages.append(
            f"{path.name} was not written completely (the run was killed while saving); moved aside to {aside.name}."
        )
    return None, messages


def set_newer_aside(folder: Path, step: int) -> list[str]:
    """Moves the checkpoints of later steps than `step` aside, with a message each: they belong to the past that is being
    replaced, and a resume after the next kill would take one of them for this run's newest."""
    messages = []
    for path in checkpoints(folder):
        if int(path.name.rpartition("-")[2]) > step:
            aside = _move_aside(path, "superseded")
            messages.append(f"{path.name} is of an earlier run in this folder; moved aside to {aside.name}.")
    return messages


def require_complete(checkpoint: Path) -> Path:
    """The checkpoint itself; CheckpointError if it cannot be continued from."""
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"There is no checkpoint {checkpoint}. Resume with True for the newest complete one."
        )
    if not is_complete(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is incomplete or not sail's ({STATE_FILE}, {RUN_STATE_FILE}, weights, optimizer or random states are "
            "missing or broken), so it cannot be continued from. Use an earlier one, or resume with True for the newest "
            "complete one."
        )
    return _with_optimizer(checkpoint)


def oracles_of(trainer: Any) -> dict[str, str]:
    """What the oracles of a run answer by, by dotted name with a hash each: an edited reward file, another rubric behind the same
    name and retrained weights are another oracle. Its address is left out: a run may go on with the same judge elsewhere."""
    found: dict[str, str] = {}
    for name, oracle in (("oracle", trainer.oracle), ("eval_oracle", trainer.eval_oracle)):
        if oracle is not None:
            leaves = _leaves(name, oracle.settings())
            found |= {
                key: hash_of(json.dumps(value, sort_keys=True, default=repr))[:16] for key, value in leaves
            }
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested settings by dotted name; `extra`, which goes to a server word for word, is one value."""
    if isinstance(value, dict) and not name.endswith(".extra"):
        for key, inner in value.items():
            if key != "url":
                yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(f"{name}.{place}", inner)
    else:
        yield name, value


def refuse_another_run(checkpoint: Path, identity: dict[str, Any]) -> list[str]:
    """CheckpointError, naming what differs, if the checkpoint is of a run with other options, rows or oracles that answer
    otherwise. An edited file of a Python oracle is let through with a message: it may have been mended because it failed."""
    before = run_state(checkpoint).get("run", {})
    now = json.loads(json.dumps(identity))
    # What an oracle is named by may come and go; of everything else only what the checkpoint knows is compared.
    new = {key for key in now if _of_an_oracle(key)} if any(map(_of_an_oracle, before)) else set()
    changed = [name for name in sorted({*before, *new}) if before.get(name) != now.get(name)]
    edited = [name for name in changed if _of_an_oracle(name) and name.endswith(".source")]
    changed = [name for name in changed if name not in edited]
    if changed:
        listed = "; ".join(
            f"{name}: {_short(before.get(name))} then, {_short(now.get(name))} now" for name in changed
        )
        raise CheckpointError(
            f"{checkpoint} is of another run ({listed}), so it cannot be continued exactly. Put them back, or start anew in "
            "another output_dir."
        )
    return [
        f"{name.removesuffix('.source')}: its Python file was edited since {checkpoint.name} was saved. From here on labels are "
        "by the new code; start anew where all have to be."
        for name in edited
    ]


def _of_an_oracle(name: str) -> bool:
    return name.startswith(("oracle.", "eval_oracle."))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _with_optimizer(checkpoint: Path) -> Path:
    """Trainer itself would go on without a word from a fresh optimizer."""
    if run_state(checkpoint).get("weights_only"):
        raise CheckpointError(
            f"{checkpoint} was saved with save_only_model: true, so it has weights but no optimizer and cannot be continued "
            "from exactly. Start a new run from its weights, and leave save_only_model false where a run is to be resumed."
        )
    return checkpoint


def _move_aside(path: Path, why: str) -> Path:
    number = 1
    while (aside := path.with_name(f"{why}-{path.name}" + ("" if number == 1 else f"-{number}"))).exists():
        number += 1
    return path.rename(aside)
