"""The baseline of T1."""

from __future__ import annotations

import torch
from torch import Tensor


def leave_one_out(values: Tensor, active: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
    """For each row the mean of `values` over the *other* active rows; 0 where there are none.

    values (N,) float; active (N,) bool: abstained rows enter no baseline; group (N,) int: rows of one group share a
    response, so they are left out of each other's baseline (a row is always in its own group). Unbiased, because what
    is subtracted does not depend on the row's own responses. Source: objective.md section 4.

    weight (N,): importance ratios of stale rows, 1 for fresh ones; the mean is then  sum w_j F_j / sum w_j  over the others.
    Any weights leave T1 unbiased, for the same reason. These make the baseline an estimate of E[F] under the weights of now,
    which is what lowers the variance, and, where rows abstain, what T1 conditional on a verdict subtracts; self-normalised,
    because the plain mean of w_j F_j has the variance of the ratios in it, and moves with their sum instead of with F.

    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, True]), torch.tensor([0, 1, 2])).tolist()
    [4.0, 3.5, 1.5]
    """
    values = torch.where(active, values, torch.zeros_like(values))
    allowed = (active.unsqueeze(0) & (group.unsqueeze(0) != group.unsqueeze(1))).to(values.dtype)
    weights = allowed if weight is None else allowed * weight.unsqueeze(0)
    total = weights.sum(dim=1)
    return (weights @ values) / torch.where(total > 0, total, torch.ones_like(total))
