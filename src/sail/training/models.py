"""What is done to a model before it is aligned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sail.errors import ConfigError, MissingExtraError


def disable_dropout(model: nn.Module) -> None:
    """Every dropout probability to 0: modules (LoRA's too) and the float attributes that attention layers read."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def load_policy(name: str, *, all_weights: bool) -> Any:
    """A causal language model from a folder or a name. Where all its weights are to be trained, in float32: at usual learning
    rates most updates are smaller than a half-precision weight's last digit, and would be lost."""
    if all_weights:
        return load(AutoModelForCausalLM, name, "model", dtype=torch.float32)
    return load(AutoModelForCausalLM, name, "model")


def load(kind: Any, name: str, what: str, *, trust_remote_code: bool = False, **arguments: Any) -> Any:
    """`kind.from_pretrained`: weights from safetensors only, and no code from the folder unless it is trusted. ConfigError with
    the way out."""
    if what == "model":
        arguments = {"use_safetensors": True, **arguments}
    try:
        return kind.from_pretrained(name, trust_remote_code=trust_remote_code, **arguments)
    except (OSError, ValueError) as error:
        raise ConfigError(why_not_loaded(name, what, error)) from error


def why_not_loaded(name: str, what: str, error: Exception) -> str:
    """What stands in the way of a model or tokenizer, and the way out."""
    said = str(error).strip()
    if "trust_remote_code" in said:
        return (
            f"The {what} {name!r} comes with code of its own, which is not run unasked. Read it; then set "
            "trust_remote_code: true at the top level of the run file."
        )
    pickled = [*Path(name).glob("*.bin")] if Path(name).is_dir() else []
    if what == "model" and (pickled or "model.safetensors" in said):
        return (
            f"The weights of {name!r} are not safetensors. Pickled ones can run code when they are loaded, so they are refused. "
            "If you trust them, convert them once, in Python: AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(new_folder), and use the new folder."
        )
    first_line = said.splitlines()[0] if said else type(error).__name__
    return (
        f"The {what} {name!r} could not be loaded: {first_line} Give a folder that save_pretrained wrote, or a hub name "
        "that this machine can reach."
    )


def with_reference(model: Any, ref_model: Any, peft_config: Any, *, no_dropout: bool) -> tuple[Any, Any]:
    """The model to train, and the frozen reference, or None where the disabled adapter is the reference."""
    if no_dropout:
        disable_dropout(model)
    if peft_config is not None or has_adapter(model):
        model = attach_adapter(model, peft_config, has_reference=ref_model is not None)
        if no_dropout:
            disable_dropout(model)
        frozen = ref_model
    else:
        frozen = ref_model if ref_model is not None else copy.deepcopy(model)
    if frozen is not None:
        frozen.eval().requires_grad_(False)
    return model, frozen


def has_adapter(model: Any) -> bool:
    """Whether the model carries a PEFT adapter, wrapped around it or loaded into it."""
    return hasattr(model, "peft_config")


def attach_adapter(model: Any, peft_config: Any, *, has_reference: bool) -> Any:
    """The model with a fresh LoRA adapter; disabled, it is the reference. ConfigError for a model that already has one, and for
    prompts that are learnt: they live outside the model that is sampled from."""
    if getattr(peft_config or getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ConfigError(
            "Prompt and prefix tuning cannot be trained here: responses would be sampled without the learnt prompt. Take LoRA or "
            "another adapter of the model's layers."
        )
    if has_adapter(model):
        trainable = any(parameter.requires_grad for parameter in model.parameters())
        if has_reference and peft_config is None and trainable:
            return model
        raise ConfigError(
            "The model already carries an adapter, and with it disabled it would not be the starting model. Merge it first, in "
            "Python: peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(new_folder), and "
            "use the new folder. (To train a given adapter on, pass it trainable, with ref_model and without peft_config.)"
        )
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise MissingExtraError('LoRA needs PEFT. Install it with: pip install "sail-align[lora]"') from error
    return get_peft_model(model, peft_config)


def merged(model: Any) -> Any:
    """An ordinary model with the adapter's weights added in, made from a copy: adding and subtracting them again would round the
    weights that are still in use. The model itself if it has no adapter."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return copy.deepcopy(model).merge_and_unload()
