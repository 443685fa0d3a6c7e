"""Rules about engines and survival: max_skipped_steps and vLLM's options. Part of sail.rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sail.fields import AlignmentFields
from sail.mixture import Mixture


def scale_errors(options: AlignmentFields) -> Iterator[str]:
    """What is out of range."""
    for name in ("max_skipped_steps", "vllm_tensor_parallel_size"):
        value: Any = getattr(options, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{name} must be a whole number of at least 1; it is {value!r}."
    share: Any = options.vllm_gpu_memory_utilization
    if (
        isinstance(share, bool)
        or not isinstance(share, int | float)
        or not 0 < share <= 1
        or math.isnan(share)
    ):
        yield f"vllm_gpu_memory_utilization is a share above 0 and at most 1; it is {share!r}."


QUANTIZED = (
    "vllm_mode: colocate cannot be used with quantized weights: vLLM would load the model in full precision, and sample from "
    "another one than is trained. Remove quantization, or set use_vllm: false."
)


def is_colocated(options: AlignmentFields) -> bool:
    """Whether vLLM samples in the training processes."""
    return options.use_vllm and options.vllm_mode == "colocate"


def vllm_fits(options: AlignmentFields, mixture: Mixture, have: object) -> str | None:
    """A rule of sail.rules."""
    if not options.use_vllm:
        if options.vllm_importance_sampling_correction or options.vllm_server_base_url:
            return (
                "vllm_importance_sampling_correction and vllm_server_base_url concern vLLM, which does not sample here. Set "
                "use_vllm: true, or remove them."
            )
        return None
    if not mixture.on_policy:
        return "use_vllm has nothing to do: no route samples responses. Remove it."
    if options.vllm_mode == "server" and not options.vllm_server_base_url:
        return "vllm_mode: server needs vllm_server_base_url, such as http://127.0.0.1:8000. Set it, or use vllm_mode: colocate."
    if options.vllm_mode == "server" and options.vllm_enable_sleep_mode:
        return "vllm_enable_sleep_mode is for vllm_mode: colocate. Remove it."
    return None
