"""sail train-reward: TRL's loss on our ids, a model that learns a rule, a folder that loads, resumes and is kept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from tiny_classifiers import WORDS, save_bert, save_llama
from transformers import AutoModelForSequenceClassification

from sail import cli
from sail.data.formats import parse_row
from sail.oracles.reward_model import RewardModel
from sail.reward_training import encode_pairs, load_start, make_reward_trainer
from sail.types import Pair

QUIET = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}


def rows_of(records: list[dict[str, Any]]) -> list[Any]:
    return [parse_row(record, f"row {number}") for number, record in enumerate(records)]


def trainer_of(folder: Path, out: Path, records: list[dict[str, Any]], **arguments: Any) -> Any:
    start = load_start(str(folder), tokenizer=None, max_length=None, seed=0)
    pairs = encode_pairs(rows_of(records), start, bad_rows="error")
    return make_reward_trainer(start, pairs, None, {**QUIET, "output_dir": str(out), **arguments})


def batch_loss(trainer: Any, count: int) -> float:
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(count)])
    trainer.model.eval()
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, dict(batch)))


# --- The loss ---------------------------------------------------------------------------------------------------


def test_the_loss_on_a_batch_is_that_of_trls_own_pipeline(tmp_path: Path) -> None:
    """TRL reads text: prompt and response are joined by a space there, and it appends the EOS itself."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    folder, records = save_llama(tmp_path / "m"), tiny.make_pairs(6)
    ours = batch_loss(trainer_of(folder, tmp_path / "ours", records), 6)
    spaced = [
        {**row, "chosen": f" {row['chosen']} ", "rejected": f" {row['rejected']} "} for row in records
    ]  # the space at the end keeps the EOS a word of its own
    config = RewardConfig(
        output_dir=str(tmp_path / "trl"), report_to=[], bf16=False, gradient_checkpointing=False, **QUIET
    )
    theirs = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        args=config,
        train_dataset=Dataset.from_list(spaced),
        processing_class=tiny.make_tokenizer(),
    )
    assert ours == pytest.approx(batch_loss(theirs, 6), abs=1e-6)
    assert ours != pytest.approx(0.693, abs=0.01)


@pytest.mark.parametrize("save", [save_llama, save_bert])
def test_training_sees_what_the_oracle_will_see(save: Any, tmp_path: Path) -> None:
    """-log sigmoid of the difference of the oracle's scores; an encoder's segments included."""
    folder, records = save(tmp_path / "m"), tiny.make_pairs(5)
    trainer = trainer_of(folder, tmp_path / "run", records)
    given = RewardModel(str(folder)).compare(
        [Pair(record["prompt"], record["chosen"], record["rejected"]) for record in records]
    )
    expected = -torch.tensor([one.first_wins for one in given], dtype=torch.float64).log().mean()
    assert batch_loss(trainer, 5) == pytest.approx(float(expected), abs=1e-5)


def test_what_is_left_out_and_cut_is_counted(tmp_path: Path) -> None:
    start = load_start(str(save_llama(tmp_path / "m")), tokenizer=None, max_length=6, seed=0)
    records = [
        {"prompt": "w1 w2", "chosen": "w3", "rejected": "w4"},
        {"prompt": "w1 w2 w3 w4 w5 w6", "chosen": "w3", "rejected": "w4"},
        {"prompt": "w1", "chosen": "nobody", "rejected": "knows"},  # both are <unk>
    ]
    made = encode_pairs(rows_of(records), start, bad_rows="error")
    assert (len(made.pairs), made.cut, made.identical) == (2, 2, 1)
    assert start.tokenizer.model_max_length == 6


# --- The command --------------------------------------------------------------------------------------------------


