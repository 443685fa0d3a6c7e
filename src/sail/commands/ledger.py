"""`sail ledger`: what a ledger holds, its sums, and its answers as a preference dataset. No torch."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sail.errors import ConfigError, DataError, MissingExtraError
from sail.oracles.ledger import LEDGER, Filter, Ledger
from sail.oracles.ledger_place import ledger_in

SHOWN_CHARACTERS = 60
SUMS = {
    "calls": "calls",
    "answered": "answered",
    "abstained": "abstained",
    "failed": "failed",
    "possibly_paid": "possibly paid",
    "remembered": "remembered",
    "tokens_in": "tokens in",
    "tokens_out": "tokens out",
    "cost": "cost",
}
"""The sums and what they are called; with the mean seconds of an answered call they make a row of the table."""


def ledger_of(place: Path) -> Path:
    """The ledger file that a file or a run folder means. Raises ConfigError where there is none."""
    if place.is_file():
        if place.stat().st_size == 0:
            raise ConfigError(
                f"{place} is an empty file. Give a ledger, or the folder of a run that keeps one."
            )
        return place
    if (found := ledger_in(place)) is not None:
        return found
    if not place.exists():
        raise ConfigError(
            f"There is no file or folder {place}. Give a ledger, or the folder of a run that keeps one."
        )
    raise ConfigError(
        f"{place} holds no {LEDGER}. A run keeps one if its oracle is a judge, or if the section oracle has wrap: [remember] or "
        "names a ledger."
    )


def show_ledger(place: Path, wanted: Filter, *, limit: int, totals_only: bool) -> None:
    """Print the last `limit` calls that are wanted, and the sums of all of them."""
    with Ledger(ledger_of(place)) as ledger:
        sums = ledger.summary(**asdict(wanted))
        if not totals_only:
            _print_rows(deque(ledger.rows(**asdict(wanted)), maxlen=limit), sum(map(_entries, sums)))
        _print_sums(sums)


# ---- as a dataset


@dataclass
class Exported:
    """How many pairs were written, and why the others were not."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        told = ", ".join(f"{count} {why}" for why, count in self.left_out.items() if count)
        return f"{self.written} pairs" + (f"; left out: {told}" if told else "")


def export(
    place: Path,
    wanted: Filter,
    target: Path,
    *,
    min_confidence: float = 0.5,
    force: bool = False,
    one_order: bool = False,
) -> Exported:
    """Write the answers as preference rows: prompt, chosen, rejected, score_chosen, score_rejected; TRL's explicit format.

    A row is a pair of texts, whichever orders were asked: p is the mean over them, score_chosen = max(p, 1 - p), score_rejected
    the rest. Ties, pairs of which an order has no verdict, and those below `min_confidence` are left out and counted; so are
    pairs of which one order alone was asked where a run asks both (a cap came in between), unless `one_order`. The answers must
    be of one oracle. Raises ConfigError, DataError or MissingExtraError.
    """
    if target.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{target} is neither .jsonl nor .parquet. Choose one of these endings.")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists. Give another path, or --force to overwrite it.")
    if not 0.5 <= min_confidence <= 1.0:
        raise ConfigError(f"--min-confidence is a probability from 0.5 to 1; it is {min_confidence:g}.")
    with Ledger(ledger_of(place)) as ledger:
        oracle = _only_oracle(ledger, wanted)
        orders = {(use.run, use.oracle_hash): use.orders for use in ledger.uses()}
        pairs = _pairs(ledger.rows(**{**asdict(wanted), "oracle": oracle}), orders)
    done = Exported()
    rows = list(_rows(pairs, min_confidence, done, one_order=one_order))
    kinds = {isinstance(row["prompt"], str) for row in rows}
    if len(kinds) > 1:
        raise DataError(
            "The ledger holds text prompts and conversations, which no dataset holds together. Export one run's: --run NAME."
        )
    _write(target, rows)
    done.written = len(rows)
    return done


def _only_oracle(ledger: Ledger, wanted: Filter) -> str | None:
    """The hash of the oracle that answered; answers of different oracles are different labels. None where nobody did."""
    sums = [one for one in ledger.summary(**asdict(wanted)) if one["answered"] or one["remembered"]]
    if len(sums) > 1:
        listed = "; ".join(
            f"{one['oracle']} ({one['oracle_hash'][:8]}, {_entries(one)} entries)" for one in sums
        )
        raise ConfigError(
            f"The ledger has answers of several oracles: {listed}. Choose one: --oracle NAME_OR_HASH."
        )
    return sums[0]["oracle_hash"] if sums else wanted.oracle


@dataclass
class _Asked:
    """A pair of texts, and the probability that its first one wins by the order asked: None where that order has no verdict."""

    prompt: Any
    texts: tuple[str, str]
    given: dict[bool, float | None] = field(default_factory=dict)
    single: bool = False
    both: bool = False
    """Whether a run that asked about it wanted both orders."""

    @property
    def half(self) -> bool:
        """Whether one order alone was asked where both were wanted: its verdict holds the place's bias."""
        return self.both and len(self.given) == 1 and self.texts[0] != self.texts[1]


