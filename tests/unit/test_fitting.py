"""Texts that do not fit into a model's context are refused before anything is trained; settings that do nothing are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model, make_pairs, make_tokenizer

from sail.build import make_datasets
from sail.build import make_tokenizer as tokenizer_of
from sail.config import RunConfig, config_from_dict
from sail.data.encode import eos_ids
from sail.errors import ConfigError
from sail.evaluation.final import fell, has_risen
from sail.fitting import check_fit


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 positions and pairs of a few tokens."""
    folder = tmp_path_factory.mktemp("fit")
    model = make_model(scale=0.3)
    assert model.config.max_position_embeddings == 64
    model.save_pretrained(folder / "sft")
    make_tokenizer().save_pretrained(folder / "sft")
    for name in ("pairs", "held"):
        lines = [json.dumps(row) for row in make_pairs(20)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(world: Path, *, held_out: bool = False, **train: Any) -> RunConfig:
    data = {"train": str(world / "pairs.jsonl"), "eval": str(world / "held.jsonl") if held_out else None}
    options = {"preset": "self-dpo", "output_dir": "runs/fit", "max_new_tokens": 8, **train}
    return config_from_dict({"model": str(world / "sft"), "data": data, "train": options})


def checked(config: RunConfig) -> list[str]:
    tokenizer = tokenizer_of(config.model)
    train, held_out, _ = make_datasets(config, tokenizer, eos_ids(tokenizer, None))
    return check_fit(config, train, held_out)


def test_what_fits_is_not_spoken_of(world: Path) -> None:
    """Short rows under a large max_length fit."""
    assert checked(run(world, max_length=1024)) == []


def test_responses_that_do_not_fit_behind_the_longest_prompt(world: Path) -> None:
    config = run(world, max_new_tokens=64)
    tokenizer = tokenizer_of(config.model)
    train, _, _ = make_datasets(config, tokenizer, eos_ids(tokenizer, None))
    longest = max(len(row["prompt_ids"]) for row in train.rows)
    with pytest.raises(ConfigError, match=f"max_new_tokens to at most {64 - longest}"):
        checked(config)
    assert checked(run(world, max_new_tokens=64 - longest)) == []
    # Nothing is sampled, so nothing is too long; with held-out prompts something is, at the end.
    assert checked(run(world, preset="dpo", max_new_tokens=64)) == []
    with pytest.raises(ConfigError, match="no room for responses of 64") as refused:
        checked(run(world, held_out=True, preset="dpo", max_new_tokens=64))
    assert "max_prompt_length" not in str(refused.value), "no prompt is short enough for that"
    with pytest.raises(ConfigError, match=r"or train\.max_prompt_length to at most 2 with"):
        checked(run(world, max_new_tokens=62))
    assert checked(run(world, held_out=True, preset="dpo", max_new_tokens=64, final_samples=0)) == []


def test_evaluations_that_are_never_made_are_named(world: Path) -> None:
    (said,) = checked(run(world, held_out=True, eval_samples=4))
    assert "eval_strategy is no" in said
    assert checked(run(world, held_out=True, eval_samples=4, eval_strategy="steps", eval_steps=5)) == []


@pytest.mark.parametrize(
    ("low", "high", "risen", "fallen"),
    [(0.1, 0.2, True, False), (-0.1, 0.1, False, False), (-0.5, -0.1, False, True)],
)
def test_a_fall_is_called_one(low: float, high: float, risen: bool, fallen: bool) -> None:
    metrics = {"reward_gain": {"mean": (low + high) / 2, "low": low, "high": high, "n": 9}}
    assert (has_risen(metrics), fell(metrics)) == (risen, fallen)
    assert not fell({})
