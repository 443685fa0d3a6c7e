"""A decoding loop for plain decoders: what `generate` does between two tokens, less what such a model has no need of.

`generate` prepares inputs, masks, processors and criteria anew for every token: a quarter of the time of a small model on a
CPU. Here the mask is made once and cut to length, the sampler draws directly, and rows that have ended leave the batch. The
texts are the same but for rounding; a model that is not plain, or for which a trial (trial.py) differs, is left to `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

from sail.generation.sampler import Drawn, Ends, draw

LEAVE = 0.25
"""Ended rows leave the batch once this share of it has ended: the cache is copied then."""
LOOK_EVERY = 8
"""Tokens between two looks at which rows have ended. A look waits for the device, so a CPU takes one at every token."""

_OWN = (
    "generate", "prepare_inputs_for_generation", "create_masks_for_generate", "_sample", "_prefill",
    "_prepare_cache_for_generation", "_prepare_position_ids_for_generation", "_update_model_kwargs_for_generation",
)  # fmt: skip
"""What a model may have of its own and must not: the loop would pass it by."""
_ARGUMENTS = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
_BY_THE_BATCH = {"dynamic", "longrope"}
"""Rotary positions that depend on the longest row of the batch."""


def is_plain(model: Any) -> bool:
    """Whether the loop may speak for `model.generate`: a decoder with full attention whose generation is transformers' own,
    unchanged."""
    for name in _OWN:
        if name in vars(model) or getattr(type(model), name, None) is not getattr(
            GenerationMixin, name, None
        ):
            return False
    return is_full_attention_decoder(model)


def is_full_attention_decoder(model: Any) -> bool:
    """A decoder on one device with full attention in every layer, whose rows do not depend on each other, and whose attention
    takes a mask as it is."""
    kind, config = type(model), model.config.get_text_config()
    if model.config.is_encoder_decoder or not inspect.signature(kind.forward).parameters.keys() >= _ARGUMENTS:
        return False
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    if _rope_types(getattr(config, "rope_parameters", None)) & _BY_THE_BATCH:
        return False
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _rope_types(parameters: Any) -> set[str]:
    """All kinds of rotary positions, also where each kind of layer has its own."""
    if not isinstance(parameters, dict):
        return set()
    own = {str(parameters[key]) for key in ("rope_type", "type") if key in parameters}
    return own.union(*map(_rope_types, parameters.values()))


@contextmanager
def without_gradient(model: nn.Module) -> Iterator[None]:
    """inference_mode (a tenth less time for a small model) where nothing made inside can stay: for transformers' own models with
    plain tensors as weights, whose buffers are made anew afterwards. Else no_grad: code of a model's own, or a quantised weight,
    may keep a tensor for a backward pass outside."""
    plain = all(type(one) is nn.Parameter and not hasattr(one, "ds_id") for one in model.parameters())
    if not (plain and type(model).__module__.startswith("transformers.")):
        with torch.no_grad():
            yield
        return
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_inference():
                    setattr(module, name, buffer.clone())


@dataclass(frozen=True)
class Batch:
    """N rows to be sampled. ids, mask: (U, P), the different prompts, left padded. which: (N,), the prompt of each row; where all
    differ, 0 to N - 1. uniforms: (N, T); row i's t-th token is drawn with uniforms[i, t], made by `drawable`."""

    ids: Tensor
    mask: Tensor
    which: Tensor
    uniforms: Tensor


@dataclass
class Spoken:
    """What N rows said. tokens, log_probs, tempered_log_probs: (N, t), with anything behind a row's end. lengths: (N,), the end
    included; 0 where there was none."""

    tokens: Tensor
    log_probs: Tensor
    tempered_log_probs: Tensor
    lengths: Tensor

    @classmethod
    def empty(cls, rows: int, tokens: int, device: torch.device) -> Spoken:
        """A table to write into."""
        ids = torch.zeros(rows, tokens, dtype=torch.long, device=device)
        log_probs = torch.zeros(rows, tokens, device=device)
        return cls(ids, log_probs, log_probs.clone(), ids.new_zeros(rows))

    def up_to(self, tokens: int) -> Spoken:
        """Its first columns."""
        return Spoken(
            self.tokens[:, :tokens],
            self.log_probs[:, :tokens],
            self.tempered_log_probs[:, :tokens],
            self.lengths,
        )


