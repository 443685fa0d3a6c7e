"""The verbs of real runs, `sail pipeline` and `sail merge`: their arguments, and what they call. Nothing heavy at import."""

from __future__ import annotations

import argparse
from typing import Any

from sail.commands.arguments import add_verb

_MERGE = """\
Of a run folder the final adapter is merged, or that of the newest checkpoint if the run has not ended. sail train leaves a merged
model of its own (RUN/model); this verb is for adapters, checkpoints, another base or another type.

  sail merge runs/dpr                                   into runs/dpr/merged
  sail merge runs/dpr/checkpoint-200 --out step200      the weights of that moment
  sail merge adapter --base Qwen/Qwen2.5-0.5B --dtype bfloat16
"""


def add_merge(verbs: Any) -> None:
    """`sail merge`."""
    parser = add_verb(verbs, "merge", _merge, "add a LoRA adapter into its base: one ordinary model", _MERGE)
    parser.add_argument(
        "path", metavar="RUN_OR_ADAPTER", help="a run folder, a checkpoint, or an adapter's folder"
    )
    parser.add_argument("--out", metavar="DIR", help="default: RUN/merged, or ADAPTER-merged")
    parser.add_argument("--base", metavar="MODEL", help="default: what the adapter was trained on")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: as the base is stored)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier merged model")


def _merge(options: argparse.Namespace) -> None:
    from sail.merge import merge

    names = ("out", "base", "dtype", "overwrite")
    merge(options.path, **{name: getattr(options, name) for name in names})
