"""Controls: each mistake, made in the real code path, must fail the very check that proves the objective.

A check that a wrong sign, a lost 1/batch or a mismatched pair can pass proves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import tabular
import torch
from tabular import Combination, Spoil, World, flat, make_world, prove
from torch import Tensor

import sail.objective as so
from sail.objective import objective as real

DATA = Combination("data", "given", coefficient=0.0)
DDP = Combination("ddp", "soft")
DPP = Combination("dpp", "soft")
DPR = Combination("dpr", "soft")
ROUTES = {"data": DATA, "ddp": DDP, "dpp": DPP, "dpr": DPR}
PATCH = pytest.MonkeyPatch
Given = tuple[so.ResponseLogProbs, so.RowColumns]


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(flat(4), seed=41)


def assert_fails(world: World, combo: Combination, spoil: Spoil | None = None) -> None:
    """`prove` refutes this combination, and not by a hair: the smallest mistake here moves the gradient by 1%."""
    with pytest.raises(AssertionError, match="relative error") as failure:
        prove(world, combo, spoil)
    assert float(str(failure.value).split()[2]) > 0.01


@pytest.mark.parametrize("route", ROUTES)
def test_unspoiled_check_passes(world: World, route: str) -> None:
    prove(world, ROUTES[route], lambda log_probs, columns: (log_probs, columns))


# ------------------------------------------------------------------------------------------------- signs and scale


@pytest.mark.parametrize("route", ["dpp", "dpr"])
def test_wrong_sign_of_t1(world: World, route: str, monkeypatch: PATCH) -> None:
    monkeypatch.setattr(real, "score_surrogate", lambda *given: -so.score_surrogate(*given))
    assert_fails(world, ROUTES[route])


@pytest.mark.parametrize("route", ["ddp", "dpp"])
def test_wrong_sign_of_t3(world: World, route: str, monkeypatch: PATCH) -> None:
    monkeypatch.setattr(real, "label_surrogate", lambda *given: -so.label_surrogate(*given))
    assert_fails(world, ROUTES[route])


@pytest.mark.parametrize("route", ROUTES)
def test_lost_one_over_batch(world: World, route: str) -> None:
    """Each row with weight 1 instead of 1/2: a sum where the mean belongs."""

    def lose(log_probs: so.ResponseLogProbs, columns: so.RowColumns) -> Given:
        return log_probs, dataclasses.replace(columns, pair_weight=torch.ones_like(columns.pair_weight))

    assert_fails(world, ROUTES[route], lose)


@pytest.mark.parametrize("route", ["dpp", "dpr"])
def test_correction_without_the_batch_weight(world: World, route: str) -> None:
    """The pair loss is a mean but T1 is a sum over the batch: a hook that is not scaled."""

    def unscale(log_probs: so.ResponseLogProbs, columns: so.RowColumns) -> Given:
        return log_probs, dataclasses.replace(columns, score_coefficient=2.0 * columns.score_coefficient)

    assert_fails(world, ROUTES[route], unscale)


# ----------------------------------------------------------------------------------------------- mismatched inputs


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("both", [True, False])
def test_response_paired_with_another_prompt(
    world: World, route: str, both: bool, monkeypatch: PATCH
) -> None:
    """Sampled and labelled for one prompt, scored under the other: both responses, or the second only."""
    honest = tabular.row_log_probs

    def mismatched(world: World, rows: tabular.Rows, temperature: float) -> so.ResponseLogProbs:
        wrong = honest(world, dataclasses.replace(rows, prompt=1 - rows.prompt), temperature)
        if both:
            return wrong
        names = ("second", "ref_second", "sampled_second")
        return dataclasses.replace(
            honest(world, rows, temperature), **{name: getattr(wrong, name) for name in names}
        )

    monkeypatch.setattr(tabular, "row_log_probs", mismatched)
    assert_fails(world, ROUTES[route])


@pytest.mark.parametrize(
    "combo", [DATA, DPR, dataclasses.replace(DPR, coefficient=0.0)], ids=lambda c: c.name
)
def test_swapped_pair(world: World, combo: Combination) -> None:
    """Responses exchanged, label not. (A self-labelled row cannot be swapped: its label follows its margin.)"""

    def swap(log_probs: so.ResponseLogProbs, columns: so.RowColumns) -> Given:
        pairs = (("first", "second"), ("ref_first", "ref_second"), ("first_length", "second_length"))
        exchanged = {a: getattr(log_probs, b) for pair in pairs for a, b in (pair, pair[::-1])}
        return dataclasses.replace(log_probs, **exchanged), columns

    assert_fails(world, combo, swap)


def test_correction_on_dataset_rows(world: World) -> None:
    """T1 applied to responses that the policy did not write."""

    def correct(log_probs: so.ResponseLogProbs, columns: so.RowColumns) -> Given:
        return log_probs, dataclasses.replace(columns, score_coefficient=torch.ones_like(columns.label))

    assert_fails(world, DATA, correct)
    assert_fails(world, DDP, correct)


@pytest.mark.parametrize("route", ["dpp", "dpr"])
def test_tempered_samples_scored_untempered(world: World, route: str) -> None:
    """At temperature 0.7, T1 with log pi where log mu belongs."""

    def untempered(log_probs: so.ResponseLogProbs, columns: so.RowColumns) -> Given:
        plain = dataclasses.replace(log_probs, sampled_first=log_probs.first, sampled_second=log_probs.second)
        return plain, columns

    assert_fails(world, dataclasses.replace(ROUTES[route], temperature=0.7), untempered)


@pytest.mark.parametrize("loss_type", ["ipo", "hinge"])
def test_half_the_square_of_another_loss(world: World, loss_type: str, monkeypatch: PATCH) -> None:
    """T3 = grad(F^2 / 2) belongs to the sigmoid loss alone."""
    combo = Combination("dpp", "sampled", loss_type)

    def half_square(first_wins: Tensor, second_wins: Tensor, label: Tensor, margin: Tensor) -> Tensor:
        square = 0.5 * (label * first_wins + (1.0 - label) * second_wins) ** 2
        return -(square - square.detach())

    monkeypatch.setattr(real, "label_surrogate", half_square)
    assert_fails(world, combo)
    prove(world, dataclasses.replace(combo, loss_type="sigmoid"))


# ------------------------------------------------------------------------------------------------------- baselines

Baseline = Callable[[Tensor, Tensor], Tensor]


def mean_with_itself(values: Tensor, active: Tensor) -> Tensor:
    """One micro-batch of two, the row itself included."""
    return values.mean(dim=1, keepdim=True).expand_as(values)


def itself(values: Tensor, active: Tensor) -> Tensor:
    """Two micro-batches of one, the row itself included."""
    return values


@pytest.mark.parametrize("route", ["dpp", "dpr"])
@pytest.mark.parametrize("baseline", [mean_with_itself, itself])
def test_baseline_that_contains_the_row(
    world: World, route: str, baseline: Baseline, monkeypatch: PATCH
) -> None:
    """It depends on the row's own responses, so that part of T1 is lost."""
    monkeypatch.setattr(tabular, "batch_baseline", baseline)
    assert_fails(world, ROUTES[route])


