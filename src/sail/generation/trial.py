"""The trial that decides whether a model is sampled from by the decoding loop: what the loop says must be what `generate` says.

It is the same for every batch, process and resume: three made-up prompts of unequal length, one of them for two rows, and a row
that leaves on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sail import seeds
from sail.errors import SailError
from sail.generation.decoding import Batch, Spoken, decode, without_gradient
from sail.generation.sampler import Ends, drawable

LENGTHS = (5, 3, 2)
"""Tokens of the prompts: two of them are padded."""
WHICH = (0, 1, 1, 2)
"""The prompt of each row."""
TOKENS = 12
"""Drawn for each row, so many that a row that leaves at a device's first look is missed by some."""
LEAVES_AT = 2
"""The token that the first row is told to end with."""

_log = logging.getLogger(__name__)


class OneLeaves(Ends):
    """The first of the rows ends with its LEAVES_AT-th token, whatever it is, and nobody else."""

    def __init__(self, device: torch.device) -> None:
        super().__init__((), None, device)
        self.seen = 0

    def __call__(self, newest: Tensor, up_to: Callable[[int], Tensor]) -> Tensor:
        """(N,) ids -> (N,) bool."""
        self.seen += 1
        ended = torch.zeros_like(newest, dtype=torch.bool)
        ended[0] = self.seen == LEAVES_AT
        return ended


def loop_agrees(model: Any, generate: Callable[[Batch], Spoken], temperature: float) -> bool:
    """Whether the loop says what `generate` says. False, with a warning, where it fails or says something else.

    `generate`: the same batch by `model.generate`, with no row ending.
    """
    batch = trial_batch(model)
    if batch is None:
        return False
    try:
        theirs = generate(batch)
        with without_gradient(model):
            ours = decode(model, batch, temperature, OneLeaves(batch.ids.device))
    except (torch.OutOfMemoryError, SailError):
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        _log.warning("sail: responses come from generate(), because the faster loop failed: %s", error)
        return False
    same = say_the_same(ours, theirs)
    if not same:
        _log.warning(
            "sail: responses come from generate(), because the faster loop says something else for this model."
        )
    return same


def trial_batch(model: Any) -> Batch | None:
    """The trial's prompts, left padded, and random numbers; None for a model too short to be tried."""
    config = model.config.get_text_config()
    room = getattr(config, "max_position_embeddings", None) or LENGTHS[0] + TOKENS
    tokens = min(TOKENS, room - LENGTHS[0])
    if tokens <= LEAVES_AT + 1:
        return None
    device = next(model.parameters()).device
    count, width = len(LENGTHS), max(LENGTHS)
    ids = ((7 * torch.arange(count * width) + 3) % config.vocab_size).reshape(count, width)
    mask = (torch.arange(width) >= width - torch.tensor(LENGTHS)[:, None]).long()
    numbers = [seeds.uniforms(tokens, "trial", row) for row in range(len(WHICH))]
    which = torch.tensor(WHICH, device=device)
    return Batch(ids.to(device), mask.to(device), which, drawable(numbers, device))


def say_the_same(ours: Spoken, theirs: Spoken) -> bool:
    """Equal tokens up to our rows' ends, and log-probs that differ by rounding only. Both go on equally long."""
    if ours.tokens.shape != theirs.tokens.shape:
        return False
    steps = torch.arange(ours.tokens.shape[1], device=ours.lengths.device)
    inside = steps < torch.where(ours.lengths > 0, ours.lengths, len(steps)).unsqueeze(1)
    equal = bool((ours.tokens == theirs.tokens)[inside].all())
    return equal and all(
        torch.allclose(one[inside], other[inside].to(one.dtype), rtol=0.0, atol=1e-3)
        for one, other in (
            (ours.log_probs, theirs.log_probs),
            (ours.tempered_log_probs, theirs.tempered_log_probs),
        )
    )
