"""The verbs about oracles: their arguments, and what they call. Nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sail.commands.arguments import add_verb, at_least_one, step_range
from sail.errors import ConfigError

_LEDGER = """\
A ledger holds every call that a run made to an oracle that costs money, and every answer (docs/oracles.md). Steps begin at 0.

  sail ledger runs/dpr --abstained --search "[[C]]"     what the judge could not decide
  sail ledger runs/dpr --export pairs.jsonl --min-confidence 0.8     its answers as preference rows, in TRL's format
"""

_ANNOTATE = """\
Of a run folder whose oracle is people, the pairs that training waits for are labelled; of any other run, its recorded pairs.
The link that is printed holds a random token; a token of your own can be set as SAIL_ANNOTATE_TOKEN. docs/people.md tells more.

  sail annotate pairs.jsonl --annotators 2        everybody sees every pair that lacks two labels
  sail annotate pairs.jsonl --export out.jsonl    the labels as preference rows, majority of the votes
"""


def add_ledger(verbs: Any) -> None:
    """`sail ledger`."""
    parser = add_verb(
        verbs, "ledger", _ledger, "show what an oracle was asked, said and cost; export it", _LEDGER
    )
    parser.add_argument("place", type=Path, metavar="FILE_OR_RUN", help="a ledger, or the folder of a run")
    parser.add_argument(
        "--state", choices=("sent", "answered", "failed", "remembered"), help="sent: possibly paid"
    )
    parser.add_argument("--oracle", metavar="NAME", help="its name, or the beginning of its hash")
    parser.add_argument("--run", metavar="NAME", help="of a ledger that several runs share")
    parser.add_argument("--step", type=step_range, metavar="A:B", help="a step, or a range with both ends")
    parser.add_argument("--abstained", action="store_true", help="answers without a verdict only")
    parser.add_argument("--search", metavar="TEXT", help="in prompts, responses, replies and reasons")
    parser.add_argument(
        "--limit", type=at_least_one, default=20, metavar="N", help="the last N calls (default: %(default)s)"
    )
    parser.add_argument("--totals", action="store_true", help="sums only")
    parser.add_argument(
        "--export", type=Path, metavar="OUT", help="write preference rows to OUT.jsonl or OUT.parquet"
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help="of an export: pairs with max(p, 1 - p) of at least P",
    )
    parser.add_argument(
        "--one-order",
        action="store_true",
        help="of an export: also pairs that a cap has cut off between their two orders; their label may be the place's",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the exported file if it exists")


def _ledger(options: argparse.Namespace) -> None:
    from sail.commands.ledger import export, show_ledger
    from sail.oracles.ledger import Filter

    names = ("state", "run", "oracle", "step", "abstained", "search")
    wanted = Filter(**{name: getattr(options, name) for name in names})
    if options.export is None:
        if options.min_confidence is not None:
            raise ConfigError("--min-confidence concerns an export. Add --export OUT.jsonl, or leave it out.")
        if options.one_order:
            raise ConfigError("--one-order concerns an export. Add --export OUT.jsonl, or leave it out.")
        show_ledger(options.place, wanted, limit=options.limit, totals_only=options.totals)
        return
    least = 0.5 if options.min_confidence is None else options.min_confidence
    done = export(
        options.place,
        wanted,
        options.export,
        min_confidence=least,
        force=options.force,
        one_order=options.one_order,
    )
    print(f"{options.export}: {done}")


def add_annotate(verbs: Any) -> None:
    """`sail annotate`."""
    parser = add_verb(
        verbs, "annotate", _annotate, "let people compare answers on a page of this machine", _ANNOTATE
    )
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_PAIRS", help="a run folder, or a file of pairs (JSONL)"
    )
    parser.add_argument(
        "--annotators",
        type=at_least_one,
        default=1,
        metavar="N",
        help="how many people label each pair; agreement needs 2 (default: %(default)s; a waiting run says so itself)",
    )
    parser.add_argument(
        "--question", metavar="TEXT", help='shown above each pair (default: "Which answer is better?")'
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="where the labels go, if not beside the pairs"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="0.0.0.0 lets other machines in (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8765,
        metavar="N",
        help="default: %(default)s, or a free one where that is taken",
    )
    tell = parser.add_mutually_exclusive_group()
    tell.add_argument("--summary", action="store_true", help="serve nothing; say what the labels say")
    tell.add_argument("--export", type=Path, metavar="OUT.jsonl", help="the same, and write preference rows")


def _annotate(options: argparse.Namespace) -> None:
    from sail.commands.annotate import annotate

    names = ("labels", "annotators", "host", "port", "question", "export", "summary")
    annotate(options.source, **{name: getattr(options, name) for name in names})