def test_baseline_of_a_micro_batch_is_another_one() -> None:
    """Leave-one-out over two micro-batches of two is not that over their batch of four (numbers by hand)."""
    values, active = torch.tensor([-1.0, -2.0, -3.0, -6.0]), torch.ones(4, dtype=torch.bool)
    whole = so.leave_one_out(values, active, torch.arange(4))
    micro = torch.cat([so.leave_one_out(part, active[:2], torch.arange(2)) for part in values.split(2)])
    torch.testing.assert_close(whole, torch.tensor([-11 / 3, -10 / 3, -9 / 3, -6 / 3]))
    assert micro.tolist() == [-2.0, -1.0, -6.0, -3.0]


def test_labels_that_pass_gradient(world: World, monkeypatch: PATCH) -> None:
    """A soft self-label without stop-gradient counts the label's dependence on theta twice, in T2 and in T3."""
    monkeypatch.setattr(real, "self_label", lambda margin, mode, uniform: torch.sigmoid(margin))
    assert_fails(world, DPP)
    assert_fails(world, DDP)


# ------------------------------------------------------------------------------------------- the authors' hook


def halfway_world(seed: int) -> World:
    """A policy halfway from the reference to the optimum log ref + r / beta of a Bradley-Terry oracle."""
    world = make_world(flat(6), seed=seed)
    reward = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theta = world.reference + 0.5 * reward.unsqueeze(1) / world.beta
    prefers = torch.sigmoid(reward.unsqueeze(2) - reward.unsqueeze(1))
    return dataclasses.replace(world, theta=theta.requires_grad_(), prefers=prefers)


def climbed_with_hook(world: World, combo: Combination, monkeypatch: PATCH) -> Tensor:
    """The expected ascent direction with the hook in the place of T1, through the same enumeration."""
    honest = so.row_loss

    def hooked(
        log_probs: so.ResponseLogProbs, columns: so.RowColumns, settings: so.ObjectiveSettings
    ) -> so.RowLoss:
        none = torch.zeros_like(columns.score_coefficient)
        row = honest(log_probs, dataclasses.replace(columns, score_coefficient=none), settings)
        extra = sum(row.value / x.detach() * (x - x.detach()) for x in (log_probs.first, log_probs.second))
        return dataclasses.replace(row, loss=row.loss - extra)

    rows = tabular.enumerate_rows(world, combo)
    monkeypatch.setattr(so, "row_loss", hooked)
    return -tabular.expected_gradient(world, rows, combo.settings(world), combo)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("seed", range(5))
def test_gradient_hook_of_the_public_code_opposes_t1(seed: int, monkeypatch: PATCH) -> None:
    """Their hook subtracts F / log pi from the loss's gradient of each log-prob, not scaled by the batch.

    T1 as a loss has -F there. F / log pi is positive, so each sampled response is reinforced, the likely ones most,
    whatever its F: the cosine to the true T1 is negative in each of these worlds.
    """
    world, combo = halfway_world(seed), dataclasses.replace(DPR, baseline="none")
    terms = tabular.terms_by_hand(world, combo)
    climbed = climbed_with_hook(world, combo, monkeypatch)
    assert cosine(climbed - terms.pair, terms.score) < -0.2
    with pytest.raises(AssertionError, match="relative error"):
        tabular.assert_climbs(-climbed, terms.total)


def test_gradient_hook_of_the_public_code_can_descend_the_objective(monkeypatch: PATCH) -> None:
    """In this world T2 alone climbs J and T2 with the hook descends it. (In others it does not: it depends.)"""
    world, combo = halfway_world(2), dataclasses.replace(DPR, baseline="none")
    terms = tabular.terms_by_hand(world, combo)
    assert cosine(terms.pair, terms.total) > 0.8
    assert cosine(climbed_with_hook(world, combo, monkeypatch), terms.total) < -0.6
