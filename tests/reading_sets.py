"""Reading the copies of named_sets.py, by the code that reads them in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sail.data.named.catalogue import NAMED
from sail.data.sources import RowSet, load_rows
from sail.data_config import DataSource, parse_source


def source(name: str, copies: Path, **keys: Any) -> DataSource:
    made = parse_source({"name": name, "path": str(copies / name), **keys})
    assert isinstance(made, DataSource)
    return made


def read(name: str, copies: Path, **keys: Any) -> RowSet:
    return load_rows(source(name, copies, **keys))


def whole(name: str) -> str:
    return "train" if "test" in next(iter(NAMED[name].variants.values())).splits else "all"
