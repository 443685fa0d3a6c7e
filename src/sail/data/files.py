"""Files of records: JSONL (also gzipped), JSON, parquet. Whatever is wrong with a file is a DataError that names it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from sail.data.named.catalogue import nearest
from sail.errors import DataError, MissingExtraError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_POINTER = b"version https://git-lfs.github.com/spec/"


def read_file(source: str | Path) -> Iterator[tuple[Any, str]]:
    """Yields (record, origin) for each row of a file; an unreadable line of JSONL yields its DataError in place of the record.

    Rows count from 1, blank lines not counted. DataError where the file as a whole cannot be read, MissingExtraError for parquet
    without pyarrow.
    """
    path, name = Path(source), str(source)
    readers = dict(zip(ENDINGS, (_read_jsonl, _read_jsonl, _read_json, _read_parquet), strict=True))
    if path.is_dir():
        raise DataError(
            f"{name}: is a folder, not a file. Name a file in it; a saved dataset becomes one by "
            "datasets.load_from_disk(folder).to_json('pairs.jsonl'). A copy of a public set is read as {name: ..., path: ...}."
        )
    if not path.is_file():
        near = nearest(name)
        raise DataError(
            f"{name}: there is no such file (looked in {Path.cwd()}). Correct the path; "
            f"{f'the public set of nearly that name is {near}' if near else 'sail data lists the public sets by name'}; "
            "a dataset of a hub becomes a file by "
            "datasets.load_dataset(name, split='train').to_json('pairs.jsonl')."
        )
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DataError(f"{name}: is a pointer of git-lfs, not the data. Run git lfs pull in its folder.")
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
