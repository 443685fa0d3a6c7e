"""Peak bytes of the loss at a large vocabulary: the model's own logits against chunks, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from peak import PeakBytes
from transformers import LlamaConfig, LlamaForCausalLM

from sail.data.collate import pad_pairs
from sail.generation.scoring import response_scores


def loss_bytes(
    vocabulary: int,
    *,
    rows: int = 8,
    length: int = 512,
    chunk: int | None = None,
    width: int = 64,
    dtype: torch.dtype = torch.float32,
) -> dict[str, int]:
    """peak: live bytes above weights and their gradients, from ids to the gradients of log pi. largest: the biggest tensor.

    A body of one narrow layer, so that what is seen is the head's work; tied embeddings, as most small models have them. Every
    position but the first is of a response.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype)
    # The comparison that decides about the head is made once per model, before.
    response_scores(model, _batch(2, 4, vocabulary), chunk=chunk)[0].sum().backward()
    batch = _batch(rows, length, vocabulary)
    weights = list(model.parameters())
    gradients = [weight.grad for weight in weights]
    with PeakBytes(start=(weights, gradients)) as peak:
        fixed = peak.now
        response_scores(model, batch, chunk=chunk)[0].sum().backward()
    return {"peak": peak.peak - fixed, "largest": peak.largest}


def _batch(rows: int, length: int, vocabulary: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (rows, length), generator=generator).tolist()
    return {**pad_pairs([(row[:1], row[1:]) for row in ids], 0), "start": 1}


def compared(vocabulary: int, *, chunk: int | None = None, **shape: Any) -> dict[str, Any]:
    """Both paths, and the chunks' share of the plain peak."""
    plain, chunks = (loss_bytes(vocabulary, chunk=one, **shape) for one in (0, chunk))
    share = chunks["peak"] / plain["peak"]
    return {"vocabulary": vocabulary, **shape, "plain": plain, "chunks": chunks, "share": share}
