"""The table under the first screen: the caller's, or one made from what the run folders hold."""

from __future__ import annotations

from typing import Any

from sail.report.answer import Gain, cost
from sail.report.record import Row, RunRecord
from sail.report.words import show

METRICS = [
    ("reward", "Reward"),
    ("win_rate", "Win rate over the reference"),
    ("kl", "KL to the reference, nats"),
    ("length", "Response length, tokens"),
]
NOTE = "Ranges are 95% intervals, clustered by prompt."
COSTS = [
    ("oracle_calls", "Oracle calls"),
    ("seconds_per_step", "Seconds per step"),
    ("seconds_ratio", "Seconds per step, relative"),
]


def results_table(records: list[RunRecord], gains: list[Gain | None]) -> Row:
    """{"columns", "rows", "caption", "notes"} in write_report's form; columns that no run can fill are left out."""
    columns: list[tuple[str, list[Any]]] = [("Reward gained", [_cell(g) for g in gains])]
    columns += [(title, [_cell(r.metric(key)) for r in records]) for key, title in METRICS]
    spent = [cost(record) for record in records]
    columns += [(title, [_number(c[key]) for c in spent]) for key, title in COSTS]
    filled = [(title, cells) for title, cells in columns if any(cell != "—" for cell in cells)]
    return {
        "columns": ["Run", *(title for title, _ in filled)],
        "rows": [[r.name, *(cells[i] for _, cells in filled)] for i, r in enumerate(records)],
        "caption": "Results of each run",
        "notes": [NOTE] if filled else ["No run holds results yet."],
    }


def shaped(table: Row) -> Row:
    """A caller's table with every part there: cells are text or {"mean", "low", "high", "n"}.

    `n` of a column moves into `sizes` (per column, None where cells differ), so that it is said once.
    """
    columns = [str(c) for c in table.get("columns", [])]
    rows = [[_given(cell) for cell in row] for row in table.get("rows", [])]
    sizes = [_common_size([row[i] for row in rows if i < len(row)]) for i in range(len(columns))]
    return {
        "columns": columns,
        "sizes": sizes,
        "rows": rows,
        "caption": str(table.get("caption") or ""),
        "notes": [str(note) for note in table.get("notes", [])],
    }


def _cell(value: Row | None) -> Any:
    if value is None:
        return "—"
    return {part: value.get(part) for part in ("mean", "low", "high", "n")}


def _number(value: float | None) -> str:
    return show(value)


def _given(cell: Any) -> Any:
    if isinstance(cell, dict):
        return _cell(cell)
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return show(cell)
    return "—" if cell is None else str(cell)


def _common_size(cells: list[Any]) -> float | None:
    """The n that all intervals of a column share, else None."""
    sizes = {cell["n"] for cell in cells if isinstance(cell, dict)}
    return sizes.pop() if len(sizes) == 1 else None