def world(folder: Path, *, labels: int | None = None) -> dict[str, Any]:
    """Pairs in which the response with the word w3 is chosen, and a language model to start from."""
    chance = random.Random(0)

    def response(good: bool) -> str:
        words = chance.choices([word for word in WORDS if word != "w3"], k=chance.randint(2, 6))
        if good:
            words[chance.randrange(len(words))] = "w3"
        return " ".join(words)

    for name, count, seed in (("pairs", 160, 1), ("held", 40, 2)):
        rows = [
            {"prompt": prompt, "chosen": response(True), "rejected": response(False)}
            for prompt in tiny.make_prompts(count, seed=seed)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.make_model(scale=0.1).save_pretrained(folder / "lm")
    tiny.make_tokenizer().save_pretrained(folder / "lm")
    return {
        "model": "./lm",
        "data": {"train": "pairs.jsonl", "eval": "held.jsonl"},
        "reward": {
            "output_dir": "rm",
            "learning_rate": 3e-3,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 16,
            "logging_steps": 5,
            "save_steps": 5,
            "seed": 3,
            **{key: value for key, value in QUIET.items() if key != "save_strategy"},
        },
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run(*arguments) -> exit code of sail train-reward in a folder with the world in it."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(world(tmp_path)))
    return lambda *arguments: cli.main(["train-reward", "run.yaml", *arguments])


def test_a_language_model_becomes_a_reward_model_that_has_learned_the_rule(run: Any, capsys: Any) -> None:
    assert run("--dry-run") == 0
    said = capsys.readouterr().out
    assert "training: 160 pairs" in said
    assert "score.weight): it is made anew" in said
    assert "optimiser steps: 30" in said
    assert not Path("rm").exists()
    assert run() == 0
    said = capsys.readouterr().out
    assert "held-out accuracy" in said
    assert "Traceback" not in said
    results = json.loads(Path("rm/results.json").read_text())
    assert results["score_head"] == "new"
    assert results["accuracy"]["n"] == results["accuracy"]["clusters"] == 40
    assert results["accuracy"]["mean"] > 0.85
    assert results["accuracy"]["low"] < results["accuracy"]["mean"]
    assert len(results["reliability"]) == 10
    assert sum(row["n"] for row in results["reliability"]) == 40
    assert {"mean", "low", "high"} <= results["calibration_error"].keys()
    assert Path("rm/reliability.svg").read_text().startswith("<svg")
    # The folder is an oracle, and an ordinary classifier.
    good, bad = RewardModel("rm").score(["w1 w2", "w1 w2"], ["w3 w5", "w4 w5"])
    assert good > bad
    assert AutoModelForSequenceClassification.from_pretrained("rm").config.num_labels == 1
    # It labels a run: counted, and remembered in the ledger.
    about = "oracle={kind: reward_model, model: rm, batch_size: 8, max_length: 12, wrap: [remember]}"
    lengths = "max_new_tokens: 8, max_length: 32, max_prompt_length: 16"
    train = f"{{preset: sail-dpr, output_dir: run, max_steps: 2, use_cpu: true, {lengths}}}"
    assert cli.main(["train", "run.yaml", about, f"train={train}"]) == 0
    spent = json.loads(Path("run/results.json").read_text())["oracle"]
    assert spent["name"] == "reward model rm"
    assert spent["reward_model"]["scored"] > 0
    assert spent["reward_model"]["cut"] > 0
    # A finished folder is not trained over, nor is one of somebody else's.
    assert run() == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("reward.output_dir=lm", "--overwrite") == 2
    assert "has not made" in capsys.readouterr().err
    assert run("--overwrite", "reward.max_steps=1") == 0
    assert json.loads(Path("rm/results.json").read_text())["steps"] == 1
    # It is a start too, whose head is kept.
    assert run("reward.model=rm", "reward.output_dir=again", "reward.max_steps=1") == 0
    assert json.loads(Path("again/results.json").read_text())["score_head"] == "kept"


def test_a_held_out_row_that_was_skipped_is_not_scored_either(run: Any, tmp_path: Path) -> None:
    """Its template refuses the role: it used to end the training that had been finished a moment before."""
    tokenizer = tiny.make_tokenizer()
    refuses = "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + refuses + "{{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "lm")
    with Path("held.jsonl").open("a") as file:
        for role in ("tool", "user"):
            prompt = [{"role": role, "content": "w1"}]
            sides = {
                name: [{"role": "assistant", "content": text}]
                for name, text in (("chosen", "w3"), ("rejected", "w4"))
            }
            file.write(json.dumps({"prompt": prompt, **sides}) + "\n")
    assert run("reward.max_steps=1", "data.bad_rows=skip") == 0
    results = json.loads(Path("rm/results.json").read_text())
    assert results["accuracy"]["n"] == 41
    assert results["held_out_skipped"] == 1


def test_refusals(run: Any, tmp_path: Path, capsys: Any) -> None:
    def refused(*arguments: str) -> str:
        assert run(*arguments) == 2
        return str(capsys.readouterr().err)

    save_llama(tmp_path / "three", labels=3)
    assert "has 3 outputs" in refused("reward.model=three")
    assert "reward.max_length is 99" in refused("reward.max_length=99")
    assert "no_such_key" in refused("reward.no_such_key=1")
    assert "no reward section" in refused("reward=null", "sft={train: pairs.jsonl}")
    assert "set reward.train" in refused("data.train=null")
    assert not Path("rm").exists()


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(run: Any, tmp_path: Path, capsys: Any) -> None:
    assert run("reward.output_dir=whole") == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "sail.cli", "train-reward", "run.yaml", "reward.save_total_limit=2"],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not Path("rm/checkpoint-5/trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("rm/results.json").exists()
    assert run() == 2
    assert "--resume" in capsys.readouterr().err
    assert run("--resume", "reward.learning_rate=1") == 2
    assert "learning_rate: 0.003 then" in capsys.readouterr().err
    assert run("--resume") == 0
    weights = [
        AutoModelForSequenceClassification.from_pretrained(name).state_dict() for name in ("whole", "rm")
    ]
    assert tiny.largest_difference(*weights) == 0.0


def test_an_adapter_is_merged_into_an_ordinary_folder(run: Any) -> None:
    pytest.importorskip("peft")
    assert run("peft={r: 4, lora_alpha: 8}", "reward.learning_rate=2e-2") == 0
    assert not Path("rm/adapter_config.json").exists()
    results = json.loads(Path("rm/results.json").read_text())
    assert results["accuracy"]["mean"] > 0.7
