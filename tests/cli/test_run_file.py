"""The text of a run file: numbers, overrides, broken YAML, and that a resolved run loads back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sail.config import OPTIONS, PeftConfig, RunConfig, config_from_dict, load_config, resolved_yaml
from sail.errors import ConfigError
from sail.mixture import PRESETS

DPR = """
model: org/name
data: {train: pairs.jsonl}
oracle: {kind: function, path: "reward.py:reward"}
train:
  preset: sail-dpr
"""


@pytest.fixture(autouse=True)
def _empty_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def load(text: str, *overrides: str) -> RunConfig:
    Path("run.yaml").write_text(text, encoding="utf-8")
    return load_config("run.yaml", overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


# --- Values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy", "logging_strategy"])
def test_a_strategy_of_no_is_the_word_no(key: str) -> None:
    assert load(DPR + f"  {key}: no\n").trainer_kwargs[key] == "no"
    assert load(DPR, f"train.{key}=no").trainer_kwargs[key] == "no"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.5e3", 1500.0),
        ("-2e+3", -2000.0),
        (".5", 0.5),
        ("3", 3),
        ("+1e2", 100.0),
    ],
)
def test_numbers_as_people_write_them(written: str, value: float) -> None:
    assert load(DPR + f"  some_key: {written}\n").trainer_kwargs["some_key"] == value
    assert load(DPR, f"train.some_key={written}").trainer_kwargs["some_key"] == value


@pytest.mark.parametrize("written", ["2024-01-31", "1e", "e5", "v1.0", "1-5", "1e5x"])
def test_text_that_looks_like_a_number_stays_text(written: str) -> None:
    assert load(DPR + f"  run_name: {written}\n").trainer_kwargs["run_name"] == written


# --- Overrides ------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_values_under_dotted_keys() -> None:
    config = load(
        DPR,
        "train.beta=0.2",
        "train.stop_strings=[END, '###']",
        "train.run_name=a=b",
        "peft.r=8",
        "ref_model=other/name",
        "train.preset=",
        "train.routes.data.weight=0.5",
        "train.routes.dpr={weight: 0.5, coefficient: 1}",
    )
    assert config.alignment.beta == 0.2
    assert config.alignment.stop_strings == ["END", "###"]
    assert config.trainer_kwargs["run_name"] == "a=b"
    assert config.peft == PeftConfig(r=8)
    assert config.ref_model == "other/name"
    assert config.alignment.preset is None
    assert {share.route.name: share.weight for share in config.mixture.shares} == {"data": 0.5, "dpr": 0.5}


def test_the_last_override_wins() -> None:
    assert load(DPR, "train.beta=0.2", "train.beta=0.3").alignment.beta == 0.3


@pytest.mark.parametrize("override", ["train.beta", "=0.2", "train..beta=1", ".=1"])
def test_an_override_that_is_none(override: str) -> None:
    assert refusal(DPR, override) == (
        f"{override!r} is not an override. Write key.path=value, for example train.beta=0.2."
    )


def test_an_override_below_a_value() -> None:
    assert refusal(DPR, "model.name=x") == (
        "model.name cannot be set to 'x': model is 'org/name', which has no keys. "
        "Write model={...} with all its keys."
    )


def test_an_override_whose_value_is_no_yaml() -> None:
    message = refusal(DPR, "train.routes={data: 1")
    assert message.startswith("The value of train.routes, line 1")
    assert "not valid YAML" in message


def test_a_refusal_names_file_and_overrides() -> None:
    assert refusal(DPR, "train.beta=hot") == (
        "run.yaml train.beta=hot cannot be used:\n  - train.beta must be a number; it is 'hot'."
    )


# --- Refusals: files ------------------------------------------------------------------------------------------


def test_a_missing_file_says_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match=r"There is no file no\.yaml\. `sail init no\.yaml` writes one"):
        load_config("no.yaml")


def test_a_folder_is_no_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read as a text file"):
        load_config(Path.cwd())


def test_a_file_that_is_no_text() -> None:
    Path("run.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match=r"run\.yaml cannot be read as a text file"):
        load_config("run.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run.yaml is empty, but a run is keys and values. `sail init` writes one to start from."),
        (
            "- a\n",
            "run.yaml holds ['a'], but a run is keys and values. `sail init` writes one to start from.",
        ),
        (
            "model: a\nmodel: b\n",
            "run.yaml, line 2, column 1: this is not valid YAML: the key model is given twice.",
        ),
        (
            "a: 1\n  b: 2\n",
            "run.yaml, line 2, column 4: this is not valid YAML: mapping values are not allowed here.",
        ),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
        ("model: \x07\n", "this is not valid YAML"),
    ],
)
def test_broken_yaml_names_the_line(text: str, said: str) -> None:
    assert said in refusal(text)


def test_merged_keys_are_no_duplicates() -> None:
    text = DPR.replace(
        "train:\n", "sft: &common {learning_rate: 1e-4}\ntrain:\n  <<: *common\n  learning_rate: 2e-4\n"
    )
    assert load(text).trainer_kwargs["learning_rate"] == 2e-4


# --- The resolved run -----------------------------------------------------------------------------------------

_TRICKY = """
sft: {learning_rate: 1e-4, warmup_steps: 2}
peft: {r: 4, target_modules: [q_proj], rank_pattern: {a.b: 2}}
"""


@pytest.mark.parametrize("preset", PRESETS)
def test_the_resolved_run_loads_back(preset: str, tmp_path: Path) -> None:
    config = load(
        DPR.replace("sail-dpr", preset) + "  run_name: '1e-5'\n  date: 2024-01-31\n  eval_strategy: no\n"
        "  lr_scheduler_kwargs: {num_cycles: 2, min_lr: 1e-7}\n  none: null\n  learning_rate: 1e-6\n"
        + _TRICKY
    )
    path = tmp_path / "elsewhere" / "config.resolved.yaml"
    path.parent.mkdir()
    path.write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    assert resolved_yaml(load_config(path)) == resolved_yaml(config)


def test_every_option_stands_in_the_resolved_run() -> None:
    text = resolved_yaml(load(DPR))
    for name in OPTIONS:
        assert re.search(rf"^  {name}:", text, re.MULTILINE), name
    assert "# preset sail-dpr = routes {'data': {'weight': 0.7}, 'dpr'" in text


def test_a_run_of_sft_only_loads_back() -> None:
    config = load("model: m\nsft: {train: demos.jsonl}\n")
    assert load(resolved_yaml(config)) == config


def test_secrets_stay_out_of_the_resolved_run() -> None:
    config = load(
        DPR + "  hub_token: hf_abc\n  nested: {api_key: hf_abc, keep: 1}\n  include_tokens_per_second: true\n"
    )
    assert config.trainer_kwargs["hub_token"] == "hf_abc"
    text = resolved_yaml(config)
    assert "hf_abc" not in text
    assert "keep: 1" in text
    assert "include_tokens_per_second: true" in text


def test_a_dict_makes_the_same_run_as_a_file() -> None:
    raw: dict[str, Any] = {
        "model": "org/name",
        "data": {"train": "pairs.jsonl"},
        "oracle": {"kind": "function", "path": "reward.py:reward"},
        "train": {"preset": "sail-dpr"},
    }
    assert config_from_dict(raw) == load(DPR)
    with pytest.raises(ConfigError, match=r"^The run cannot be used:\n  - Route dpr needs an oracle"):
        config_from_dict({**raw, "oracle": None})
