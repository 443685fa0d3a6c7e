"""Pair losses. F is the log-likelihood of a verdict; for IPO and hinge, minus the loss takes its place."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

LOSS_TYPES = ("sigmoid", "ipo", "hinge")


def log_likelihoods(
    loss_type: str, margin: Tensor, mean_log_ratio_difference: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """F if the first response wins, and F if the second one wins; both (B,), nats for sigmoid.

    margin h = beta * (log pi/ref(y1) - log pi/ref(y2)), log-probs summed over response tokens      (B,)
    mean_log_ratio_difference d: the same difference of per-token means, without beta; IPO only       (B,)

    sigmoid (DPO)   F(+) = log sigmoid(h)                  F(-) = log sigmoid(-h)
    ipo             F(+) = -(d - 1/(2 beta))^2             F(-) = -(-d - 1/(2 beta))^2
    hinge (SLiC)    F(+) = -relu(1 - h)                    F(-) = -relu(1 + h)

    -F(+) equals TRL's loss of the same name when the first response is the chosen one.
    Typical: at the start of training h = 0, so F = -log 2, -1/(4 beta^2), -1.
    Source: DPO arXiv 2305.18290, IPO arXiv 2310.12036, SLiC-HF arXiv 2305.10425; SAIL section 3.

    >>> first, second = log_likelihoods("sigmoid", torch.zeros(1), torch.zeros(1), 0.1)
    >>> round(first.item(), 4) == round(second.item(), 4) == -0.6931
    True
    """
    if loss_type == "sigmoid":
        return functional.logsigmoid(margin), functional.logsigmoid(-margin)
    if loss_type == "ipo":
        target = 1.0 / (2.0 * beta)
        return -((mean_log_ratio_difference - target) ** 2), -((-mean_log_ratio_difference - target) ** 2)
    if loss_type == "hinge":
        return -torch.relu(1.0 - margin), -torch.relu(1.0 + margin)
    raise ValueError(f"loss_type is one of {', '.join(LOSS_TYPES)}, not {loss_type!r}")
