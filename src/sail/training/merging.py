"""An adapter added into the full weights of its base: for adapters on disk, and for bases that were trained on in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sail.errors import ConfigError, MissingExtraError


def in_few_bits(model: Any) -> bool:
    """Whether the model's frozen weights are quantised: merging into those would round the adapter away."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(getattr(inner, "is_quantized", False))


def merged_with_base(adapter: Path, base: str) -> tuple[Any, torch.dtype]:
    """The base with the adapter of a folder added in, in float32 in main memory, and the type that the base is stored in.

    W = W_base + (alpha / r) B A. Needs four bytes of main memory per parameter. Raises ConfigError where the base cannot be read
    from safetensors, has only few bits itself, or is not what the adapter was trained on.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError('Merging needs PEFT. Install it: pip install "sail-align[lora]"') from error
    try:
        model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The base {base!r} could not be loaded: {_first_line(error)} Give the model that the adapter was trained on."
        ) from error
    if in_few_bits(model):
        raise ConfigError(
            f"{base} is stored in few bits; an adapter is merged into full weights. Give --base."
        )
    stored = model.dtype
    try:
        adapted = PeftModel.from_pretrained(model.float(), str(adapter))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{adapter} does not fit {base}: {_first_line(error)} Give the model that it was trained on with --base."
        ) from error
    ordinary = adapted.merge_and_unload()
    ordinary.config.use_cache = True
    return ordinary, stored


def base_of(model: Any) -> str:
    """The folder or hub name that the base under an adapter was loaded from."""
    return str(next(iter(model.peft_config.values())).base_model_name_or_path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
