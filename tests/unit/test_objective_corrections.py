"""The surrogates of T1 and T3: value zero, gradient by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sail.objective import label_surrogate, score_surrogate

F64 = torch.float64


def test_score_surrogate_by_hand() -> None:
    """F = -3, b = -1: the loss's slope on the score is -(F - b) = 2, so descent makes the pair less likely."""
    score = torch.tensor([-7.0], dtype=F64, requires_grad=True)
    value = torch.tensor([-3.0], dtype=F64, requires_grad=True)
    baseline = torch.tensor([-1.0], dtype=F64)
    surrogate = score_surrogate(value, baseline, score)
    assert surrogate.tolist() == [0.0]
    surrogate.sum().backward()
    assert score.grad.tolist() == [2.0]
    assert value.grad is None


@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
def test_label_surrogate_by_hand(label: float) -> None:
    """-(t F+ (1 - q) - (1 - t) F- q) on the margin: d log q / dh = 1 - q, d log (1 - q) / dh = -q."""
    margin = torch.tensor([math.log(3)], dtype=F64, requires_grad=True)
    first, second = torch.tensor([-0.5], dtype=F64), torch.tensor([-2.0], dtype=F64)
    surrogate = label_surrogate(first, second, torch.tensor([label], dtype=F64), margin)
    assert surrogate.tolist() == [0.0]
    surrogate.sum().backward()
    expected = -(label * -0.5 * 0.25 - (1.0 - label) * -2.0 * 0.75)
    assert margin.grad.item() == pytest.approx(expected, rel=1e-12)


def test_surrogates_stay_zero_far_out() -> None:
    """A certain or impossible label (h = +-1000) gives zero and a finite gradient, not 0 * inf."""
    margin = torch.tensor([1000.0, -1000.0], requires_grad=True)
    surrogate = label_surrogate(-margin.detach().abs(), margin.detach(), torch.tensor([1.0, 0.0]), margin)
    surrogate.sum().backward()
    assert surrogate.tolist() == [0.0, 0.0]
    assert torch.isfinite(margin.grad).all()
