"""Stale rows: what the policy of now says of responses that an older one wrote. One no-grad forward before the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sail.fields import AlignmentFields
from sail.generation import response_scores
from sail.mixture import Mixture
from sail.online import Example, collate


def baselines_are_used(options: AlignmentFields, mixture: Mixture) -> bool:
    """Whether some term of the run subtracts a baseline that is made from on-policy rows."""
    corrected = options.baseline != "none" and any(share.coefficient > 0 for share in mixture.sampled)
    return corrected or options.kl_policy_ref > 0


def log_probs_now(
    model: Any,
    examples: Sequence[Example],
    *,
    pad_id: int,
    device: torch.device,
    temperature: float,
    precision: Callable[[], AbstractContextManager[Any]],
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log pi and log mu of both responses of each row under the weights of now, (N, 2) float64 nats each, on the CPU.

    The log-probs recorded while sampling are those of other weights, so F, and with it a baseline, would be too.
    """
    batch = collate(examples, pad_id)
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision():
            scores = response_scores(model, moved, temperature, chunk)
    finally:
        model.train(was_training)
    plain, tempered = (one.double().cpu().view(2, len(examples)).T for one in scores)
    return plain, tempered