def _pairs(rows: Iterable[dict[str, Any]], orders: Mapping[tuple[str, str], str]) -> list[_Asked]:
    """orders: how each (run, oracle) was asked; of a run that an older sail has written, a pairwise judge in both orders."""
    found: dict[tuple[str, str, str], _Asked] = {}
    for row in rows:
        first, second = row["first"], row["second"]
        texts = (first, second) if first <= second else (second, first)
        key = (json.dumps(row["prompt"], sort_keys=True), *texts)
        pair = found.setdefault(key, _Asked(row["prompt"], texts))
        p, straight = row["probability"], (first, second) == texts
        if row["state"] in ("answered", "remembered"):
            pair.given[straight] = p if p is None or straight else 1.0 - p
        else:
            # An order that was asked and never answered: the other one alone would bring the place's bias in.
            pair.given.setdefault(straight, None)
        pair.single = row["settings"].get("mode") == "single"
        asked = orders.get((row["run"], row["oracle_hash"]))
        pairwise = row["settings"].get("mode") == "pairwise"
        pair.both |= asked == "both_orders" or (asked is None and pairwise)
    return list(found.values())


def _rows(
    pairs: list[_Asked], min_confidence: float, done: Exported, *, one_order: bool
) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        given = [p for p in pair.given.values() if p is not None]
        p = sum(given) / len(given) if len(given) == len(pair.given) else None
        if pair.single:
            done.left_out["scores of single responses (wrap the judge in remember)"] += 1
        elif p is None:
            done.left_out["without a verdict"] += 1
        elif pair.half and not one_order:
            done.left_out["asked in one of two orders only (--one-order takes them)"] += 1
        elif p == 0.5 or pair.texts[0] == pair.texts[1]:
            done.left_out["ties"] += 1
        elif max(p, 1.0 - p) < min_confidence:
            done.left_out[f"below a confidence of {min_confidence:g}"] += 1
        else:
            chosen, rejected = pair.texts if p > 0.5 else pair.texts[::-1]
            yield {
                "prompt": pair.prompt,
                "chosen": _answer(pair.prompt, chosen),
                "rejected": _answer(pair.prompt, rejected),
                "score_chosen": max(p, 1.0 - p),
                "score_rejected": min(p, 1.0 - p),
            }


def _answer(prompt: Any, text: str) -> Any:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _write(target: Path, rows: list[dict[str, Any]]) -> None:
    """The file is there whole, or not at all."""
    unfinished = target.with_name(f"{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".jsonl":
            with unfinished.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            _write_parquet(unfinished, rows)
        unfinished.replace(target)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}. Give another path."
        ) from None


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            'Parquet needs pyarrow. Install it (pip install "sail-align[sft]"), or export to .jsonl.'
        ) from error
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# ---- printed


def _print_rows(rows: Iterable[dict[str, Any]], of: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    lines = [_cells(row) for row in rows]
    table = Table(title=f"the last {len(lines)} of {of}", title_justify="left", show_edge=False)
    names = ("id", "step", "oracle", "state", "p", "prompt", "first", "second", "said")
    own = [max(map(len, column)) for column in zip(names, *lines, strict=True)][:5]
    # What the short columns leave is shared by the texts.
    shared = max(8, (console.width - sum(own) - 3 * len(names)) // 4)
    for place, name in enumerate(names):
        right = "right" if name in ("id", "step", "p") else "left"
        width = own[place] if place < len(own) else shared
        table.add_column(name, width=width, no_wrap=True, overflow="ellipsis", justify=right)  # type: ignore[arg-type]
    for line in lines:
        # Text: a response may hold what rich would take for markup.
        table.add_row(*map(Text, line))
    console.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    p = row["probability"]
    silent = p is None and row["state"] in ("answered", "remembered")
    cells = [row["id"], "" if row["step"] is None else row["step"], row["oracle"]]
    cells += [
        "abstained" if silent else row["state"],
        "" if p is None else f"{p:.2f}",
        _last_words(row["prompt"]),
    ]
    return [
        _printable(str(cell))
        for cell in (*cells, row["first"], row["second"], row["reason"] or row["raw"] or "")
    ]


def _print_sums(sums: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = [*sums, *([_total(sums)] if len(sums) != 1 else [])]
    table = Table(show_edge=False)
    table.add_column("")
    for one in columns:
        table.add_column(
            Text(_printable(f"{one['oracle']} {one['oracle_hash'][:8]}".strip())), justify="right"
        )
    for key, name in SUMS.items():
        table.add_row(name, *(_number(one[key]) for one in columns))
    seconds = [one["seconds"] for one in columns]
    table.add_row("mean seconds", *("-" if mean is None else f"{mean:.2f}" for mean in seconds))
    Console().print(table)


def _total(sums: list[dict[str, Any]]) -> dict[str, Any]:
    total = {key: sum(one[key] for one in sums) for key in SUMS}
    timed = [one for one in sums if one["seconds"] is not None]
    answered = sum(one["answered"] + one["abstained"] for one in timed)
    spent = sum(one["seconds"] * (one["answered"] + one["abstained"]) for one in timed)
    return {"oracle": "all", "oracle_hash": "", "seconds": spent / answered if answered else None, **total}


def _entries(sums: dict[str, Any]) -> int:
    return int(sums["calls"] + sums["remembered"])


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def _last_words(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""


def _printable(text: str) -> str:
    shown = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * SHOWN_CHARACTERS])
    shown = " ".join(shown.split())
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 1] + "…"
