"""The single level is the bilevel problem: its gradient is the hypergradient of the reward.

    upper   U(r) = -E_{y1, y2 ~ pi_r, z ~ p*} [ log sigmoid( s (r(y1) - r(y2)) ) ]
    lower   pi_r = argmax_pi  sum_y pi(y) r(y) - beta KL(pi || ref)

The lower level is solved numerically from its stationarity conditions and differentiated with the implicit
function theorem; its closed form is not used there. The other side is `row_loss`, enumerated over all outcomes,
at theta = log ref + r / beta.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tabular import (
    PROMPTS,
    Combination,
    World,
    enumerate_rows,
    expected_gradient,
    flat,
    log_probs_by_hand,
    make_world,
    relative_error,
)
from torch import Tensor

RESPONSES = 5


def stationarity(policy: Tensor, multiplier: Tensor, reward: Tensor, log_ref: Tensor, beta: float) -> Tensor:
    """The lower level's Lagrange conditions for one prompt, zero at pi_r; (K + 1,), the last the sum to 1."""
    slope = reward - beta * (policy.log() - log_ref + 1.0) - multiplier
    return torch.cat([slope, policy.sum().view(1) - 1.0])


def solve_lower_level(reward: Tensor, log_ref: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """pi_r and its multiplier by Newton's method in log pi, which keeps pi positive, from the reference."""
    log_policy, multiplier = log_ref.clone(), torch.zeros(1, dtype=torch.float64)
    for _ in range(50):

        def conditions(unknown: Tensor) -> Tensor:
            return stationarity(unknown[:-1].exp(), unknown[-1:], reward, log_ref, beta)

        unknown = torch.cat([log_policy, multiplier])
        step = torch.linalg.solve(
            torch.autograd.functional.jacobian(conditions, unknown), conditions(unknown)
        )
        log_policy, multiplier = (unknown - step)[:-1], (unknown - step)[-1:]
        if step.abs().max() < 1e-15:
            break
    return log_policy.exp(), multiplier


def implicit_jacobian(
    policy: Tensor, multiplier: Tensor, reward: Tensor, log_ref: Tensor, beta: float
) -> Tensor:
    """d pi_r / d r = -(dG/d(pi, m))^-1 dG/dr, the implicit function theorem on stationarity G = 0; (K, K)."""
    by_policy, by_multiplier, by_reward = torch.autograd.functional.jacobian(
        lambda p, m, r: stationarity(p, m, r, log_ref, beta), (policy, multiplier, reward)
    )
    return -torch.linalg.solve(torch.cat([by_policy, by_multiplier], dim=1), by_reward)[:-1]


def upper_level(policy: Tensor, reward: Tensor, prefers: Tensor) -> Tensor:
    """U of one prompt, its two arguments free of each other."""
    difference = reward.unsqueeze(1) - reward.unsqueeze(0)
    log_likelihood = (
        prefers * -(1.0 + (-difference).exp()).log() - (1.0 - prefers) * (1.0 + difference.exp()).log()
    )
    return -(policy.unsqueeze(1) * policy.unsqueeze(0) * log_likelihood).sum()


def hypergradient(world: World, reward: Tensor) -> Tensor:
    """dU/dr = partial U / partial r + (d pi_r / d r)^T partial U / partial pi, per prompt; (PROMPTS, K)."""
    log_ref = log_probs_by_hand(world, world.reference)
    rows = []
    for x in range(PROMPTS):
        policy, multiplier = solve_lower_level(reward[x], log_ref[x], world.beta)
        jacobian = implicit_jacobian(policy, multiplier, reward[x], log_ref[x], world.beta)
        free_policy, free_reward = policy.clone().requires_grad_(), reward[x].clone().requires_grad_()
        value = upper_level(free_policy, free_reward, world.prefers[x])
        by_policy, by_reward = torch.autograd.grad(value, (free_policy, free_reward))
        rows.append(world.prompts[x] * (by_reward + jacobian.T @ by_policy))
    return torch.stack(rows)


def solved_upper_level(world: World, reward: Tensor) -> float:
    log_ref = log_probs_by_hand(world, world.reference)
    total = 0.0
    for x in range(PROMPTS):
        policy, _ = solve_lower_level(reward[x], log_ref[x], world.beta)
        total += (world.prompts[x] * upper_level(policy, reward[x], world.prefers[x])).item()
    return total


@pytest.fixture(scope="module", params=[31, 32])
def problem(request: pytest.FixtureRequest) -> tuple[World, Tensor, Tensor]:
    """A world at theta = log ref + r / beta for a random r, that r, and the hypergradient there."""
    world = make_world(flat(RESPONSES), seed=request.param)
    reward = torch.randn(
        PROMPTS, RESPONSES, generator=torch.Generator().manual_seed(request.param), dtype=torch.float64
    )
    theta = (log_probs_by_hand(world, world.reference) + reward / world.beta).unsqueeze(1)
    return dataclasses.replace(world, theta=theta.requires_grad_()), reward, hypergradient(world, reward)


def single_level_gradient(world: World, combo: Combination) -> Tensor:
    """-(1/beta) grad J, from the enumerated gradients of row_loss: the loss's gradient is minus that of J."""
    loss_gradient = expected_gradient(world, enumerate_rows(world, combo), combo.settings(world), combo)
    return loss_gradient.squeeze(1) / world.beta


def test_lower_level_is_solved(problem: tuple[World, Tensor, Tensor]) -> None:
    """Newton's solution is the closed form softmax(log ref + r / beta), which is the world's policy."""
    world, reward, _ = problem
    log_ref = log_probs_by_hand(world, world.reference)
    for x in range(PROMPTS):
        policy, _ = solve_lower_level(reward[x], log_ref[x], world.beta)
        torch.testing.assert_close(policy, world.theta[x, 0].softmax(0), rtol=1e-12, atol=1e-14)


def test_hypergradient_agrees_with_finite_differences(problem: tuple[World, Tensor, Tensor]) -> None:
    """Central differences of the upper level, the lower one solved anew at each point; error of order step^2."""
    world, reward, exact = problem
    step = 1e-4
    for x in range(PROMPTS):
        for k in range(RESPONSES):
            shift = torch.zeros_like(reward)
            shift[x, k] = step
            slope = (
                solved_upper_level(world, reward + shift) - solved_upper_level(world, reward - shift)
            ) / (2 * step)
            assert slope == pytest.approx(exact[x, k].item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("label", ["soft", "sampled"])
@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
def test_single_level_gradient_is_the_hypergradient(
    problem: tuple[World, Tensor, Tensor], label: str, baseline: str
) -> None:
    world, _, exact = problem
    assert exact.norm() > 1e-2
    assert (
        relative_error(single_level_gradient(world, Combination("dpr", label, baseline=baseline)), exact)
        <= 1e-10
    )


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_without_the_full_correction_it_is_another_direction(
    problem: tuple[World, Tensor, Tensor], coefficient: float
) -> None:
    """c = 0 (on-policy DPO) and the paper's c = .3 do not follow the hypergradient."""
    world, _, exact = problem
    measured = single_level_gradient(world, Combination("dpr", "soft", coefficient=coefficient))
    assert relative_error(measured, exact) > 0.1
