"""Enumerated facts beside the table: what T2 and T3 are, penalties, abstentions, shared responses."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tabular import (
    PROMPTS,
    Combination,
    Rows,
    World,
    assert_climbs,
    enumerate_rows,
    exact_gradient,
    expected_gradient,
    flat,
    label_by_hand,
    log_probs_by_hand,
    make_columns,
    make_world,
    relative_error,
    row_log_probs,
    terms_by_hand,
    value_by_hand,
)
from test_enumeration import PENALTIES, penalty_combination, penalty_refusal
from torch import Tensor

import sail.objective as so
from sail.objective.objective import labelled_value

LOSSES = ("sigmoid", "ipo", "hinge")


@pytest.fixture
def world() -> World:
    return make_world(flat(5), seed=21)


def gradient(value: Tensor, world: World) -> Tensor:
    return torch.autograd.grad(value, world.theta, retain_graph=True)[0]


# ------------------------------------------------------------------------------ objective.md 3.1, per outcome


def pieces(world: World, loss_type: str, mode: str) -> tuple[Rows, Tensor, Tensor]:
    """All outcomes of a dpp row; the value F_t of each and its T3 surrogate, from the real functions."""
    combo = Combination("dpp", mode, loss_type)
    rows = enumerate_rows(world, combo)
    value, label, first, second, margin = labelled_value(
        row_log_probs(world, rows, 1.0), rows.label, rows.self_label, rows.uniform, combo.settings(world)
    )
    return rows, value, so.label_surrogate(first, second, label, margin)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_sampled_label_term_is_half_the_square_for_sigmoid_only(world: World, loss_type: str) -> None:
    """F grad log q = grad(F^2 / 2), outcome by outcome, for sigmoid: F is log q. Wrong for the others."""
    _, value, surrogate = pieces(world, loss_type, "sampled")
    worst = 0.0
    for index in range(0, len(value), 7):
        exact = gradient(0.5 * value[index] ** 2, world)
        difference = (-gradient(surrogate[index], world) - exact).norm().item()
        worst = max(worst, difference / max(exact.norm().item(), 1e-3))
    assert (worst <= 1e-10) == (loss_type == "sigmoid")
    assert loss_type == "sigmoid" or worst > 0.1


@pytest.mark.parametrize("loss_type", LOSSES)
def test_soft_label_term_is_minus_the_entropy_gradient_for_sigmoid_only(world: World, loss_type: str) -> None:
    """sum_z q F_z grad log q(z) = -grad H(q), H the entropy of the label, in expectation over the pairs."""
    rows, _, surrogate = pieces(world, loss_type, "soft")
    q = label_by_hand(world, Combination("dpp", "soft"), world.theta)[rows.prompt, rows.first, rows.second]
    entropy = -(q * q.log() + (1.0 - q) * (1.0 - q).log())
    error = relative_error(
        gradient((rows.chance * surrogate).sum(), world), gradient((rows.chance * entropy).sum(), world)
    )
    assert error <= 1e-10 if loss_type == "sigmoid" else error > 0.1


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("mode", ["soft", "sampled"])
def test_self_labels_carry_no_signal_in_t2_for_sigmoid_only(world: World, loss_type: str, mode: str) -> None:
    """T2 of a soft self-label vanishes row by row; that of a sampled one only in expectation: it is noise."""
    rows, value, _ = pieces(world, loss_type, mode)
    mean = gradient((rows.chance * value).sum(), world).norm().item()
    largest = max(gradient(value[index], world).norm().item() for index in range(len(value)))
    assert (mean < 1e-13) == (loss_type == "sigmoid")
    assert (largest < 1e-12) == (loss_type == "sigmoid" and mode == "soft")
    assert loss_type == "sigmoid" or mean > 1e-2


# -------------------------------------------------------------------------------------------------- penalties


def world_with_reference_samples(world: World) -> World:
    """Dataset pairs are two samples of the reference, winner first: P(i, j) = 2 ref(i) ref(j) p*(i over j)."""
    reference = log_probs_by_hand(world, world.reference).exp()
    both = reference.unsqueeze(2) * reference.unsqueeze(1)
    return dataclasses.replace(world, dataset=2.0 * world.prompts.view(-1, 1, 1) * both * world.prefers)


def penalty_columns(
    log_probs: so.ResponseLogProbs, columns: so.RowColumns
) -> tuple[so.ResponseLogProbs, so.RowColumns]:
    """Columns of all three penalties for batches of two; the KL baseline is over the batch's other three responses."""
    ratios = torch.stack(
        [log_probs.first - log_probs.ref_first, log_probs.second - log_probs.ref_second], 1
    ).detach()
    batches = ratios.view(-1, 4)
    group = torch.arange(4).expand(batches.shape)
    baseline = torch.func.vmap(so.leave_one_out)(
        batches, torch.ones_like(batches, dtype=torch.bool), group
    ).view(-1, 2)
    half = torch.full_like(columns.label, 0.5)
    amended = dataclasses.replace(
        columns,
        kl_weight=half,
        kl_baseline_first=baseline[:, 0],
        kl_baseline_second=baseline[:, 1],
        ref_sample_weight=half,
        nll_weight=half,
    )
    return log_probs, amended


