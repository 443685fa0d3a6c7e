"""The mathematics: tensors in, per-example tensors out. No model, no device, no logging, no routes.

Reading order: labels (who wins), losses (F), corrections (T1, T3), kl, baselines, ratios (stale rows), then objective, which
adds them up.
Source: SAIL, arXiv 2406.15567; the follow-up arXiv 2606.31524 for the KL penalties. docs/paper_map.md maps the symbols.
"""

from sail.objective.baselines import leave_one_out
from sail.objective.corrections import label_surrogate, score_surrogate
from sail.objective.kl import kl_estimate, kl_policy_ref_surrogate, kl_ref_policy_loss, nll_loss
from sail.objective.labels import orient, self_label
from sail.objective.logprobs import chunk_rows, log_probs_of_hidden, picked_log_probs, response_log_probs
from sail.objective.losses import log_likelihoods
from sail.objective.objective import ObjectiveSettings, ResponseLogProbs, RowColumns, RowLoss, row_loss
from sail.objective.ratios import effective_sample_size, importance_ratio

__all__ = [
    "ObjectiveSettings",
    "ResponseLogProbs",
    "RowColumns",
    "RowLoss",
    "chunk_rows",
    "effective_sample_size",
    "importance_ratio",
    "kl_estimate",
    "kl_policy_ref_surrogate",
    "kl_ref_policy_loss",
    "label_surrogate",
    "leave_one_out",
    "log_likelihoods",
    "log_probs_of_hidden",
    "nll_loss",
    "orient",
    "picked_log_probs",
    "response_log_probs",
    "row_loss",
    "score_surrogate",
    "self_label",
]
