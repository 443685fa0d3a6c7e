"""`row_loss` on numbers worked out by hand: which term goes where, with which weight."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import math
import pkgutil

import pytest
import torch
from torch import Tensor

import sail.objective
from sail.objective import ObjectiveSettings, ResponseLogProbs, RowColumns, row_loss
from sail.objective.objective import labelled_value, pair_margins

FIELDS = [field.name for field in dataclasses.fields(RowColumns)]
BETA = 0.5


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_probs(first: float = -4.0, second: float = -9.0, requires_grad: bool = True) -> ResponseLogProbs:
    """log-ratios 1 and -2 (lengths 2 and 4): h = 0.5 * 3 = 1.5, d = 1/2 + 2/4 = 1."""
    one = numbers(first).requires_grad_(requires_grad)
    two = numbers(second).requires_grad_(requires_grad)
    return ResponseLogProbs(one, two, numbers(-5.0), numbers(-7.0), numbers(2), numbers(4), one, two)


def columns(**given: float | bool) -> RowColumns:
    """One active row whose first response wins, all coefficients and other weights zero."""
    values = {name: numbers(0.0) for name in FIELDS}
    values |= {"label": numbers(1.0), "pair_weight": numbers(1.0), "self_label": torch.tensor([False])}
    values["stale"] = torch.tensor([False])
    for name, value in given.items():
        values[name] = torch.tensor([value]) if isinstance(value, bool) else numbers(value)
    return RowColumns(**values)


def slopes(given: ResponseLogProbs, row: RowColumns, settings: ObjectiveSettings) -> list[float]:
    """d loss / d (log pi(y1), log pi(y2))."""
    loss = row_loss(given, row, settings).loss.sum()
    gradients = torch.autograd.grad(loss, (given.first, given.second), allow_unused=True)
    return [0.0 if gradient is None else gradient.item() for gradient in gradients]


def test_margins_by_hand() -> None:
    margin, mean_difference = pair_margins(log_probs(), BETA)
    assert (margin.item(), mean_difference.item()) == (1.5, 1.0)


def test_margin_of_an_empty_response_is_no_nan() -> None:
    empty = dataclasses.replace(log_probs(), first_length=numbers(0))
    assert torch.isfinite(pair_margins(empty, BETA)[1]).all()


@pytest.mark.parametrize(
    ("loss_type", "loss", "slope"),
    [
        ("sigmoid", math.log1p(math.exp(-1.5)), -0.5 / (1 + math.exp(1.5))),
        ("ipo", 0.0, 0.0),
        ("hinge", 0.0, 0.0),
    ],
)
def test_pair_loss_by_hand(loss_type: str, loss: float, slope: float) -> None:
    """h = 1.5, d = 1: log(1 + e^-1.5); (1 - 1/(2 * 0.5))^2 = 0; relu(1 - 1.5) = 0. Sigmoid's slope: -beta sigmoid(-h)."""
    row = row_loss(log_probs(), columns(), ObjectiveSettings(BETA, loss_type))
    assert row.pair_loss.item() == pytest.approx(loss, rel=1e-12)
    assert row.value.item() == pytest.approx(-loss, rel=1e-12)
    found = slopes(log_probs(), columns(), ObjectiveSettings(BETA, loss_type))
    assert found == pytest.approx([slope, -slope], rel=1e-12)


@pytest.mark.parametrize(
    ("loss_type", "slope"), [("sigmoid", 0.5 / (1 + math.exp(-1.5))), ("ipo", None), ("hinge", 0.5)]
)
def test_second_response_wins(loss_type: str, slope: float | None) -> None:
    """Label 0: sigmoid slope beta sigmoid(h); hinge beta; ipo 2 (d + 1) / length = 4/2 and -4/4."""
    found = slopes(log_probs(), columns(label=0.0), ObjectiveSettings(BETA, loss_type))
    assert found == pytest.approx([2.0, -1.0] if slope is None else [slope, -slope], rel=1e-12)


def test_score_term_by_hand() -> None:
    """T1 adds -c (F - b) to both slopes, and nothing to the logged loss: hinge, F = 0, b = -2, c = 0.25 gives -0.5."""
    row = columns(score_coefficient=0.25, baseline=-2.0)
    assert slopes(log_probs(), row, ObjectiveSettings(BETA, "hinge")) == [-0.5, -0.5]
    assert row_loss(log_probs(), row, ObjectiveSettings(BETA, "hinge")).loss.item() == 0.0


def test_score_term_differentiates_what_was_sampled() -> None:
    """At another temperature T1 goes to log mu, and only T1."""
    sampled = numbers(-3.0).requires_grad_(), numbers(-8.0).requires_grad_()
    given = dataclasses.replace(log_probs(), sampled_first=sampled[0], sampled_second=sampled[1])
    row = columns(score_coefficient=0.25, baseline=-2.0)
    loss = row_loss(given, row, ObjectiveSettings(BETA, "hinge")).loss.sum()
    assert [gradient.item() for gradient in torch.autograd.grad(loss, sampled)] == [-0.5, -0.5]


def test_label_term_by_hand() -> None:
    """T3 of a label that fell to the second: -c F(-) d log q(-)/dh beta, F(-) = -2.5 for hinge, d log q(-)/dh = -q."""
    q = 1 / (1 + math.exp(-1.5))
    row = columns(label_coefficient=0.4, self_label=True, uniform=0.999)
    found = slopes(log_probs(), row, ObjectiveSettings(BETA, "hinge", policy_label="sampled"))
    t2, t3 = BETA, -0.4 * -2.5 * -q * BETA
    assert found == pytest.approx([t2 + t3, -t2 - t3], rel=1e-12)


