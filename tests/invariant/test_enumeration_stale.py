"""Stale rows, enumerated: responses of older weights (mu), the gradient of the objective at the weights of now (pi).

The sum over all outcomes of mu-probability times the gradient of the real loss, with its importance ratios, equals the
gradient of the objective written down by hand at the weights of now. Nothing is sampled; both rows of a batch are stale.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from tabular import (
    TOLERANCE,
    TREE,
    Combination,
    Rows,
    Shape,
    World,
    assert_climbs,
    enumerate_rows,
    exact_gradient,
    flat,
    log_prob_table,
    log_probs_by_hand,
    make_columns,
    make_world,
    relative_error,
    row_log_probs,
    terms_by_hand,
    value_by_hand,
)
from test_enumeration import refusal
from torch import Tensor

import sail.objective as so
from sail.objective import objective as real

Loss = Callable[[so.ResponseLogProbs, so.RowColumns, so.ObjectiveSettings], Tensor]
LOSSES = ("sigmoid", "ipo", "hinge")
LABELS = (("dpp", "soft"), ("dpp", "sampled"), ("dpr", "soft"), ("dpr", "sampled"))
CASES = [
    combo
    for (route, label), *rest in itertools.product(
        (*LABELS, ("dpr", "argmax")), LOSSES, (0.3, 1.0), ("leave_one_out", "none"), (1.0, 0.7)
    )
    if refusal(combo := Combination(route, label, *rest)) is None
]
PLAIN = Combination("dpr", "soft")


def older(world: World) -> Tensor:
    """The weights that sampled."""
    random = torch.Generator().manual_seed(77)
    return world.theta.detach() + 0.8 * torch.randn(world.theta.shape, generator=random, dtype=torch.float64)


def then_log_probs(world: World, rows: Rows, temperature: float) -> tuple[Tensor, Tensor]:
    """log mu of both responses of each row, as a sampler of the older weights would have recorded it; (M,) each."""
    table = log_prob_table(world, older(world), temperature)
    return table[rows.prompt, rows.first], table[rows.prompt, rows.second]


def stale_rows(world: World, combo: Combination) -> Rows:
    """All outcomes of a row, as probable as the older weights made them."""
    rows = enumerate_rows(world, combo)
    now = log_probs_by_hand(world, world.theta.detach(), combo.temperature)
    then = log_probs_by_hand(world, older(world), combo.temperature)
    change = then - now
    both = change[rows.prompt, rows.first] + change[rows.prompt, rows.second]
    made = dataclasses.replace(rows, chance=rows.chance * both.exp())
    assert made.chance.sum().item() == pytest.approx(1.0, abs=1e-12)
    return made


def real_loss(
    log_probs: so.ResponseLogProbs, columns: so.RowColumns, settings: so.ObjectiveSettings
) -> Tensor:
    return so.row_loss(log_probs, columns, settings).loss


def stale_gradient(
    world: World,
    combo: Combination,
    loss: Loss = real_loss,
    *,
    batch: int = 2,
    then: float | None = None,
    **settings: float,
) -> Tensor:
    """Expected gradient of the loss of a batch of stale rows: all joint outcomes, through `leave_one_out` and `row_loss`.

    then: the temperature of the recorded log-probs, where a control records the wrong ones.
    """
    given = dataclasses.replace(combo.settings(world), **settings)
    rows = stale_rows(world, combo)
    index = torch.cartesian_prod(*[torch.arange(len(rows.chance))] * batch)
    many = rows.take(index.reshape(-1))
    log_probs = row_log_probs(world, many, combo.temperature)
    behaviour = then_log_probs(world, many, combo.temperature if then is None else then)
    active = rows.active[index]
    with torch.no_grad():
        plain = make_columns(many, torch.ones_like(many.chance), torch.zeros_like(many.chance))
        values = real.labelled_value(log_probs, plain.label, plain.self_label, plain.uniform, given)[0]
        now = log_probs.sampled_first + log_probs.sampled_second
        ratio = so.importance_ratio(now, sum(behaviour), torch.ones_like(now, dtype=torch.bool))
        baseline = torch.zeros_like(values)
        if combo.baseline == "leave_one_out":
            group = torch.arange(batch).expand(index.shape)
            parts = values.view(-1, batch), active, group, ratio.view(-1, batch)
            baseline = torch.func.vmap(so.leave_one_out)(*parts).reshape(-1)
    weight = (active.double() / active.sum(dim=1, keepdim=True).clamp(min=1)).reshape(-1)
    columns = dataclasses.replace(
        make_columns(many, weight, baseline),
        stale=torch.ones_like(many.self_label),
        behaviour_first=behaviour[0],
        behaviour_second=behaviour[1],
        kl_weight=torch.full_like(weight, 1.0 / batch),
    )
    chance = rows.chance[index].prod(dim=1, keepdim=True).expand(-1, batch).reshape(-1)
    return torch.autograd.grad((chance * loss(log_probs, columns, given)).sum(), world.theta)[0]


def exact(world: World, combo: Combination) -> Tensor:
    """T2 + c (T1 + T3) at the weights of now.

    Under argmax rows abstain on ties. Another row's abstention is then the older weights' doing: k, the chance that it has a
    verdict, and G, the mean of its F given one, are mu's, while everything of the row itself is pi's.
    """
    if combo.label != "argmax":
        return exact_gradient(world, combo)
    terms = terms_by_hand(world, combo)
    keep = (world.prefers != 0.5).double()
    first, second, _ = value_by_hand(world, combo.loss_type, world.theta.detach())
    value = torch.where(world.prefers > 0.5, first, second)

    def chance(theta: Tensor) -> Tensor:
        mu = log_probs_by_hand(world, theta, combo.temperature).exp()
        return world.prompts.view(-1, 1, 1) * mu.unsqueeze(2) * mu.unsqueeze(1) * keep

    others = chance(older(world))
    k, mean = others.sum(), (others * value).sum() / others.sum()
    grad_kept = torch.autograd.grad(chance(world.theta).sum(), world.theta)[0]
    alone = 2.0 * (1.0 - k / 2.0) * terms.kept
    score = alone * terms.plain_score
    if combo.baseline == "leave_one_out":
        score = score - k * mean * grad_kept
    return alone * terms.pair + combo.coefficient * score


@pytest.mark.parametrize("combo", CASES, ids=lambda combo: combo.name)
def test_stale_rows_give_the_gradient_of_now(combo: Combination) -> None:
    world = make_world(flat(4), seed=5)
    assert_climbs(stale_gradient(world, combo), exact(world, combo))


@pytest.mark.parametrize("shape", [flat(5), TREE], ids=["K5", "tree"])
@pytest.mark.parametrize(("route", "label"), LABELS)
def test_in_other_worlds(shape: Shape, route: str, label: str) -> None:
    """At temperature 0.7, where mu is not pi."""
    world, combo = make_world(shape, seed=9), Combination(route, label, temperature=0.7)
    assert_climbs(stale_gradient(world, combo), exact(world, combo))


@pytest.mark.parametrize(("route", "label"), LABELS)
def test_weighted_baseline_of_two_other_rows_changes_nothing_in_expectation(route: str, label: str) -> None:
    """A batch of three: the baseline is a ratio of sums over the others. Still any number that is not the row's own."""
    world, combo = make_world(flat(2), seed=3), Combination(route, label)
    assert_climbs(stale_gradient(world, combo, batch=3), exact(world, combo))


