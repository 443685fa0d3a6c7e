"""The run folder while training: metrics.jsonl and pairs.jsonl.gz, cut back exactly when a run is resumed."""

from __future__ import annotations

import gzip
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sail.training.memory import MEMORY, Memory
from sail.training.step import OnPolicyRow, Step
from sail.training.tracking import Tracker

METRICS = "metrics.jsonl"
PAIRS = "pairs.jsonl.gz"
FILES = (METRICS, PAIRS, MEMORY)


class RunRecorder(TrainerCallback):
    """Writes one metrics line per log, and one gzip member of pairs per step (members concatenate to a valid gzip file).

    Its state in a checkpoint is the size of both files and what the tracker holds; on resume the files are truncated to it,
    so a resumed run's files equal the uninterrupted run's. Only the main process writes metrics; pairs of all processes are
    gathered by the caller.
    """

    def __init__(self, folder: Path, tracker: Tracker, memory: Memory, *, writes: bool) -> None:
        self.folder = folder
        self.tracker = tracker
        self.memory = memory
        self.writes = writes
        self.started = time.time()
        self.elapsed_before = 0.0
        self.kept: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; every process must call it."""
        sizes = {name: _size(self.folder / name) for name in FILES}
        elapsed = self.elapsed_before + time.time() - self.started
        return {"sizes": sizes, "seconds": elapsed, "tracked": self.tracker.state()}

    def continue_from(self, kept: dict[str, Any] | None) -> None:
        """The state of the checkpoint that the next training continues, or None for one that starts afresh."""
        self.kept = kept

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start afresh, or from the state of the checkpoint that is being continued."""
        self.started = time.time()
        kept = self.kept
        self.elapsed_before = kept["seconds"] if kept else 0.0
        if kept:
            self.tracker.restore(kept["tracked"])
        else:
            self.tracker.reset()
        self.memory.restore(self.folder / MEMORY, kept["sizes"].get(MEMORY, 0) if kept else 0)
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            _truncate(self.folder / name, kept["sizes"].get(name, 0) if kept else 0)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append a line to metrics.jsonl."""
        if not self.writes or not logs or not self.folder.is_dir():
            return
        seconds = self.elapsed_before + time.time() - self.started
        line = {"step": state.global_step, "epoch": state.epoch, "time": round(seconds, 3)}
        line.update({key: _plain(value) for key, value in logs.items() if key != "epoch"})
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def write_pairs(self, step: int, lines: list[dict[str, Any]]) -> None:
        """Append a step's on-policy pairs."""
        self._append(PAIRS, [{"step": step, **line} for line in lines])

    def remember(self, pairs: list[dict[str, Any]]) -> None:
        """Append a step's labelled pairs, of all processes, to the memory and its file."""
        # In an order that does not depend on how the step's rows were split over processes.
        pairs = sorted(pairs, key=lambda pair: pair["index"])
        self.memory.add(pairs)
        self._append(MEMORY, pairs)

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        if not self.writes or not lines:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        # mtime=0: the same pairs give the same bytes.
        with (self.folder / name).open("ab") as file:
            file.write(gzip.compress(text.encode(), compresslevel=5, mtime=0))


def pair_lines(step: Step, round_number: int | None = None) -> list[dict[str, Any]]:
    """The step's on-policy pairs as records; with rounds each names its own.

    label and policy_probability of a pair that the policy labels are those at which a baseline was made: of a stale row without
    baseline, those of the weights that sampled it. Where the policy wrote one response only, policy_probability is null.
    """
    named = {} if round_number is None else {"round": round_number}
    return [{**named, **_pair_line(example, row)} for example, row in step.online]


def _pair_line(example: Any, row: OnPolicyRow) -> dict[str, Any]:
    first, second = example.responses
    told = example.preference
    own = None if row.margin is None else 1.0 / (1.0 + math.exp(-max(min(row.margin, 700.0), -700.0)))
    return {
        "index": example.index,
        "prompt": example.row["prompt"],
        "first": first.text,
        "second": second.text,
        "route": example.share.route.name,
        "label": row.label if example.active else None,
        "probability": own if example.self_labelled else told.first_wins,
        "policy_probability": own,
        "source": example.source,
        "first_length": len(first.ids),
        "second_length": len(second.ids),
        "first_cut": first.cut,
        "second_cut": second.cut,
        "reason": told.reason if told is not None else None,
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _truncate(path: Path, size: int) -> None:
    if path.is_file() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | bool | type(None)) else str(value)