@dataclass
class _Speaking:
    """The n rows that are still in the batch. rows: which of the N they are. allowed: (n, 1, 1, P + T), where they may attend.
    last: (n, 1), the position of the prompt's last token. drawn: their tokens from step `since` on."""

    rows: Tensor
    uniforms: Tensor
    allowed: Tensor
    last: Tensor
    lengths: Tensor
    cache: DynamicCache
    since: int = 0
    drawn: list[Drawn] = field(default_factory=list)

    def write(self, said: Spoken) -> None:
        """Into the table of all rows: once, and not token by token."""
        steps = slice(self.since, self.since + len(self.drawn))
        said.tokens[self.rows, steps] = torch.stack([one.token for one in self.drawn], dim=1)
        said.log_probs[self.rows, steps] = torch.stack([one.log_prob for one in self.drawn], dim=1)
        said.tempered_log_probs[self.rows, steps] = torch.stack(
            [one.tempered_log_prob for one in self.drawn], dim=1
        )
        said.lengths[self.rows] = self.lengths
        self.since, self.drawn = steps.stop, []

    def keep(self, kept: Tensor) -> None:
        """These of them from now on."""
        self.cache.batch_select_indices(kept)
        self.rows, self.uniforms, self.allowed, self.last, self.lengths = (
            one[kept] for one in (self.rows, self.uniforms, self.allowed, self.last, self.lengths)
        )

    def who_stay(self) -> Tensor | None:
        """Which of them still speak; None if that is most of them."""
        speaking = self.lengths == 0
        left = int(speaking.sum())
        few = left == 0 or left <= (1 - LEAVE) * len(speaking)
        return speaking.nonzero().squeeze(1) if few else None


def decode(model: Any, batch: Batch, temperature: float, ends: Ends) -> Spoken:
    """Up to T tokens for each of the batch's N rows."""
    (number, limit), width = batch.uniforms.shape, batch.ids.shape[1]
    said = Spoken.empty(number, limit, batch.ids.device)
    active, logits = _begin(model, batch, said)
    look_every = _look_every(batch.ids.device)
    for step in range(limit):
        drawn = draw(logits, active.uniforms[:, step : step + 1], temperature)
        active.drawn.append(drawn)
        token = drawn.token
        ended = ends(token, lambda window: _newest(said, active, window))
        active.lengths = torch.where((active.lengths == 0) & ended, step + 1, active.lengths)
        stay = active.who_stay() if (step + 1) % look_every == 0 else None
        if step + 1 == limit or (stay is not None and len(stay) == 0):
            break
        if stay is not None:
            active.write(said)
            active.keep(stay)
            token = token[stay]
        allowed = active.allowed[..., : width + step + 1]
        logits = _logits(model, active.cache, token.unsqueeze(1), allowed, active.last + (step + 1))
    active.write(said)
    return said.up_to(step + 1)


def _begin(model: Any, batch: Batch, said: Spoken) -> tuple[_Speaking, Tensor]:
    """All rows behind their prompts, and the logits of their first tokens, (N, V). Each different prompt is read once."""
    positions = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    logits = _logits(model, cache, batch.ids, batch.mask, positions)
    if len(batch.ids) < len(batch.which):
        cache.batch_select_indices(batch.which)
    allowed = torch.cat([batch.mask[batch.which], torch.ones_like(said.tokens)], dim=1)
    active = _Speaking(
        torch.arange(len(batch.which), device=batch.ids.device),
        batch.uniforms,
        _as_attention_takes_it(model, allowed),
        positions[batch.which, -1:],
        said.lengths,
        cache,
    )
    return active, logits[batch.which]


def _look_every(device: torch.device) -> int:
    return 1 if device.type == "cpu" else LOOK_EVERY


def _newest(said: Spoken, active: _Speaking, window: int) -> Tensor:
    """The newest tokens of the rows in the batch, up to `window` of them, (n, t)."""
    since = torch.stack([one.token for one in active.drawn[-window:]], dim=1)
    rest = min(window - since.shape[1], active.since)
    if rest == 0:
        return since
    return torch.cat([said.tokens[active.rows, active.since - rest : active.since], since], dim=1)


def _as_attention_takes_it(model: Any, mask: Tensor) -> Tensor:
    """(N, K) -> (N, 1, 1, K): what transformers would make of it, bool for sdpa, something to add for eager."""
    allowed = mask.bool()[:, None, None, :]
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return allowed
    least = torch.finfo(model.dtype).min
    return torch.zeros_like(allowed, dtype=model.dtype).masked_fill_(~allowed, least)


def _logits(model: Any, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Of the last position, (n, V), in float32 like those that `generate` hands to a sampler."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    last: Tensor = output.logits[:, -1]
    return last.float()
