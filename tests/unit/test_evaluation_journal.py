"""The journal of an evaluation: whole chunks are kept, half ones made again, other settings refused."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("text", ["my notes\nand more\n", "my notes\n"])
def test_a_file_of_something_else_is_not_overwritten(tmp_path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(SailError, match="is not a file that sail eval wrote"):
        Journal(path, HEADER)
    assert path.read_text() == text


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_one_at_the_same_time_is_refused(tmp_path, overwrite: bool) -> None:
    """Nothing is lost: the first goes on, and what it wrote is whole. Afterwards the file is free again."""
    path = tmp_path / "answers.jsonl"
    maker = Maker()
    with Journal(path, HEADER) as journal:
        journal.chunk("one", maker("one"))
        before = path.read_bytes()
        with pytest.raises(SailError, match=r"Another sail eval is writing .*answers\.jsonl now"):
            Journal(path, HEADER, overwrite=overwrite)
        assert path.read_bytes() == before
        journal.chunk("two", maker("two"))
    expected, _ = write(tmp_path / "alone.jsonl", "one", "two")
    found, made = write(path, "one", "two")
    assert (found, made) == (expected, [])
    assert path.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_another_process_holds_the_lock_until_it_is_killed(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from sail.evaluation.journal import Journal\n"
        f"with Journal(Path(sys.argv[1]), {HEADER!r}): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SailError, match="Another sail eval"):
            Journal(path, HEADER)
    finally:
        process.kill()
        process.communicate()
    assert write(path, "one")[1] == ["one"]


def test_a_refused_file_is_not_held(tmp_path) -> None:
    """The error does not keep the lock, even while somebody keeps the error."""
    path = tmp_path / "answers.jsonl"
    write(path, "one")
    with pytest.raises(SailError) as kept:
        Journal(path, {"seed": 5})
    assert write(path, "one")[1] == []
    assert kept.value is not None


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path) -> None:
    (tmp_path / "mine").write_text("notes")
    with pytest.raises(SailError, match=r"cannot be written.*--out"):
        Journal(tmp_path / "mine" / "answers.jsonl", HEADER)
    (tmp_path / "answers.jsonl").mkdir()
    with pytest.raises(SailError, match=r"cannot be written.*--out"):
        Journal(tmp_path / "answers.jsonl", HEADER)
