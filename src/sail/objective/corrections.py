"""The two extra gradient terms of SAIL, as surrogates: value exactly zero, gradient exactly the correction.

As a *loss*, c * E[(F - b) * grad x] becomes  -c * stop_grad(F - b) * (x - stop_grad(x)).  The value is zero, so the
logged loss stays the pair loss; the sign is the loss's, so that gradient descent climbs J.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor


def score_surrogate(value: Tensor, baseline: Tensor, score: Tensor) -> Tensor:
    """T1: the policy wrote the responses.  -(F - b) * (x - sg(x)), x = log mu(y1) + log mu(y2); all (B,).

    mu is the distribution that was sampled: pi at temperature 1, the tempered policy otherwise.
    F is the value of the row under its own label: t F(+) + (1 - t) F(-). Source: SAIL eq. 11-13; objective.md 1, 4.
    """
    return -(value - baseline).detach() * (score - score.detach())


def label_surrogate(first_wins: Tensor, second_wins: Tensor, label: Tensor, margin: Tensor) -> Tensor:
    """T3: the policy gave the label.  -sum_z w_z F_z * (log q(z) - sg(log q(z))), q(first wins) = sigmoid(h); all (B,).

    w is the label's own distribution: (t, 1 - t). For a soft label t = q, so that this is the exact sum over z (for the
    sigmoid loss: minus the gradient of the label entropy); for a sampled label it is the score-function estimate of it
    at the label drawn. q always uses summed log-probs, whatever the pair loss. Source: SAIL section 4; objective.md 3, 6.
    """
    log_first = functional.logsigmoid(margin)
    log_second = functional.logsigmoid(-margin)
    first = (label * first_wins).detach() * (log_first - log_first.detach())
    second = ((1.0 - label) * second_wins).detach() * (log_second - log_second.detach())
    return -(first + second)
