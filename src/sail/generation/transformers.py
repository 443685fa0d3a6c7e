"""Sampling in process, from a transformers model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from sail import seeds
from sail.errors import SailError
from sail.generation.base import Generator, Sampled, SamplingSettings, SeedKey
from sail.generation.decoding import Batch, Spoken, decode, is_plain, without_gradient
from sail.generation.merging import adapter_merged
from sail.generation.sampler import EndRecorder, Ends, RowSeededSampler, StopStrings, drawable
from sail.generation.trial import loop_agrees

NAN = "The model's logits are NaN, so nothing can be sampled. Look at the weights, or the learning rate."


class TransformersGenerator(Generator):
    """All rows (or `batch_size` of them) at once, left padded, with the KV cache on: by the decoding loop where the model is
    plain and the loop says what `generate` says, else by `generate`.

    `model` is a callable that returns the unwrapped model of the moment, so that the newest weights speak.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        tokenizer: Any,
        settings: SamplingSettings,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.precision = precision
        self._checked = False
        self._plain: bool | None = None

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]) -> list[Sampled]:
        """One response per prompt; see Generator."""
        if not prompts:
            return []
        size = self.settings.batch_size or len(prompts)
        # Rows of like length share a call, so that left padding stays short.
        order = (
            sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
            if size < len(prompts)
            else range(len(prompts))
        )
        order = list(order)
        responses: list[Sampled | None] = [None] * len(prompts)
        with self.precision(), sampling_mode(self.model()) as model, adapter_merged(model):
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                batch = self._respond(model, [prompts[row] for row in rows], [keys[row] for row in rows])
                for row, response in zip(rows, batch, strict=True):
                    responses[row] = response
        return [response for response in responses if response is not None]

    def _respond(
        self, model: Any, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]
    ) -> list[Sampled]:
        settings = self.settings
        device = next(model.parameters()).device
        numbers = [seeds.uniforms(settings.max_new_tokens, *key) for key in keys]
        # Each different prompt once: `different` has them in the order in which they first come.
        different = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        which = torch.tensor([different[tuple(prompt)] for prompt in prompts], device=device)
        ids, mask = left_pad(list(different), settings.pad_id, device)
        batch = Batch(ids, mask, which, drawable(numbers, device))
        stops = StopStrings(self.tokenizer, settings.stop_strings) if settings.stop_strings else None
        ends = Ends(settings.eos_ids, stops, device)
        if self._plain is None:
            self._plain = is_plain(model) and self._agrees(model)
        if not self._plain:
            return self._collect(self._generate(model, batch, ends))
        with without_gradient(model):
            spoken = decode(model, batch, settings.temperature, ends)
        return self._collect(spoken)

    def _agrees(self, model: Any) -> bool:
        nobody = Ends((), None, next(model.parameters()).device)
        return loop_agrees(
            model, lambda batch: self._generate(model, batch, nobody), self.settings.temperature
        )

    def _generate(self, model: Any, batch: Batch, ends: Ends) -> Spoken:
        """By `model.generate`, whatever the model is."""
        input_ids, attention_mask = batch.ids[batch.which], batch.mask[batch.which]
        sampler = RowSeededSampler(batch.uniforms, self.settings.temperature)
        recorder = EndRecorder(len(input_ids), ends, input_ids.device)
        with first_logits(model) as raw:
            output = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=neutral_config(
                    batch.uniforms.shape[1], ends.eos_ids.tolist(), self.settings.pad_id
                ),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([recorder]),
                # Sharded weights are whole by now (training/whole.py): no process waits for another one's longest response.
                synced_gpus=False,
            )
        if not self._checked:
            check_untouched(sampler, raw[0])
            self._checked = True
        return Spoken(
            output[:, input_ids.shape[1] :],
            torch.stack(sampler.log_probs, dim=1),
            torch.stack(sampler.tempered_log_probs, dim=1),
            recorder.lengths,
        )

    def _collect(self, spoken: Spoken) -> list[Sampled]:
        steps = spoken.tokens.shape[1]
        ended = spoken.lengths > 0
        lengths = torch.where(ended, spoken.lengths, steps)
        inside = torch.arange(steps).unsqueeze(0) < lengths.cpu().unsqueeze(1)
        totals, tempered = (
            torch.where(inside, one.cpu().double(), 0.0).sum(dim=1).tolist()
            for one in (spoken.log_probs, spoken.tempered_log_probs)
        )
        if any(map(math.isnan, totals)):
            raise SailError(NAN)
        ids = [
            tuple(row[:length]) for row, length in zip(spoken.tokens.tolist(), lengths.tolist(), strict=True)
        ]
        texts = self.tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True)
        return [
            Sampled(row, text, total, not end, mu)
            for row, text, total, end, mu in zip(ids, texts, totals, ended.tolist(), tempered, strict=True)
        ]


@contextmanager
def sampling_mode(model: Any) -> Iterator[Any]:
    """The model in eval mode, without gradient, and without its own generation defaults, which would fill every unset field
    of ours (top_k, temperature, repetition_penalty have leaked that way)."""
    was_training, defaults = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.generation_config = defaults
        model.train(was_training)


@contextmanager
def first_logits(model: Any) -> Iterator[list[Tensor]]:
    """Collects the logits of the block's first forward pass, last position, (N, V): a copy, taken before `generate` can touch
    them (the raw logits that it returns itself are those that an in-place processor has changed)."""
    raw: list[Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        if not raw:
            raw.append(output.logits[:, -1].clone())

    handle = model.register_forward_hook(keep)
    try:
        yield raw
    finally:
        handle.remove()


def neutral_config(tokens: int, eos_ids: list[int], pad_id: int) -> GenerationConfig:
    """Greedy decoding, because the sampler leaves one token possible; nothing that changes scores."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=eos_ids or None,
        pad_token_id=pad_id,
        use_cache=True,
    )


def check_untouched(sampler: RowSeededSampler, raw: Tensor) -> None:
    """Once per generator: the scores that the sampler saw are the model's raw logits, so that log-probs are the policy's own."""
    seen = sampler.first_scores
    if torch.isnan(raw).any():
        raise SailError(NAN)
    if seen is None or not torch.equal(seen, raw.to(seen.dtype)):
        raise SailError(
            "The model's generate() changes scores before sampling (a logits processor of its own, or a watermark), so sampled "
            "responses would not come from the policy being trained. Remove it from the model's generation settings."
        )


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as (N, P) ids and mask, right aligned."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
