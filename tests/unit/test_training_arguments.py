"""SAILConfig: sail's options beside TrainingArguments' own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_config
from transformers import TrainingArguments

from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import PRESETS
from sail.training.arguments import SAILConfig


def config(folder: Path, **options: Any) -> SAILConfig:
    return SAILConfig(output_dir=str(folder), use_cpu=True, **options)


def test_defaults(tmp_path: Path) -> None:
    """TRL's optimiser and learning rate, temperature 1, soft labels, the baseline on, and the data order from the seed."""
    made = config(tmp_path)
    assert made.learning_rate == 1e-6
    assert made.optim in ("adamw_torch", "adamw_torch_fused")
    assert made.logging_steps == 10
    assert (made.temperature, made.beta) == (1.0, 0.1)
    assert (made.policy_label, made.oracle_label, made.baseline) == ("soft", "soft", "leave_one_out")
    assert made.remove_unused_columns is False
    assert made.disable_dropout is True
    assert made.data_seed == made.seed == 42
    assert config(tmp_path, seed=3).data_seed == 3
    assert config(tmp_path, seed=3, data_seed=4).data_seed == 4


def test_bf16_is_off_on_the_cpu_unless_asked_for(tmp_path: Path) -> None:
    assert config(tmp_path).bf16 is False
    assert config(tmp_path, bf16=True).bf16 is True


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_what_they_fix(tmp_path: Path, preset: str) -> None:
    made = config(tmp_path, preset=preset)
    for name, value in PRESETS[preset].fixed.items():
        assert getattr(made, name) == value


@pytest.mark.parametrize("preset", [name for name, row in PRESETS.items() if row.fixed])
def test_the_value_that_is_fixed_may_be_written_out(tmp_path: Path, preset: str) -> None:
    config(tmp_path, preset=preset, **PRESETS[preset].fixed)


@pytest.mark.parametrize(
    ("preset", "option", "value"),
    [
        ("dpo", "loss_type", "ipo"),
        ("ipo", "loss_type", "hinge"),
        ("slic", "loss_type", "ipo"),
        ("online-dpo", "oracle_label", "sampled"),
        ("self-dpo", "policy_label", "sampled"),
    ],
)
def test_conflicts_with_a_preset_are_refused(tmp_path: Path, preset: str, option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: {value} was given") as refused:
        config(tmp_path, preset=preset, **{option: value})
    assert "drop the preset" in str(refused.value).replace("\n", " ")


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no preset 'dpoo'"):
        config(tmp_path, preset="dpoo")


def test_unused_columns_must_stay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="remove_unused_columns"):
        config(tmp_path, remove_unused_columns=True)


def test_it_can_be_written_as_json(tmp_path: Path) -> None:
    routes = {"data": {"weight": 0.7}, "dpr": {"weight": 0.3, "coefficient": 0.3}}
    made = config(tmp_path, routes=routes, stop_strings=["###"])
    read = json.loads(made.to_json_string())
    assert read["routes"] == routes
    assert read["stop_strings"] == ["###"]
    assert json.dumps(made.to_dict())
    assert made.to_sanitized_dict()["beta"] == 0.1


def test_two_configs_do_not_share_anything(tmp_path: Path) -> None:
    first, second = config(tmp_path), config(tmp_path)
    for field in dataclasses.fields(AlignmentFields):
        value = getattr(first, field.name)
        assert not isinstance(value, dict | list) or value is not getattr(second, field.name)


def test_no_option_hides_one_of_trainers() -> None:
    own = {field.name for field in dataclasses.fields(AlignmentFields)}
    assert not own & {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {field.name for field in dataclasses.fields(SAILConfig)} == own | {
        field.name for field in dataclasses.fields(TrainingArguments)
    }


def test_a_copy_with_a_change(tmp_path: Path) -> None:
    """dataclasses.replace runs __post_init__ again, on values that are already filled in."""
    made = dataclasses.replace(make_config(tmp_path, preset="online-dpo"), beta=0.5)
    assert (made.beta, made.oracle_label) == (0.5, "argmax")
