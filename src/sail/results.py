"""What a finished run leaves: the model as an ordinary folder, and results.json with what it was measured to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sail.data.encode import EncodedDataset
from sail.evaluation.audit import Audit
from sail.evaluation.files import write_json
from sail.evaluation.final import Closing, close, fell, has_risen
from sail.evaluation.fingerprint import weights_fingerprint
from sail.evaluation.show import show
from sail.generation.scoring import unwrapped
from sail.oracles import for_measuring, without_people
from sail.report.pairs_file import key_of
from sail.report.record import read_run
from sail.trainer import SAILTrainer
from sail.training.merging import base_of, in_few_bits, merged_with_base
from sail.training.models import merged
from sail.training.step import PHASES

__all__ = [
    "RESULTS",
    "audit_run",
    "final_results",
    "print_results",
    "save_model",
    "seconds_per_step",
    "write_json",
]

RESULTS = "results.json"


def save_model(trainer: SAILTrainer, folder: Path) -> None:
    """model/ as an ordinary folder: an adapter is merged into its base, and kept beside as adapter/."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    target, unfinished = folder / "model", folder / "model.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
    if in_few_bits(model):
        full, stored = merged_with_base(folder / "adapter", base_of(model))
        ordinary = full.to(stored)
    else:
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
    arguments = trainer.args
    per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    with reference_of(trainer) as model:
        reference = weights_fingerprint(model)
    results: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "train_rows": 0 if trainer.train_dataset is None else len(trainer.train_dataset),
        "train_prompts": 0 if trainer.train_dataset is None else distinct_prompts(trainer.train_dataset),
        "rows_per_step": per_step * arguments.world_size,
        **totals,
        "metrics": {},
        "samples": [],
        "notes": [],
        # What tells two runs apart: sail compare reads it.
        "fingerprints": {
            "reference": reference,
            "train_rows": None if trainer.train_dataset is None else trainer.train_dataset.fingerprint,
            "held_out_rows": held_out.fingerprint if isinstance(held_out, EncodedDataset) else None,
        },
    }
    if trainer.args.ref_update != "never":
        results["notes"].append(
            "The reference was replaced in every round; what is called the reference here is the one that the run began with."
        )
    if held_out is None:
        results["notes"].append("There is no data.eval, so nothing was measured on held-out prompts.")
        return results
    if arguments.final_samples == 0:
        results["notes"].append("final_samples is 0, so nothing was measured when the run ended.")
        return results
    rows = [held_out[place] for place in range(min(arguments.final_samples, len(held_out)))]
    closing = Closing(
        rows, trainer.processing_class, trainer.generator.settings, arguments.seed, arguments.beta
    )
    findings = close(
        closing,
        unwrapped(trainer.model),
        lambda: reference_of(trainer),
        for_measuring(trainer.oracle),
        trainer.accelerator.autocast,
        gold=for_measuring(trainer.eval_oracle),
    )
    results.update(metrics=findings.metrics, samples=findings.samples)
    results["notes"] += findings.notes
    if trainer.oracle is not None and trainer.oracle.asks_people:
        results["notes"].append("People were asked in training only, so nobody judged the held-out answers.")
    # To those of the evaluations while training.
    results["oracle_calls_in_evaluation"] = results.get("oracle_calls_in_evaluation", 0) + findings.calls
    return results


def distinct_prompts(dataset: EncodedDataset) -> int:
    """Different prompts of the rows, conversations by their JSON: fewer than rows where a prompt has several pairs."""
    return len({key_of(row["prompt"]) for row in dataset.rows})


@contextmanager
def reference_of(trainer: SAILTrainer) -> Iterator[Any]:
    """The reference that the run began with: an adapter is off meanwhile, and the precision is the training's."""
    model, adapter_off = trainer.reference.start()
    with adapter_off, trainer.accelerator.autocast():
        yield model


def audit_run(trainer: SAILTrainer, folder: Path, results: dict[str, Any]) -> None:
    """audit.json and reference_answers.jsonl beside the run's results; its oracle calls are added to `results`."""
    trained = trainer.train_dataset
    held_out = trainer.eval_dataset if isinstance(trainer.eval_dataset, EncodedDataset) else None
    rows = [] if trained is None else trained.rows
    has_pairs = held_out is not None and held_out.prompt_only < len(held_out)
    audit = Audit(
        lambda: reference_of(trainer),
        trainer.processing_class,
        trainer.generator.settings,
        without_people(trainer.oracle),
        trained=rows,
        data=held_out.rows if held_out is not None and has_pairs else rows,
        # The pairs that a report shows: their prompts are those whose reference answers will be looked for.
        sampled=read_run(folder).pairs,
        max_length=trainer.args.max_length,
        seed=trainer.args.seed,
    ).write(folder)
    results["oracle_calls_in_evaluation"] = (
        results.get("oracle_calls_in_evaluation", 0) + audit["oracle_calls"]
    )
    results["notes"] += [f"audit: {note}" for note in audit["notes"]]


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
            else "The reward has FALLEN: the 95% interval of the gain lies below 0."
            if fell(metrics)
            else "The reward has not risen: the 95% interval of the gain reaches 0."
        )
