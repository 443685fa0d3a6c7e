"""sail: online preference alignment of language models, exactly.

The contents page. Names are loaded on first use, so that importing sail loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sail.config import RunConfig, load_config
    from sail.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        MissingExtraError,
        OracleError,
        SailError,
    )
    from sail.trainer import SAILConfig, SAILTrainer
    from sail.types import LabelledPair, Pair, Preference

    __version__: str

_HOME = {
    "SAILConfig": "sail.trainer",
    "SAILTrainer": "sail.trainer",
    "RunConfig": "sail.config",
    "load_config": "sail.config",
    "Pair": "sail.types",
    "Preference": "sail.types",
    "LabelledPair": "sail.types",
    "SailError": "sail.errors",
    "ConfigError": "sail.errors",
    "DataError": "sail.errors",
    "OracleError": "sail.errors",
    "CheckpointError": "sail.errors",
    "MissingExtraError": "sail.errors",
}
"""Where each public name lives."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LabelledPair",
    "MissingExtraError",
    "OracleError",
    "Pair",
    "Preference",
    "RunConfig",
    "SAILConfig",
    "SAILTrainer",
    "SailError",
    "__version__",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _installed_version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'sail' has no attribute {name!r}")
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sail-align")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"
