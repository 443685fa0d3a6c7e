"""Which rows are left out: repeats, held-out prompts, the limit; for public sets and for files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from named_sets import EXPECTED, WRITERS, transcript
from reading_sets import read, whole

from sail.data.formats import Row
from sail.data.selection import part_of, prompt_id
from sail.data.sources import load_rows
from sail.data_config import DataSource
from sail.errors import DataError

# --- Selection -----------------------------------------------------------------------------------------------


def rows_file(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_keeps_all_of_its_rows_unless_told_otherwise(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = rows_file(tmp_path, [row, row, {**row, "rejected": "a"}, {"prompt": "only"}])
    assert len(load_rows(DataSource(path=path)).rows) == 4
    found = load_rows(DataSource(path=path, drop_repeats=True))
    assert len(found.rows) == 2
    assert found.counts is not None
    assert dict(found.counts.dropped) == {"repeats an earlier row": 1, "identical answers": 1}


def test_a_file_is_parted_by_hash_and_its_bad_rows_are_still_bad(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n // 2}", "chosen": "a", "rejected": f"b {n}"} for n in range(200)]
    path = rows_file(tmp_path, [*rows, {"prompt": 5}])
    with pytest.raises(DataError, match="row 201: field 'prompt' is the int 5"):
        load_rows(DataSource(path=path, split="train", held_out=0.2))
    train, test = (
        load_rows(DataSource(path=path, split=split, held_out=0.2), bad_rows="skip")
        for split in ("train", "test")
    )
    assert len(train.rows) + len(test.rows) == 200
    assert 20 <= len(test.rows) <= 60  # 40 expected; 3.5 standard deviations of 100 prompts are 14 prompts
    assert not {row.prompt for row in train.rows} & {row.prompt for row in test.rows}
    assert len(load_rows(DataSource(path=path, limit=7), bad_rows="skip").rows) == 7


def test_a_conversation_falls_to_one_part_as_a_whole() -> None:
    opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    longer = [*opening, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
    for share in (0.1, 0.5, 0.9):
        assert part_of(opening, share) == part_of(longer, share)
    many = [part_of(f"prompt {number}", 0.3) for number in range(2000)]
    assert abs(many.count("test") / 2000 - 0.3) < 0.04  # 4 standard deviations
    small = {n for n in range(2000) if part_of(f"prompt {n}", 0.1) == "test"}
    assert small <= {n for n in range(2000) if part_of(f"prompt {n}", 0.3) == "test"}


@pytest.mark.parametrize("shape", ["chat", "text"])
def test_a_conversation_falls_to_one_part_in_both_shapes(shape: str, tmp_path: Path) -> None:
    """60 conversations, each also cut after its first answer: both rows are in one part, whichever way they are written."""
    rows = []
    for number in range(60):
        for turns in ((f"hello {number}",), (f"hello {number}", "yes ?", "more")):
            rows.append({side: transcript(*turns, side) for side in ("chosen", "rejected")})
    path = rows_file(tmp_path, rows)
    openings = []
    for split in ("train", "test"):
        found = load_rows(DataSource(name="hh-rlhf", path=path, split=split, held_out=0.4, shape=shape)).rows
        texts = [json.dumps(row.prompt) for row in found]
        openings.append(
            {n for n in range(60) for text in texts if f"hello {n}" in re.findall(r"hello \d+", text)}
        )
    assert len(openings[0]) + len(openings[1]) == 60
    assert not openings[0] & openings[1]
    both = DataSource(name="hh-rlhf", path=path, split="test", held_out=0.4, shape="chat")
    assert openings[1] == {int(row.prompt[0]["content"].split()[1]) for row in load_rows(both).rows}


@pytest.mark.parametrize("name", WRITERS)
def test_the_shape_moves_no_row_to_the_other_part(name: str, copies: Path) -> None:
    parts = [read(name, copies, split="test", held_out=0.3, shape=shape).rows for shape in ("chat", "text")]
    assert [row.origin for row in parts[0]] == [row.origin for row in parts[1]] != []


def test_whitespace_makes_no_other_prompt() -> None:
    assert prompt_id("a  b\n") == prompt_id("a b")
    assert prompt_id("ab") != prompt_id("a b")
    assert prompt_id([{"role": "user", "content": "a"}]) != prompt_id("a")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("held_out", [0.1, 0.3])
def test_no_prompt_is_in_both_parts(name: str, held_out: float, copies: Path) -> None:
    """Where the prompts are parted by hash; what a set's own test split shares is only counted (sail data)."""
    keys: dict[str, Any] = {"held_out": held_out}
    parts = [read(name, copies, split=split, **keys).rows for split in ("train", "test")]
    prompts = [{prompt_id(row.prompt) for row in rows} for rows in parts]
    assert not prompts[0] & prompts[1]
    assert sum(map(len, parts)) == EXPECTED[name]["kept"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_is_deterministic_nested_and_moved_by_the_seed(name: str, copies: Path) -> None:
    def limited(count: int, seed: int = 0) -> list[Row]:
        return read(name, copies, split=whole(name), limit=count, seed=seed).rows

    few, more = limited(5), limited(12)
    assert len(few) == 5
    assert limited(5) == few
    assert [row for row in more if row in few] == few
    assert limited(5, seed=1) != few
    assert len(limited(1000)) == EXPECTED[name]["kept"]