# ---- controls that must fail


def fresh(columns: so.RowColumns) -> so.RowColumns:
    return dataclasses.replace(columns, stale=torch.zeros_like(columns.stale))


def without_ratio(
    log_probs: so.ResponseLogProbs, columns: so.RowColumns, settings: so.ObjectiveSettings
) -> Tensor:
    return real_loss(log_probs, fresh(columns), settings)


def only_corrections(
    log_probs: so.ResponseLogProbs, columns: so.RowColumns, settings: so.ObjectiveSettings
) -> Tensor:
    """T1 and T3 with their ratio, T2 without: the real loss, less the real pair loss with it, plus the one without it."""
    result = so.row_loss(log_probs, columns, settings)
    zero = torch.zeros_like(columns.baseline)
    bare = dataclasses.replace(fresh(columns), score_coefficient=zero, label_coefficient=zero)
    pair = real_loss(log_probs, bare, settings)
    return result.loss - result.ratio * pair + pair


def only_pair(
    log_probs: so.ResponseLogProbs, columns: so.RowColumns, settings: so.ObjectiveSettings
) -> Tensor:
    """The other way round."""
    mixed = only_corrections(log_probs, columns, settings)
    return real_loss(log_probs, columns, settings) + without_ratio(log_probs, columns, settings) - mixed


def of_one_response(
    log_probs: so.ResponseLogProbs, columns: so.RowColumns, settings: so.ObjectiveSettings
) -> Tensor:
    """The second response taken for one of the weights of now."""
    amended = dataclasses.replace(columns, behaviour_second=log_probs.sampled_second.detach())
    return real_loss(log_probs, amended, settings)


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("route", ["dpp", "dpr"])
@pytest.mark.parametrize("wrong", [without_ratio, only_corrections, only_pair, of_one_response])
def test_a_missing_ratio_fails(wrong: Loss, route: str, loss_type: str) -> None:
    """Of dpp with soft labels and the sigmoid loss, T2 is zero row by row: there, and only there, its ratio is no matter."""
    world, combo = make_world(flat(4), seed=5), Combination(route, "soft", loss_type)
    error = relative_error(-stale_gradient(world, combo, wrong), exact(world, combo))
    if wrong is only_corrections and (route, loss_type) == ("dpp", "sigmoid"):
        assert error <= TOLERANCE
    else:
        assert error > 0.02


