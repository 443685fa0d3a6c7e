"""Which checkpoint a training goes on from, and what must be the same for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from sail.fields import MAY_CHANGE, AlignmentFields
from sail.mixture import Mixture
from sail.training import checkpoints
from sail.training.arguments import SAILConfig


def find_checkpoint(
    args: SAILConfig, resume: str | bool | None, identity: dict[str, Any], warn: Callable[[str], None]
) -> Path | None:
    """The checkpoint to continue from, with everything out of its way; CheckpointError where it cannot be continued exactly."""
    folder, found = Path(args.output_dir), None
    messages: list[str] = []
    with args.main_process_first(local=False, desc="looking for a checkpoint"):
        if resume is True:
            found, messages = checkpoints.latest_checkpoint(folder)
        elif resume:
            found = checkpoints.require_complete(Path(resume))
        messages += checkpoints.set_newer_aside(folder, 0 if found is None else checkpoints.step_of(found))
    for message in messages:
        warn(message)
    if found is not None:
        checkpoints.refuse_another_run(found, identity)
    elif resume is True:
        warn(f"There is no checkpoint in {folder} to continue from; starting at the beginning.")
    return found


def identity_of(args: SAILConfig, mixture: Mixture, training_rows: Any) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued exactly: sail's own options and the training rows."""
    rows = None if training_rows is None else training_rows.fingerprint
    found: dict[str, Any] = {"seed": args.seed, "training rows": rows}
    names = [field.name for field in fields(AlignmentFields) if field.name not in MAY_CHANGE]
    found |= {name: getattr(args, name) for name in names}
    if any(share.final_weight is not None for share in mixture.shares):
        found["steps of the schedule"] = [args.max_steps, args.num_train_epochs]
    return found
