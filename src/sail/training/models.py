"""What is done to a model before it is aligned."""

from __future__ import annotations

from typing import Any

from torch import nn

from sail.errors import ConfigError, MissingExtraError


def disable_dropout(model: nn.Module) -> None:
    """Every dropout probability to 0: modules (LoRA's too) and the float attributes that attention layers read."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def attach_adapter(model: Any, peft_config: Any, *, has_reference: bool) -> Any:
    """The model with a fresh LoRA adapter; disabled, it is the reference. ConfigError for a model that already has one."""
    if hasattr(model, "peft_config"):
        if has_reference and peft_config is None:
            return model
        raise ConfigError(
            "The model already carries an adapter, and with it disabled it would not be the starting model. Merge the adapter "
            "first (model.merge_and_unload()), or give ref_model explicitly and no peft_config."
        )
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise MissingExtraError('LoRA needs PEFT. Install it with: pip install "sail-align[lora]"') from error
    return get_peft_model(model, peft_config)
