"""The model inside its wrappers."""

from __future__ import annotations

from typing import Any


def unwrapped(model: Any) -> Any:
    """The transformers model inside data-parallel and PEFT wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
