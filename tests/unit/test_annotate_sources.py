"""What people are given to label: files in every format, runs of both kinds, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sail.annotate.items import Item
from sail.annotate.sources import place_of, read_pairs
from sail.annotate.store import ANNOTATIONS
from sail.errors import DataError


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_every_format(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    path = write(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": "p", "chosen": "good", "rejected": "bad"},
            {"prompt": [user], "chosen": [answer], "rejected": [{**answer, "content": "no"}]},
            {"prompt": "q", "first": "a", "second": "", "probability": 0.25},
            {"prompt": "q", "first": "c", "second": "d"},
        ],
    )
    expected = [
        Item.of("p", "good", "bad", 1.0)[0],
        Item.of([user], "hello", "no", 1.0)[0],
        Item.of("q", "a", "", 0.25)[0],
        Item.of("q", "c", "d", None)[0],
    ]
    assert read_pairs(path).items == expected


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": "p", "chosen": "good", "rejected": "bad"},
            {"prompt": "p", "chosen": "bad", "rejected": "good"},
            {"prompt": "p", "chosen": "same", "rejected": "same"},
            {"prompt": "only a prompt"},
            {"prompt": "p", "first": 1, "second": "two"},
            "no JSON",
        ],
    )
    found = read_pairs(path)
    assert (len(found.items), found.repeated, found.identical, len(found.skipped)) == (1, 1, 1, 3)
    assert "row 4" in found.skipped[0]
    assert "'first' is not text" in found.skipped[1]


@pytest.mark.parametrize("rows", [[], [{"prompt": "p"}], [{"prompt": "p", "chosen": "x", "rejected": "x"}]])
def test_a_file_without_a_pair_is_refused(tmp_path: Path, rows: list[Any]) -> None:
    with pytest.raises(DataError):
        read_pairs(write(tmp_path / "pairs.jsonl", rows))


def test_a_run_that_was_killed_while_writing(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "first": "a", "second": "b", "probability": None} for n in range(3)]
    whole = b"".join(gzip.compress((json.dumps(row) + "\n").encode()) for row in rows)
    (tmp_path / "pairs.jsonl.gz").write_bytes(whole[:-9])
    found = read_pairs(tmp_path / "pairs.jsonl.gz")
    assert [item.prompt for item in found.items][:2] == ["p0", "p1"]
    assert any("gzip" in message for message in found.skipped)
    (tmp_path / "other.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(DataError, match="gzip"):
        read_pairs(tmp_path / "other.jsonl.gz")


def test_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither annotations\.sqlite"):
        place_of(tmp_path)
    with pytest.raises(DataError, match="There is no"):
        place_of(tmp_path / "missing.jsonl")
    recorded = write(tmp_path / "pairs.jsonl.gz", [])
    place = place_of(tmp_path)
    assert (place.pairs, place.labels) == (recorded, tmp_path / "pairs.annotations.sqlite")
    assert place_of(tmp_path, tmp_path / "mine.sqlite").labels == tmp_path / "mine.sqlite"
    (tmp_path / ANNOTATIONS).touch()
    place = place_of(tmp_path)
    assert (place.pairs, place.labels) == (None, tmp_path / ANNOTATIONS)
    assert (
        place_of(recorded).labels != tmp_path / ANNOTATIONS
    )  # the recorded pairs of that same run have labels of their own