def penalty_by_hand(world: World, penalty: str) -> Tensor:
    policy, reference = log_probs_by_hand(world, world.theta), log_probs_by_hand(world, world.reference)
    if penalty == "kl_policy_ref":
        return (world.prompts * (policy.exp() * (policy - reference)).sum(1)).sum()
    if penalty == "kl_ref_policy":
        return (world.prompts * (reference.exp() * (reference - policy)).sum(1)).sum()
    return -(world.dataset * (policy.unsqueeze(2) + policy.unsqueeze(1))).sum()


ALLOWED_PENALTIES = [
    case
    for case in itertools.product(PENALTIES, ("data", "ddp", "dpp", "dpr"), (1.0, 0.7))
    if penalty_refusal(*case) is None
]


@pytest.mark.parametrize(("penalty", "route", "temperature"), ALLOWED_PENALTIES)
def test_allowed_penalty_is_exact(world: World, penalty: str, route: str, temperature: float) -> None:
    """Beside the pair loss: the expected gradient is that of -J + 0.3 * penalty, enumerated by hand."""
    world = world_with_reference_samples(world)
    combo = penalty_combination(route, temperature)
    settings = dataclasses.replace(combo.settings(world), **{penalty: 0.3})
    measured = expected_gradient(world, enumerate_rows(world, combo), settings, combo, penalty_columns)
    added = gradient(0.3 * penalty_by_hand(world, penalty), world)
    assert added.norm() > 1e-2
    assert_climbs(measured, exact_gradient(world, combo) - added)


def test_kl_baseline_cancels_in_expectation(world: World) -> None:
    """Any number independent of the response will do: with 0 and with 7 it is grad KL(pi || ref)."""
    policy, reference = log_probs_by_hand(world, world.theta), log_probs_by_hand(world, world.reference)
    exact = gradient(penalty_by_hand(world, "kl_policy_ref"), world)
    chance = (world.prompts.view(-1, 1) * policy.exp()).detach()
    for baseline in (0.0, 7.0):
        surrogate = so.kl_policy_ref_surrogate(policy - reference, torch.tensor(baseline), policy)
        assert relative_error(gradient((chance * surrogate).sum(), world), exact) <= 1e-10


def test_wrong_kl_estimators_have_zero_expected_gradient(world: World) -> None:
    """On the policy's own responses the log-ratio itself and the loss of KL(ref || pi) teach nothing."""
    policy, reference = log_probs_by_hand(world, world.theta), log_probs_by_hand(world, world.reference)
    chance = (world.prompts.view(-1, 1) * policy.exp()).detach()
    for value in (policy - reference, so.kl_ref_policy_loss(policy, reference)):
        assert gradient((chance * value).sum(), world).norm() < 1e-13


# ------------------------------------------------------------------------------- abstentions, shared responses


@pytest.mark.parametrize("loss_type", LOSSES)
def test_abstained_row_contributes_nothing(world: World, loss_type: str) -> None:
    """Weight 0 is exactly zero in the loss and its gradient, whatever label and coefficients say."""
    combo = Combination("dpr", "soft", loss_type)
    rows = enumerate_rows(world, combo)
    zero = torch.zeros_like(rows.chance)
    loss = so.row_loss(
        row_log_probs(world, rows, 1.0), make_columns(rows, zero, zero + 0.3), combo.settings(world)
    ).loss
    assert loss.abs().max() == 0.0
    assert gradient(loss.sum(), world).abs().max() == 0.0


