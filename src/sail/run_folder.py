"""Run folders: which hold a run, and whether a run may be continued, replaced or begun in one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from sail.annotate.store import ANNOTATIONS, Annotations
from sail.config import RunConfig, resolved_yaml
from sail.errors import ConfigError
from sail.evaluation.audit import ANSWERS, AUDIT
from sail.fields import LOGS_AND_SAVES, MAY_CHANGE
from sail.oracle_config import lasting
from sail.results import RESULTS
from sail.training.checkpoints import checkpoints, is_complete
from sail.training.memory import MEMORY
from sail.training.ref_cache import REF_CACHE
from sail.training.rounds import FOLDER as ROUNDS

RESOLVED = "config.resolved.yaml"


def check_folder(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix two runs in one folder; a run is only continued with the settings it was begun with."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other. Keep one.")
    used = holds_a_run(folder)
    if used and not resume and not overwrite:
        raise ConfigError(
            f"{folder} already holds a run. Continue it with --resume, start it anew with --overwrite, or choose another "
            "train.output_dir."
        )
    if resume and used:
        _refuse_changes(folder, config)


def holds_a_run(folder: Path) -> bool:
    """Whether there is anything to lose: a start that failed before its first step left settings only."""
    metrics = folder / "metrics.jsonl"
    begun = metrics.is_file() and metrics.stat().st_size > 0
    return begun or (folder / RESULTS).exists() or bool(checkpoints(folder))


def clear(folder: Path) -> None:
    """Remove what a run writes. The user's own files stay, and so does what was paid for: people's labels, and a ledger, in which
    other runs may be writing; both count where a pair is asked again."""
    for path in [
        *checkpoints(folder),
        *(folder / name for name in ("model", "adapter", "eval", ROUNDS, REF_CACHE)),
    ]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (
        RESOLVED,
        "metrics.jsonl",
        "pairs.jsonl.gz",
        MEMORY,
        RESULTS,
        AUDIT,
        ANSWERS,
        "report.html",
        "report.json",
    ):
        (folder / name).unlink(missing_ok=True)
    if (folder / ANNOTATIONS).exists():
        labels = Annotations(folder / ANNOTATIONS)
        labels.forget_queue()
        labels.close()


def _refuse_changes(folder: Path, config: RunConfig) -> None:
    if not (folder / RESOLVED).exists() or not any(is_complete(path) for path in checkpoints(folder)):
        return
    before = _begun_with((folder / RESOLVED).read_text(encoding="utf-8"))
    now = _begun_with(resolved_yaml(config))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise ConfigError(
            f"{folder} was begun with other settings ({listed}), so it cannot be continued exactly. Put them back, or start "
            "anew with --overwrite or another train.output_dir."
        )


def _begun_with(text: str) -> dict[str, Any]:
    """The settings that must stay, by dotted key."""
    values = yaml.safe_load(text)
    free = MAY_CHANGE | LOGS_AND_SAVES
    train = {key: value for key, value in (values.get("train") or {}).items() if key not in free}
    oracles = {name: lasting(values.get(name)) for name in ("oracle", "eval_oracle")}
    # What is done with a finished run concerns no step of it.
    return _flat({**values, **oracles, "train": train, "eval": None, "merge": None})


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in _flat(inner, f"{prefix}{name}.").items()
    }
