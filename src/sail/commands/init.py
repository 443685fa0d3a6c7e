"""`sail init`: a run.yaml to start from, whose comments are the options' own help."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sail.commands.run_file import dump_yaml
from sail.commands.wording import did_you_mean
from sail.config import DataConfig, PeftConfig, RunConfig, SFTSection, TrainSection
from sail.errors import ConfigError
from sail.mixture import mixture_of, preset_of
from sail.oracle_config import KINDS
from sail.reward_config import RewardSection
from sail.stage_config import EvalSection, MergeSection, QuantizationSection

_HEAD = """\
# A run of sail: {about}.
#
#   sail train {file} --dry-run         what would be run
#   sail train {file}                   run it
#   sail train {file} train.beta=0.2    with another value
#
# A line "#key: value" shows a default: remove the # to change it.
# Paths are looked for beside this file, then in the current directory.
"""

_TRAINING_ARGUMENTS = {
    "learning_rate": 1e-6,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "logging_steps": 10,
    "save_steps": 100,
    "eval_strategy": "no",
}
"""Keys of TrainingArguments that a person wants to see from the start."""

_SHOWN_OPTIONS = ("output_dir", "preset", "beta", "max_length", "max_prompt_length", "max_new_tokens")
"""Options written out; the others are shown as defaults, so that only what a person chose counts as written."""


def init_yaml(
    preset: str = "sail-dpr",
    model: str = "./sft",
    *,
    train: str = "pairs.jsonl",
    oracle: str = "reward.py:reward",
    kind: str = "function",
    output_dir: str | None = None,
    file: str = "run.yaml",
) -> str:
    """The text of a commented run file that loads as it is. `file` is the name its header shows; `kind` is the oracle's."""
    chosen = preset_of(preset)
    needs_oracle = mixture_of(preset, None).needs_oracle
    options = {"output_dir": output_dir or f"runs/{preset}", "preset": preset, **chosen.fixed}
    data = _section(DataConfig, {"train": train}, shown=("train",))
    given = _oracle_values(kind, oracle)
    judge = _section(KINDS[kind], given, shown=tuple(given))
    later = {
        "peft": _all_of(PeftConfig),
        "quantization": _all_of(QuantizationSection, {"load_in_4bit": True}),
        "sft": _all_of(SFTSection, {"model": "org/base-model"}),
        "reward": _all_of(RewardSection),
        "eval_oracle": _section(
            KINDS["function"], _oracle_values("function", "gold.py:reward"), shown=("kind", "path")
        ),
        "eval": _all_of(EvalSection),
        "merge": _all_of(MergeSection),
    }
    arguments = dump_yaml(_TRAINING_ARGUMENTS).splitlines()
    lines = [
        _HEAD.format(about=f"preset {preset}, {chosen.about}", file=file).rstrip(),
        "",
        *_section(
            RunConfig,
            {"model": model},
            shown=("model",),
            only=("model", "ref_model", "tokenizer", "trust_remote_code"),
        ),
        "",
        *_block("data", data),
        "",
        *_block("oracle", judge, active=needs_oracle),
        f"# Other kinds: sail init --oracle {' | '.join(name for name in KINDS if name != kind)}",
        "",
        *_block("train", _section(TrainSection, options, shown=_SHOWN_OPTIONS)),
        "",
        *_indent(["# Keys of transformers.TrainingArguments; each of them is accepted here.", *arguments]),
        *(line for name, section in later.items() for line in ("", *_block(name, section, active=False))),
    ]
    return "\n".join(lines) + "\n"


def _all_of(kind: type[BaseModel], values: dict[str, Any] | None = None) -> list[str]:
    return _section(kind, values or {}, shown=tuple(kind.model_fields))


def _oracle_values(kind: str, path: str) -> dict[str, Any]:
    """The keys of an oracle section that must be given, with a first value."""
    function = {"kind": "function", "path": path}
    judge = {"kind": "judge", "url": "http://127.0.0.1:8000/v1", "model": "judge-model"}
    given: dict[str, dict[str, Any]] = {
        "function": function,
        "reward_model": {"kind": kind, "model": "./reward-model"},
        "judge": {**judge, "wrap": ["both_orders"]},
        "people": {"kind": kind},
        "committee": {"kind": kind, "members": [function, {**judge, "wrap": ["both_orders"]}]},
    }
    if kind not in given:
        raise ConfigError(
            f"--oracle is one of {', '.join(given)}; it is {kind!r}.{did_you_mean(kind, list(given))}"
        )
    return given[kind]


def write_run_file(path: Path, preset: str, *, force: bool, kind: str = "function") -> str:
    """Write the file for `sail init`; returns what to tell the user."""
    text = init_yaml(preset, kind=kind, file=str(path))
    if path.exists() and not force:
        raise ConfigError(f"{path} exists. Give another path, or --force to overwrite it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Give another path.") from None
    wanted = ["model (the SFT model)", "data.train (your preference pairs)"]
    if mixture_of(preset, None).needs_oracle:
        wanted.append(_TO_SET[kind])
    steps = [
        f"Wrote {path}. Next:",
        f"  1. set {', '.join(wanted)}",
        f"  2. sail train {path} --dry-run",
        f"  3. sail train {path}",
    ]
    return "\n".join(steps)


_TO_SET = {
    "function": "oracle.path (your reward function)",
    "reward_model": "oracle.model (your reward model)",
    "judge": "oracle.url and oracle.model (your judge)",
    "people": "oracle.annotators (how many label each pair)",
    "committee": "oracle.members",
}


def _section(
    kind: type[BaseModel],
    values: dict[str, Any],
    *,
    shown: tuple[str, ...],
    only: tuple[str, ...] | None = None,
) -> list[str]:
    """Help and value of each field; a field not in `shown` is commented out."""
    lines = []
    for name in sorted(only or kind.model_fields, key=lambda name: name not in shown):
        option = kind.model_fields[name]
        lines += _comment(option.description or "")
        value = values.get(name, option.default)
        plain = value.model_dump() if isinstance(value, BaseModel) else value
        text = dump_yaml({name: plain}, leaves_in_line=isinstance(plain, dict | list)).splitlines()
        lines += text if name in shown else [f"#{line}" for line in text]
    return lines


def _block(name: str, lines: list[str], *, active: bool = True) -> Iterator[str]:
    """A top-level key with its section; one that is not active is commented out as a whole."""
    yield from _comment(RunConfig.model_fields[name].description or "")
    block = [f"{name}:", *_indent(lines)]
    yield from block if active else [f"#{line}" for line in block]


def _indent(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 96, break_on_hyphens=False)]
