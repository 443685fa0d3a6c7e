"""`sail init`: its arguments, and what it calls. Nothing heavy is imported until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sail.commands.arguments import add_verb
from sail.mixture import PRESETS


def add_init(verbs: Any) -> None:
    """`sail init`."""
    epilog = "presets:\n" + "\n".join(f"  {preset.name:<12} {preset.about}" for preset in PRESETS.values())
    parser = add_verb(verbs, "init", _init, "write a commented run file to start from", epilog)
    parser.add_argument(
        "path", nargs="?", type=Path, default=Path("run.yaml"), metavar="PATH", help="default: %(default)s"
    )
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="sail-dpr", metavar="P", help="default: %(default)s"
    )
    parser.add_argument(
        "--oracle",
        default="function",
        metavar="K",
        help="function, reward_model, judge, people or committee (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")


def _init(options: argparse.Namespace) -> None:
    from sail.commands.init import write_run_file

    print(write_run_file(options.path, options.preset, force=options.force, kind=options.oracle))
