"""Read a run folder into a plain record. A run that was killed is still worth reading, so nothing here stops at damage:
what is missing or broken is left out and listed in `problems`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sail.errors import DataError
from sail.report.ledger_orders import of_folder
from sail.report.lines import Lines, Problem, Row, number
from sail.report.pairs_file import (
    FILE,
    PairFacts,
    Watch,
    read_pairs,
    reference_answers,
    with_reference,
)

__all__ = ["Problem", "Row", "RunRecord", "number", "read_run", "read_runs"]

PARTS = ("mean", "low", "high", "n")
"""What a reader needs of an interval."""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says.

    metrics: the lines of metrics.jsonl in file order, numbers that are not finite replaced by None (counted in
    `not_finite` by key). pairs: at most the asked number of on-policy pairs, spread evenly over the run, each with the
    reference's answer to its prompt under "reference" (None if there is none); `facts` holds for all pairs of the file.
    audit: audit.json, what only the models and the oracle could tell, {} if it is not there. frontier: checkpoints that
    `sail eval` measured, as it wrote them. orders: the position bias of its oracles, from its ledger.
    """

    name: str
    config: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    results: Row = field(default_factory=dict)
    pairs: list[Row] = field(default_factory=list)
    facts: PairFacts = field(default_factory=PairFacts)
    audit: Row = field(default_factory=dict)
    frontier: list[Row] = field(default_factory=list)
    orders: list[Row] = field(default_factory=list)
    not_finite: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of `key`, where it is a number; a step that was logged twice counts once, the later value."""
        found: dict[float, float] = {}
        for row in self.metrics:
            step, value = number(row.get("step")), number(row.get(key))
            if step is not None and value is not None:
                found[step] = value
        steps = sorted(found)
        return steps, [found[step] for step in steps]

    def last(self, key: str) -> float | None:
        """The last recorded value of `key`, or None."""
        values = self.column(key)[1]
        return values[-1] if values else None

    def metric(self, name: str) -> Row | None:
        """results.json's metric `name` as {"mean", "low", "high", "n"} (missing parts None), or None."""
        metrics = self.results.get("metrics")
        value = metrics.get(name) if isinstance(metrics, dict) else None
        return interval(value if isinstance(value, dict) else {"mean": value})

    def setting(self, name: str) -> Any:
        """An option of the section train of config.resolved.yaml; None if it is not there."""
        train = self.config.get("train")
        return train.get(name) if isinstance(train, dict) else None


def interval(value: object) -> Row | None:
    """A written interval as {"mean", "low", "high", "n"}, missing parts None; None without a mean.

    >>> interval({"mean": 0.5, "low": 0.4})
    {'mean': 0.5, 'low': 0.4, 'high': None, 'n': None}
    """
    if not isinstance(value, dict) or number(value.get("mean")) is None:
        return None
    return {part: number(value.get(part)) for part in PARTS}


def read_run(
    folder: Path, *, name: str | None = None, max_pairs: int = 300, watch: Watch | None = None
) -> RunRecord:
    """Read `folder`. Raises DataError if there is no such folder; anything less is a `Problem` in the record.

    watch: told the bytes of pairs read, twice the file's size in all.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder. Give the folder of a run: the train.output_dir of its YAML."
        )
    problems: list[Problem] = []
    config = _read_mapping(folder / "config.resolved.yaml", problems)
    results = _read_mapping(folder / "results.json", problems)
    not_finite: Counter[str] = Counter()
    metrics = [_only_finite(row, not_finite) for row in _metric_lines(folder / "metrics.jsonl", problems)]
    audit = _read_mapping(folder / "audit.json", problems, optional=True)
    evaluated = _read_mapping(
        folder / "eval" / "results.json", problems, optional=True, name="eval/results.json"
    )
    measured = evaluated.get("frontier")
    stated = audit.get("reference_answers")  # beside the run, wherever the folder has been moved to since
    answers = reference_answers(folder / Path(stated).name, problems) if isinstance(stated, str) else {}
    facts, chosen = read_pairs(folder / FILE, max_pairs, problems, set(answers), watch)
    return RunRecord(
        name=name or folder.resolve().name,
        config=config,
        metrics=metrics,
        results=results,
        pairs=[{**row, "reference": answer} for row, answer in with_reference(chosen, answers)],
        facts=facts,
        audit=audit,
        frontier=[row for row in measured if isinstance(row, dict)] if isinstance(measured, list) else [],
        not_finite=dict(sorted(not_finite.items())),
        problems=problems,
    )


def read_runs(folders: list[Path], *, max_pairs: int = 300, watch: Watch | None = None) -> list[RunRecord]:
    """Read several runs, and the ledgers of those that keep one; folders of the same name are told apart by the folders that hold
    them."""
    own = [folder.resolve().name for folder in folders]
    parents = [folder.resolve().parent.name for folder in folders]
    names = [f"{p}/{n}" if own.count(n) > 1 else n for p, n in zip(parents, own, strict=True)]
    for i, name in enumerate(names):
        earlier = names[:i].count(name)  # the same folder twice, or deeper twins
        names[i] = f"{name} ({earlier + 1})" if earlier else name
    records = []
    for folder, name in zip(folders, names, strict=True):
        record = read_run(folder, name=name, max_pairs=max_pairs, watch=watch)
        records.append(replace(record, orders=of_folder(folder, record.problems)))
    return records


def _read_mapping(
    path: Path, problems: list[Problem], *, optional: bool = False, name: str | None = None
) -> Row:
    """A YAML or JSON file that holds a mapping; {} and a problem if it is broken, something else or missed."""
    if not path.is_file():
        if not optional:
            problems.append(Problem(name or path.name, "not there", missing=True))
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        problems.append(Problem(name or path.name, "cannot be parsed (half written?), left out"))
        return {}
    if not isinstance(value, dict):
        problems.append(Problem(name or path.name, "does not hold a mapping, left out"))
        return {}
    return value


def _metric_lines(path: Path, problems: list[Problem]) -> list[Row]:
    """The lines of metrics.jsonl that are objects."""
    if not path.is_file():
        problems.append(Problem(path.name, "not there", missing=True))
        return []
    with path.open("rb") as file:
        lines = Lines(file.read().split(b"\n"))
        rows = list(lines.objects())
    lines.report(path.name, problems)
    return rows


def _only_finite(row: Row, not_finite: Counter[str]) -> Row:
    """`row` with NaN and infinities replaced by None and counted by key."""
    clean = {}
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            not_finite[key] += 1
            value = None
        clean[key] = value
    return clean
