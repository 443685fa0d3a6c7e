"""A local copy of a public set: which of its files hold a split. The layout is the hub's, or one file.

A file holds split S if its name, or that of a folder on its way, is S, or begins with S and a separator (train.jsonl,
train-00000-of-00001.parquet, train/0000.parquet). A folder in which no file names any split holds the training rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sail.data.files import ENDINGS
from sail.data.named.base import NamedSet, Variant
from sail.errors import DataError

_SPLIT_WORDS = re.compile(r"(train|test|validation|valid|val|dev|eval)($|[-_.\d])", re.IGNORECASE)
_SHOWN = 6


def files_of(path: Path, known: NamedSet, variant: str, split: str) -> list[Path]:
    """The files of `split` (the hub's name for it) in the copy at `path`, sorted. DataError, with what is there, if none."""
    if not path.exists():
        raise DataError(
            f"{known.name}: there is no {path}. Correct path, or leave it out to load the set from the hub."
        )
    form = known.variants[variant]
    if path.is_file():
        found = [path]
        roots = [path.parent]
    else:
        roots = _roots(path, known, form)
        found = [file for root in roots for file in sorted(root.rglob("*")) if _is_data(file, root)]
    named = {file: _words(file, roots) for file in found}
    chosen = [file for file, words in named.items() if any(_is_split(word, split) for word in words)]
    if not chosen:
        chosen = [file for file in found if file.name.partition(".")[0] == _our_word(form, split)]
    unnamed = not any(_SPLIT_WORDS.match(word) for words in named.values() for word in words)
    if not chosen and unnamed and split.startswith("train"):
        chosen = found
    if not chosen:
        shown = ", ".join(str(_short(file, path)) for file in found[:_SHOWN]) or "no data file"
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise DataError(
            f"{known.name}: no file of the split {split} in {path} (found: {shown}{more}). Files are Parquet or JSONL and "
            f"carry the split's name, such as {split}.jsonl or {split}-00000-of-00001.parquet. Complete the copy, or set "
            "held_out: 0.05 to hold out a share of the training prompts."
        )
    return chosen


def _our_word(form: Variant, split: str) -> str | None:
    """train or test, where the hub calls that split otherwise: a copy may be named so too."""
    return next((ours for ours, hubs in form.splits.items() if hubs == split), None)


def _roots(path: Path, known: NamedSet, form: Variant) -> list[Path]:
    """The folders of the variant; the copy itself where it is not parted into any of the set's folders."""
    inside = [path / folder for folder in form.data_dirs if (path / folder).is_dir()]
    others = {
        folder
        for other in known.variants.values()
        for folder in other.data_dirs
        if (path / folder).is_dir() and folder not in form.data_dirs
    }
    if not inside and others and form.data_dirs:
        raise DataError(
            f"{known.name}: {path} has no folder {' or '.join(form.data_dirs)}, only {', '.join(sorted(others))}. "
            "Complete the copy, or choose another variant."
        )
    return inside or [path]


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    infos = file.name in ("dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json")
    return file.is_file() and file.name.endswith(ENDINGS) and not hidden and not infos


def _words(file: Path, roots: Sequence[Path]) -> list[str]:
    """The names that may carry a split: the file's, and those of the folders below the root."""
    root = next(root for root in roots if file.is_relative_to(root))
    return [*file.relative_to(root).parts]


def _is_split(word: str, split: str) -> bool:
    rest = word[len(split) :]
    return word.lower().startswith(split.lower()) and (not rest or rest[0] in "-_." or rest[0].isdigit())


def _short(file: Path, path: Path) -> Path:
    return file.relative_to(path) if file != path and file.is_relative_to(path) else Path(file.name)
