"""A LoRA adapter as a folder that another engine can load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sail.errors import ConfigError


def has_adapter(model: Any) -> bool:
    """Whether the model carries a PEFT adapter."""
    return hasattr(model, "peft_config")


def rank_of(model: Any) -> int:
    """The rank r of the adapter; ConfigError for a kind that vLLM does not load."""
    config = model.peft_config["default"]
    if getattr(config, "use_dora", False) or config.modules_to_save:
        raise ConfigError(
            "vLLM loads plain LoRA adapters only: peft.use_dora and peft.modules_to_save cannot be used with use_vllm. Remove "
            "them."
        )
    return int(config.r)


def save_adapter(model: Any, folder: Path, step: int) -> Path:
    """The adapter of this moment in folder/step-N, whole or not at all; older ones but the last are removed.

    Weights are read from the parameters, because asking a sharded module for its state would take it apart again.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    inner = getattr(model, "module", model)
    tensors = get_peft_model_state_dict(inner, state_dict=dict(inner.named_parameters()))
    target, unfinished = folder / f"step-{step}", folder / f"step-{step}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        unfinished / "adapter_model.safetensors",
    )
    inner.peft_config["default"].save_pretrained(str(unfinished))
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    for old in folder.glob("step-*"):
        if old.name.removeprefix("step-").isdigit() and int(old.name.removeprefix("step-")) < step - 1:
            shutil.rmtree(old, ignore_errors=True)
    return target
