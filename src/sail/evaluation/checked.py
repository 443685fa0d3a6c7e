"""What a run's files hold, checked before anything is computed of it: a damaged file is named. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from sail.errors import DataError

Row = dict[str, Any]
MEND = "Let sail train or sail eval write the file again, put a copy back, or leave the run out."


def settings(path: Path) -> Row:
    """The settings of a run, with the sections data, train and oracle as mappings or None.

    Raises DataError where the file cannot be read, or holds something else.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as YAML: {cause}. {MEND}") from None
    found = _mapping(found, path, "it")
    for key in ("data", "train", "oracle"):
        _optional(_mapping, found.get(key), path, key)
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        _optional(_number, (found.get("train") or {}).get(key), path, f"train.{key}")
    return found


def results(path: Path, columns: Sequence[str]) -> Row:
    """A results.json; {} if there is none. `columns`: the keys of its samples that must be numbers, where they are there.

    Raises DataError naming the entry that is not what it should be.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}. {MEND}") from None
    found = _mapping(found, path, "it")
    for key in ("steps", "seconds_per_step", "oracle_calls", "oracle_calls_in_evaluation", "rows_per_step"):
        _optional(_number, found.get(key), path, key)
    _optional(_mapping, found.get("settings"), path, "settings")
    for name, told in (_optional(_mapping, found.get("fingerprints"), path, "fingerprints") or {}).items():
        _optional(_text, told, path, f"fingerprints.{name}")
    for name, metric in (_optional(_mapping, found.get("metrics"), path, "metrics") or {}).items():
        _interval(metric, path, f"metrics.{name}")
    samples = _rows(found.get("samples"), path, "samples")
    for place, one in enumerate(samples):
        if "prompt" not in one:
            raise _wrong(path, f"samples[{place}]", "have a prompt", one)
        for key in columns:
            _optional(_number, one.get(key), path, f"samples[{place}].{key}")
    for place, point in enumerate(_rows(found.get("frontier"), path, "frontier")):
        for key in ("kl", "reward"):
            _optional(_interval, point.get(key), path, f"frontier[{place}].{key}")
    for place, point in enumerate(_rows(found.get("frontier_samples"), path, "frontier_samples")):
        for key in ("reward", "log_ratio"):
            _numbers(point.get(key), len(samples), path, f"frontier_samples[{place}].{key}")
    return found


def is_number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(path: Path, where: str, must: str, value: Any) -> DataError:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return DataError(f"{path}: {where} must {must}; it is {shown[:60]}{'...' * (len(shown) > 60)}. {MEND}")


def _optional(check: Callable[[Any, Path, str], Any], value: Any, path: Path, where: str) -> Any:
    return None if value is None else check(value, path, where)


def _mapping(value: Any, path: Path, where: str) -> Row:
    if not isinstance(value, dict):
        raise _wrong(path, where, "hold names and values", value)
    return value


def _number(value: Any, path: Path, where: str) -> float:
    if not is_number(value):
        raise _wrong(path, where, "be a number", value)
    return float(value)


def _text(value: Any, path: Path, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(path, where, "be a text", value)
    return value


def _interval(value: Any, path: Path, where: str) -> None:
    """Limits are there both or not at all afterwards."""
    found = _mapping(value, path, where)
    limits = [
        _optional(_number, found.setdefault(part), path, f"{where}.{part}")
        for part in ("mean", "low", "high")
    ]
    if None in limits:
        found.update(low=None, high=None)


def _rows(value: Any, path: Path, where: str) -> list[Row]:
    if value is not None and not isinstance(value, list):
        raise _wrong(path, where, "be a list of objects", value)
    return [_mapping(row, path, f"{where}[{place}]") for place, row in enumerate(value or [])]


def _numbers(value: Any, count: int, path: Path, where: str) -> None:
    if not isinstance(value, list) or len(value) != count or not all(map(is_number, value)):
        raise _wrong(path, where, f"be a list of {count} numbers, one of each sample", value)
