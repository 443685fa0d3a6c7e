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
        for message in checkpoints.refuse_another_run(found, identity):
            warn(message)
    elif resume is True:
        warn(f"There is no checkpoint in {folder} to continue from; starting at the beginning.")
    return found


TRAINER_OPTIONS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dataloader_drop_last",
    "data_seed",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "optim",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "tf32",
)
"""Options of transformers that decide what a step computes."""
ENDLESS = ("constant", "constant_with_warmup")
"""Learning rate schedules that do not depend on when the training ends."""


def identity_of(args: SAILConfig, mixture: Mixture, training_rows: Any) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued exactly: sail's own options, those of transformers that change
    what a step computes, the number of processes and the training rows.

    max_steps and num_train_epochs belong to it where a route's weight or the learning rate goes by them: with a constant rate a
    run may be continued further than was planned.
    """
    rows = None if training_rows is None else training_rows.fingerprint
    found: dict[str, Any] = {"seed": args.seed, "training rows": rows}
    names = [field.name for field in fields(AlignmentFields) if field.name not in MAY_CHANGE]
    found |= {name: getattr(args, name) for name in names}
    found["processes"] = args.world_size
    found |= {name: _plain(getattr(args, name)) for name in TRAINER_OPTIONS if hasattr(args, name)}
    planned = found["lr_scheduler_type"] not in ENDLESS or _warms_up_by_share(args)
    if planned or any(share.final_weight is not None for share in mixture.shares):
        found["steps of the schedule"] = [args.max_steps, args.num_train_epochs]
    return found


def _warms_up_by_share(args: SAILConfig) -> bool:
    """Whether the length of the warm-up is a share of the training."""
    return bool(getattr(args, "warmup_ratio", None)) or 0 < args.warmup_steps < 1


def _plain(value: Any) -> Any:
    """Of an enumeration its value; what JSON does not know, in words."""
    value = getattr(value, "value", value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
