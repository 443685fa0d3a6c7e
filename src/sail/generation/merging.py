"""A LoRA adapter merged while sampling: decoding asks each layer for two small products less per token."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def adapter_merged(model: Any) -> Iterator[None]:
    """The block sees LoRA layers as plain ones, their weights W + s BA; afterwards the very tensors of before are back.

    PEFT merges into copies, so nothing is added and subtracted again: no rounding stays, however often this is done. Only in
    full precision: in half precision W + s BA would lose most of an adapter that has just begun, and under autocast too.
    """
    with ExitStack() as stack:
        for layer in mergeable_layers(model):
            stack.enter_context(_merged(layer))
        yield


def mergeable_layers(model: nn.Module) -> list[Any]:
    """The active LoRA layers whose weights can be merged without anybody noticing: whole, in float32 or float64 like the
    adapter's own, not shared with another module (tied embeddings)."""
    lora = sys.modules.get("peft.tuners.lora.layer")
    if lora is None:
        return []
    users = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, lora.LoraLayer)
        and not (layer.disable_adapters or layer.merged or any(layer.lora_bias.values()))
        and _is_plain(layer, users)
    ]


def _is_plain(layer: Any, users: Counter[int]) -> bool:
    base = layer.get_base_layer()
    alone = all(
        type(weight) is nn.Parameter and weight.numel() > 0 and users[id(weight)] == 1
        for weight in base.parameters()
    )
    kinds = {weight.dtype for weight in layer.parameters()}
    full = kinds in ({torch.float32}, {torch.float64})
    return (
        type(base) is nn.Linear and alone and full and not torch.is_autocast_enabled(base.weight.device.type)
    )


@contextmanager
def _merged(layer: Any) -> Iterator[None]:
    kept = [(weight, weight.data) for weight in layer.get_base_layer().parameters()]
    for weight, values in kept:
        weight.data = values.clone()
    try:
        layer.merge()
        yield
    finally:
        layer.unmerge()
        for weight, values in kept:
            weight.data = values
