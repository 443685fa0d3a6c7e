"""One row's loss from its columns: pair loss, corrections, KL penalties, nll. It knows coefficients, not routes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sail.objective.corrections import label_surrogate, score_surrogate
from sail.objective.kl import kl_policy_ref_surrogate, kl_ref_policy_loss, nll_loss
from sail.objective.labels import self_label
from sail.objective.losses import log_likelihoods
from sail.objective.ratios import importance_ratio


@dataclass(frozen=True)
class ObjectiveSettings:
    """What is the same for every row. Units: beta 1/nat; the three penalties multiply means in nats per response."""

    beta: float = 0.1
    loss_type: str = "sigmoid"
    policy_label: str = "soft"
    kl_policy_ref: float = 0.0
    kl_ref_policy: float = 0.0
    nll: float = 0.0
    min_confidence: float = 0.5
    ratio_clip: float | None = None


@dataclass(frozen=True)
class ResponseLogProbs:
    """Both responses of B rows, each (B,): log pi and log pi_ref, token counts, and log mu where the policy sampled
    at a temperature other than 1 (else the log pi tensors themselves)."""

    first: Tensor
    second: Tensor
    ref_first: Tensor
    ref_second: Tensor
    first_length: Tensor
    second_length: Tensor
    sampled_first: Tensor
    sampled_second: Tensor


@dataclass(frozen=True)
class RowColumns:
    """Per-row inputs (B,), all constants to the gradient; docs/design.md explains each."""

    label: Tensor
    self_label: Tensor
    uniform: Tensor
    score_coefficient: Tensor
    label_coefficient: Tensor
    baseline: Tensor
    pair_weight: Tensor
    kl_weight: Tensor
    kl_baseline_first: Tensor
    kl_baseline_second: Tensor
    ref_sample_weight: Tensor
    nll_weight: Tensor
    stale: Tensor
    behaviour_first: Tensor
    behaviour_second: Tensor


@dataclass(frozen=True)
class RowLoss:
    """Per-row results (B,). `loss` already carries the weights: the batch loss is its sum. The rest has no gradient.

    `ratio` is the importance ratio over both responses as it was used, nan where none was.
    """

    loss: Tensor
    pair_loss: Tensor
    value: Tensor
    margin: Tensor
    label: Tensor
    ratio: Tensor


def pair_margins(logps: ResponseLogProbs, beta: float) -> tuple[Tensor, Tensor]:
    """h = beta * difference of summed log-ratios, and d = difference of per-token mean log-ratios; (B,) each."""
    first = logps.first - logps.ref_first
    second = logps.second - logps.ref_second
    mean_first = first / logps.first_length.clamp(min=1)
    mean_second = second / logps.second_length.clamp(min=1)
    return beta * (first - second), mean_first - mean_second


def labelled_value(
    logps: ResponseLogProbs, label: Tensor, is_self: Tensor, uniform: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(F, t, F(+), F(-), h) of each row, self-labelled rows labelled by their own margin; (B,) each.

    Used twice: with gradient in the training step, and without one before it, where F is needed for the baseline.
    """
    margin, mean_difference = pair_margins(logps, settings.beta)
    first_wins, second_wins = log_likelihoods(settings.loss_type, margin, mean_difference, settings.beta)
    own = self_label(margin, settings.policy_label, uniform)
    label = torch.where(is_self, own, label.to(margin.dtype))
    return label * first_wins + (1.0 - label) * second_wins, label, first_wins, second_wins, margin


def row_loss(logps: ResponseLogProbs, columns: RowColumns, settings: ObjectiveSettings) -> RowLoss:
    """The weighted loss of each row:

        w * r * ( -F + c1 * score_surrogate + c3 * label_surrogate )               pair loss and corrections T1, T3
        + kl_policy_ref * w_kl * mean over both responses of r_y * its surrogate   rows that the policy wrote
        + kl_ref_policy * w_ref * mean over both of log ref/pi                     rows sampled from the reference
        + nll * w_nll * -(log pi(y1) + log pi(y2))                                 rows with dataset responses

    r is 1 but for stale rows (responses of older weights) that carry a correction: there it is the importance ratio over both
    responses, r_y that of one response. A row without corrections has another objective, whose pairs are given, like DPO's.
    A row with weight 0 (abstained) contributes exactly zero. Source: SAIL eq. 8-13; objective.md 5.3.
    """
    is_self = columns.self_label
    value, label, first_wins, second_wins, margin = labelled_value(
        logps, columns.label, is_self, columns.uniform, settings
    )
    score = logps.sampled_first + logps.sampled_second
    pair = -value
    pair = pair + columns.score_coefficient * score_surrogate(value, columns.baseline, score)
    pair = pair + columns.label_coefficient * label_surrogate(first_wins, second_wins, label, margin)
    pair = torch.where(is_self & _unsure(margin, settings), torch.zeros_like(pair), pair)
    ratio, used = pair_ratio(logps, columns, settings)
    loss = columns.pair_weight * ratio * pair + penalties(logps, columns, settings)
    shown = torch.where(used, ratio, torch.full_like(ratio, float("nan")))
    return RowLoss(loss, -value.detach(), value.detach(), margin.detach(), label.detach(), shown)


def pair_ratio(
    logps: ResponseLogProbs, columns: RowColumns, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor]:
    """The importance ratio over both responses that multiplies T1, T2 and T3 of a row, and where it is one; (B,) each."""
    corrected = (columns.score_coefficient > 0) | (columns.label_coefficient > 0)
    used = columns.stale & corrected & (columns.pair_weight > 0)
    now = logps.sampled_first + logps.sampled_second
    then = columns.behaviour_first + columns.behaviour_second
    return importance_ratio(now, then, used, settings.ratio_clip), used


def _unsure(margin: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Rows whose self-label says too little: the likelier verdict is less probable than `min_confidence`; (B,) bool.

    Such a row's pair loss and corrections are left out, as if its F were the baseline; it stays in the denominator, because that
    is fixed before this forward. Under argmax a tie (h = 0) is no verdict either; for IPO, t = 1/2 would still have a gradient.
    """
    distance = (torch.sigmoid(margin.detach()) - 0.5).abs()
    unsure = distance < settings.min_confidence - 0.5
    return unsure | (margin.detach() == 0.0) if settings.policy_label == "argmax" else unsure


def penalties(logps: ResponseLogProbs, columns: RowColumns, settings: ObjectiveSettings) -> Tensor:
    """The three optional terms of `row_loss`, weighted; (B,)."""
    total = torch.zeros_like(logps.first)
    if settings.kl_policy_ref:
        first = kl_policy_ref_surrogate(logps.first - logps.ref_first, columns.kl_baseline_first, logps.first)
        second = kl_policy_ref_surrogate(
            logps.second - logps.ref_second, columns.kl_baseline_second, logps.second
        )
        clip = settings.ratio_clip
        first = first * importance_ratio(logps.sampled_first, columns.behaviour_first, columns.stale, clip)
        second = second * importance_ratio(
            logps.sampled_second, columns.behaviour_second, columns.stale, clip
        )
        total = total + settings.kl_policy_ref * columns.kl_weight * 0.5 * (first + second)
    if settings.kl_ref_policy:
        first = kl_ref_policy_loss(logps.first, logps.ref_first)
        second = kl_ref_policy_loss(logps.second, logps.ref_second)
        total = total + settings.kl_ref_policy * columns.ref_sample_weight * 0.5 * (first + second)
    if settings.nll:
        total = total + settings.nll * columns.nll_weight * nll_loss(logps.first, logps.second)
    return total
