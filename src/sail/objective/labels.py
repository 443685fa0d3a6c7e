"""From a probability to a label: who wins, and with what weight.

A label is t in [0, 1], the weight of "the first response wins":  F_t = t * F(+) + (1 - t) * F(-).
"""

from __future__ import annotations

import torch
from torch import Tensor


def orient(probability: float | None, mode: str, uniform: float) -> float | None:
    """Turn the given probability that the first response wins into the label t, or None for an abstention.

    soft      t = p
    sampled   t = 1 if uniform < p else 0            `uniform` in [0, 1) is the row's own stateless number
    argmax    t = 1 if p > 1/2, 0 if p < 1/2, abstains at p = 1/2 exactly

    Swapping the responses turns p into 1 - p and, for soft and argmax, t into 1 - t.
    Source: SAIL section 4; objective.md section 3.

    >>> orient(0.8, "argmax", 0.0), orient(0.5, "argmax", 0.0), orient(0.3, "sampled", 0.2)
    (1.0, None, 1.0)
    """
    if probability is None:
        return None
    if mode == "soft":
        return probability
    if mode == "sampled":
        return 1.0 if uniform < probability else 0.0
    if probability == 0.5:
        return None
    return 1.0 if probability > 0.5 else 0.0


def self_label(margin: Tensor, mode: str, uniform: Tensor) -> Tensor:
    """The policy's own label t from its margin h: q(first wins) = sigmoid(h), no gradient flows through it.

    margin (B,), uniform (B,) in [0, 1) -> (B,) in [0, 1].
    soft t = q; sampled t = 1[uniform < q]; argmax t = 1[h > 0], and 1/2 at h = 0 exactly: an abstention, without gradient
    (row_loss), that still counts in the denominator, because that denominator is fixed before this forward pass.
    """
    margin = margin.detach()
    if mode == "soft":
        return torch.sigmoid(margin)
    if mode == "sampled":
        return (uniform < torch.sigmoid(margin)).to(margin.dtype)
    return 0.5 * (1.0 + torch.sign(margin))