@pytest.mark.parametrize(
    ("mode", "label"), [("soft", 1 / (1 + math.exp(-1.5))), ("sampled", 1.0), ("argmax", 1.0)]
)
def test_self_label_overrules_the_column(mode: str, label: float) -> None:
    settings = ObjectiveSettings(BETA, policy_label=mode)
    row = row_loss(log_probs(), columns(label=0.0, self_label=True, uniform=0.5), settings)
    assert row.label.item() == pytest.approx(label, rel=1e-12)
    assert row_loss(log_probs(), columns(label=0.25), settings).label.item() == 0.25


def test_soft_label_is_the_mean_of_both_verdicts() -> None:
    value, label, first, second, _ = labelled_value(
        log_probs(), numbers(0.25), torch.tensor([False]), numbers(0.0), ObjectiveSettings(BETA)
    )
    assert label.item() == 0.25
    assert value.item() == pytest.approx(0.25 * first.item() + 0.75 * second.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "row", "loss", "expected"),
    [
        ({"kl_policy_ref": 0.2}, {"kl_weight": 0.5, "kl_baseline_first": 3.0}, 0.0, [-0.1, -0.1]),
        ({"kl_ref_policy": 0.2}, {"ref_sample_weight": 0.5}, 0.05, [-0.05, -0.05]),
        ({"nll": 0.2}, {"nll_weight": 0.5}, 1.3, [-0.1, -0.1]),
    ],
)
def test_penalties_by_hand(settings: dict, row: dict, loss: float, expected: list[float]) -> None:
    """Log-ratios 1 and -2, log-probs -4 and -9; coefficient 0.2, weight 0.5.

    kl_policy_ref  0.1 * half of (1 - 3) and of (-2 - 0)      -0.1, -0.1
    kl_ref_policy  0.1 * half of (-1 + 2) = 0.05; slopes      -0.05, -0.05
    nll            0.1 * (4 + 9) = 1.3; slopes                -0.1, -0.1
    """
    row = columns(pair_weight=0.0, **row)
    given = ObjectiveSettings(BETA, **settings)
    assert row_loss(log_probs(), row, given).loss.item() == pytest.approx(loss, abs=1e-12)
    assert slopes(log_probs(), row, given) == pytest.approx(expected, rel=1e-12)


def test_penalty_columns_without_coefficients_do_nothing() -> None:
    row = columns(pair_weight=0.0, kl_weight=1.0, ref_sample_weight=1.0, nll_weight=1.0)
    assert slopes(log_probs(), row, ObjectiveSettings(BETA)) == [0.0, 0.0]


def test_weight_scales_the_row_and_only_the_loss() -> None:
    """The logged pair loss is per row; the weight 1 / (global active rows) is in `loss` alone."""
    row = row_loss(log_probs(), columns(pair_weight=0.125), ObjectiveSettings(BETA))
    assert row.loss.item() == pytest.approx(0.125 * row.pair_loss.item(), rel=1e-12)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("is_self", [True, False])
def test_swapping_a_whole_row_swaps_its_gradient(loss_type: str, is_self: bool) -> None:
    """Responses exchanged together with the label (soft self-labels exchange themselves): the same row."""
    given = log_probs()
    swapped = ResponseLogProbs(
        *(given.second, given.first, given.ref_second, given.ref_first),
        *(given.second_length, given.first_length, given.sampled_second, given.sampled_first),
    )
    common = {
        "score_coefficient": 0.5,
        "baseline": -0.7,
        "label_coefficient": 0.3 * is_self,
        "self_label": is_self,
    }
    settings = ObjectiveSettings(BETA, loss_type)
    forward = slopes(given, columns(label=0.8, **common), settings)
    backward = slopes(swapped, columns(label=0.2, **common), settings)
    assert backward[::-1] == pytest.approx(forward, rel=1e-10)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_log_prob_zero_gives_no_nan(loss_type: str) -> None:
    """A response that is certain under policy and reference: log-prob 0 is not divided by."""
    one, two = numbers(0.0).requires_grad_(), numbers(0.0).requires_grad_()
    given = ResponseLogProbs(one, two, numbers(0.0), numbers(0.0), numbers(1), numbers(1), one, two)
    row = columns(score_coefficient=1.0, label_coefficient=1.0, self_label=True, label=0.0)
    assert all(map(math.isfinite, slopes(given, row, ObjectiveSettings(BETA, loss_type))))


def test_results_carry_no_gradient_but_the_loss() -> None:
    row = row_loss(log_probs(), columns(score_coefficient=1.0), ObjectiveSettings(BETA))
    assert row.loss.requires_grad
    assert not any(x.requires_grad for x in (row.pair_loss, row.value, row.margin, row.label))


def test_doctests_of_the_package() -> None:
    """The examples in the docstrings are run, and there are some."""
    names = [f"sail.objective.{module.name}" for module in pkgutil.iter_modules(sail.objective.__path__)]
    results = [
        doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
        for name in [*names, "sail.seeds"]
    ]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) >= 4


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_a_tie_of_an_argmax_self_label_has_no_gradient(loss_type: str) -> None:
    """h = 0 with responses of different lengths, so that IPO's difference of means is not 0."""
    first = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    lengths = (torch.tensor([2]), torch.tensor([4]))
    logps = ResponseLogProbs(first, second, zero, zero, *lengths, first, second)
    is_self = torch.tensor([True])
    fresh = (torch.tensor([False]), zero, zero)
    columns = RowColumns(one, is_self, zero, zero, zero, zero, one, zero, zero, zero, zero, zero, *fresh)
    settings = ObjectiveSettings(loss_type=loss_type, policy_label="argmax")
    row_loss(logps, columns, settings).loss.sum().backward()
    assert first.grad is not None
    assert first.grad.item() == second.grad.item() == 0.0
