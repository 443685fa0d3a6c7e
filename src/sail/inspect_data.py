"""`sail data`: what it would be to train on a source, measured beforehand. No torch, unless tokens are counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sail.data.formats import Row, to_record
from sail.data.selection import digest, prompt_id
from sail.data.sources import RowSet, load_rows
from sail.data_config import DataSource, title_of
from sail.errors import ConfigError, SailError
from sail.evaluation.stats import rate_interval
from sail.inspect_warnings import warnings_of
from sail.types import Prompt

PERCENTILES = (5, 50, 95, 99)
PARTS = ("prompt", "chosen", "rejected")
SHOWN_BAD = 5


@dataclass
class Wanted:
    """What to look at. Limits are in tokens, None is none; tokenizer: a folder or a name, None = tokens are not counted."""

    source: str | DataSource
    held_out: str | DataSource | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    max_prompt_length: int | None = None
    pairs: int = 10
    seed: int = 0
    notes: list[str] = field(default_factory=list)


def inspect(wanted: Wanted) -> tuple[dict[str, Any], list[Row]]:
    """Everything that `sail data` tells, JSON-able, and the rows themselves. Raises SailError where the source cannot be read."""
    rows = load_rows(wanted.source, bad_rows="skip")
    held = _held_out(wanted)
    made: dict[str, Any] = {
        "source": title_of(wanted.source),
        "rows": _counted(rows),
        "lengths": {
            "characters": _lengths(rows.rows, len),
            "words": _lengths(rows.rows, lambda text: len(text.split())),
        },
        "repeats": repeats(rows.rows),
        "held_out": None if held is None else _shared(rows.rows, held.rows, wanted.held_out),
        "limits": None,
        "examples": examples(rows.rows, wanted.pairs, wanted.seed),
        "notes": wanted.notes,
    }
    unit = "words"
    if wanted.tokenizer is not None:
        from sail.inspect_tokens import count_tokens, in_limits

        counted = count_tokens(rows.rows, wanted.tokenizer)
        made["lengths"]["tokens"] = {
            part: spread(
                [
                    lengths[place]
                    for lengths in counted.lengths
                    if lengths is not None and place < len(lengths)
                ]
            )
            for place, part in enumerate(PARTS)
        }
        limits = in_limits(counted, wanted.max_length, wanted.max_prompt_length)
        made["limits"] = {"tokenizer": wanted.tokenizer, **limits}
        unit = "tokens"
        pairs = [None if lengths is None or len(lengths) < 3 else lengths[1:] for lengths in counted.lengths]
        made["length_bias"] = length_bias(rows.rows, pairs, unit)
    else:
        words = [
            None
            if row.chosen is None
            else tuple(len((text or "").split()) for text in (row.chosen, row.rejected))
            for row in rows.rows
        ]
        made["length_bias"] = length_bias(rows.rows, words, unit)
    made["warnings"] = warnings_of(made)
    return made, rows.rows


def _held_out(wanted: Wanted) -> RowSet | None:
    """The held-out rows. A split that a copy lacks is no reason not to look at the other one."""
    if wanted.held_out is None:
        return None
    try:
        return load_rows(wanted.held_out, bad_rows="skip")
    except SailError as error:
        wanted.notes.append(f"The held-out rows were not looked at: {error}")
        return None


def _counted(rows: RowSet) -> dict[str, Any]:
    counts = rows.counts
    return {
        "read": counts.read if counts else len(rows.rows) + len(rows.skipped),
        "kept": len(rows.rows),
        "dropped": dict(counts.dropped.most_common()) if counts else {},
        "noted": dict(counts.noted.most_common()) if counts else {},
        "bad": len(rows.skipped),
        "bad_examples": rows.skipped[:SHOWN_BAD],
        "pairs": sum(not row.prompt_only for row in rows.rows),
        "prompt_only": sum(row.prompt_only for row in rows.rows),
        "conversational": sum(row.conversational for row in rows.rows),
        "prompts": len({prompt_id(row.prompt) for row in rows.rows}),
    }


# ---- repeats, and what train and held-out share


def repeats(rows: Sequence[Row]) -> dict[str, int]:
    """Numbers of pairs.

    identical: both answers the same text. duplicated: pairs beyond the first with equal prompt, chosen and rejected.
    contradictory: pairs whose two answers are preferred the other way round in another row.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    identical = 0
    for row in rows:
        if row.chosen is None or row.rejected is None:
            continue
        if row.identical:
            identical += 1
        seen[prompt_id(row.prompt), digest(row.chosen), digest(row.rejected)] += 1
    return {
        "identical": identical,
        "duplicated": sum(count - 1 for count in seen.values()),
        "contradictory": sum(
            count
            for (prompt, one, other), count in seen.items()
            if one != other and (prompt, other, one) in seen
        ),
    }


