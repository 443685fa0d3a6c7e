"""The baseline of T1."""

from __future__ import annotations

import torch
from torch import Tensor


def leave_one_out(values: Tensor, active: Tensor, group: Tensor) -> Tensor:
    """For each row the mean of `values` over the *other* active rows; 0 where there are none.

    values (N,) float; active (N,) bool: abstained rows enter no baseline; group (N,) int: rows of one group share a
    response, so they are left out of each other's baseline (a row is always in its own group). Unbiased, because what
    is subtracted does not depend on the row's own responses. Source: objective.md section 4.

    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, True]), torch.tensor([0, 1, 2])).tolist()
    [4.0, 3.5, 1.5]
    """
    values = torch.where(active, values, torch.zeros_like(values))
    allowed = active.unsqueeze(0) & (group.unsqueeze(0) != group.unsqueeze(1))
    weights = allowed.to(values.dtype)
    return (weights @ values) / weights.sum(dim=1).clamp(min=1.0)