def test_abstained_row_leaves_the_baseline() -> None:
    """Whatever its F is, nan included."""
    group, active = torch.arange(3), torch.tensor([True, False, True])
    for f in (-5.0, 0.0, float("nan")):
        assert so.leave_one_out(torch.tensor([-1.0, f, -2.0]), active, group).tolist() == [-2.0, -1.5, -1.0]


def test_with_verdicts_on_both_rows_the_gradient_is_that_of_the_conditional_objective(world: World) -> None:
    """Batches with two verdicts climb E[F | verdict], exactly, at c = 1: abstaining is no reward."""
    combo = Combination("dpr", "argmax")
    rows = enumerate_rows(world, combo)
    both = rows.take(rows.active.nonzero()[:, 0])
    terms = terms_by_hand(world, combo)
    assert 0.1 < terms.kept < 0.9
    measured = expected_gradient(world, both, combo.settings(world), combo)
    assert_climbs(measured, terms.kept**2 * terms.total)


def test_lone_verdict_has_no_baseline(world: World) -> None:
    """Where the other row abstained, b = 0, and T1 also rewards abstaining (F <= 0); exactly this much."""
    combo = Combination("dpr", "argmax")
    terms = terms_by_hand(world, combo)
    rows = enumerate_rows(world, combo)
    one, both = 2.0 * terms.kept * (1.0 - terms.kept), terms.kept**2
    conditional = (one + both) * terms.total
    measured = expected_gradient(world, rows, combo.settings(world), combo)
    difference = -measured - conditional
    assert relative_error(difference, one * (terms.plain_score - terms.score)) <= 1e-10


@pytest.mark.parametrize("grouped", [True, False])
def test_rows_that_share_a_response_leave_each_other_out(world: World, grouped: bool) -> None:
    """Rows (y1, y2), (y1, y3) of one prompt: exact as one group, biased if each is the other's baseline."""
    policy = log_probs_by_hand(world, world.theta)
    first_value, second_value, _ = value_by_hand(world, "sigmoid", world.theta)
    values = (world.prefers * first_value + (1.0 - world.prefers) * second_value).detach()
    count = policy.shape[1]
    x, i, j, k = torch.cartesian_prod(torch.arange(PROMPTS), *[torch.arange(count)] * 3).T
    mu = policy.detach().exp()
    chance = world.prompts[x] * mu[x, i] * mu[x, j] * mu[x, k]
    pair_values = torch.stack([values[x, i, j], values[x, i, k]], 1)
    group = (torch.zeros(2, dtype=torch.long) if grouped else torch.arange(2)).expand(pair_values.shape)
    active = torch.ones_like(pair_values, dtype=torch.bool)
    baseline = torch.func.vmap(so.leave_one_out)(pair_values, active, group)
    scores = torch.stack([policy[x, i] + policy[x, j], policy[x, i] + policy[x, k]], 1)
    surrogate = so.score_surrogate(pair_values, baseline, scores).mean(1)
    measured = gradient((chance * surrogate).sum(), world)
    exact = terms_by_hand(world, Combination("dpr", "soft")).score
    error = relative_error(-measured, exact)
    assert error <= 1e-10 if grouped else error > 0.05


@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
def test_t1_pushes_every_response_down_only_without_a_baseline(world: World, baseline: str) -> None:
    """F <= 0, so with b = 0 no T1 raises its responses; with leave-one-out about half of them do."""
    combo = Combination("dpr", "soft", baseline=baseline)
    rows = enumerate_rows(world, combo)
    value = labelled_value(
        row_log_probs(world, rows, 1.0), rows.label, rows.self_label, rows.uniform, combo.settings(world)
    )[0]
    index = torch.cartesian_prod(torch.arange(len(value)), torch.arange(len(value)))
    values = value.detach()[index]
    group = torch.arange(2).expand(values.shape)
    base = torch.func.vmap(so.leave_one_out)(values, torch.ones_like(values, dtype=torch.bool), group)
    score = torch.zeros_like(values, requires_grad=True)
    so.score_surrogate(values, base if baseline != "none" else torch.zeros_like(base), score).sum().backward()
    raised = (score.grad < 0).double().mean().item()
    assert raised == 0.0 if baseline == "none" else 0.4 < raised < 0.6
