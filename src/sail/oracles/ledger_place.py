"""Where the ledger of a run lies, and under which name the run is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from sail.oracles.ledger import LEDGER

SETTINGS = "config.resolved.yaml"


def run_name(folder: Path, ledger: Path) -> str:
    """A run folder as its ledger knows it: its place as seen from the ledger's, so that both may be moved together."""
    return Path(os.path.relpath(folder, ledger.parent)).as_posix()


def ledger_in(folder: Path) -> Path | None:
    """The ledger file of a run folder, or None: the one that its settings name in oracle or eval_oracle, else its own."""
    named = _named_in(folder / SETTINGS)
    return next((path for path in (*named, folder / LEDGER) if path.is_file()), None)


def _named_in(config: Path) -> list[Path]:
    if not config.is_file():
        return []
    try:
        settings: Any = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return []
    if not isinstance(settings, dict):
        return []
    sections = [settings.get(name) for name in ("oracle", "eval_oracle")]
    named = [section.get("ledger") for section in sections if isinstance(section, dict)]
    return [Path(one) for one in named if isinstance(one, str)]
