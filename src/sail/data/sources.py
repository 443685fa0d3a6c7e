"""From a source to rows: JSONL (also gzipped), JSON, parquet, a `datasets.Dataset`, any iterable of dicts.

No torch here, and `datasets` is never imported: its datasets are iterated like any other iterable.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from sail.data.bad_rows import BadRows
from sail.data.formats import Row, parse_row, parse_sft_row
from sail.errors import DataError, MissingExtraError
from sail.types import Prompt

Source = str | Path | Iterable[Any]
"""A file name, or something whose items are records: a `datasets.Dataset`, a list of dicts, a generator."""

T = TypeVar("T")


@dataclass
class RowSet:
    """The usable rows of a source, the messages of those left out, and how many have identical responses."""

    rows: list[Row]
    skipped: list[str] = field(default_factory=list)
    identical: int = 0


@dataclass
class SftRowSet:
    """The usable (prompt, completion) rows of a source, and the messages of those left out."""

    rows: list[tuple[Prompt, str]]
    skipped: list[str] = field(default_factory=list)


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

    rows, skipped = _load(source, parse, bad_rows)
    return RowSet(rows, skipped, sum(row.identical for row in rows))


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
        yield from _read_file(source)
        return
    if isinstance(source, Mapping):
        raise DataError(
            f"The dataset is a mapping with keys {', '.join(map(str, source))}, not rows. "
            "Pass one of its splits, e.g. dataset['train'], or turn its columns into rows."
        )
    for i, record in enumerate(source):
        yield record, f"dataset[{i}]"


def _load(source: Source, parse: Callable[[Any, str], T], policy: str) -> tuple[list[T], list[str]]:
    """Parses every record; returns the good ones and the messages of the skipped ones."""
    bad = BadRows(policy)
    rows: list[T] = []
    for record, origin in read_records(source):
        if isinstance(record, DataError):
            bad.add(record)
            continue
        try:
            rows.append(parse(record, origin))
        except DataError as error:
            bad.add(error)
    name = str(source) if isinstance(source, str | Path) else "dataset"
    return rows, bad.finish(len(rows), name)


def _read_file(source: str | Path) -> Iterator[tuple[Any, str]]:
    path, name = Path(source), str(source)
    readers = {
        ".jsonl": _read_jsonl,
        ".jsonl.gz": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    if path.is_dir():
        raise DataError(
            f"{name}: is a folder, not a file. Name a file in it; a saved dataset becomes one by "
            "datasets.load_from_disk(folder).to_json('pairs.jsonl')."
        )
    if not path.is_file():
        raise DataError(
            f"{name}: there is no such file (looked in {Path.cwd()}). Correct the path; "
            "a dataset of a hub becomes a file by "
            "datasets.load_dataset(name, split='train').to_json('pairs.jsonl')."
        )
    for ending, reader in readers.items():
        if name.endswith(ending):
            return reader(path, name)
    raise DataError(f"{name}: unknown kind of file. Give one that ends in {', '.join(readers)}.")


def _read_jsonl(path: Path, name: str) -> Iterator[tuple[Any, str]]:
    """One JSON object per line. Only line feeds end a line: texts may hold Unicode's other line ends."""
    row = 0
    try:
        with gzip.open(path, "rb") if name.endswith(".gz") else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row += 1
                # The line is named too where blank lines make it differ: it is what an editor goes to.
                origin = f"{name} row {row}" + (f" (line {number})" if number != row else "")
                yield _decoded(line, origin), origin
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{name}: broken gzip data after row {row} ({error}). Copy or compress it again."
        ) from None


def _decoded(line: bytes, origin: str) -> Any:
    """The value of one line of JSON, or the DataError that says why it has none."""
    try:
        return json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        cause = f"not UTF-8 at byte {error.start}. Save the file as UTF-8."
    except json.JSONDecodeError as error:
        cause = f"broken JSON ({error.msg}, column {error.colno}). Write one whole JSON object per line."
    except RecursionError:
        cause = "JSON nested too deeply. Write one flat JSON object per line."
    return DataError(f"{origin}: field '(whole row)' is {cause}")


def _read_json(path: Path, name: str) -> Iterator[tuple[Any, str]]:
    """A file that is one JSON list of objects."""
    try:
        records = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"{name}: broken JSON ({error}). It must hold one list; one object per line is .jsonl."
        ) from None
    if not isinstance(records, list):
        raise DataError(
            f"{name}: holds a {type(records).__name__}, not a list of rows. Wrap its rows in [ ]."
        )
    for i, record in enumerate(records, start=1):
        yield record, f"{name} row {i}"


def _read_parquet(path: Path, name: str) -> Iterator[tuple[Any, str]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError(
            f"{name}: reading parquet needs pyarrow. Install it with `pip install 'sail-align[sft]'`."
        ) from None
    try:
        table = parquet.ParquetFile(path)
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise DataError(f"{name}: not a parquet file ({error}). Write it again.") from None
    row = 0
    with table:
        for batch in table.iter_batches():
            for record in batch.to_pylist():
                row += 1
                yield record, f"{name} row {row}"
