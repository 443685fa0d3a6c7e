"""Log-probabilities of response tokens, from logits, or from hidden states in chunks that are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**25
"""Logits that are made at once where the chunk is automatic: 128 MiB in float32."""


def response_log_probs(
    logits: Tensor, input_ids: Tensor, response_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """log pi(y|x) per sequence: the sum over response tokens, at least float32; (N,), nats.

    logits (N, L, V): position i predicts token i + 1. input_ids (N, L). response_mask (N, L) is 1 on response tokens, the
    EOS included exactly where one was emitted. Only response positions are normalised: the (N, L, V) log-softmax over
    prompts and padding is never made. A sequence with an empty mask has log-probability 0.
    """
    mask = response_mask[:, 1:].bool()
    token_log_probs = picked_log_probs(logits[:, :-1][mask], input_ids[:, 1:][mask], temperature)
    per_token = torch.zeros(mask.shape, dtype=token_log_probs.dtype, device=logits.device)
    return per_token.masked_scatter(mask, token_log_probs).sum(dim=1)


def picked_log_probs(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, *, once: bool = False
) -> Tensor:
    """log softmax(logits / temperature) at the given tokens; logits (M, V), tokens (M,) -> (M,), nats, at least float32.

    `once`: this graph is gone through backwards once only, as a checkpointed chunk is, so the backward pass may write into it.
    """
    picked: Tensor = _PickedLogProb.apply(logits, tokens, temperature, once)
    return picked


class _PickedLogProb(torch.autograd.Function):
    """d log p(token) / d logits = (one_hot(token) - softmax) / T. The log-softmax is kept for it, and with `once` turned into the
    gradient in its own place: torch's cross entropy makes two more tensors of that size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, once: bool) -> Tensor:
        half = logits.dtype in (torch.float16, torch.bfloat16)
        if temperature != 1.0:
            logits = (logits.float() if half else logits) / temperature
        normalised = torch.log_softmax(logits, dim=-1, dtype=torch.float32 if half else logits.dtype)
        ctx.save_for_backward(normalised, tokens)
        ctx.temperature, ctx.once = temperature, once
        return normalised.gather(1, tokens.unsqueeze(1)).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        normalised, tokens = ctx.saved_tensors
        weight = (gradient / ctx.temperature).unsqueeze(1)
        softmax = normalised.exp_() if ctx.once else normalised.exp()
        return softmax.mul_(-weight).scatter_add_(1, tokens.unsqueeze(1), weight), None, None, None


def chunk_rows(positions: int, vocabulary: int, chunk: int | None) -> int | None:
    """Response positions of one chunk, or None for all at once without recomputing. `chunk` None decides: more than
    CHUNK_ELEMENTS logits go in chunks of so many."""
    if chunk is not None:
        return chunk
    if positions * vocabulary <= CHUNK_ELEMENTS:
        return None
    return max(CHUNK_ELEMENTS // vocabulary, 1)


def log_probs_of_hidden(
    hidden: Tensor,
    tokens: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    rows: int | None,
    temperature: float = 1.0,
    random: bool = False,
) -> tuple[Tensor, Tensor]:
    """(log pi, log mu) of each token, (M,) nats; mu is pi at `temperature`, the same tensor at 1.

    hidden (M, d), tokens (M,); head: (m, d) -> logits (m, V). With `rows` the head is applied to so many positions at a time
    and again in the backward pass, so that the largest tensor is rows x V, the gradient of the logits included. `random`: the
    head draws random numbers (dropout), which the second time must be the same.
    """

    chunked = rows is not None

    def scored(part: Tensor, its_tokens: Tensor) -> tuple[Tensor, ...]:
        logits = head(part)
        plain = picked_log_probs(logits, its_tokens, once=chunked)
        if temperature == 1.0:
            return (plain,)
        return plain, picked_log_probs(logits, its_tokens, temperature, once=chunked)

    if rows is None or not len(hidden):
        found = scored(hidden, tokens)
        return found[0], found[-1]
    kept = torch.is_grad_enabled()
    parts = [
        checkpoint(scored, part, ids, use_reentrant=False, preserve_rng_state=random)
        if kept
        else scored(part, ids)
        for part, ids in zip(hidden.split(rows), tokens.split(rows), strict=True)
    ]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return columns[0], columns[-1]
