"""From a prepared batch to the losses of its rows: one forward over all first, then all second responses."""

from __future__ import annotations

from typing import Any

from torch import nn

from sail.generation import response_scores
from sail.objective import ObjectiveSettings, ResponseLogProbs, RowColumns, RowLoss, row_loss

COLUMN_NAMES = tuple(RowColumns.__dataclass_fields__)
FLAGS = ("self_label", "stale")


def row_losses(
    model: nn.Module,
    batch: dict[str, Any],
    settings: ObjectiveSettings,
    temperature: float,
    chunk: int | None = None,
) -> RowLoss:
    """The objective of each row; `temperature` is that of the policy which the corrections differentiate, `chunk` the option
    logprob_chunk."""
    scores, sampled = response_scores(model, batch, temperature, chunk)
    rows = len(scores) // 2
    lengths, reference = batch["lengths"], batch["ref_logps"].to(scores.dtype)
    logps = ResponseLogProbs(
        first=scores[:rows],
        second=scores[rows:],
        ref_first=reference[:rows],
        ref_second=reference[rows:],
        first_length=lengths[:rows],
        second_length=lengths[rows:],
        sampled_first=sampled[:rows],
        sampled_second=sampled[rows:],
    )
    columns = {name: batch[name] if name in FLAGS else batch[name].to(scores.dtype) for name in COLUMN_NAMES}
    return row_loss(logps, RowColumns(**columns), settings)
