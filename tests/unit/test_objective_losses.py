"""Pair losses against numbers worked out by hand and against TRL's formulas."""

from __future__ import annotations

import math

import pytest
import torch

from sail.objective import log_likelihoods
from sail.objective.losses import LOSS_TYPES

F64 = torch.float64

# Two rows. Summed log-probs of chosen and rejected under policy and reference, and token counts:
#   row 0   chosen -10 (reference -12), 5 tokens;   rejected -20 (reference -18), 8 tokens;   beta 0.1
#           log-ratios 2 and -2, so delta = 4, h = 0.4; means 2/5 and -2/8, so d = 0.65
#   row 1   chosen -31 (reference -28), 4 tokens;   rejected -7 (reference -9), 2 tokens
#           log-ratios -3 and 2, so delta = -5, h = -0.5; means -3/4 and 1, so d = -1.75
MARGIN = torch.tensor([0.4, -0.5], dtype=F64)
MEAN_DIFFERENCE = torch.tensor([0.65, -1.75], dtype=F64)
BETA = 0.1

# TRL 1.16, DPOTrainer.compute_loss, with chosen first (label_smoothing 0, reverse KL):
#   sigmoid   -logsigmoid(beta * delta)                                    log(1 + e^-0.4), log(1 + e^0.5)
#   hinge     relu(1 - beta * delta)                                       1 - 0.4, 1 + 0.5
#   ipo       (mean chosen ratio - mean rejected ratio - 1/(2 beta))^2     (0.65 - 5)^2, (-1.75 - 5)^2
TRL_LOSS = {
    "sigmoid": [0.5130152523999526, 0.9740769841801067],
    "hinge": [0.6, 1.5],
    "ipo": [18.9225, 45.5625],
}
# The same formulas with the roles of chosen and rejected exchanged (delta and d change sign).
TRL_LOSS_SWAPPED = {
    "sigmoid": [0.9130152523999526, 0.4740769841801067],
    "hinge": [1.4, 0.5],
    "ipo": [31.9225, 10.5625],
}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_equals_trl(loss_type: str) -> None:
    first, second = log_likelihoods(loss_type, MARGIN, MEAN_DIFFERENCE, BETA)
    torch.testing.assert_close(-first, torch.tensor(TRL_LOSS[loss_type], dtype=F64), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        -second, torch.tensor(TRL_LOSS_SWAPPED[loss_type], dtype=F64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_swapping_the_responses_swaps_the_verdicts(loss_type: str) -> None:
    first, second = log_likelihoods(loss_type, MARGIN, MEAN_DIFFERENCE, BETA)
    swapped_first, swapped_second = log_likelihoods(loss_type, -MARGIN, -MEAN_DIFFERENCE, BETA)
    torch.testing.assert_close(swapped_first, second, rtol=0, atol=0)
    torch.testing.assert_close(swapped_second, first, rtol=0, atol=0)


@pytest.mark.parametrize(("loss_type", "start"), [("sigmoid", -math.log(2)), ("ipo", -25.0), ("hinge", -1.0)])
def test_value_at_the_start_of_training(loss_type: str, start: float) -> None:
    """h = d = 0: -log 2; -1/(4 beta^2) = -25 at beta 0.1; -1."""
    zero = torch.zeros(1, dtype=F64)
    for value in log_likelihoods(loss_type, zero, zero, 0.1):
        assert value.item() == pytest.approx(start, rel=1e-12)


def test_sigmoid_verdicts_are_probabilities() -> None:
    first, second = log_likelihoods("sigmoid", MARGIN, MEAN_DIFFERENCE, BETA)
    torch.testing.assert_close(first.exp() + second.exp(), torch.ones(2, dtype=F64))


def test_gradients_by_hand() -> None:
    """dF(+)/dh: sigmoid 1 - sigmoid(h); hinge 1 while h < 1, else 0. dF(+)/dd for ipo: -2 (d - 1/(2 beta))."""
    expected = {"sigmoid": [1 - 1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(2.0))], "hinge": [1.0, 0.0]}
    for loss_type, slopes in expected.items():
        margin = torch.tensor([0.4, 2.0], dtype=F64, requires_grad=True)
        log_likelihoods(loss_type, margin, margin.detach(), BETA)[0].sum().backward()
        torch.testing.assert_close(margin.grad, torch.tensor(slopes, dtype=F64))
    difference = MEAN_DIFFERENCE.clone().requires_grad_()
    log_likelihoods("ipo", MARGIN, difference, BETA)[0].sum().backward()
    torch.testing.assert_close(difference.grad, torch.tensor([8.7, 13.5], dtype=F64))


def test_extreme_margins_stay_finite() -> None:
    """log sigmoid(-1000) is -1000, not the log of an underflowed 0; the gradient is 1, not nan."""
    margin = torch.tensor([1000.0, -1000.0], requires_grad=True)
    first, second = log_likelihoods("sigmoid", margin, margin.detach(), BETA)
    assert first.tolist() == [0.0, -1000.0]
    assert second.tolist() == [-1000.0, 0.0]
    first.sum().backward()
    assert margin.grad.tolist() == [0.0, 1.0]


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_type is one of sigmoid, ipo, hinge, not 'kto'"):
        log_likelihoods("kto", MARGIN, MEAN_DIFFERENCE, BETA)
