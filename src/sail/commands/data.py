"""`sail data`: its arguments, what they stand for, and what is printed. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sail.commands.arguments import add_verb, at_least_one

_DATA = """\
The source is the name of a public set, a file of preference rows, or a run file (its data.train, held against its data.eval, with
its tokenizer and lengths). Without a source the public sets are listed; docs/data.md tells what becomes of each.

  sail data pku-saferlhf --variant 10K --label safe --path ~/PKU-SafeRLHF-10K
  sail data pairs.jsonl --held-out held.jsonl --tokenizer ./sft --max-length 1024
  sail data run.yaml --json data.json --export pairs.jsonl
"""

SOURCE_OPTIONS = ("path", "split", "limit", "label", "variant", "pairing", "min_gap", "shape", "drop_repeats")
"""Options that are keys of a source in the run file."""


def add_data(verbs: Any, handler: Callable[[argparse.Namespace], None]) -> None:
    """`sail data`."""
    parser = add_verb(verbs, "data", handler, "look at preference data before training on it", _DATA)
    parser.add_argument(
        "source", nargs="?", metavar="NAME_OR_FILE_OR_RUN.yaml", help="a public set, a file, or a run file"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="of a run file: settings that replace the file's",
    )
    _add_source_options(parser)
    parser.add_argument(
        "--held-out",
        metavar="SOURCE",
        help="held-out rows: a file or a name; none (default: of a public set its split test)",
    )
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="a model folder or name: lengths in its tokens too"
    )
    parser.add_argument(
        "--max-length", type=at_least_one, metavar="N", help="longest prompt with answer, in tokens"
    )
    parser.add_argument(
        "--max-prompt-length", type=at_least_one, metavar="N", help="longest prompt, in tokens"
    )
    parser.add_argument(
        "--pairs", type=at_least_one, default=10, metavar="N", help="pairs to read (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="which pairs to read (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what is printed as JSON, too")
    parser.add_argument("--export", type=Path, metavar="FILE.jsonl", help="write the rows in TRL's format")
    parser.add_argument("--force", action="store_true", help="overwrite those files if they exist")


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    """SOURCE_OPTIONS."""
    parser.add_argument(
        "--path", metavar="P", help="a local copy of a public set, a folder or a file (default: the hub)"
    )
    parser.add_argument("--split", metavar="S", help="train, test or all (default: train; of a file: all)")
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="at most N rows, drawn by hash")
    parser.add_argument("--label", metavar="L", help="which verdict decides, where a set has several")
    parser.add_argument("--variant", metavar="V", help="which form of the set")
    parser.add_argument("--pairing", metavar="W", help="of several answers, which make the pair")
    parser.add_argument(
        "--min-gap", type=float, metavar="G", help="pairs whose scores lie closer are left out"
    )
    parser.add_argument("--shape", metavar="F", help="rows as chat or as text")
    parser.add_argument(
        "--drop-repeats",
        action="store_true",
        default=None,
        help="of a file: leave out repeats and identical answers",
    )


# ---- printed


def print_sets(sets: Mapping[str, Any]) -> None:
    """The public sets with what may be chosen of each."""
    rows = []
    for one in sets.values():
        rows.append(
            (
                one.name,
                ", ".join(one.variants) if len(one.variants) > 1 else "-",
                ", ".join(one.labels) or "-",
                next(iter(one.variants.values())).hub,
                one.about,
            )
        )
    _table("public sets", ("name", "variants", "labels", "hub", "what it is"), rows)


def print_inspection(made: dict[str, Any]) -> None:
    """Counts, lengths, repeats, warnings and pairs to read, as a person reads them."""
    _print_counts(made)
    _print_lengths(made["lengths"])
    bias = made["length_bias"]
    if bias["mean"] is not None:
        between = "" if bias["low"] is None else f" [{bias['low']:.0%}, {bias['high']:.0%}]"
        print(
            f"The chosen answer is the longer one ({bias['unit']}) in {bias['mean']:.0%}{between} of {bias['n']} pairs; "
            f"{bias['equal']} are of equal length and count half."
        )
    print()
    _print_pairs(made["examples"])
    for note in made["notes"]:
        print(f"Note: {note}")
    for warning in made["warnings"]:
        print(textwrap.fill(f"Warning: {_printable(warning)}", 110, subsequent_indent="  "))
    if not made["warnings"]:
        print("No warnings.")


def _print_counts(made: dict[str, Any]) -> None:
    rows, found, held, limits = made["rows"], made["repeats"], made["held_out"], made["limits"]
    lines = [("rows read", rows["read"])]
    lines += [(f"  left out: {reason}", count) for reason, count in rows["dropped"].items()]
    lines += [("  left out: cannot be used", rows["bad"])] if rows["bad"] else []
    lines += [("rows kept", rows["kept"])]
    lines += [(f"  of all read: {what}", count) for what, count in rows["noted"].items()]
    lines += [("  with a prompt only", rows["prompt_only"])] if rows["prompt_only"] else []
    lines += [
        ("different prompts", rows["prompts"]),
        ("pairs with identical answers", found["identical"]),
        ("pairs that repeat an earlier one", found["duplicated"]),
        ("pairs preferred both ways", found["contradictory"]),
    ]
    if held is not None:
        lines += [
            (f"held-out rows ({held['source']})", held["rows"]),
            ("  different prompts", held["prompts"]),
            ("  of them also trained on", held["shared_prompts"]),
        ]
    if limits is not None:
        lines += [
            ("prompts above the limit", limits["prompts_too_long"]),
            ("rows with an answer that is cut", limits["rows_with_a_cut"]),
        ]
    _table(f"data: {made['source']}", ("", "rows"), [(name, f"{count:,}") for name, count in lines])


def _print_lengths(lengths: dict[str, Any]) -> None:
    rows = []
    for unit, parts in lengths.items():
        for part, values in parts.items():
            if values is not None:
                numbers = [f"{values[key]:,.0f}" for key in ("mean", "p5", "p50", "p95", "p99", "max")]
                rows.append((part, unit, *numbers))
    _table("lengths", ("", "in", "mean", "5%", "median", "95%", "99%", "longest"), rows)


def _print_pairs(examples: list[dict[str, Any]]) -> None:
    for number, one in enumerate(examples, start=1):
        print(f"--- pair {number} of {len(examples)}: {one['origin']}")
        prompt = one["prompt"]
        turns = (
            [("prompt", prompt)]
            if isinstance(prompt, str)
            else [(turn["role"], turn["content"]) for turn in prompt]
        )
        answers = [
            (name, one[name] if isinstance(one[name], str) else one[name][0]["content"])
            for name in ("chosen", "rejected")
            if name in one
        ]
        for name, text in [*turns, *answers]:
            shown = textwrap.shorten(_printable(str(text)), 400, placeholder=" ...")
            print(textwrap.fill(f"{name + ':':<10}{shown}", 110, subsequent_indent=" " * 10))
    if examples:
        print()


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=Text(title), title_justify="left", show_edge=False)
    for place, name in enumerate(columns):
        right = bool(rows) and all(row[place].replace(",", "").isdigit() for row in rows)
        table.add_column(name, justify="right" if right else "left")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    if not console.is_terminal:
        needed = table.__rich_measure__(console, console.options.update(max_width=500)).maximum
        console = Console(width=max(console.width, needed))
    console.print(table)
    print()


def _printable(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text
    )
