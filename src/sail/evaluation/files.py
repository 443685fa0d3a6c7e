"""Files of a run folder as they are written and read everywhere: whole or not at all. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that a kill leaves either the old file or the new one."""
    _replace(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, whole or not at all."""
    _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file, or it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(text.encode("utf-8", errors="replace"))
    unfinished.replace(path)
