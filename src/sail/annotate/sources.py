"""What people are to label: a file of pairs, or the pairs of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sail.annotate.items import Item
from sail.annotate.store import ANNOTATIONS
from sail.data.bad_rows import BadRows
from sail.data.formats import parse_row
from sail.data.named.catalogue import known_as
from sail.data.sources import read_records
from sail.errors import DataError

RUN_PAIRS = "pairs.jsonl.gz"
ENDINGS = (".jsonl.gz", ".jsonl", ".json", ".parquet")


@dataclass
class Pairs:
    """The different pairs of a source, in order; how many rows had identical texts or a pair met before; messages of bad rows."""

    items: list[Item]
    identical: int = 0
    repeated: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where the pairs come from and where the labels go. pairs is None for the queue of a run that asks people itself."""

    name: str
    labels: Path
    pairs: Path | None


def place_of(source: Path, labels: Path | None = None) -> Place:
    """The place of a file of pairs, or of a run folder; DataError, with the way out, if it is neither.

    A run that asks people has annotations.sqlite, and its queue is labelled; of any other run, its recorded pairs. Labels of a
    file lie beside it, as NAME.annotations.sqlite, unless `labels` names another file.
    """
    if source.is_dir():
        if (source / ANNOTATIONS).exists() and labels is None:
            return Place(source.name or str(source), source / ANNOTATIONS, None)
        if not (source / RUN_PAIRS).exists():
            raise DataError(
                f"{source} has neither {ANNOTATIONS} (a run that asks people has it once it has asked) nor {RUN_PAIRS}. Give a "
                "run folder that has one, or a file of pairs."
            )
        source = source / RUN_PAIRS
    if not source.exists():
        hint = (
            f" A public set becomes one by: sail data {source} --export pairs.jsonl."
            if known_as(str(source))
            else ""
        )
        raise DataError(f"There is no {source}. Give a run folder, or a file of pairs (JSONL).{hint}")
    stem = next(
        (source.name[: -len(ending)] for ending in ENDINGS if source.name.endswith(ending)), source.name
    )
    return Place(source.name, labels or source.with_name(f"{stem}.{ANNOTATIONS}"), source)


def read_pairs(path: Path) -> Pairs:
    """The pairs of a file in TRL's preference formats, or with the columns prompt, first, second (as a run records them).

    The chosen response is what the source prefers (probability 1); with first and second, `probability` says it if it is there.
    Rows of identical texts are a tie by definition and not asked. A bad row is left out and named; DataError if none is good.
    """
    found: dict[str, Item] = {}
    pairs, bad = Pairs([]), BadRows("skip")
    good = 0
    for record, origin in _records(path, bad):
        try:
            if isinstance(record, DataError):
                raise record
            prompt, one, other, given = _parts(record, origin)
        except DataError as error:
            bad.add(error)
            continue
        good += 1
        if one == other:
            pairs.identical += 1
            continue
        item = Item.of(prompt, one, other, given)[0]
        pairs.repeated += item.hash in found
        found.setdefault(item.hash, item)
    pairs.skipped = bad.finish(good, str(path))
    pairs.items = list(found.values())
    if not pairs.items:
        raise DataError(f"{path}: in every row both responses are the same, so there is nothing to compare.")
    return pairs


def _records(path: Path, bad: BadRows) -> Any:
    """The rows; a run that is being written, or was killed, may end in the middle of one, and the rest is still good."""
    rows = read_records(path)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except DataError as error:
            if path.name != RUN_PAIRS:
                raise
            bad.add(error)
            return


def _parts(record: Any, origin: str) -> tuple[Any, str, str, float | None]:
    """Prompt, both responses, and the probability of the first of them by the source (None if it says nothing)."""
    if isinstance(record, Mapping) and "first" in record and "second" in record:
        row = parse_row({"prompt": record.get("prompt")}, origin)
        texts = record["first"], record["second"]
        for name, text in zip(("first", "second"), texts, strict=True):
            if not isinstance(text, str):
                raise DataError(
                    f"{origin}: field '{name}' is not text. Write it as a string, or remove the row."
                )
        given = record.get("probability")
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
            given = None
        return row.prompt, *texts, given
    row = parse_row(record, origin)
    if row.chosen is None or row.rejected is None:
        raise DataError(
            f"{origin}: has a prompt and no pair. Give chosen and rejected (or first and second), or remove the row."
        )
    return row.prompt, row.chosen, row.rejected, 1.0
