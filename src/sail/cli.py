"""The command line. Nothing heavy is imported until a verb runs, so that `sail --help` answers at once."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
import traceback
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from sail.commands.arguments import add_verb, at_least_one
from sail.commands.data import add_data
from sail.commands.init_verb import add_init
from sail.commands.options import OVERRIDES, option_help
from sail.commands.oracle_verbs import add_annotate, add_ledger
from sail.commands.real_runs import add_merge, add_pipeline
from sail.errors import SailError

_TOP = """\
Online preference alignment of language models: from a preference file and an SFT model to an aligned model.

examples:
  sail play --quick                               watch a small model being aligned, with proof
  sail init run.yaml --preset sail-dpr            write a commented run file
  sail sft run.yaml                               supervised fine-tuning, the stage before
  sail train-reward run.yaml                      a reward model from preference pairs, an oracle
  sail train run.yaml train.beta=0.2 --dry-run    show what would be run; without --dry-run, run it
  sail pipeline run.yaml                          every stage of a run file that is not up to date
  sail merge runs/sail                            a LoRA adapter into its base
  sail sample runs/sail/model --prompt "Hello"    let a model answer
  sail eval runs/sail                             measure a run on held-out prompts, with intervals
  sail compare runs/dpo runs/sail                 set runs side by side, and say whether that is fair
  sail report runs/sail runs/dpo                  one page on runs: better, how sure, what is wrong
  sail ledger runs/sail --totals                  what an oracle was asked, said and cost
  sail data pairs.jsonl                           look at preference data before training on it
  sail annotate pairs.jsonl                       let people say which answers are better
  sail env                                        versions and hardware, for a bug report

Each verb explains itself: sail train --help.
"""


_EVAL = """\
A run folder supplies data, oracle, reference, beta and lengths; what is missing for a metric is said. An evaluation that was
stopped continues where it was when the same command is given again.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for an error that the user can mend, 130 when interrupted."""
    words = sys.argv[1:] if argv is None else argv
    if not words:
        build_parser().print_help()
        return 0
    options = _parse(words)
    _settle_environment()
    try:
        options.handler(options)
    except SailError as error:
        if os.environ.get("SAIL_DEBUG") == "1":
            traceback.print_exc()
        print(f"sail: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if not stop.args:
            print("sail: interrupted", file=sys.stderr)
        return 130
    return 0


def _settle_environment() -> None:
    """What must be set before torch and the hub's library load; what the user has set stays."""
    # Threads that sleep while they wait: on a busy machine spinning ones make everything several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # One bar for the run is enough.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings(
        "ignore", message=".*is deprecated and will be removed in v6.*", category=FutureWarning
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    """argparse takes the overrides in one run only; those after an option are gathered here."""
    options, rest = build_parser().parse_known_args(argv)
    takes_overrides = hasattr(options, "overrides")
    strange = [word for word in rest if word.startswith("-") or not takes_overrides]
    if strange:
        options.parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="sail", description=_TOP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_play(verbs)
    add_init(verbs)
    _add_sft(verbs)
    _add_train_reward(verbs)
    _add_train(verbs)
    add_pipeline(verbs)
    add_merge(verbs)
    _add_sample(verbs)
    _add_eval(verbs)
    _add_compare(verbs)
    _add_report(verbs)
    add_ledger(verbs)
    add_annotate(verbs)
    add_data(verbs, _data)
    add_verb(verbs, "env", _env, "print versions and hardware")
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str, **extra: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **extra)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from sail import __version__

        print(f"sail {__version__}")
        parser.exit()


# --- The verbs: their arguments, and what they call -----------------------------------------------------------


def _add_play(verbs: Any) -> None:
    parser = add_verb(verbs, "play", _play, "align a small model in the embedded world, and report on it")
    parser.add_argument("--quick", action="store_true", help="fewer steps: about 3 minutes on 2 cores")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/play"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")


def _play(options: argparse.Namespace) -> None:
    from sail.play import play

    play(options.out, quick=options.quick, seed=options.seed)


def _add_run(verbs: Any, name: str, handler: Any, about: str, epilog: str) -> argparse.ArgumentParser:
    parser = add_verb(verbs, name, handler, about, epilog)
    parser.add_argument("config", metavar="run.yaml", help="the run file; sail init writes one")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's"
    )
    return parser


def _add_sft(verbs: Any) -> None:
    _add_run(verbs, "sft", _sft, "fine-tune on answers (the section sft of the run file)", OVERRIDES)


def _sft(options: argparse.Namespace) -> None:
    from sail.config import load_config

    config = load_config(options.config, options.overrides)
    from sail.build import run_sft  # after the config, whose mistakes are told at once

    run_sft(config)


def _add_train_reward(verbs: Any) -> None:
    about = "train a reward model on preference pairs (the section reward of the run file)"
    _add_dry_run_and_old_run(_add_run(verbs, "train-reward", _train_reward, about, OVERRIDES))


def _train_reward(options: argparse.Namespace) -> None:
    from sail.config import load_config

    config = load_config(options.config, options.overrides)
    from sail.build_reward import dry_run_reward, run_train_reward

    if options.dry_run:
        print(dry_run_reward(config))
        return
    again = shlex.join([options.config, *options.overrides])
    run_train_reward(config, resume=options.resume, overwrite=options.overwrite, config_path=again)


