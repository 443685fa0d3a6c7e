"""From a source to rows: a file, a public set by name, a `datasets.Dataset`, any iterable of dicts.

No torch here, and `datasets` is imported for a public set from the hub only: its datasets are iterated like any other iterable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sail.data.bad_rows import BadRows
from sail.data.files import read_file
from sail.data.formats import Row, parse_row, parse_sft_row
from sail.data.reading import read
from sail.data.selection import Counts
from sail.data_config import DataSource
from sail.errors import DataError
from sail.types import Prompt

Source = str | Path | DataSource | Iterable[Any]
"""A file name, a source of a run file, or an iterable of records: a `datasets.Dataset`, a list of dicts, a generator."""

T = TypeVar("T")


@dataclass
class RowSet:
    """The usable rows of a source, the messages of those left out, and how many have identical responses.

    counts: of a DataSource, the rows read and those that its options left out, by reason; None for anything else.
    """

    rows: list[Row]
    skipped: list[str] = field(default_factory=list)
    identical: int = 0
    counts: Counts | None = None


@dataclass
class SftRowSet:
    """The usable (prompt, completion) rows of a source, and the messages of those left out."""

    rows: list[tuple[Prompt, str]]
    skipped: list[str] = field(default_factory=list)
    counts: Counts | None = None


def load_rows(source: Source, *, bad_rows: str = "error", need_pairs: bool = False) -> RowSet:
    """All preference and prompt-only rows of `source`.

    With `need_pairs` a prompt-only row is a bad row. Under `bad_rows="error"` all bad rows are collected
    and one DataError lists the first of them with their number; under "skip" they are left out and their
    messages returned. A source without one usable row is a DataError. Rows with identical responses are
    kept and counted.
    """

    def parse(record: Any, origin: str) -> Row:
        row = parse_row(record, origin)
        if need_pairs and row.prompt_only:
            raise DataError(
                f"{origin}: fields 'chosen' and 'rejected' are missing, and this run learns from pairs. "
                "Add them, or pass the file as data.prompts."
            )
        return row

    rows, skipped, counts = _load(source, parse, bad_rows)
    return RowSet(rows, skipped, sum(row.identical for row in rows), counts)


def load_sft_rows(source: Source, *, bad_rows: str = "error") -> SftRowSet:
    """All supervised rows of `source`, as (prompt, completion); bad rows as in `load_rows`."""
    return SftRowSet(*_load(source, parse_sft_row, bad_rows))


def read_records(source: Source) -> Iterator[tuple[Any, str]]:
    """Yields (record, origin) for each row; an unreadable row yields its DataError in place of the record.

    Rows of files count from 1, blank lines of JSONL not counted; an in-memory dataset is indexed as in
    Python. Raises DataError where the source as a whole cannot be read, and MissingExtraError for parquet
    without pyarrow.
    """
    if isinstance(source, str | Path):
        yield from read_file(source)
        return
    if isinstance(source, DataSource):
        yield from read(source).records
        return
    if isinstance(source, Mapping):
        raise DataError(
            f"The dataset is a mapping with keys {', '.join(map(str, source))}, not rows. "
            "Pass one of its splits, e.g. dataset['train'], or turn its columns into rows."
        )
    for i, record in enumerate(source):
        yield record, f"dataset[{i}]"


def _load(
    source: Source, parse: Callable[[Any, str], T], policy: str
) -> tuple[list[T], list[str], Counts | None]:
    """Parses every record; returns the good ones, the messages of the skipped ones, and the counts of a DataSource."""
    bad = BadRows(policy)
    rows: list[T] = []
    reading = read(source) if isinstance(source, DataSource) else None
    for record, origin in read_records(source) if reading is None else reading.records:
        if isinstance(record, DataError):
            bad.add(record)
            continue
        try:
            rows.append(parse(record, origin))
        except DataError as error:
            bad.add(error)
    name = str(source) if isinstance(source, str | Path) else "dataset" if reading is None else reading.title
    return rows, bad.finish(len(rows), name), None if reading is None else reading.counts
