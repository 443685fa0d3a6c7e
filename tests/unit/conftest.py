"""Copies of the public sets, made once per file of tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from named_sets import WRITERS, write_copy


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of each public set, under its name."""
    home = tmp_path_factory.mktemp("copies")
    for name in WRITERS:
        write_copy(name, home / name)
    return home
