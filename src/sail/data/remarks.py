"""What a run says about its rows before it begins: how many, what was left out and why, what train and held-out share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sail.data.selection import Counts, prompt_id


def about_rows(title: str, rows: Any, counts: Counts | None = None) -> str:
    """One line about encoded rows (an EncodedDataset) and, for a public set, about the rows that its options left out."""
    text = f"{title}: {len(rows)} rows"
    text += "".join(
        f", {count} {name}"
        for count, name in (
            (rows.prompt_only, "with prompt only"),
            (rows.identical, "with identical responses"),
            (rows.cut, "responses cut"),
        )
        if count
    )
    text += left_out(counts)
    if rows.skipped:
        text += f"; {len(rows.skipped)} bad rows skipped, the first: {rows.skipped[0]}"
    return text


def left_out(counts: Counts | None) -> str:
    """`; of 60 read, 3 tie, 1 near-tie`; nothing where nothing was left out."""
    if counts is None or not counts.dropped:
        return ""
    listed = ", ".join(f"{count} {reason}" for reason, count in counts.dropped.most_common())
    return f"; of {counts.read} read, left out: {listed}"


def about_shared(train: Sequence[Any], held_out: Sequence[Any]) -> list[str]:
    """A remark where held-out rows have prompts that are trained on; rows are mappings with a prompt."""
    trained = {prompt_id(row["prompt"]) for row in train}
    held = {prompt_id(row["prompt"]) for row in held_out}
    shared = len(trained & held)
    if not shared:
        return []
    return [
        f"{shared} of {len(held)} held-out prompts are also trained on, so held-out figures flatter the run. Set held_out: 0.05 "
        "in both sources (with split: train and split: test), or take the prompts out of one of them."
    ]
