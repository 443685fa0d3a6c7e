"""From the oracle section of a run to oracle objects: the kind, then what is wrapped around it, inside first."""

from __future__ import annotations

from pathlib import Path

from sail.config import RunConfig
from sail.errors import ConfigError
from sail.oracle_config import FunctionOracle
from sail.oracles import Oracle, as_oracle, load_callable


def make_oracle(config: RunConfig) -> Oracle | None:
    """The oracle of the run, or None."""
    if config.oracle is None:
        return None
    if not isinstance(config.oracle, FunctionOracle):
        raise ConfigError(f"oracle.kind {config.oracle.kind} cannot be built yet; use function.")
    name = Path(config.oracle.path).name
    return as_oracle(load_callable(config.oracle.path), temperature=config.oracle.temperature, name=name)
