"""Log-probs of given responses under a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sail.data.collate import pad_pairs
from sail.objective import response_log_probs


def response_scores(model: Any, batch: dict[str, Any], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(log pi(y|x), log mu(y|x)) of each sequence, (N,) nats; mu is pi at `temperature`, the same tensor at 1.

    One forward. Logits are only made from the first response position of the batch on: `batch["start"]` positions come before.
    """
    start = max(batch["start"] - 1, 0)
    ids, mask = batch["input_ids"], batch["response_mask"]
    arguments: dict[str, Any] = {}
    if start and accepts_logits_to_keep(type(unwrapped(model))):
        arguments["logits_to_keep"] = ids.shape[1] - start
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False, **arguments).logits
    skipped = ids.shape[1] - logits.shape[1]
    log_probs = response_log_probs(logits, ids[:, skipped:], mask[:, skipped:])
    if temperature == 1.0:
        return log_probs, log_probs
    return log_probs, response_log_probs(logits, ids[:, skipped:], mask[:, skipped:], temperature)


def score_sequences(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    *,
    pad_id: int,
    batch_size: int,
    temperature: float = 1.0,
) -> list[float]:
    """log mu(y|x), pi at `temperature`, in nats of any number of (prompt ids, response ids), without gradient, in batches of
    like length."""
    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda row: -sum(map(len, sequences[row])))
    scores = [0.0] * len(sequences)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch: dict[str, Any] = dict(pad_pairs([sequences[row] for row in rows], pad_id))
            batch = {key: value.to(device) for key, value in batch.items()}
            batch["start"] = min(len(sequences[row][0]) for row in rows)
            for row, value in zip(
                rows, response_scores(model, batch, temperature)[1].cpu().double().tolist(), strict=True
            ):
                scores[row] = value
    model.train(was_training)
    return scores


def unwrapped(model: Any) -> Any:
    """The transformers model inside data-parallel and PEFT wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def accepts_logits_to_keep(model_class: Any) -> bool:
    """Whether the architecture can make the logits of the last positions only (most, not all, of transformers')."""
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters
