"""Which rows coming optimiser steps will see: the training data loader's order, walked ahead without disturbing it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def steps_per_pass(loader: Any, accumulation: int) -> int:
    """Optimiser steps of one pass over the training rows; the last one may have fewer micro-batches."""
    return max(math.ceil(len(loader) / accumulation), 1)


def planned_rows(
    loader: Any, dataset: Sequence[Any], *, first: int, last: int, accumulation: int
) -> list[list[Any]]:
    """This process's rows of the optimiser steps `first` to `last` (excluded), one list per step, in their order.

    `loader` is a second training data loader, made like the one that is trained from. Only its batch sampler is walked, in as
    many epochs as needed: no row is collated twice, no worker is started, and the training loader does not notice. The global
    random states are put back, for samplers that draw from them.
    """
    per_pass = steps_per_pass(loader, accumulation)
    rows: list[list[Any]] = []
    with random_states_kept():
        for epoch in range(first // per_pass, (last - 1) // per_pass + 1):
            batches = list(epoch_batches(loader, epoch))
            begin, end = max(first - epoch * per_pass, 0), min(last - epoch * per_pass, per_pass)
            for step in range(begin, end):
                places = [
                    place
                    for batch in batches[step * accumulation : (step + 1) * accumulation]
                    for place in batch
                ]
                rows.append([dataset[place] for place in places])
    return rows


def epoch_batches(loader: Any, epoch: int) -> Iterator[list[int]]:
    """The micro-batches of an epoch as places in the dataset, this process's own."""
    sampler = loader.batch_sampler
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    # As Trainer does for a sampler that data parallelism has wrapped.
    inner: Any = getattr(sampler, "batch_sampler", None)
    if hasattr(inner, "set_epoch"):
        inner.set_epoch(epoch)
    yield from sampler


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put the global random states of torch, numpy and Python back after the block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
