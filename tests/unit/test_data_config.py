"""Sources in a run file: names, mappings and paths, how they load, are found, are written out and move with a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from named_sets import write_copy
from test_config import DPR, load, refusal

from sail.config import load_config, resolved_yaml
from sail.data_config import DataSource
from sail.run_folder import _flat
from sail.subject import run_config


@pytest.fixture(autouse=True)
def _empty_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_a_name_is_of_the_training_split_and_in_eval_of_the_test_split() -> None:
    config = load(
        DPR,
        "data.train=pku-saferlhf-10k",
        "data.eval={name: pku-saferlhf, label: safe}",
        "data.prompts=hh-rlhf",
    )
    assert config.data.train == DataSource(name="pku-saferlhf", variant="10K", split="train")
    assert config.data.eval == DataSource(name="pku-saferlhf", label="safe", split="test")
    assert config.data.prompts == DataSource(name="hh-rlhf", split="train")


def test_other_stages_take_names_too() -> None:
    text = (
        DPR
        + "sft: {train: hh-rlhf, eval: hh-rlhf}\nreward: {train: {name: webgpt-comparisons, limit: 5}, eval: hh-rlhf}\n"
    )
    config = load(text)
    assert config.sft is not None
    assert config.reward is not None
    assert config.sft.eval == DataSource(name="hh-rlhf", split="test")
    assert config.reward.train == DataSource(name="webgpt-comparisons", split="train", limit=5)
    assert "train" not in config.sft.trainer_kwargs
    assert "train" not in config.reward.trainer_kwargs


def test_a_local_copy_is_found_beside_the_run_file(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    write_copy("hh-rlhf", folder / "hh")
    (folder / "pairs.jsonl").touch()
    (folder / "run.yaml").write_text(
        "model: m\ndata: {train: {name: hh-rlhf, path: hh}, eval: {path: pairs.jsonl, limit: 3}}\n"
        "oracle: {kind: function, path: 'reward.py:reward'}\ntrain: {preset: sail-dpr}\n",
        encoding="utf-8",
    )
    (folder / "reward.py").touch()
    config = load_config(folder / "run.yaml")
    assert isinstance(config.data.train, DataSource)
    assert isinstance(config.data.eval, DataSource)
    assert config.data.train.path == str(folder / "hh")
    assert config.data.eval.path == str(folder / "pairs.jsonl")
    assert config.oracle is not None
    assert config.oracle.path == f"{folder / 'reward.py'}:reward"


def test_a_file_called_like_a_set_is_the_file(tmp_path: Path) -> None:
    Path("hh-rlhf").touch()
    assert load(DPR, "data.train=hh-rlhf").data.train == str(tmp_path / "here" / "hh-rlhf")


def test_the_resolved_run_loads_back_and_its_keys_can_be_compared() -> None:
    config = load(DPR, "data.train={name: ultrafeedback, pairing: best_worst, held_out: .1, min_gap: 2}")
    Path("resolved.yaml").write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config("resolved.yaml") == config
    assert _flat(config.model_dump())["data.train.pairing"] == "best_worst"


def test_mistakes_stand_at_their_key() -> None:
    assert "data.train: there is no file and no data set 'hh-rlfh'; did you mean hh-rlhf?\n" in (
        refusal(DPR, "data.train=hh-rlfh") + "\n"
    )
    said = refusal(DPR, "data.eval={name: pku-saferlhf, label: safer, limt: 3}")
    assert "data.eval: " in said
    assert "limt: there is no such key. Did you mean limit?" in said
    said = refusal(DPR, "data.train={name: pku-saferlhf, label: safer, shape: x}")
    assert "label of pku-saferlhf is one of helpful, safe" in said
    assert "shape of pku-saferlhf is one of chat, text" in said
    assert "data.train: must be a path, the name of a data set, or keys" in refusal(DPR, "data.train=5")
    assert ".." not in said


def test_a_moved_run_finds_its_copy(tmp_path: Path) -> None:
    """The whole project moved: the copy lies in the same place beside the run folder."""
    run = tmp_path / "new" / "runs" / "one"
    run.mkdir(parents=True)
    write_copy("hh-rlhf", tmp_path / "new" / "hh")
    old = tmp_path / "old"
    (run / "config.resolved.yaml").write_text(
        f"model: m\ndata: {{train: {{name: hh-rlhf, path: {old / 'hh'}, split: train}}}}\n"
        f"train: {{preset: dpo, output_dir: runs/one}}\n",
        encoding="utf-8",
    )
    config, notes = run_config(run)
    assert isinstance(config.data.train, DataSource)
    assert config.data.train.path == str(tmp_path / "new" / "hh")
    assert len(notes) == 1


def test_the_trainer_takes_a_source(tmp_path: Path) -> None:
    from tiny import make_trainer

    write_copy("summarize-from-feedback", tmp_path / "copy")
    source = DataSource(name="summarize-from-feedback", path=str(tmp_path / "copy"), split="train")
    trainer = make_trainer(tmp_path / "run", rows=source, max_length=60, max_prompt_length=50)
    assert len(trainer.train_dataset) == 39
    assert trainer.train_dataset.fingerprint == make_trainer(
        tmp_path / "run", rows=source.model_copy(update={"limit": 39}), max_length=60, max_prompt_length=50
    ).train_dataset.fingerprint  # fmt: skip
