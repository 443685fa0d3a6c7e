"""What a finished run leaves: the model as an ordinary folder, and results.json with what it was measured to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sail.evaluation.final import Answers, answer, compare_with_reference, has_risen, show
from sail.trainer import SAILTrainer
from sail.training.models import merged
from sail.training.step import PHASES

RESULTS = "results.json"
FINAL_PROMPTS = 512
"""Held-out prompts answered when a run ends, by the policy and by the reference."""


def save_model(trainer: SAILTrainer, folder: Path) -> None:
    """model/ as an ordinary folder: an adapter is merged into its base, and kept beside as adapter/."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    target, unfinished = folder / "model", folder / "model.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
    ordinary = merged(model)
    before = ordinary.config.use_cache
    # Trainer switches the cache off for training; a folder to generate from has it on.
    ordinary.config.use_cache = True
    ordinary.save_pretrained(unfinished)
    ordinary.config.use_cache = before
    trainer.processing_class.save_pretrained(unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


def final_results(trainer: SAILTrainer, totals: dict[str, int]) -> dict[str, Any]:
    """results.json: the policy against its reference on held-out prompts, and what the run cost."""
    held_out = trainer.eval_dataset
    results: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "train_rows": 0 if trainer.train_dataset is None else len(trainer.train_dataset),
        **totals,
        "metrics": {},
        "samples": [],
        "notes": [],
    }
    if trainer.args.ref_update != "never":
        results["notes"].append(
            "The reference was replaced in every round; what is called the reference here is the one that the run began with."
        )
    if held_out is None:
        results["notes"].append("There is no data.eval, so nothing was measured on held-out prompts.")
        return results
    rows = [held_out[place] for place in range(min(FINAL_PROMPTS, len(held_out)))]
    prompts, ids = [row["prompt"] for row in rows], [row["prompt_ids"] for row in rows]
    settings, oracle = trainer.generator.settings, trainer.oracle

    def answers(model: Any) -> Answers:
        tokenizer = trainer.processing_class
        return answer(
            model, tokenizer, prompts, ids, settings=settings, seed=trainer.args.seed, oracle=oracle
        )

    with trainer.accelerator.autocast():
        policy = answers(trainer.model)
    model, adapter_off = trainer.reference.start()
    with adapter_off, trainer.accelerator.autocast():
        findings = compare_with_reference(
            policy,
            answers(model),
            model,
            prompts,
            ids,
            oracle=oracle,
            temperature=settings.temperature,
            pad_id=settings.pad_id,
        )
    results.update(metrics=findings.metrics, samples=findings.samples)
    return results


def seconds_per_step(folder: Path) -> float | None:
    """Mean seconds of an optimiser step: the four timed phases of all training lines, without evaluation and saving."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = [line for line in lines if "seconds/policy" in line]
    if not timed:
        return None
    total = sum(line[f"seconds/{phase}"] for line in timed for phase in PHASES)
    return float(total / timed[-1]["step"])


def print_results(results: dict[str, Any]) -> None:
    metrics = results["metrics"]
    names = {
        "reward": "reward on held-out prompts",
        "reward_reference": "the same of the reference",
        "reward_gain": "gain, paired by prompt",
        "win_rate": "win rate over the reference",
        "kl": "KL to the reference, nats per response",
        "length": "response length, tokens",
    }
    for key, name in names.items():
        if key in metrics:
            print(f"{name:<40} {show(metrics[key])}")
    risen = has_risen(metrics)
    if risen is not None:
        print(
            "The reward has risen."
            if risen
            else "The reward has not risen: the 95% interval of the gain reaches 0."
        )


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that a kill leaves either the old file or the new one."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    unfinished.replace(path)
