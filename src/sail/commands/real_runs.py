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

_PIPELINE = """\
Stages, each where the run file has its section: sft, train-reward (section reward), train, eval, merge. What sft makes is the
model of those after it, what train-reward makes is the oracle of kind reward_model, so no path stands twice. A stage whose
settings, inputs and outputs are those of last time is skipped; one that was interrupted goes on. docs/real_runs.md tells more.

  sail pipeline run.yaml --dry-run                what would run, and why
  sail pipeline run.yaml train.beta=0.2           again from where that matters
  sail pipeline run.yaml --only sft --only train  these two, the others as they are
"""


def add_pipeline(verbs: Any) -> None:
    """`sail pipeline`."""
    about = "run the stages of a run file that are not up to date: sft, train-reward, train, eval, merge"
    parser = add_verb(verbs, "pipeline", _pipeline, about, _PIPELINE)
    parser.add_argument("config", metavar="run.yaml", help="the run file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's"
    )
    parser.add_argument("--only", action="append", metavar="STAGE", help="may be given several times")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="this stage and those after it")
    parser.add_argument("--force", action="store_true", help="run them even if they are up to date")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and why, and stop")
    parser.add_argument(
        "--launcher",
        default="",
        metavar="COMMAND",
        help='for the stage train on several devices, such as "torchrun --standalone --nproc_per_node 8"',
    )


def _pipeline(options: argparse.Namespace) -> None:
    from sail.commands.pipeline import pipeline

    names = ("start", "force", "dry_run", "launcher")
    given = {name: getattr(options, name) for name in names}
    pipeline(options.config, options.overrides, only=tuple(options.only or ()), **given)


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
