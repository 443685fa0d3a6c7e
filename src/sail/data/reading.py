"""From a source in a run file (sail.data_config) to records in TRL's format, with what was left out and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sail.data.copies import files_of
from sail.data.files import read_file
from sail.data.formats import Row, parse_row, to_record
from sail.data.hub import rows_of_hub
from sail.data.named.base import Choice, NamedSet, Unusable
from sail.data.named.catalogue import NAMED
from sail.data.selection import Candidate, Counts, Rules, select
from sail.data_config import DataSource
from sail.errors import DataError


@dataclass
class Reading:
    """The records that stay, each with where it was read, and the counts."""

    title: str
    records: list[tuple[Any, str]]
    counts: Counts = field(default_factory=Counts)


def read(source: DataSource) -> Reading:
    """Reads, converts and selects. Raises DataError where files or hub cannot be read, or the rows are not those of the set."""
    counts = Counts()
    candidates = _of_file(source, counts) if source.name is None else _of_set(source, counts)
    kept = select(candidates, rules_of(source), counts)
    if counts.read and not kept:
        listed = ", ".join(f"{count} {reason}" for reason, count in counts.dropped.most_common())
        raise DataError(
            f"{source.title}: none of {counts.read} rows is left ({listed}). Choose other options, or another source."
        )
    return Reading(source.title, [(one.record, one.origin) for one in kept], counts)


def rules_of(source: DataSource) -> Rules:
    """What the source's options leave out."""
    return Rules(
        min_gap=source.gap,
        drop_repeats=source.drops_repeats,
        part=source.hashed_part,
        share=source.share,
        limit=source.limit,
        seed=source.seed,
    )


def _of_file(source: DataSource, counts: Counts) -> Iterator[Candidate]:
    """Rows that are in our format already. One that cannot be read is passed on as it is."""
    for record, origin in read_file(source.path or ""):
        counts.read += 1
        try:
            row = None if isinstance(record, DataError) else parse_row(record, origin)
        except DataError:
            row = None
        if row is None:
            yield Candidate(record, origin, None)
        else:
            yield Candidate(record, origin, row.prompt, row.chosen, row.rejected)


def _of_set(source: DataSource, counts: Counts) -> Iterator[Candidate]:
    known = NAMED[source.name or ""]
    choice = Choice(source.chosen_label, source.chosen_pairing, source.gap, source.chosen_shape, source.seed)
    for record, origin in _raw(source, known):
        counts.read += 1
        if isinstance(record, DataError):
            yield Candidate(record, origin, None)
            continue
        made = _converted(record, origin, known, choice)
        if isinstance(made, Unusable):
            counts.dropped[made.reason] += 1
            continue
        counts.noted.update(made.notes)
        row = Row(made.prompt, made.chosen, made.rejected, origin)
        answers = made.chosen, made.rejected
        yield Candidate(to_record(row), origin, made.prompt, *answers, made.gap, made.opening)


def _raw(source: DataSource, known: NamedSet) -> Iterator[tuple[Any, str]]:
    """The rows of the splits, from the local copy or from the hub."""
    for split in source.hub_splits:
        if source.path is None:
            yield from rows_of_hub(known, source.chosen_variant, split)
            continue
        for file in files_of(Path(source.path), known, source.chosen_variant, split):
            yield from read_file(file)


def _converted(record: Any, origin: str, known: NamedSet, choice: Choice) -> Any:
    """What the set's function makes of a row; DataError if the row has not the columns and shapes of the set."""
    if not isinstance(record, dict):
        raise DataError(
            f"{origin}: is not an object with columns, as every row of {known.name} is. Check path."
        )
    missing = [column for column in known.columns if column not in record]
    if missing:
        raise DataError(
            f"{origin}: this is no row of {known.name}: it lacks {', '.join(missing)} (columns found: "
            f"{', '.join(map(str, record)) or 'none'}). Check name and path."
        )
    try:
        return known.convert(record, choice)
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{origin}: a column has not the shape that {known.name} has ({type(error).__name__}: {error}). Check name and path."
        ) from error
