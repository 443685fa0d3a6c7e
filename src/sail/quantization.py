"""Loading a model with its frozen weights in few bits, for LoRA on top (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from sail.errors import ConfigError, MissingExtraError
from sail.stage_config import QuantizationSection


def loading_arguments(section: QuantizationSection | None) -> dict[str, Any]:
    """What from_pretrained gets beside the name: nothing without a section, else the quantization and a place for the weights.

    4-bit kernels want the weights on the device at once, so they go to this process's GPU, or to main memory without one.
    Raises MissingExtraError without bitsandbytes, ConfigError on a key that transformers.BitsAndBytesConfig does not know.
    """
    if section is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            'quantization needs bitsandbytes. Install it: pip install "sail-align[qlora]", or remove the section quantization.'
        )
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig

    given = section.model_dump()
    given["bnb_4bit_compute_dtype"] = getattr(torch, section.bnb_4bit_compute_dtype)
    known = BitsAndBytesConfig().to_dict().keys()
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ConfigError(f"quantization.{unknown[0]} is none of transformers.BitsAndBytesConfig.")
    place = PartialState().process_index if torch.cuda.is_available() else "cpu"
    return {"quantization_config": BitsAndBytesConfig(**given), "device_map": {"": place}}
