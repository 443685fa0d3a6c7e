"""What a run does when something dies: gradients that are not finite, a full disk, another process."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback

from sail.errors import SailError, TrainingError
from sail.training.checkpoints import checkpoints, is_complete
from sail.training.step import place_among_processes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("no space left on device", "disk quota exceeded", "file too large")
# torch.save says neither errno nor reason.
TORCH_WRITE_WORDS = ("pytorchstreamwriter failed", "inline_container.cc")
LOST_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "timeout waiting",
    "socket timeout",
    "remote process exited",
    "nccl",
)


# ---- gradients


class SkipNotFinite(TrainerCallback):
    """Leaves an update out whose gradient holds a NaN or an infinity, counts it, and ends the run after `limit` in a row.

    The gradient is looked at once it has been summed over processes, so all of them decide alike. Without gradients the
    optimizer changes nothing, not its moments either; the learning rate's schedule goes on. `skipped` and `in_a_row` are
    kept in checkpoints. With fp16 the loss scaler does its own skipping, and it is left alone. DeepSpeed has applied the
    update before it can be looked at: there a logged norm that is not finite ends the run.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0
        self.gradients_seen = True

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, kept: dict[str, int] | None) -> None:
        """From `state`, or None for a run that starts."""
        kept = kept or {}
        self.skipped, self.in_a_row = kept.get("skipped", 0), kept.get("in_a_row", 0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradient of the step; TrainingError after too many in a row."""
        if getattr(kwargs.get("optimizer"), "scaler", None) is not None:
            return
        parameters = [one for one in kwargs["model"].parameters() if one.grad is not None]
        self.gradients_seen = bool(parameters)
        if not parameters or finite([one.grad for one in parameters]):
            self.in_a_row = 0
            return
        for one in parameters:
            one.grad = None
        self.skipped += 1
        self.in_a_row += 1
        step = state.global_step + 1
        if state.is_world_process_zero:
            tqdm.write(
                f"sail: Step {step}: the gradient is not finite, so its update is left out ({self.in_a_row} in a row)."
            )
        if self.in_a_row >= self.limit:
            raise TrainingError(
                f"The gradient of {self.in_a_row} steps in a row up to step {step} was not finite (max_skipped_steps: "
                f"{self.limit}), so the run has ended. {where_to_go_on(self.folder)} Before that lower learning_rate, or look "
                "at the last pairs for what the model cannot score."
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The norm that DeepSpeed reports."""
        norm = (logs or {}).get("grad_norm")
        if norm is None or self.gradients_seen or args.fp16 or math.isfinite(norm):
            return
        raise TrainingError(
            f"The gradient's norm at step {state.global_step} is {norm}, and DeepSpeed has applied it. "
            f"{where_to_go_on(self.folder)} Before that lower learning_rate."
        )


def finite(gradients: Sequence[Any]) -> bool:
    """Whether all numbers are finite; of sharded gradients over all shards (every process must call it). One synchronisation, two
    where the norm is not finite."""
    # The usual norm is the fastest, but the sum of squares of finite numbers can overflow: then the largest of them decides.
    some = [one for one in gradients if one.numel()]
    return any(_norm_is_finite(some, order) for order in (2.0, math.inf))


def _norm_is_finite(gradients: Sequence[Any], order: float) -> bool:
    norm = torch.nn.utils.get_total_norm(gradients, norm_type=order)
    whole = getattr(norm, "full_tensor", None)
    value: Tensor = whole() if whole is not None else norm
    return bool(torch.isfinite(value))


# ---- disks and processes


@contextmanager
def ending_clearly(folder: Path) -> Iterator[None]:
    """A block whose failures for want of space or of another process become a TrainingError that says from where to go on."""
    try:
        yield
    except SailError:
        raise
    except Exception as error:
        told = what_happened(error, folder)
        if told is None:
            raise
        raise TrainingError(told) from error


def what_happened(error: BaseException, folder: Path) -> str | None:
    """A sentence on a full disk or a lost process, with the way out; None for anything else."""
    said = first_line(error)
    if is_full(error):
        return (
            f"A file could not be written, because the disk or the quota is full ({said}). {where_to_go_on(folder)} Before that "
            f"make room: old checkpoints, save_total_limit, and folders incomplete-checkpoint-* in {folder} can go."
        )
    if place_among_processes()[1] > 1 and is_lost(error):
        return f"Another process of the run has ended, or does not answer ({said}). {where_to_go_on(folder)}"
    return None


def is_full(error: BaseException) -> bool:
    """Whether a failed write, anywhere in the chain of causes, says that there is no room."""
    for one in chain(error):
        text = str(one).lower()
        if isinstance(one, OSError) and one.errno in FULL:
            return True
        if any(words in text for words in (*FULL_WORDS, *TORCH_WRITE_WORDS)):
            return True
    return False


def is_lost(error: BaseException) -> bool:
    """Whether a collective operation failed because another process did not take part."""
    for one in chain(error):
        kind, text = type(one).__name__, str(one).lower()
        if isinstance(one, ConnectionError) or kind in (
            "DistBackendError",
            "DistNetworkError",
            "DistStoreError",
        ):
            return True
        if isinstance(one, RuntimeError) and any(words in text for words in LOST_WORDS):
            return True
    return False


def chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from, the newest first."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 160 else text[:157] + "..."


def where_to_go_on(folder: Path) -> str:
    """From which checkpoint a run can be continued, and how."""
    for path in checkpoints(folder):
        if is_complete(path):
            return f"The last complete checkpoint is {path}; continue from it with --resume."
    return "There is no complete checkpoint yet, so it starts at the beginning."
