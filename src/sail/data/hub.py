"""A public set from the hub, by the package `datasets`, which is imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from sail.data.named.base import NamedSet, Variant
from sail.errors import DataError, MissingExtraError

_OF_A_SCRIPT = ("script", "custom code", "trust_remote_code")
"""What versions of the library say of a set that they could load only by running code of the hub."""


def rows_of_hub(known: NamedSet, variant: str, split: str) -> Iterator[tuple[Any, str]]:
    """Yields (record, origin) of a split, by the hub's name for it. No code of the hub is run.

    DataError, with how to bring the set here by other means, where the hub cannot be reached or has no such split.
    """
    try:
        library: Any = import_module("datasets")
    except ImportError:
        raise MissingExtraError(
            f'{known.name}: loading from the hub needs datasets. Install it: pip install "sail-align[sft]", or give path, a '
            "local copy."
        ) from None
    form = known.variants[variant]
    for folder in form.data_dirs or (None,):
        try:
            rows = _loaded(library, form, folder, split)
        except Exception as error:  # the library raises of many kinds: the network's, the hub's, its own
            raise DataError(_not_loaded(known, variant, split, error)) from error
        place = f"{form.hub}{f'/{folder}' if folder else ''}[{split}]"
        for number, record in enumerate(rows, start=1):
            yield record, f"{place} row {number}"


def _loaded(library: Any, form: Variant, folder: str | None, split: str) -> Any:
    """The rows of one folder. Of a set that the hub keeps as a script, the hub's own conversion."""
    if form.revision is None:
        # A configuration of the hub names its files itself, from the root: a folder beside it would be put before them.
        return library.load_dataset(
            form.hub, form.config, data_dir=None if form.config else folder, split=split
        )
    try:
        return library.load_dataset(form.hub, form.config, split=split)
    except (RuntimeError, ValueError) as error:  # from version 4 on the first, before it the second
        if not any(word in str(error) for word in _OF_A_SCRIPT):
            raise
    return library.load_dataset(form.hub, data_dir=folder, split=split, revision=form.revision)


def _not_loaded(known: NamedSet, variant: str, split: str, error: Exception) -> str:
    form = known.variants[variant]
    error = (
        error.__cause__ if isinstance(error.__cause__, Exception) else error
    )  # the library wraps what went wrong
    said = str(error).strip().splitlines()
    cause = f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__
    revision = f" --revision {form.revision}" if form.revision else ""
    return (
        f"{known.name} (split {split}) could not be loaded from the hub as {form.hub} ({cause}). Where the hub cannot be "
        f"reached, download the set elsewhere (hf download {form.hub} --repo-type dataset{revision} --local-dir DIR), copy DIR "
        f"here and give {{name: {known.name}, variant: {variant}, path: DIR}}."
    )