def _add_train(verbs: Any) -> None:
    about = "align a model: offline, online, or a mixture of routes"
    parser = _add_run(verbs, "train", _train, about, f"{OVERRIDES}\n{option_help()}")
    _add_dry_run_and_old_run(parser)


def _add_dry_run_and_old_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, show what would be run, and stop"
    )
    old_run = parser.add_mutually_exclusive_group()
    old_run.add_argument(
        "--resume", action="store_true", help="continue the run in output_dir where it stopped"
    )
    old_run.add_argument("--overwrite", action="store_true", help="replace the run in output_dir")


def _train(options: argparse.Namespace) -> None:
    from sail.config import load_config

    config = load_config(options.config, options.overrides)
    if options.dry_run:
        from sail.dry_run import dry_run

        print(dry_run(config))
        return
    from sail.build import run_training

    folder = run_training(
        config,
        resume=options.resume,
        overwrite=options.overwrite,
        config_path=shlex.join([options.config, *options.overrides]),
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"Run folder: {folder}")


def _add_sample(verbs: Any) -> None:
    parser = add_verb(verbs, "sample", _sample, "let a model answer prompts")
    parser.add_argument("model", metavar="MODEL", help="a model folder or name")
    parser.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="may be given several times"
    )
    parser.add_argument("--n", type=at_least_one, default=1, help="answers per prompt (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=at_least_one, default=256, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--chat", action="store_true", help="put the prompt into the tokenizer's chat template"
    )


def _sample(options: argparse.Namespace) -> None:
    from sail.build import sample

    answers = sample(
        options.model,
        options.prompt,
        n=options.n,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        chat=options.chat,
    )
    for prompt, texts in zip(options.prompt, answers, strict=True):
        print(f"prompt: {prompt}")
        for text in texts:
            print(textwrap.indent(text, "  ") or "  (an empty answer)")


def _add_eval(verbs: Any) -> None:
    parser = add_verb(
        verbs, "eval", _eval, "measure a run or a model on held-out prompts and questions", _EVAL
    )
    parser.add_argument(
        "subject", metavar="RUN_OR_MODEL", help="a run folder, a checkpoint, a model folder or name"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="held-out rows, a file or a public set (default: the run's data.eval)"
    )
    parser.add_argument(
        "--oracle", metavar="PATH.py:NAME", help="who prefers what (default: the run's oracle)"
    )
    parser.add_argument(
        "--against",
        action="append",
        metavar="WHOM",
        help="whose answers to win over: dataset, reference, or another run or model; may be given several times",
    )
    parser.add_argument("--reference", metavar="MODEL", help="for KL and margin (default: the run's start)")
    parser.add_argument(
        "--prompts",
        type=at_least_one,
        default=512,
        metavar="N",
        help="the first N prompts (default: %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=at_least_one,
        default=1,
        metavar="N",
        help="answers per prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--questions", metavar="FILE", help="two-turn benchmark questions, JSONL; or: playground"
    )
    parser.add_argument("--scorer", metavar="PATH.py:score", help="the judge that scores them from 1 to 10")
    parser.add_argument(
        "--checkpoints", action="store_true", help="also every checkpoint: reward, KL, length"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="default: the run's")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the run's, or 1")
    parser.add_argument("--max-new-tokens", type=at_least_one, metavar="N", help="default: the run's, or 256")
    parser.add_argument(
        "--batch-size", type=at_least_one, default=64, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--out", metavar="DIR", help="default: RUN/eval, or eval/MODEL")
    parser.add_argument("--overwrite", action="store_true", help="start anew, whatever is in the folder")


def _eval(options: argparse.Namespace) -> None:
    from sail.evaluate import EvalOptions, evaluate

    given = {field.name: getattr(options, field.name) for field in fields(EvalOptions)}
    evaluate(EvalOptions(**{**given, "against": tuple(options.against or ())}))


def _add_compare(verbs: Any) -> None:
    parser = add_verb(verbs, "compare", _compare, "set runs side by side, and say what may be compared")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, at least two")
    parser.add_argument("--to", metavar="NAME", help="whom the others are compared with (default: the first)")
    parser.add_argument(
        "--out", type=Path, default=Path("compare.json"), metavar="FILE", help="default: %(default)s"
    )


def _compare(options: argparse.Namespace) -> None:
    from sail.compare import compare

    compare(options.runs, to=options.to, out=options.out)


def _add_report(verbs: Any) -> None:
    about = "write one page on one or several runs: did it get better, how sure is that, is anything wrong"
    parser = add_verb(verbs, "report", _report, about)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="the folder of a run, or a folder with runs in it, as that of sail play",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: RUN/report.html; ./report.html for several runs"
    )
    parser.add_argument("--title", metavar="T", help="the page's heading")
    parser.add_argument(
        "--pairs",
        type=at_least_one,
        default=300,
        metavar="N",
        help="on-policy pairs of each run to show (default: %(default)s)",
    )


def _report(options: argparse.Namespace) -> None:
    from sail.commands.report import report

    path = report(options.runs, out=options.out, title=options.title, pairs=options.pairs)
    print(f"The report is {path}; {path.with_suffix('.json').name} beside it says the same to programs.")


def _data(options: argparse.Namespace) -> None:
    from sail.data_verb import run_data

    run_data(options)


def _env(options: argparse.Namespace) -> None:
    from sail.commands.env import environment

    print(environment())


if __name__ == "__main__":
    sys.exit(main())
