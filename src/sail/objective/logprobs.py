"""Log-probabilities of response tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def response_log_probs(
    logits: Tensor, input_ids: Tensor, response_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """log pi(y|x) per sequence: the sum over response tokens, at least float32; (N,), nats.

    logits (N, L, V): position i predicts token i + 1. input_ids (N, L). response_mask (N, L) is 1 on response tokens, the
    EOS included exactly where one was emitted. Only response positions are normalised: the (N, L, V) log-softmax over
    prompts and padding is never made. A sequence with an empty mask has log-probability 0.
    """
    mask = response_mask[:, 1:].bool()
    picked = logits[:, :-1][mask]
    if picked.dtype in (torch.float16, torch.bfloat16):
        picked = picked.float()
    if temperature != 1.0:
        picked = picked / temperature
    token_log_probs = -functional.cross_entropy(picked, input_ids[:, 1:][mask], reduction="none")
    per_token = torch.zeros(mask.shape, dtype=picked.dtype, device=logits.device)
    return per_token.masked_scatter(mask, token_log_probs).sum(dim=1)
