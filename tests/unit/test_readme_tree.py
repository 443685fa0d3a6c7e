"""The tree in the README is the tree: nothing that is there is missing in it, and nothing in it is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TREE = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
WORDS = set(re.findall(r"[\w./-]+", TREE))


def part(name: str) -> set[str]:
    """The names in the tree's part that begins with `name` at the left edge."""
    found = re.search(rf"^{re.escape(name)}.*?(?=^\S|\Z)", TREE, flags=re.S | re.M)
    assert found is not None, name
    return {word.rstrip("/.") for word in re.findall(r"[\w./-]+", found[0])}


@pytest.mark.parametrize(
    ("folder", "pattern"), [("src/sail", "*"), ("docs", "*.md"), ("benchmarks", "*"), ("tests", "*/")]
)
def test_everything_that_is_there_is_in_the_tree(folder: str, pattern: str) -> None:
    there = {
        one.name if one.suffix == ".md" or folder == "benchmarks" else one.stem
        for one in (ROOT / folder).glob(pattern)
        if not one.name.startswith(("_", ".")) and one.name != "py.typed"
    }
    assert there
    assert there <= part(f"{folder}/")


def test_every_file_in_the_tree_is_there() -> None:
    files = {word for word in WORDS if re.fullmatch(r"[\w./-]+\.(py|md|txt|toml)", word)}
    assert len(files) > 15
    there = {str(one.relative_to(ROOT)) for one in ROOT.glob("*.*")}
    there |= {
        one.name
        for folder in ("docs", "benchmarks", "benchmarks/evidence")
        for one in (ROOT / folder).iterdir()
    }
    assert files <= there
