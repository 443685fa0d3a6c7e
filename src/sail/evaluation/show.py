"""Intervals and tables as a person reads them in a terminal. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sail.evaluation.stats import Interval

WORDS = {
    "reward": "reward",
    "reward_reference": "the same of the reference",
    "reward_dataset": "the same of the dataset's chosen answers",
    "reward_gain": "gain over the reference, paired by prompt",
    "win_rate": "win rate over the reference",
    "win_rate_length_controlled": "the same at equal length",
    "win_rate_dataset": "win rate over the dataset's chosen answers",
    "win_rate_dataset_length_controlled": "the same at equal length",
    "kl": "KL to the reference, nats per response",
    "margin": "margin of held-out pairs (beta nats)",
    "accuracy": "preference accuracy on held-out pairs",
    "length": "response length, tokens",
    "length_reference": "the same of the reference",
    "cut": "share of responses cut at the limit",
    "empty": "share of empty responses",
    "distinct_1": "distinct-1 of 1,000 tokens",
    "distinct_2": "distinct-2 of 1,000 2-grams",
    "distinct_3": "distinct-3 of 1,000 3-grams",
    "self_repetition": "4-grams repeated within a response",
    "duplicates": "answers also given to another prompt",
    "refusal_harmful": "refusals of harmful questions",
    "refusal_harmless": "refusals of harmless questions",
}
"""What each metric is called, in the order in which they are shown."""


def show(interval: Interval | dict[str, Any] | None, digits: int = 2) -> str:
    """`1.23 [1.10, 1.36], n = 512`."""
    text = limits(interval, digits)
    values = asdict(interval) if isinstance(interval, Interval) else interval
    return text if text == "-" or values is None else f"{text}, n = {values['n']}"


def limits(interval: Interval | dict[str, Any] | None, digits: int = 2, *, sign: bool = False) -> str:
    """`1.23 [1.10, 1.36]`; "-" where nothing was measured."""
    values = asdict(interval) if isinstance(interval, Interval) else interval
    if values is None or values["mean"] is None:
        return "-"
    plus = "+" if sign else ""
    text = f"{values['mean']:{plus}.{digits}f}"
    if values["low"] is not None:
        text += f" [{values['low']:{plus}.{digits}f}, {values['high']:{plus}.{digits}f}]"
    return text


def words(name: str) -> str:
    """What a metric is called; a win rate over another run by that run's name."""
    if name in WORDS or not name.startswith("win_rate_"):
        return WORDS.get(name, name)
    rival = name.removeprefix("win_rate_").removesuffix("_length_controlled")
    return "the same at equal length" if name.endswith("_length_controlled") else f"win rate over {rival}"


def in_order(names: Iterable[str]) -> list[str]:
    """Metric names as they are shown: those of `WORDS` first, in its order."""
    known, names = list(WORDS), list(names)
    return sorted(
        names, key=lambda name: (known.index(name) if name in known else len(known), names.index(name))
    )


def print_evaluation(results: dict[str, Any], path: Path) -> None:
    """The table of `sail eval`, what was left out and why, and where the numbers are."""
    metrics = results["metrics"]
    rows = [
        (words(name), limits(metrics[name], _digits(name)), str(metrics[name]["n"]))
        for name in in_order(metrics)
    ]
    if rows:
        print_table(f"{results['subject']}: held-out prompts", ("metric", "mean [95% interval]", "n"), rows)
    for name, found in results["win_rates"].items():
        said = found["win_rate"]
        line = f"Against {name}: {said['ties']} ties (one half each), {said['abstained']} abstentions (left out)."
        if found["position"]["kind"] == "ordered":
            line += f" Position bias {limits(found['position']['bias'], 3, sign=True)}; the verdict flips with the order in "
            line += f"{limits(found['position']['disagreement'])} of the pairs."
        print(line)
    if results["questions"]:
        _print_questions(results["questions"])
    if results["frontier"]:
        shown = [
            (str(point["step"]), limits(point["reward"]), limits(point["kl"]), limits(point["length"], 1))
            for point in results["frontier"]
        ]
        print_table("checkpoints", ("step", "reward", "KL, nats", "length"), shown)
    for name, why in results["left_out"].items():
        print(f"Left out: {name}: {why}.")
    for note in results["notes"]:
        print(f"Note: {note}")
    print(f"Oracle and judge were asked {results['oracle_calls']:,} times. All numbers and answers: {path}")


def _print_questions(table: dict[str, Any]) -> None:
    shown: dict[str, list[str]] = {}
    for row in table["rows"]:
        shown.setdefault(row["category"], [row["category"]]).append(limits(row))
    print_table(
        "benchmark questions, 1 to 10", ("category", "turn 1", "turn 2", "both"), list(shown.values())
    )
    if table["abstained"]:
        print(f"The judge abstained {table['abstained']} times.")


def _digits(name: str) -> int:
    return 3 if name in ("margin", "self_repetition", "duplicates") else 2


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as it needs where it goes to a file; in a terminal narrower than that its cells wrap."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        needed = table.__rich_measure__(console, console.options.update(max_width=500)).maximum
        console = Console(width=max(console.width, needed))
    console.print(table)
