"""The file that `sail init` writes: it loads as it is, and explains every option once."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from sail.commands.init import init_yaml
from sail.config import PeftConfig, RunConfig, SFTSection, load_config
from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import PRESETS, preset_of
from sail.oracle_config import KINDS
from sail.reward_config import RewardSection
from sail.stage_config import EvalSection, MergeSection, QuantizationSection


@pytest.fixture(autouse=True)
def _empty_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str) -> RunConfig:
    Path("run.yaml").write_text(text, encoding="utf-8")
    return load_config("run.yaml")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_file_of_sail_init_loads_as_it_is(preset: str) -> None:
    config = load(init_yaml(preset))
    assert config.model == "./sft"
    assert config.alignment == AlignmentFields(preset=preset, **preset_of(preset).fixed)
    assert config.trainer_kwargs["learning_rate"] == 1e-6
    assert config.trainer_kwargs["output_dir"] == f"runs/{preset}"
    assert (config.oracle is not None) == config.mixture.needs_oracle


def _with_defaults_written(text: str) -> str:
    """The file with the # of every `#key: value` line, and of every commented section, removed."""
    lines, in_section = [], False
    for line in text.splitlines():
        in_section = bool(re.match(r"#\w+:$", line)) or (in_section and line.startswith("#  "))
        lines.append(line[1:] if in_section else re.sub(r"^(\s*)#(\w+:)", r"\1\2", line))
    return "\n".join(lines)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_commented_lines_are_the_defaults(preset: str) -> None:
    plain, full = load(init_yaml(preset)), load(_with_defaults_written(init_yaml(preset)))
    assert full.train == plain.train
    assert full.data == plain.data
    assert full.peft == PeftConfig()
    assert full.sft == SFTSection(model="org/base-model")
    assert full.reward == RewardSection()
    assert full.oracle is not None
    assert full.eval == EvalSection()
    assert full.merge == MergeSection()
    assert full.quantization == QuantizationSection(load_in_4bit=True)
    assert full.eval_oracle is not None
    assert all(
        getattr(full, name) is not None
        for name in RunConfig.model_fields
        if name not in ("ref_model", "tokenizer")
    )


def test_each_option_is_explained_once() -> None:
    text = init_yaml()
    unwrapped = " ".join(re.sub(r"^\s*#( |$)", "", line) for line in text.splitlines())
    for option in fields(AlignmentFields):
        help_text = option.metadata["help"]
        assert unwrapped.count(help_text) == 1, option.name
        assert re.search(rf"{re.escape(help_text)}\s+#?{option.name}:", unwrapped), option.name


def test_init_takes_the_users_names() -> None:
    text = init_yaml("online-dpo", "org/m", train="p.jsonl", oracle="r.py:f", output_dir="out", file="x.yaml")
    config = load(text)
    assert (config.model, config.data.train, config.train.output_dir) == ("org/m", "p.jsonl", "out")
    assert "sail train x.yaml --dry-run" in text


@pytest.mark.parametrize("kind", KINDS)
def test_an_oracle_of_each_kind_with_every_key_explained(kind: str) -> None:
    text = init_yaml("sail-dpr", kind=kind)
    config, full = load(text), load(_with_defaults_written(text))
    assert config.oracle is not None
    assert config.oracle.kind == kind
    assert full.oracle == config.oracle
    unwrapped = " ".join(re.sub(r"^\s*#( |$)", "", line) for line in text.splitlines())
    for name, option in KINDS[kind].model_fields.items():
        assert re.search(rf"{re.escape(option.description or '')}\s+#?{name}:", unwrapped), name


def test_a_kind_that_is_none() -> None:
    with pytest.raises(
        ConfigError, match=r"--oracle is one of function, .*; it is 'jugde'\. Did you mean judge\?"
    ):
        init_yaml(kind="jugde")