def test_ratio_of_pi_is_wrong_for_tempered_samples() -> None:
    world, combo = make_world(flat(4), seed=5), dataclasses.replace(PLAIN, temperature=0.7)
    assert relative_error(-stale_gradient(world, combo, then=1.0), exact(world, combo)) > 0.02


def test_a_clip_biases_and_a_high_one_does_not() -> None:
    world = make_world(flat(4), seed=5)
    right = exact(world, PLAIN)
    assert relative_error(-stale_gradient(world, PLAIN, ratio_clip=1.0), right) > 0.02
    assert relative_error(-stale_gradient(world, PLAIN, ratio_clip=1e6), right) <= TOLERANCE


# ---- rows without corrections, penalties, spin


@pytest.mark.parametrize("loss_type", LOSSES)
def test_without_a_coefficient_there_is_no_ratio(loss_type: str) -> None:
    """At c = 0 the pairs are given, as DPO's are: the gradient of E[F] over the older weights' pairs."""
    world = make_world(flat(4), seed=5)
    combo = Combination("dpr", "soft", loss_type, coefficient=0.0)
    first, second, _ = value_by_hand(world, loss_type, world.theta)
    mu = log_probs_by_hand(world, older(world)).exp()
    chance = world.prompts.view(-1, 1, 1) * mu.unsqueeze(2) * mu.unsqueeze(1)
    value = (chance * (world.prefers * first + (1.0 - world.prefers) * second)).sum()
    assert_climbs(stale_gradient(world, combo), torch.autograd.grad(value, world.theta)[0])


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_kl_penalty_of_stale_rows(coefficient: float) -> None:
    """Each response has a ratio of its own in kl_policy_ref, whatever c is: KL(pi || ref) at the weights of now."""
    world = make_world(flat(4), seed=5)
    combo = dataclasses.replace(PLAIN, coefficient=coefficient)
    policy, reference = log_probs_by_hand(world, world.theta), log_probs_by_hand(world, world.reference)
    kl = (world.prompts * (policy.exp() * (policy - reference)).sum(1)).sum()
    added = stale_gradient(world, combo, kl_policy_ref=0.3) - stale_gradient(world, combo)
    assert_climbs(-added, torch.autograd.grad(0.3 * kl, world.theta)[0])

    def unweighted(
        log_probs: so.ResponseLogProbs, columns: so.RowColumns, settings: so.ObjectiveSettings
    ) -> Tensor:
        return real.penalties(log_probs, fresh(columns), settings)

    wrong = stale_gradient(world, combo, unweighted, kl_policy_ref=0.3)
    assert relative_error(wrong, added) > 0.02


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_spin_is_the_pair_loss_against_a_fixed_opponent(loss_type: str, stale: bool) -> None:
    """First ~ the dataset's answers, second ~ the policy that sampled; the first wins, and of two equal answers neither.
    No ratio: the opponent is the policy of the round."""
    world = make_world(flat(4), seed=5)
    opponent = log_probs_by_hand(world, older(world) if stale else world.theta.detach()).exp()
    chance = world.dataset.sum(dim=2, keepdim=True) * opponent.unsqueeze(1)
    assert chance.sum().item() == pytest.approx(1.0, abs=1e-12)
    rows = enumerate_rows(world, Combination("data", "given", loss_type, coefficient=0.0))
    rows = dataclasses.replace(
        rows,
        chance=chance[rows.prompt, rows.first, rows.second],
        label=torch.where(rows.first == rows.second, 0.5, 1.0).double(),
    )
    columns = dataclasses.replace(
        make_columns(rows, torch.ones_like(rows.chance), torch.zeros_like(rows.chance)),
        stale=torch.full_like(rows.self_label, stale),
    )
    settings = so.ObjectiveSettings(beta=world.beta, loss_type=loss_type)
    loss = (rows.chance * real_loss(row_log_probs(world, rows, 1.0), columns, settings)).sum()
    first, second, _ = value_by_hand(world, loss_type, world.theta)
    same = torch.eye(4, dtype=torch.float64)
    value = (chance * ((1.0 - 0.5 * same) * first + 0.5 * same * second)).sum()
    assert_climbs(torch.autograd.grad(loss, world.theta)[0], torch.autograd.grad(value, world.theta)[0])
