"""Drawing tokens from row-seeded numbers, and noticing where a row ends. Plugs into `generate` as its public hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


@dataclass(frozen=True)
class Drawn:
    """One token of each row. token: (N,) ids. log_prob, tempered_log_prob: (N,), log pi and log mu (pi at the temperature)."""

    token: Tensor
    log_prob: Tensor
    tempered_log_prob: Tensor


def drawable(numbers: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Numbers in [0, 1) as `draw` takes them, (N, T): far enough from 1 that rounding cannot take them behind the last token."""
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    uniforms = torch.from_numpy(np.stack(numbers)).to(device, dtype)
    return uniforms.clamp(max=1.0 - 2.0 * torch.finfo(dtype).eps)


def draw(scores: Tensor, uniform: Tensor, temperature: float) -> Drawn:
    """Inverse-CDF sampling: each row draws the token whose stretch of the cumulated probabilities holds its own number, so the
    global random state is never touched. scores: (N, V) raw logits; uniform: (N, 1), by `drawable`."""
    log_probs = torch.log_softmax(scores, dim=-1)
    tempered = log_probs if temperature == 1.0 else torch.log_softmax(scores / temperature, dim=-1)
    cumulated = tempered.exp().cumsum(dim=-1, dtype=uniform.dtype)
    token = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
    # Where probabilities are NaN no position is found: some token, whose log-prob is NaN, and the caller says so.
    token = token.clamp(max=scores.shape[1] - 1)
    log_prob = log_probs.gather(1, token).squeeze(1)
    same = tempered is log_probs
    return Drawn(token.squeeze(1), log_prob, log_prob if same else tempered.gather(1, token).squeeze(1))


class RowSeededSampler(LogitsProcessor):
    """`draw` inside `generate`: row i draws its t-th token with its own number u[i, t], by leaving only that token possible.

    Used with do_sample=False. It keeps the (N, T) log-probs of the drawn tokens instead of the (N, T, V) scores. Scores must be
    unprocessed (checked by the caller).
    """

    def __init__(self, uniforms: Tensor, temperature: float) -> None:
        self.uniforms = uniforms
        self.temperature = temperature
        self.log_probs: list[Tensor] = []
        self.tempered_log_probs: list[Tensor] = []
        self.first_scores: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (N, V) -> the same shape with everything but the drawn token at -inf."""
        step = len(self.log_probs)
        if step == 0:
            self.first_scores = scores
        drawn = draw(scores, self.uniforms[:, step : step + 1], self.temperature)
        self.log_probs.append(drawn.log_prob)
        self.tempered_log_probs.append(drawn.tempered_log_prob)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn.token.unsqueeze(1), 0.0)


class StopStrings:
    """Which responses hold a stop string. Decodes the newest tokens: transformers' own criterion needs a tokenizer that can
    write any text, and may find the beginning of a stop string in the prompt."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = list(strings)
        # A stop string has at most as many tokens as characters; a few more cover tokens that show as nothing.
        self.window = max(map(len, self.strings)) + 8

    def found(self, responses: Tensor) -> Tensor:
        """responses: (N, t), the last `window` ids, or all there are, without prompts -> (N,) bool."""
        texts = self.tokenizer.batch_decode(responses.tolist(), skip_special_tokens=True)
        return torch.tensor(
            [any(one in text for one in self.strings) for text in texts], device=responses.device
        )


class Ends:
    """Which rows end with their newest token: by an EOS, or because they hold a stop string."""

    def __init__(
        self, eos_ids: Sequence[int], stop_strings: StopStrings | None, device: torch.device
    ) -> None:
        self.eos_ids = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
        self.stop_strings = stop_strings

    def __call__(self, newest: Tensor, up_to: Callable[[int], Tensor]) -> Tensor:
        """newest: (N,) ids; up_to(n): the last n ids of the responses, or all they have, without prompts -> (N,) bool."""
        ended = torch.isin(newest, self.eos_ids)
        if self.stop_strings is None:
            return ended
        return ended | self.stop_strings.found(up_to(self.stop_strings.window))


class EndRecorder(StoppingCriteria):
    """Where each row ended; 0 while it has not. Never inferred from pad ids: pad may be an EOS."""

    def __init__(self, rows: int, ends: Ends, device: torch.device) -> None:
        self.ends = ends
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Which rows are finished, (N,) bool."""
        self.step += 1
        ended = self.ends(input_ids[:, -1], lambda window: input_ids[:, -min(self.step, window) :])
        self.lengths = torch.where((self.lengths == 0) & ended, self.step, self.lengths)
        return self.lengths > 0
