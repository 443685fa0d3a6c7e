"""Recipes for real models: each loads, its stages follow from each other, and its dry run works from the real shape alone.

The shapes are those of the models' published config.json, written by hand; no weights, and a tiny tokenizer.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_model, make_pairs, make_tokenizer
from transformers import LlamaConfig, Phi3Config, Qwen2Config

from sail.commands.stages import stages_of
from sail.config import RunConfig, load_config
from sail.dry_run import dry_run

RECIPES = Path(__file__).parents[2] / "recipes" / "models"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SHAPES: dict[str, tuple[Any, int]] = {
    "qwen-0.5b": (
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
            dtype="bfloat16",
        ),
        494_032_768,
    ),
    "phi-mini": (
        Phi3Config(
            vocab_size=200_064,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=32,
            num_attention_heads=24,
            num_key_value_heads=8,
            max_position_embeddings=131_072,
            tie_word_embeddings=True,
            pad_token_id=199_999,
            bos_token_id=199_999,
            eos_token_id=199_999,
            dtype="bfloat16",
        ),
        3_836_021_760,
    ),
    "llama-8b": (
        LlamaConfig(
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131_072,
            dtype="bfloat16",
        ),
        8_030_261_248,
    ),
}
"""The shape, and the number of parameters that the model's card gives."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("pairs", 640), ("held", 8)):
        text = "".join(json.dumps(row) + "\n" for row in make_pairs(count, seed=count))
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def shape_of(name: str) -> tuple[Any, int]:
    return SHAPES["-".join(name.split("-")[:2])]


def text_of(name: str) -> str:
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def overrides_of(name: str, home: Path) -> list[str]:
    """The model's shape and a tiny tokenizer in a folder; rows in place of the public set."""
    folder = home / name
    shape_of(name)[0].save_pretrained(folder)
    # AutoTokenizer takes the class from the model's kind where there is one: the tiny tokenizer has a folder of its own.
    make_model().config.save_pretrained(home / "words")
    make_tokenizer().save_pretrained(home / "words")
    assert not list(folder.glob("*.safetensors"))
    rows = [f"data.train={home / 'pairs.jsonl'}", f"data.eval={home / 'held.jsonl'}"]
    return [f"model={folder}", f"tokenizer={home / 'words'}", *rows]


