"""Several trainings in one process, one optimiser step at a time, in any order.

A comparison of step times is only as good as what both saw of the machine: two trainings timed one after the other compare
two moments. Here each training runs in a thread of its own that sleeps at the end of every step until it is given the next
turn, so steps of all of them are interleaved and only one runs at any time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback


class Turn(TrainerCallback):
    """One training that moves on by one optimiser step per turn. Add it to the Trainer whose `train` it runs. `settle` waits for
    a device, so that a step's time is that of its work and not of its launches."""

    def __init__(self, train: Callable[[], Any], settle: Callable[[], None] | None = None) -> None:
        self._train = train
        self._settle = settle
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping = False
        self._error: BaseException | None = None
        self._began = self._ended = 0.0
        # A daemon: an error elsewhere must end the process though this one still waits for its turn.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self) -> float:
        """Do one step; its seconds, from this call to the step's on_step_end. Raises what the training raised."""
        self._began = time.perf_counter()
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._ended - self._began

    def inside(self, context: Any) -> None:
        """Let the training run inside this context manager, in its own thread; before its first turn."""
        train = self._train

        def within() -> None:
            with context:
                train()

        self._train = within

    def finish(self) -> None:
        """Let the training end; it does no further step."""
        self._stopping = True
        self._go.release()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Hand the turn back and sleep. What Trainer does after this (logging) counts to the next turn."""
        control.should_training_stop = self.ended()
        return control

    def ended(self) -> bool:
        """The same for a training without callbacks: call it after each step; true means stop."""
        if self._settle is not None:
            self._settle()
        self._ended = time.perf_counter()
        self._done.release()
        self._go.acquire()
        return self._stopping

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._stopping:
                self._train()
                if not self._stopping:
                    raise RuntimeError("The training ended before its last turn: raise its max_steps.")
        except BaseException as error:  # handed to the thread that waits, which raises it
            self._error = error
        self._done.release()


def rounds(names: Iterable[str], count: int, *, seed: int = 0) -> Iterable[list[str]]:
    """`count` rounds in which each name has one turn, in an order drawn anew: nobody always follows the same neighbour."""
    order, chance = list(names), random.Random(seed)
    for _ in range(count):
        chance.shuffle(order)
        yield list(order)


def alternate(turns: dict[str, Turn], *, warm_up: int, steps: int) -> dict[str, list[float]]:
    """Seconds of `steps` steps of each training, by name; place i of all lists is the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number, order in enumerate(rounds(turns, warm_up + steps)):
        for name in order:
            taken = turns[name].take()
            if number >= warm_up:
                seconds[name].append(taken)
    for turn in turns.values():
        turn.finish()
    return seconds
