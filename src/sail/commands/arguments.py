"""Arguments of the command line: what verbs share. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_verb(
    verbs: Any, name: str, handler: Callable[[argparse.Namespace], None], about: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """A verb with its help; `handler` is called with what was given."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def at_least_one(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def step_range(text: str) -> tuple[int | None, int | None]:
    """`7`, `3:9`, `3:` or `:9`, both ends included."""
    first, colon, last = text.partition(":")
    try:
        ends = int(first) if first else None, int(last) if last else None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no step, such as 7, and no range, such as 3:9"
        ) from None
    return ends if colon else (ends[0], ends[0])
