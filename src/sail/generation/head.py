"""The language model head apart from the body: logits of chosen positions only, in chunks, inside the model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sail.generation.unwrap import unwrapped
from sail.objective import chunk_rows, log_probs_of_hidden

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Head:
    """The module that makes logits, and what the model does to each of them afterwards: scaling, soft cap."""

    module: nn.Module
    after: Elementwise


_found: WeakKeyDictionary[nn.Module, Head | None] = WeakKeyDictionary()


def find_head(model: Any) -> Head | None:
    """The head of a model, or None where log-probs must come from the model's own logits.

    Decided once per model, by comparison: a short forward in which the head's output is replaced by numbers of all sizes must
    return, bit for bit, those numbers under one of `elementwise`. So a model that masks, adds or reorders logits is left alone.
    """
    if not _can_be_hooked(model):
        return None
    inner = unwrapped(model)
    known = _found.get(inner)
    if inner not in _found or (known is not None and known.module is not inner.get_output_embeddings()):
        _found[inner] = _compared(inner)
    return _found[inner]


def _can_be_hooked(model: Any) -> bool:
    """Not through wrappers that run copies of the model, or compiled code; not with weights that lie elsewhere (ZeRO-3), and not
    under FSDP2, where torch 2.13 dies in the backward pass of what the hook puts beside the model's own output."""
    inner = unwrapped(model)
    copies = isinstance(model, nn.DataParallel) or any(
        hasattr(one, "_orig_mod")
        or type(one).__name__ == "FullyShardedDataParallel"
        or any(base.__name__ == "FSDPModule" for base in type(one).__mro__)
        for one in (model, inner)
    )
    if copies or not hasattr(inner, "get_output_embeddings") or inner.get_output_embeddings() is None:
        return False
    return not any(hasattr(parameter, "ds_id") or parameter.is_meta for parameter in inner.parameters())


def _compared(model: Any) -> Head | None:
    module = model.get_output_embeddings()
    try:
        seen, returned = _probed(model, module)
    except Exception:  # Whatever a strange model raises: its own logits are always right.
        return None
    if len(seen) != 1:
        return None
    ((hidden, output, numbers, apart),) = seen
    if hidden.shape[:2] != (1, 2) or returned.shape != numbers.shape:
        return None
    if not _nearly(apart, output.flatten(0, 1)):
        return None
    for after in elementwise(model):
        if _equal(after(numbers), returned):
            return Head(module, after)
    return None


def _probed(model: Any, module: nn.Module) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """What the head saw and said in a forward of two positions: (hidden, logits, the numbers put in their place, the logits of
    the positions without their batch) of each call; and what the model returned. All in the precision of the forward."""
    seen: list[tuple[Tensor, ...]] = []
    inside = False

    def replace(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        nonlocal inside
        if inside:
            return None
        inside = True
        try:
            apart = module(inputs[0].flatten(0, 1))
        finally:
            inside = False
        numbers = _all_sizes(output)
        seen.append((inputs[0], output, numbers, apart))
        return numbers.clone()

    ids = torch.arange(2, device=next(model.parameters()).device).unsqueeze(0)
    was_training = model.training
    model.eval()
    handle = module.register_forward_hook(replace)
    try:
        with torch.no_grad():
            returned = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        handle.remove()
        model.train(was_training)
        # An autocast around us must not go on with the weights that it cast without gradient here.
        torch.clear_autocast_cache()
    return seen, returned


def _all_sizes(like: Tensor) -> Tensor:
    """Numbers of both signs from about 1e-3 to 300 in the shape of `like`, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    size = 10.0 ** (torch.rand(like.shape, generator=generator) * 5.5 - 3.0)
    return (size * torch.randn(like.shape, generator=generator).sign()).to(like)


def _nearly(apart: Tensor | None, there: Tensor) -> bool:
    """Whether the head treats positions alone and alike: rows without their batch give the same logits, rounding aside."""
    if apart is None or apart.shape != there.shape:
        return False
    return torch.allclose(apart.float(), there.float(), rtol=0.05, atol=0.01)


def elementwise(model: Any) -> Iterator[Elementwise]:
    """What a model may do to a logit after the head: nothing, or scale or soft-cap it by one of its own numbers."""
    yield lambda logits: logits
    yield lambda logits: logits.float()
    for number in _numbers({**vars(model), "config": model.config.to_dict()}):
        for name in (_times, _divided, _soft_capped):
            yield _with_number(name, number)


def _with_number(function: Callable[[Tensor, float], Tensor], number: float) -> Elementwise:
    return lambda logits: function(logits, number)


def _times(logits: Tensor, number: float) -> Tensor:
    return logits * number


def _divided(logits: Tensor, number: float) -> Tensor:
    return logits / number


def _soft_capped(logits: Tensor, number: float) -> Tensor:
    return torch.tanh(logits / number) * number


def _numbers(values: Any) -> list[float]:
    """The different numbers in nested dicts, without 0, in order."""
    found: dict[float, None] = {}
    for value in values.values():
        if isinstance(value, dict):
            found.update(dict.fromkeys(_numbers(value)))
        elif isinstance(value, int | float) and not isinstance(value, bool) and value:
            found[value] = None
    return list(found)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Bit for bit, in the wider of both types: mixed precision may have widened what the model returns."""
    wide = torch.promote_types(ours.dtype, theirs.dtype)
    return torch.equal(ours.to(wide), theirs.to(wide))


@dataclass
class HeadPass:
    """One forward in which the head sees response positions only, and leaves their log-probs here.

    places (M,): positions in the flat (N, L) hidden states. tokens (M,): the ids that they predict.
    """

    head: Head
    places: Tensor
    tokens: Tensor
    temperature: float
    chunk: int | None
    log_probs: Tensor | None = None
    tempered: Tensor | None = None
    _hidden: Tensor | None = field(default=None, repr=False)
    _inside: bool = field(default=False, repr=False)

    @contextmanager
    def hooked(self) -> Iterator[HeadPass]:
        """While in it, the model's forward returns no logits, but (N, 1, 1) numbers that hang in its graph and mean nothing."""
        handles = [
            self.head.module.register_forward_pre_hook(self._before),
            self.head.module.register_forward_hook(self._after),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._hidden = None

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if self._inside:
            return None
        self._hidden = inputs[0]
        return (inputs[0][:1, :1],)

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = self._hidden
        if self._inside or hidden is None:
            return None
        self._inside = True
        try:
            self.log_probs, self.tempered = log_probs_of_hidden(
                hidden.flatten(0, 1).index_select(0, self.places),
                self.tokens,
                self._logits,
                rows=chunk_rows(len(self.places), output.shape[-1], self.chunk),
                temperature=self.temperature,
                random=module.training and _drops(module),
            )
        finally:
            self._inside = False
        # DataParallel looks for unused parameters in the graph of what is returned: the head must hang in it. Nothing is added
        # up, so a log-prob that is not finite does not spread.
        return hidden[:, :1, :1] + self.log_probs[:0].sum().to(hidden.dtype)

    def _logits(self, hidden: Tensor) -> Tensor:
        """The head called as the module that it is: adapters, sharding and quantisation do their part."""
        device = hidden.device.type
        if not torch.is_autocast_enabled(device):
            return self.head.after(self.head.module(hidden))
        # A cast of the weight that all chunks share would add up their gradients in half precision.
        with torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False):
            return self.head.after(self.head.module(hidden))


def _drops(module: nn.Module) -> bool:
    return any(isinstance(one, nn.Dropout) and one.p > 0 for one in module.modules())