def _shared(rows: Sequence[Row], held: Sequence[Row], source: Any) -> dict[str, Any]:
    trained = {prompt_id(row.prompt) for row in rows}
    of_held = [prompt_id(row.prompt) for row in held]
    return {
        "source": title_of(source),
        "rows": len(held),
        "prompts": len(set(of_held)),
        "shared_prompts": len(trained & set(of_held)),
        "shared_rows": sum(prompt in trained for prompt in of_held),
    }


def examples(rows: Sequence[Row], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows to read, those with the lowest hash of (seed, prompt, answers), in the order of the source."""
    keys = [digest(str(seed), prompt_id(row.prompt), row.chosen or "", row.rejected or "") for row in rows]
    places = sorted(sorted(range(len(rows)), key=keys.__getitem__)[:count])
    return [{"origin": rows[place].origin, **to_record(rows[place])} for place in places]


# ---- lengths


def text_of(prompt: Prompt) -> str:
    """A prompt as text, conversations by the contents of their messages."""
    return prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)


def _lengths(rows: Sequence[Row], measure: Callable[[str], int]) -> dict[str, dict[str, float] | None]:
    texts = {
        "prompt": [text_of(row.prompt) for row in rows],
        "chosen": [row.chosen for row in rows if row.chosen is not None],
        "rejected": [row.rejected for row in rows if row.rejected is not None],
    }
    return {part: spread([measure(text) for text in texts[part]]) for part in PARTS}


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Mean, percentiles (5, 50, 95, 99; linear between neighbours) and largest; None of nothing.

    >>> spread([1, 2, 3])["p50"]
    2.0
    """
    if not values:
        return None
    points = np.percentile(values, PERCENTILES)
    named = {f"p{name}": float(value) for name, value in zip(PERCENTILES, points, strict=True)}
    return {"mean": float(np.mean(values)), **named, "max": float(max(values))}


def length_bias(rows: Sequence[Row], lengths: Sequence[tuple[int, ...] | None], unit: str) -> dict[str, Any]:
    """Share of pairs whose chosen answer is the longer one, ties one half, with a 95% interval clustered by prompt.

    `lengths` are (chosen, rejected) of each row, None where it has no pair. Far from 1/2, length alone predicts the label.
    """
    known = [(row, pair) for row, pair in zip(rows, lengths, strict=True) if pair is not None]
    outcomes = [0.5 if one == other else float(one > other) for _, (one, other) in known]
    found = rate_interval(outcomes, [prompt_id(row.prompt) for row, _ in known])
    return {"unit": unit, **asdict(found), "equal": sum(value == 0.5 for value in outcomes)}


# ---- files


def export(rows: Sequence[Row], path: Path, *, force: bool) -> None:
    """The rows in TRL's explicit format, one JSON object per line: any tool that reads preference data reads them."""
    lines = [json.dumps(to_record(row), ensure_ascii=False) + "\n" for row in rows]
    _write(path, "".join(lines), force)


def write_twin(made: dict[str, Any], path: Path, *, force: bool) -> None:
    """What is printed, for programs."""
    _write(path, json.dumps(made, indent=1, ensure_ascii=False) + "\n", force)


def _write(path: Path, text: str, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigError(f"{path} exists. Give another path, or --force to overwrite it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Give another path.") from None
