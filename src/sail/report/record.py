"""Read a run folder into a plain record. A run that was killed is still worth reading, so nothing here stops at damage:
what is missing or broken is left out and listed in `problems`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sail.errors import DataError

Row = dict[str, Any]

_CHUNK = 1 << 16  # bytes read at once; small, as what follows a gzip member is copied for each of them


@dataclass(frozen=True)
class Problem:
    """Something missing or damaged in a run folder, in words a user reads; `missing` when the file is not there."""

    file: str
    text: str
    missing: bool = False


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says.

    metrics: the lines of metrics.jsonl in file order, numbers that are not finite replaced by None (counted in
    `not_finite` by key). pairs: at most the asked number of on-policy pairs, spread evenly over the run; the counts beside
    them are over all pairs of the file.
    """

    name: str
    config: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    results: Row = field(default_factory=dict)
    pairs: list[Row] = field(default_factory=list)
    pairs_total: int = 0
    pairs_identical: int = 0
    pairs_by_route: dict[str, int] = field(default_factory=dict)
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
        if not isinstance(value, dict):
            value = {"mean": value}
        if number(value.get("mean")) is None:
            return None
        return {part: number(value.get(part)) for part in ("mean", "low", "high", "n")}


def number(value: object) -> float | None:
    """`value` if it is a finite number (a bool is not), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if (isinstance(value, float) and not math.isfinite(value)) or abs(value) > 1e300:
        return None
    return value


def read_run(folder: Path, *, name: str | None = None, max_pairs: int = 300) -> RunRecord:
    """Read `folder`. Raises DataError if there is no such folder; anything less is a `Problem` in the record."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder. Give the folder of a run: the train.output_dir of its YAML."
        )
    problems: list[Problem] = []
    config = _read_mapping(folder / "config.resolved.yaml", problems)
    results = _read_mapping(folder / "results.json", problems)
    not_finite: Counter[str] = Counter()
    metrics = [_only_finite(row, not_finite) for row in _metric_lines(folder / "metrics.jsonl", problems)]
    counts, chosen = _choose_pairs(folder / "pairs.jsonl.gz", max_pairs, problems)
    return RunRecord(
        name=name or folder.resolve().name,
        config=config,
        metrics=metrics,
        results=results,
        pairs=chosen,
        pairs_total=counts.total,
        pairs_identical=counts.identical,
        pairs_by_route=dict(sorted(counts.routes.items())),
        not_finite=dict(sorted(not_finite.items())),
        problems=problems,
    )


def read_runs(folders: list[Path], *, max_pairs: int = 300) -> list[RunRecord]:
    """Read several runs; folders of the same name are told apart by the folders that hold them."""
    own = [folder.resolve().name for folder in folders]
    parents = [folder.resolve().parent.name for folder in folders]
    names = [f"{p}/{n}" if own.count(n) > 1 else n for p, n in zip(parents, own, strict=True)]
    for i, name in enumerate(names):
        earlier = names[:i].count(name)  # the same folder twice, or deeper twins
        names[i] = f"{name} ({earlier + 1})" if earlier else name
    return [
        read_run(folder, name=name, max_pairs=max_pairs) for folder, name in zip(folders, names, strict=True)
    ]


def _read_mapping(path: Path, problems: list[Problem]) -> Row:
    """A YAML or JSON file that holds a mapping; {} and a problem if it is missing, broken or something else."""
    if not path.is_file():
        problems.append(Problem(path.name, "not there", missing=True))
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        problems.append(Problem(path.name, "cannot be parsed (half written?), left out"))
        return {}
    if not isinstance(value, dict):
        problems.append(Problem(path.name, "does not hold a mapping, left out"))
        return {}
    return value


def _metric_lines(path: Path, problems: list[Problem]) -> list[Row]:
    """The lines of metrics.jsonl that are objects."""
    if not path.is_file():
        problems.append(Problem(path.name, "not there", missing=True))
        return []
    with path.open("rb") as file:
        lines = _Lines(file.read().split(b"\n"))
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


