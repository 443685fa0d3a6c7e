"""Importance ratios of stale rows: responses that older weights wrote, in an expectation over the policy of now."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 30.0
"""No ratio is above exp(30), even without a clip: infinity times a term of value 0 would be nan."""


def importance_ratio(now: Tensor, then: Tensor, stale: Tensor, clip: float | None = None) -> Tensor:
    """w = min(clip, exp(log mu_now(y|x) - log mu_then(y|x))) where `stale`, exactly 1 elsewhere; (N,), no gradient.

    now, then (N,): log-probs in nats of what was sampled (of one response, or summed over both of a row), under the weights
    of now and under those that sampled it; mu is pi at temperature 1, the tempered policy otherwise. stale (N,) bool.
    E_then[w g] = E_now[g], so a term multiplied by w is unbiased without a clip; a clip lowers the variance and biases.
    Typical: near 1 a few steps after sampling; its effective sample size dies with length. Source: objective.md section 5.3.

    >>> importance_ratio(torch.zeros(2), -torch.ones(2), torch.tensor([True, False]), clip=2.0).tolist()
    [2.0, 1.0]
    """
    difference = torch.where(stale, now.detach() - then, torch.zeros_like(then))
    ratio = difference.clamp(max=LARGEST).exp()
    return ratio if clip is None else ratio.clamp(max=clip)


def effective_sample_size(weights: Tensor) -> float:
    """(sum w)^2 / (n sum w^2) in (0, 1]: the share of n weighted rows that equally weighted ones would need; nan if all are 0.

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    0.75
    """
    # The largest weight is divided out: squares overflow early.
    scaled = weights.double() / weights.double().max().clamp(min=torch.finfo(torch.float64).tiny)
    return (scaled.sum() ** 2 / (scaled.numel() * (scaled**2).sum())).item()
