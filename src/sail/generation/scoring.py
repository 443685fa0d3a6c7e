"""Log-probs of given responses under a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sail.data.collate import pad_pairs, response_positions
from sail.generation.head import HeadPass, find_head
from sail.generation.joined import join, mask_in_type_of_queries
from sail.generation.unwrap import unwrapped
from sail.objective import response_log_probs

__all__ = ["accepts_logits_to_keep", "response_scores", "score_sequences", "unwrapped"]


def response_scores(
    model: Any, batch: dict[str, Any], temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """(log pi(y|x), log mu(y|x)) of each sequence, (N,) nats; mu is pi at `temperature`, the same tensor at 1.

    One forward of `model` as it is given, wrappers included. The head sees response positions only, `chunk` of them at a time
    (option logprob_chunk: None decides by size, 0 takes the model's own logits); pairs have their prompt read once (joined.py).
    """
    head = None if chunk == 0 else find_head(model)
    if head is None:
        return _from_logits(model, batch, temperature)
    ids = batch["input_ids"]
    places = batch["positions"] if "positions" in batch else response_positions(batch["response_mask"])
    tokens = ids.flatten().index_select(0, places + 1)
    pairs = join(unwrapped(model), batch, places)
    inputs = (
        {name: batch[name] for name in ("input_ids", "attention_mask")} if pairs is None else pairs.inputs
    )
    predicting = places if pairs is None else pairs.places
    cast = nullcontext() if pairs is None else mask_in_type_of_queries(unwrapped(model))
    with HeadPass(head, predicting, tokens, temperature, chunk).hooked() as done, cast:
        returned = model(**inputs, use_cache=False).logits
    assert done.log_probs is not None
    assert done.tempered is not None
    # What the model returned belongs into the graph of the loss: wrappers have hung hooks on it.
    nothing = returned.sum() * 0.0
    scores = _summed(done.log_probs, places, ids) + nothing
    return scores, scores if temperature == 1.0 else _summed(done.tempered, places, ids) + nothing


def _summed(log_probs: Tensor, places: Tensor, ids: Tensor) -> Tensor:
    """Sums over each sequence's tokens, (N,): by place, because adding up by index is not deterministic on every device."""
    flat = torch.zeros(ids.numel(), dtype=log_probs.dtype, device=log_probs.device)
    return flat.index_copy(0, places, log_probs).view(ids.shape).sum(dim=1)


def _from_logits(model: Any, batch: dict[str, Any], temperature: float) -> tuple[Tensor, Tensor]:
    """The same from the model's logits. They are only made from the first response position of the batch on: `batch["start"]`
    positions come before."""
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
    chunk: int | None = None,
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
                rows,
                response_scores(model, batch, temperature, chunk=chunk)[1].cpu().double().tolist(),
                strict=True,
            ):
                scores[row] = value
    model.train(was_training)
    return scores


def accepts_logits_to_keep(model_class: Any) -> bool:
    """Whether the architecture can make the logits of the last positions only (most, not all, of transformers')."""
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters
