"""What a user of Trainer, PEFT and TRL expects of SAILTrainer beside training: evaluation, precision, saving, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import make_config, make_model, make_pairs, make_prompts, make_trainer, reward
from transformers import AutoModelForCausalLM, HfArgumentParser

from sail import SAILConfig
from sail.errors import CheckpointError, ConfigError
from sail.generation.scoring import score_sequences
from sail.results import save_model

LORA = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_sampled_as_scored_under_autocast(tmp_path: Path, lora: bool) -> None:
    """Under bf16 the responses must be sampled by the policy that is trained: at the start, log pi/pi_ref of fresh samples is
    rounding, not the difference between bf16 and float32 (which was .45 nats at its worst)."""
    extra = {"peft_config": LoraConfig(**LORA)} if lora else {}
    trainer = make_trainer(
        tmp_path,
        model=make_model(scale=0.3),
        bf16=True,
        preset="online-dpo",
        max_steps=1,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=1,
        trainer_options=extra,
    )
    trainer.train()
    first = metrics(tmp_path)[0]
    assert abs(first["kl/policy_ref"]) < 0.02
    assert first["kl/policy_ref_se"] < 0.02


# --- evaluation -----------------------------------------------------------------------------------------------


def test_held_out_kl_is_against_the_disabled_adapter(tmp_path: Path) -> None:
    """eval_kl of a LoRA run, against log-probs of the starting model itself."""
    held = make_pairs(16, seed=5)
    trainer = make_trainer(
        tmp_path,
        model=make_model(scale=0.3),
        preset="online-dpo",
        learning_rate=2e-2,
        eval_samples=16,
        trainer_options={"peft_config": LoraConfig(**LORA), "eval_dataset": held},
    )
    trainer.train()
    found = trainer.evaluate()
    rows = [trainer.eval_dataset[place] for place in range(16)]
    sampled = trainer.generator.sample(
        [row["prompt_ids"] for row in rows], [(trainer.args.seed, "eval", int(row["index"])) for row in rows]
    )
    pairs = [(row["prompt_ids"], list(one.ids)) for row, one in zip(rows, sampled, strict=True)]
    start = score_sequences(
        make_model(scale=0.3), pairs, pad_id=trainer.processing_class.pad_token_id, batch_size=4
    )
    expected = sum(one.log_prob - score for one, score in zip(sampled, start, strict=True)) / 16
    assert expected > 0.05
    assert found["eval_kl"] == pytest.approx(expected, abs=1e-4)


def test_raw_rows_can_be_evaluated_and_predicted(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, preset="dpo", trainer_options={"eval_dataset": make_pairs(8, seed=5)})
    expected = trainer.evaluate()
    for rows in (make_pairs(8, seed=5), Dataset.from_list(make_pairs(8, seed=5))):
        assert trainer.evaluate(rows)["eval_loss"] == expected["eval_loss"]
        assert trainer.predict(rows).predictions.shape == (8, 3)


def test_several_evaluation_sets_by_name(tmp_path: Path) -> None:
    sets = {"near": make_pairs(8, seed=5), "far": make_pairs(8, seed=6)}
    found = make_trainer(tmp_path, preset="dpo", trainer_options={"eval_dataset": sets}).evaluate()
    assert {"eval_near_loss", "eval_far_loss", "eval_near_accuracy"} <= found.keys()


def test_no_pairs_no_loss(tmp_path: Path) -> None:
    """A number without its samples would be 0, the best loss there is."""
    prompts = [{"prompt": prompt} for prompt in make_prompts(4)]
    trainer = make_trainer(
        tmp_path, preset="online-dpo", eval_samples=4, trainer_options={"eval_dataset": prompts}
    )
    found = trainer.evaluate()
    assert "eval_loss" not in found
    assert found["eval_reward"] is not None


def test_oracle_calls_of_evaluation_are_counted(tmp_path: Path) -> None:
    asked: list[int] = []

    def counted(prompts: list[str], responses: list[str]) -> list[float]:
        asked.append(len(responses))
        return reward(prompts, responses)

    trainer = make_trainer(
        tmp_path,
        preset="dpo",
        oracle=counted,
        eval_samples=4,
        eval_strategy="steps",
        eval_steps=4,
        trainer_options={"eval_dataset": make_pairs(8, seed=5)},
    )
    trainer.train()
    assert asked == [4, 4]
    assert trainer.tracker.totals()["oracle_calls_in_evaluation"] == 8
    assert trainer.tracker.totals()["oracle_calls"] == 0


# --- stopping -------------------------------------------------------------------------------------------------


def test_stops_at_the_kl_limit_with_a_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        model=make_model(scale=0.3),
        preset="online-dpo",
        learning_rate=2e-2,
        max_steps=60,
        kl_limit=0.5,
    )
    trainer.train()
    lines = [line for line in metrics(tmp_path) if "kl/policy_ref" in line]
    assert trainer.state.global_step < 60
    assert lines[-1]["kl/policy_ref"] > 0.5 >= max(line["kl/policy_ref"] for line in lines[:-1])
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}" / "trainer_state.json").is_file()


def test_a_kl_limit_that_could_never_act_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Set eval_strategy"):
        make_trainer(
            tmp_path,
            preset="dpo",
            kl_limit=1.0,
            eval_samples=4,
            trainer_options={"eval_dataset": make_pairs(8)},
        )


# --- resuming another run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"beta": 0.9}, "beta: 0.1 then, 0.9 now"), ({"rows": make_pairs(32, seed=9)}, "training rows")],
)
def test_another_run_is_not_continued(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    make_trainer(tmp_path, preset="dpo", max_steps=2, save_strategy="steps", save_steps=2).train()
    other = make_trainer(tmp_path, preset="dpo", max_steps=4, save_strategy="steps", save_steps=2, **changed)
    with pytest.raises(CheckpointError, match=named):
        other.train(resume_from_checkpoint=True)


# --- saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("also", [None, ["lm_head"]])
def test_a_merged_folder_speaks_like_the_adapter_and_the_run_goes_on_unchanged(
    tmp_path: Path, also: list[str] | None
) -> None:
    lora = {**LORA, "target_modules": ["q_proj", "v_proj"], "modules_to_save": also}
    model = make_model(torch.bfloat16, tie_word_embeddings=False)
    trainer = make_trainer(
        tmp_path,
        model=model,
        preset="dpo",
        learning_rate=1e-2,
        trainer_options={"peft_config": LoraConfig(**lora)},
    )
    trainer.train()
    ids = torch.tensor([[3, 4, 5, 6]])
    before = trainer.model(ids).logits
    save_model(trainer, tmp_path)
    assert torch.equal(trainer.model(ids).logits, before)
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    # One rounding to bfloat16 apart: the adapter's weights are added into the base.
    assert torch.allclose(loaded(ids).logits, before, atol=0.03)
    assert loaded.config.use_cache


# --- arguments ------------------------------------------------------------------------------------------------


def test_options_come_from_a_command_line(tmp_path: Path) -> None:
    routes = '{"data": {"weight": 0.5}, "dpr": {"weight": 0.5}}'
    words = ["--output_dir", str(tmp_path), "--routes", routes, "--beta", "0.2", "--use_cpu", "true"]
    (config,) = HfArgumentParser(SAILConfig).parse_args_into_dataclasses(words)
    trainer = make_trainer(tmp_path, routes=config.routes)
    assert [share.weight for share in trainer.mixture.shares] == [0.5, 0.5]
    assert config.beta == 0.2


@pytest.mark.parametrize(
    "options",
    [
        {"neftune_noise_alpha": 5.0},
        {"label_smoothing_factor": 0.1},
        {"train_sampling_strategy": "group_by_length"},
    ],
)
def test_arguments_without_meaning_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_config(tmp_path, preset="dpo", **options)


def test_bad_rows_can_be_skipped(tmp_path: Path) -> None:
    rows = [*make_pairs(16), {"prompt": "w1", "chosen": "", "rejected": "w2"}]
    trainer = make_trainer(tmp_path, preset="dpo", rows=rows, trainer_options={"bad_rows": "skip"})
    assert len(trainer.train_dataset) == 16
    assert len(trainer.train_dataset.skipped) == 1