class _Lines:
    """Parses JSON lines and remembers which of them were no objects."""

    def __init__(self, lines: list[bytes] | Iterator[bytes]) -> None:
        self.lines = lines
        self.bad: list[int] = []
        self.read = 0

    def objects(self) -> Iterator[Row]:
        """Each line that holds a JSON object; blank lines are nothing, others go to `bad`."""
        for line in self.lines:
            if not line.strip():
                continue
            self.read += 1
            try:
                value = json.loads(line.decode("utf-8", errors="replace"))
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            else:
                self.bad.append(self.read)

    def report(self, file: str, problems: list[Problem]) -> None:
        """One problem for a half-written last line, one for all others."""
        if self.bad and self.bad[-1] == self.read:
            problems.append(Problem(file, "the last line is half written and was left out"))
            self.bad.pop()
        if self.bad:
            shown = ", ".join(str(line) for line in self.bad[:5]) + (", ..." if len(self.bad) > 5 else "")
            problems.append(Problem(file, f"{len(self.bad)} lines are no JSON objects, left out: {shown}"))


class _Counts:
    """What is counted over all pairs while they stream by."""

    def __init__(self) -> None:
        self.routes: Counter[str] = Counter()
        self.identical = 0
        self.order: list[str] = []  # the route of each pair, in file order

    @property
    def total(self) -> int:
        return len(self.order)

    def add(self, row: Row) -> None:
        route = str(row.get("route"))
        self.order.append(route)
        self.routes[route] += 1
        self.identical += row.get("first") == row.get("second")

    def choose(self, limit: int) -> set[int]:
        """Positions of at most `limit` pairs: each route by its share (at least one), evenly spread over the file."""
        if self.total <= limit:
            return set(range(self.total))
        chosen: set[int] = set()
        for route, count in self.routes.items():
            keep = min(count, max(1, limit * count // self.total))
            places = [i for i, r in enumerate(self.order) if r == route]
            # first and last included, so that the start and the end of the run can be read
            chosen.update(places[round(k * (count - 1) / max(1, keep - 1))] for k in range(keep))
        return chosen


def _choose_pairs(path: Path, limit: int, problems: list[Problem]) -> tuple[_Counts, list[Row]]:
    """Counts over all pairs and the chosen ones. Two passes, because a real run's pairs need not fit in memory."""
    counts = _Counts()
    if not path.is_file():
        problems.append(Problem(path.name, "not there", missing=True))
        return counts, []
    damage: list[str] = []
    lines = _Lines(_unzipped_lines(path, damage))
    for row in lines.objects():
        counts.add(row)
    if damage:  # the broken end of the stream and the half line in it are one problem, not two
        problems.append(Problem(path.name, damage[0]))
        if lines.bad and lines.bad[-1] == lines.read:
            lines.bad.pop()
            lines.read = -1
    lines.report(path.name, problems)
    chosen = counts.choose(limit)
    again = _Lines(_unzipped_lines(path, []))
    return counts, [row for place, row in enumerate(again.objects()) if place in chosen]


def _unzipped_lines(path: Path, damage: list[str]) -> Iterator[bytes]:
    """Lines of a file of concatenated gzip members; what can be read of a broken one is read, and `damage` says so.

    The gzip module would raise at the broken member and swallow what it had decoded of it.
    """
    rest = b""
    decoder = zlib.decompressobj(wbits=31)
    fresh = True  # no byte of the current member was read yet
    with path.open("rb") as file:
        data = file.read(_CHUNK)
        while data:
            try:
                text = decoder.decompress(data)
            except zlib.error:
                damage.append("a part is damaged; read up to there")
                fresh = True
                break
            fresh = False
            *lines, rest = (rest + text).split(b"\n")
            yield from lines
            data = b""
            if decoder.eof:
                data, decoder, fresh = decoder.unused_data, zlib.decompressobj(wbits=31), True
            data = data or file.read(_CHUNK)
    if not fresh:
        damage.append("ends in the middle of a compressed block; read up to there")
    if rest:
        yield rest
