"""What a stage of a pipeline was made of: settings, contents of its inputs, contents of its outputs. stage.json, no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sail.evaluation.files import read_json, write_json

STAGE, LOCK = "stage.json", "stage.lock"
_NAMES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_BEGINNINGS = ("tokenizer", "special_tokens", "added_tokens", "chat_template")
_ENDINGS = (".safetensors", ".jinja", ".model")


@dataclass
class Prints:
    """Fingerprints of files by content. A file whose size and times are those of last time is not read again, as git does it."""

    known: dict[str, list[Any]] = field(default_factory=dict)
    used: dict[str, list[Any]] = field(default_factory=dict)

    def of(self, path: str) -> str | None:
        """sha256 (hex) of a file, over the weights, configurations and tokenizer of a model folder, or over all files of another
        (a copy of a data set); a hub name stands for itself, and None for a path where there is nothing."""
        place = Path(path)
        if place.is_file():
            return self._file(place)
        if not place.is_dir():
            return None if place.is_absolute() else path
        found = [one for one in sorted(place.rglob("*")) if one.is_file() and one.name not in (STAGE, LOCK)]
        parts = [one for one in found if one.parent == place and _is_part(one)] or found
        digest = hashlib.sha256()
        for one in parts:
            digest.update(f"{one.relative_to(place)} {self._file(one)}\n".encode())
        return digest.hexdigest() if parts else None

    def _file(self, path: Path) -> str:
        name, state = str(path.absolute()), path.stat()
        now = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        before = self.used.get(name) or self.known.get(name)
        if before is None or before[:3] != now:
            with path.open("rb") as file:
                before = [*now, hashlib.file_digest(file, "sha256").hexdigest()]
        self.used[name] = before
        return str(before[3])


def _is_part(path: Path) -> bool:
    weights = path.suffix == ".bin" and "model" in path.name
    known = path.name in _NAMES or path.name.startswith(_BEGINNINGS)
    return weights or known or path.name.endswith(_ENDINGS)


@dataclass
class Stage:
    """A step of the pipeline.

    `settings` by dotted key; `inputs` label -> path or hub name, `outputs` likewise; `words` is the command; `foreign` are names
    in the folder that say that somebody has already made something there; `cleared` are patterns of what the command removes or
    empties first when it is told to overwrite.
    """

    name: str
    folder: Path
    words: list[str]
    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    foreign: tuple[str, ...] = ()
    lock: Path | None = None
    cleared: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Where its record is."""
        return self.folder / STAGE


@dataclass(frozen=True)
class Verdict:
    """What is to be done: skip, run (anew) or resume; and why, in words. `used`: the folder holds something already."""

    action: str
    why: str
    used: bool = False


def judge(stage: Stage) -> Verdict:
    """Compare what the stage would be made of with what it was made of."""
    record, torn = record_of(stage)
    used = any(any(stage.folder.glob(name)) for name in stage.foreign)
    if torn:
        return Verdict("run", "it was stopped while it removed what an earlier one had made", True)
    if not record:
        return Verdict("run", "it has not run yet", used)
    prints = Prints(record.get("files", {}))
    changes = _changed_settings(record.get("settings", {}), flat_json(stage.settings))
    changes += _changed_inputs(record.get("inputs", {}), stage.inputs, prints)
    if changes:
        return Verdict("run", f"changed: {'; '.join(changes)}", used)
    if record.get("status") != "done":
        return Verdict("resume", "it was interrupted", used)
    for label, path in stage.outputs.items():
        found = prints.of(path)
        if found is None:
            return Verdict("run", f"its output {path} is gone", used)
        if found != record.get("outputs", {}).get(label):
            return Verdict("run", f"its output {path} is not what the stage left there", used)
    return Verdict("skip", "up to date", used)


def record_of(stage: Stage) -> tuple[dict[str, Any], bool]:
    """What the folder's content was made of, {} where no record says it; and whether a part of it had been removed already.

    A stage that overwrites removes the old content long after it was begun, once model and data have proved usable. Until
    then the folder holds what the record before says, whatever was begun.
    """
    record = read_json(stage.file)
    before, replaces = record.pop("before", {}), record.pop("replaces", {})
    if record.get("status") == "done" or not replaces:
        return record, False
    now = _standing(stage)
    left = sum(now.get(name) == state for name, state in replaces.items())
    return (before, False) if left == len(replaces) else (record, left > 0)


def begin(stage: Stage, *, overwrites: bool = False) -> None:
    """Record what the stage is about to be made of; `overwrites` if its command is to remove first what the folder holds."""
    _write(stage, "running", overwrites)


def finish(stage: Stage) -> None:
    """Record what it has made."""
    _write(stage, "done")


_NOT_OURS = re.compile(r"checkpoint-(?!\d+$)")


def _standing(stage: Stage) -> dict[str, list[int]]:
    """By name what `cleared` matches, with what changes when it is written anew. What is empty may be left standing."""
    found = {}
    for path in (path for pattern in stage.cleared for path in stage.folder.glob(pattern)):
        state = path.stat()
        if not _NOT_OURS.match(path.name) and (path.is_dir() or state.st_size):
            found[path.name] = [state.st_ino, state.st_mtime_ns, state.st_size]
    return found


def _write(stage: Stage, status: str, overwrites: bool = False) -> None:
    last, (before, torn) = read_json(stage.file), record_of(stage)
    prints = Prints({**before.get("files", {}), **last.get("files", {})})
    record: dict[str, Any] = {
        "stage": stage.name,
        "status": status,
        "settings": flat_json(stage.settings),
        "inputs": {label: prints.of(path) for label, path in stage.inputs.items()},
    }
    if status == "done":
        record["outputs"] = {label: prints.of(path) for label, path in stage.outputs.items()}
    if overwrites:
        # What was removed in part stays so until the rest is gone too.
        again = {"before": before, "replaces": _standing(stage)}
        record |= {key: last[key] for key in again} if torn else again
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_json(stage.file, {**record, "files": prints.used})


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty mapping has none."""
    if not isinstance(values, Mapping):
        return {prefix.rstrip("."): values}
    return {
        key: value for name, inner in values.items() for key, value in flat(inner, f"{prefix}{name}.").items()
    }


def flat_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file: tuples are lists there; and without those that are at nothing."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in settings.items()
        if value is not None
    }


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = [*before, *(key for key in now if key not in before)]
    return [
        f"{key} {_word(before.get(key))} -> {_word(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _changed_inputs(before: Mapping[str, Any], inputs: Mapping[str, str], prints: Prints) -> list[str]:
    gone = [f"{label} is no longer given" for label in before if label not in inputs]
    return gone + [
        f"{label} {'has another content' if label in before else 'is new'} ({Path(path).name})"
        for label, path in inputs.items()
        if label not in before or prints.of(path) != before[label]
    ]


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
