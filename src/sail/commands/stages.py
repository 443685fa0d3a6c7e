"""The stages of a run file: which there are, what each reads and writes, and the command that runs it. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sail.commands.run_file import parse_override, put, read_run_file
from sail.commands.stage_file import Stage, flat
from sail.config import RunConfig, load_config
from sail.data_config import DataSource
from sail.errors import ConfigError
from sail.fields import LOGS_AND_SAVES, MAY_CHANGE
from sail.oracle_config import lasting, moved

NAMES = ("sft", "train-reward", "train", "eval", "merge")
_RUN = ("metrics.jsonl", "results.json", "checkpoint-*")
_REWARD = ("reward_run.json", "results.json", "checkpoint-*")
_EVAL = ("answers.jsonl", "judgements.jsonl")
_PLACES = {"model", "train", "eval", "output_dir"}
"""Keys of sft and reward that are compared by content, or not at all."""


def stages_of(path: str, overrides: Sequence[str]) -> list[Stage]:
    """The stages whose section the run file has, in their order; the outputs of one are the inputs of the next.

    sft -> model of train-reward and train; train-reward -> oracle.model (kind reward_model, no model named); train -> eval and
    merge. Raises ConfigError where it is not clear what starts from what.
    """
    config, given = load_config(path, overrides), _sections(path, overrides)
    if config.sft is not None:
        _check_start(config)
        start = os.path.abspath(config.sft.output_dir)
        overrides = [*overrides, f"model={json.dumps(start)}"]
    made = []
    if config.sft is not None:
        made.append(_sft(config, [path, *overrides[:-1]]))
        config = config.model_copy(update={"model": start})
    words = [path, *overrides]
    if config.reward is not None:
        made.append(_reward(config, words))
    if "train" in given:
        made.append(_train(config, words))
    for name, section in (("eval", config.eval), ("merge", config.merge)):
        if section is not None and "train" not in given:
            raise ConfigError(
                f"{path}: {name} is about the run of the section train, and there is none. Add it."
            )
    if config.eval is not None:
        made.append(_eval(config))
    if config.merge is not None:
        if config.peft is None:
            raise ConfigError(
                f"{path}: the section merge is for adapters, and this run trains all weights: its model is whole already. "
                "Remove the section, or add peft."
            )
        made.append(_merge(config))
    if not made:
        raise ConfigError(f"{path} has none of the sections sft, reward, train, so there is nothing to run.")
    return made


def _sections(path: str, overrides: Sequence[str]) -> set[str]:
    """The keys that a person has written, in the file or as overrides."""
    raw = read_run_file(Path(path))
    for override in overrides:
        put(raw, *parse_override(override))
    return {key for key, value in raw.items() if value is not None}


def _check_start(config: RunConfig) -> None:
    assert config.sft is not None
    folder, model = os.path.abspath(config.sft.output_dir), os.path.abspath(config.model)
    if config.sft.model is None and model == folder:
        raise ConfigError(
            f"model and sft.output_dir are both {config.sft.output_dir}, so sft would start from what it makes. Set model (or "
            "sft.model) to what it starts from; train starts from the result by itself."
        )
    if config.sft.model is not None and model != folder:
        raise ConfigError(
            f"sft starts from sft.model ({config.sft.model}), and train would start from model ({config.model}), not from what "
            "sft makes. Remove sft.model, so that sft starts from model and train from the result; or remove the section sft."
        )


# ---- the stages


def _sft(config: RunConfig, words: list[str]) -> Stage:
    section = config.sft
    assert section is not None
    folder = Path(section.output_dir)
    data = {
        "sft.train" if section.train else "data.train": section.train or config.data.train,
        "sft.eval": section.eval,
    }
    named = {"model": section.model or config.model, "tokenizer": config.tokenizer}
    settings = _settings(config, data, sft=section.model_dump(exclude=_PLACES | LOGS_AND_SAVES))
    outputs = {"model": str(folder.absolute())}
    return Stage(
        "sft", folder, ["sft", *words], settings, _inputs({**named, **data}), outputs, ("config.json",)
    )


def _reward(config: RunConfig, words: list[str]) -> Stage:
    section = config.reward
    assert section is not None
    folder = Path(section.output_dir)
    data = {
        "reward.train" if section.train else "data.train": section.train or config.data.train,
        "reward.eval" if section.eval else "data.eval": section.eval or config.data.eval,
    }
    named = {
        "model": section.model or config.model,
        "tokenizer": None if section.model else config.tokenizer,
    }
    settings = _settings(config, data, reward=section.model_dump(exclude=_PLACES | LOGS_AND_SAVES))
    return Stage(
        "train-reward",
        folder,
        ["train-reward", *words],
        settings,
        _inputs({**named, **data}),
        {"model": str(folder.absolute())},
        _REWARD[:1],
        cleared=_REWARD,
    )


def _train(config: RunConfig, words: list[str]) -> Stage:
    folder = Path(config.train.output_dir)
    named = {"model": config.model, "ref_model": config.ref_model, "tokenizer": config.tokenizer}
    data = {f"data.{name}": getattr(config.data, name) for name in ("train", "eval", "prompts")}
    oracle, files = _oracle(config.oracle, "oracle")
    gold, gold_files = _oracle(config.eval_oracle, "eval_oracle")
    dumped = config.train.model_dump(exclude={"output_dir"} | MAY_CHANGE | LOGS_AND_SAVES)
    settings = _settings(config, data, train=dumped, oracle=oracle, eval_oracle=gold)
    files |= gold_files
    outputs = {
        "model": str((folder / "model").absolute()),
        "results": str((folder / "results.json").absolute()),
    }
    inputs = {**_inputs({**named, **data}), **files}
    return Stage("train", folder, ["train", *words], settings, inputs, outputs, _RUN, cleared=_RUN)


def _eval(config: RunConfig) -> Stage:
    section, run = config.eval, Path(config.train.output_dir)
    assert section is not None
    folder = Path(section.out) if section.out else run / "eval"
    own = section.oracle.rpartition(":")[0] if section.oracle else None
    oracle, files = _oracle(config.oracle, "oracle") if own is None else ({}, _inputs({"eval.oracle": own}))
    data = {"eval.data" if section.data else "data.eval": section.data or config.data.eval}
    named: dict[str, Any] = {
        "run": str((run / "model").absolute()),
        **data,
        **{
            f"eval.against {rival}": _weights_of(rival) for rival in section.against if rival not in _NO_MODEL
        },
        "eval.reference": section.reference and _weights_of(section.reference),
        "eval.questions": section.questions if section.questions != "playground" else None,
        "eval.scorer": section.scorer.rpartition(":")[0] if section.scorer else None,
    }
    dumped = section.model_dump(exclude={"data", "reference", "out"})
    taken = {
        name: getattr(config.train, name, None) for name in _OF_RUN if getattr(section, name, None) is None
    }
    settings = _settings(config, data, eval=dumped, oracle=oracle, train=taken)
    outputs = {"results": str((folder / "results.json").absolute())}
    words = ["eval", str(run), *section.words()]
    inputs = {**_inputs(named), **files}
    return Stage("eval", folder, words, settings, inputs, outputs, _EVAL[:1], cleared=_EVAL)


_OF_RUN = ("seed", "temperature", "max_new_tokens", "max_length", "max_prompt_length")
"""What sail eval takes from the run where it is not told otherwise."""
_NO_MODEL = ("dataset", "reference")
"""Rivals that are no model of their own: the chosen answers, and eval.reference."""


def _weights_of(name: str) -> str:
    """Where the weights are of what sail eval is pointed at: of a run its final model, else its newest checkpoint."""
    folder = Path(name)
    if not (folder / "config.resolved.yaml").is_file():
        return name
    saved = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    found = [*folder.glob("model/config.json"), *reversed(saved), folder / "config.resolved.yaml"]
    return str(found[0].parent)


def _merge(config: RunConfig) -> Stage:
    section, run = config.merge, Path(config.train.output_dir)
    assert section is not None
    folder = Path(section.out) if section.out else run / "merged"
    inputs = {"adapter": str((run / "adapter").absolute()), "model": config.model}
    outputs = {"model": str(folder.absolute())}
    words, settings = ["merge", str(run), *section.words()], flat({"merge": {"dtype": section.dtype}})
    lock = run / "merge.lock"  # the folder itself is replaced
    return Stage("merge", folder, words, settings, _inputs(inputs), outputs, ("sail_merge.json",), lock)


# ---- what they are made of


def _settings(config: RunConfig, data: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """The settings that a stage depends on, by dotted key: its own, those of the data that it reads, and those that all training
    stages share."""
    shared = {
        "peft": None if config.peft is None else config.peft.model_dump(),
        "quantization": None if config.quantization is None else config.quantization.model_dump(),
        "data": {"bad_rows": config.data.bad_rows},
    }
    return flat({**sections, **shared}) | flat(_named(data))


def _named(data: dict[str, Any]) -> dict[str, Any]:
    """Of the sources of a stage what is not a file: a set's name (the hub's content is what it says), and which rows are taken. A
    copy's path is left out, its content is compared."""
    return {
        label: source.model_dump(exclude={"path"})
        for label, source in data.items()
        if isinstance(source, DataSource)
    }


def _inputs(named: dict[str, Any]) -> dict[str, str]:
    """Those that are given, as paths or hub names; of a data set by name its local copy, if there is one."""
    found: dict[str, str] = {}
    for label, value in named.items():
        if value is not None and not isinstance(value, str):
            value = value.get("path") if isinstance(value, dict) else getattr(value, "path", None)
        if value is not None:
            found[label] = value
    return found


def _oracle(section: Any, name: str) -> tuple[Any, dict[str, str]]:
    """The settings of an oracle on which answers depend, with its paths taken out; and those paths."""
    if section is None:
        return {}, {}
    files: dict[str, str] = {}

    def noted(path: str) -> str:
        files[f"{name} {Path(path).name}"] = path
        return Path(path).name

    without = moved(section.model_copy(update={"ledger": None}), noted)
    return lasting(without.model_dump()), files
