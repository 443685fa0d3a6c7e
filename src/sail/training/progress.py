"""Callbacks a person notices: the progress bar, a clean stop on Ctrl-C, and the stop at a KL limit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from tqdm.auto import tqdm
from transformers import IntervalStrategy, TrainerCallback

from sail.training.step import gather

SAME_STOP_SECONDS = 1.0

SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "pair/accuracy": "accuracy",
    "kl/policy_ref": "KL",
    "response/length": "length",
    "oracle/calls": "oracle",
    "eval_reward": "held-out reward",
    "eval_accuracy": "held-out accuracy",
    "eval_kl": "held-out KL",
}


class ReadableProgress(TrainerCallback):
    """One bar for the run, with the few numbers one watches; everything else goes to metrics.jsonl."""

    def __init__(self, name: str = "align") -> None:
        self.name = name
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where the run stands."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.name,
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on by one."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the newest numbers behind the bar."""
        if self.bar is None:
            return
        for key, name in SHOWN.items():
            value = (logs or {}).get(key)
            if value is not None:
                self.shown[name] = f"{value:.0f}" if isinstance(value, int) else f"{value:.3g}"
        self.bar.set_postfix(self.shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close it."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class StopOnSignal(TrainerCallback):
    """The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and stops; a second one stops at once."""

    def __init__(self) -> None:
        self.caught = False
        self.first_at = 0.0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the signals over, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.caught:
            # A launcher passes Ctrl-C on to processes that the terminal has already told: that is one stop, not two.
            if now - self.first_at < SAME_STOP_SECONDS:
                return
            raise KeyboardInterrupt
        self.caught, self.first_at = True, now
        # Not print: the signal may have come in the middle of one, and Python refuses to write to a file within a write.
        with contextlib.suppress(OSError):
            os.write(
                2,
                b"\nStopping after this step and saving a checkpoint; press Ctrl-C again to stop at once.\n",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask Trainer to save and stop: every process, also where the signal reaches only some or comes a step later."""
        self.caught = any(gather([self.caught]))
        if self.caught:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stopped within an epoch: what is due at its end is due when the resumed run gets there."""
        if self.caught and not at_epoch_end(state):
            control.should_log = control.should_evaluate = control.should_save = False
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signals back."""
        self.release()

    def release(self) -> None:
        """Give the signals back; also after an error."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def train_or_stop(trainer: Any, resume: bool | str | None) -> bool:
    """Train, from the checkpoint `resume` or, for True, the newest; whether Ctrl-C or SIGTERM ended it. However it ends, an error
    included, the signals are given back."""
    stops = [one for one in trainer.callback_handler.callbacks if isinstance(one, StopOnSignal)]
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        for one in stops:
            one.release()
    return any(one.caught for one in stops)


def at_epoch_end(state: Any) -> bool:
    """Whether the step just done is the last of its epoch."""
    return float(state.epoch).is_integer()


class SaveAfterEpochLines(TrainerCallback):
    """Where a step ends an epoch and lines are logged per epoch, the checkpoint waits for them: one written before would
    resume behind the epoch's end, and its lines would never be written. Add it after every other callback."""

    def __init__(self) -> None:
        self.waiting = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Hold the checkpoint back."""
        per_epoch = IntervalStrategy.EPOCH in (args.logging_strategy, args.eval_strategy)
        self.waiting = control.should_save and per_epoch and at_epoch_end(state)
        if self.waiting:
            control.should_save = False
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask for it again."""
        control.should_save = control.should_save or self.waiting
        self.waiting = False
        return control


class StopAtKL(TrainerCallback):
    """Stops when the logged KL(policy || reference), in nats per response, is above the limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Compare the newest estimate, from training rows or held-out ones."""
        for key in ("kl/policy_ref", "eval_kl"):
            value = (logs or {}).get(key)
            if value is not None and value > self.limit and not control.should_training_stop:
                control.should_training_stop = True
                control.should_save = True
                if state.is_world_process_zero:
                    tqdm.write(
                        f"Stopping at step {state.global_step}: {key} is {value:.2f} nats, above kl_limit {self.limit:g}."
                    )
        return control