def test_one_recipe_per_model_and_set_and_one_in_four_bits() -> None:
    pairs = {f"{model}-{data}" for model in SHAPES for data in ("pku-saferlhf", "ultrafeedback")}
    assert {*pairs, "llama-8b-ultrafeedback-qlora"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_settings(name: str, home: Path) -> None:
    """arXiv 2406.15567: both stages, as far as it gives them."""
    config = load_config(RECIPES / f"{name}.yaml", overrides_of(name, home))
    assert config.peft is not None
    assert (config.peft.r, config.peft.lora_alpha, config.peft.lora_dropout) == (64, 16, 0.05)
    assert config.sft is not None
    sft, train = config.sft.trainer_kwargs, config.trainer_kwargs
    expected = {"num_train_epochs": 10, "learning_rate": 2e-5, "optim": "adamw_torch"}
    expected |= {"lr_scheduler_type": "cosine", "max_length": 2048}
    assert {key: sft[key] for key in expected} == expected
    expected = {"num_train_epochs": 5, "learning_rate": 1e-5, "optim": "rmsprop", "warmup_steps": 150}
    expected |= {"beta": 0.1, "temperature": 0.9, "max_new_tokens": 1024}
    assert {key: train[key] for key in expected} == expected
    assert config.train.disable_dropout  # the corrections need it off; SFT has it on


@pytest.mark.parametrize("name", NAMES)
def test_its_data_are_a_public_set_by_name(name: str) -> None:
    """As it stands, without anything of this machine."""
    data = load_config(RECIPES / f"{name}.yaml").data
    wanted = "pku-saferlhf" if "pku" in name else "ultrafeedback-binarized"
    assert [source.name for source in (data.train, data.eval)] == [wanted, wanted]
    assert data.train.split != data.eval.split


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_it_needs_and_that_it_was_not_run(name: str) -> None:
    header = " ".join(line[1:].strip() for line in text_of(name).split("\n\n")[0].splitlines())
    for words in (
        f"sail pipeline recipes/models/{name}.yaml",
        "Licence:",
        "originally",
        "Not run here",
        "Meant for",
    ):
        assert words in header


@pytest.mark.parametrize("name", NAMES)
def test_stages_follow_from_each_other(name: str, home: Path) -> None:
    stages = {
        stage.name: stage for stage in stages_of(str(RECIPES / f"{name}.yaml"), overrides_of(name, home))
    }
    rewarded = name.startswith("qwen")
    assert list(stages) == ["sft", *(["train-reward"] if rewarded else []), "train", "eval", "merge"]
    start = str(home / "out" / name / "sft")
    assert stages["train"].inputs["model"] == start
    if rewarded:
        assert stages["train-reward"].inputs["model"] == start
        assert str(home / "out" / name / "reward") in stages["train"].inputs.values()


def gigabytes(name: str) -> int:
    """Of the GPU that the stage train fits, as the table of docs/real_runs.md says."""
    page = (RECIPES.parents[1] / "docs" / "real_runs.md").read_text(encoding="utf-8")
    exact = re.search(rf"(?m)^\| {name} \|[^|]*\| (\d+) GB", page)
    family = re.search(rf"(?m)^\| {'-'.join(name.split('-')[:2])}-\* \|[^|]*\| (\d+) GB", page)
    found = exact or family
    assert found is not None, name
    return int(found.group(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run_knows_the_model_and_the_header_its_memory(name: str, home: Path) -> None:
    """640 rows in steps of 32, 5 passes: 100 steps; 0.3 of the rows are answered twice: 1,920 responses."""
    said = dry_run(load_config(RECIPES / f"{name}.yaml", overrides_of(name, home)))
    trained, every = (
        int(one.replace(",", ""))
        for one in re.search(r"trainable parameters: (\S+) of (\S+)\n", said).groups()
    )
    assert every - trained == shape_of(name)[1]
    assert "optimiser steps: 100 of 32 rows\n" in said
    assert "responses sampled: about 1,920 in all, 19.2 per step\n" in said
    calls = "about 960 in all" if name.startswith("qwen") else "none"
    assert f"oracle calls (pairs): {calls}" in said
    if name.startswith("qwen"):
        assert "is not made yet (sail train-reward)" in said
    assert "holds a configuration and no weights" in said
    training, sampling = (
        float(one) for one in re.search(r"peak +(\S+) GiB .*, (\S+) GiB while", said).groups()
    )
    header = " ".join(line[1:].strip() for line in text_of(name).split("\n\n")[0].splitlines())
    most = float(re.search(r"at most (\d+) GiB", header).group(1))
    assert most / 1.3 <= max(training, sampling) <= most
    # A GPU adds its context, fragmentation and workspaces: 20%.
    assert 1.2 * max(training, sampling) <= int(re.search(r"one GPU of (\d+) GB", header).group(1))
    assert 1.2 * max(training, sampling) <= gigabytes(name) <= 2 * max(training, sampling)
    zero3, fsdp = map(float, re.search(r"([\d.]+) GiB with ZeRO-3, ([\d.]+) GiB with FSDP", said).groups())
    assert fsdp <= zero3
    # The head of 151,936 words over 8 texts of 2048 tokens, 20 bytes each, is 46 GiB where it is not taken in chunks.
    assert (zero3 > 46) == name.startswith("qwen")
    assert said.endswith("Nothing was trained or written.")
    assert not (home / "out").exists()


def test_a_run_with_split_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate's launcher says it. The weights are there twice while a step is prepared; the logits are the model's own:
    4 x 2 texts of 2,048 tokens, 151,936 words, 20 bytes each. DeepSpeed's settings are read where it is installed only."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    name = "qwen-0.5b-ultrafeedback"
    said = dry_run(load_config(RECIPES / f"{name}.yaml", overrides_of(name, home)))
    size = {part: float(found) for part, found in re.findall(r"(?m)^  (\w[\w', ]+?) +([\d.]+) GiB", said)}
    assert size["weights gathered"] == size["weights"] == 1.05
    assert size["logits"] == pytest.approx(4 * 2 * 2048 * 151_936 * 20 / 2**30, abs=0.006)
    sampling = float(re.search(r"([\d.]+) GiB while sampling", said).group(1))
    parts = (
        "weights",
        "weights gathered",
        "the oracle's model",
        "optimiser state",
        "sampling cache",
        "sampling, the rest",
    )
    assert sampling == pytest.approx(sum(size.get(part, 0.0) for part in parts), abs=0.03)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("qwen")])
def test_the_lines_for_an_oracle_load_once_they_are_no_comments(name: str, home: Path) -> None:
    text = re.sub(r"(?m)^#(?=(reward:|oracle:|  \w))", "", text_of(name))
    (home / "run.yaml").write_text(text.replace("preset: sail-dpp", "preset: sail-dpr"), encoding="utf-8")
    config: RunConfig = load_config(home / "run.yaml", overrides_of(name, home))
    assert config.oracle is not None
    assert config.oracle.model == str(home / "out" / name / "reward")
    assert yaml.safe_load(text)["reward"]["num_train_epochs"] == 1
