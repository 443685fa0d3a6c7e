"""The journal of an evaluation: whole chunks are kept, half ones made again, other settings refused."""

from __future__ import annotations

import pytest

from sail.errors import SailError
from sail.evaluation.journal import Journal

HEADER = {"model": "a" * 64, "prompts": 2, "seed": 0}


class Maker:
    """Makes a chunk, and counts how often."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, name: str, count: int = 2):
        def make():
            self.made.append(name)
            return [
                {"row": row, "log_prob": -0.1 * (row + 1) / 3, "text": f"{name} {row} \u2028 ü"}
                for row in range(count)
            ]

        return make


def write(path, *names: str, **settings):
    maker = Maker()
    with Journal(path, HEADER, **settings) as journal:
        found = [journal.chunk(name, maker(name)) for name in names]
    return found, maker.made


def test_what_is_read_back_is_what_was_written(tmp_path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    first, made = write(path, "one", "two")
    assert made == ["one", "two"]
    before = path.read_bytes()
    again, made = write(path, "one", "two")
    assert made == []
    assert again == first
    assert path.read_bytes() == before


def test_any_cut_leaves_the_same_file_in_the_end(tmp_path) -> None:
    """As if the process had been killed after every single byte."""
    whole = tmp_path / "whole.jsonl"
    expected, _ = write(whole, "one", "two")
    text = whole.read_bytes()
    for size in range(len(text)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(text[:size])
        found, _ = write(path, "one", "two")
        assert found == expected
        assert path.read_bytes() == text


def test_a_finished_chunk_is_not_made_again(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, "one")
    with path.open("ab") as file:
        file.write(b'{"chunk": "two", "of": 2, "row": 0}\n')  # the other row is missing
    _, made = write(path, "one", "two")
    assert made == ["two"]


def test_other_settings_are_refused_by_name(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    write(path, "one")
    before = path.read_bytes()
    with pytest.raises(SailError, match=r"\(prompts: 2 then, 3 now; seed: 0 then, none now\).*--overwrite"):
        Journal(path, {"model": "a" * 64, "prompts": 3})
    assert path.read_bytes() == before
    maker = Maker()
    with Journal(path, {"prompts": 3}, overwrite=True) as journal:
        journal.chunk("one", maker("one"))
    assert maker.made == ["one"]


def test_a_file_of_something_else_is_not_overwritten(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("my notes\nand more\n")
    with pytest.raises(SailError, match="is not a file that sail eval wrote"):
        Journal(path, HEADER)
    assert path.read_text() == "my notes\nand more\n"
