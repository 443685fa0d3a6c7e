"""Importance ratios and their effective sample size, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sail.objective import effective_sample_size, importance_ratio, leave_one_out


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ratio_of_now_over_then_where_stale() -> None:
    """exp(-3 - (-4)) = e and exp(-4 - (-3)) = 1/e; the fresh row has exactly 1, whatever was recorded."""
    stale = torch.tensor([True, True, False])
    ratio = importance_ratio(numbers(-3, -4, -9), numbers(-4, -3, -1), stale)
    assert ratio.tolist() == pytest.approx([math.e, 1 / math.e, 1.0], rel=1e-12)
    assert ratio[2].item() == 1.0


def test_clip_is_from_above_only() -> None:
    stale = torch.tensor([True, True])
    assert importance_ratio(numbers(2, -2), numbers(0, 0), stale, 2.0).tolist() == pytest.approx(
        [2.0, math.exp(-2)], rel=1e-12
    )


def test_no_gradient_flows_through_it() -> None:
    now = numbers(-1.0).requires_grad_()
    assert not importance_ratio(now, numbers(-2.0), torch.tensor([True])).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_ratio_is_infinite(dtype: torch.dtype) -> None:
    ratio = importance_ratio(
        torch.tensor([1e4], dtype=dtype), torch.tensor([-1e4], dtype=dtype), torch.tensor([True])
    )
    assert torch.isfinite(ratio * 0.0).all()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1, 1, 1], 1.0),
        ([3, 3], 1.0),
        ([1, 0, 0, 0], 0.25),
        ([1, 3], 16 / 20),
        ([1e200, 1e200], 1.0),
        ([0, 0], math.nan),
    ],
)
def test_effective_sample_size(weights: list[float], expected: float) -> None:
    """(sum w)^2 / (n sum w^2): of (1, 3) it is 16 / (2 * 10)."""
    assert effective_sample_size(numbers(*weights)) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_weighted_baseline_by_hand() -> None:
    """Rows F = 1, 2, 6 with weights 1, 2, 0.5: (2*2 + .5*6) / 2.5, (1 + 3) / 1.5, (1 + 4) / 3."""
    active, group = torch.ones(3, dtype=torch.bool), torch.arange(3)
    found = leave_one_out(numbers(1, 2, 6), active, group, numbers(1, 2, 0.5))
    assert found.tolist() == pytest.approx([7 / 2.5, 4 / 1.5, 5 / 3], rel=1e-12)


def test_weights_of_one_change_no_bit() -> None:
    values, active = torch.randn(9, dtype=torch.float64), torch.rand(9) > 0.3
    group = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 6])
    plain = leave_one_out(values, active, group)
    assert torch.equal(plain, leave_one_out(values, active, group, torch.ones_like(values)))


def test_others_of_weight_zero_are_no_baseline() -> None:
    active, group = torch.ones(2, dtype=torch.bool), torch.arange(2)
    assert leave_one_out(numbers(-1, -2), active, group, numbers(1, 0)).tolist() == [0.0, -1.0]


def test_weighted_baseline_estimates_the_mean_of_now() -> None:
    """y ~ mu, F a function of y: the others' weighted mean lies at E_pi[F], the plain mean at E_mu[F]; 4 standard errors."""
    random = torch.Generator().manual_seed(0)
    mu, pi, value = numbers(0.7, 0.2, 0.1), numbers(0.2, 0.3, 0.5), numbers(-3.0, -1.0, -0.2)
    drawn = torch.multinomial(mu, 4000, replacement=True, generator=random)
    weight = (pi / mu)[drawn]
    active, group = torch.ones(4000, dtype=torch.bool), torch.arange(4000)
    target = (pi * value).sum()
    error = (weight * (value[drawn] - target)).std() / math.sqrt(4000)
    assert abs(leave_one_out(value[drawn], active, group, weight)[0] - target) < 4 * error
    assert abs(leave_one_out(value[drawn], active, group)[0] - target) > 20 * error
