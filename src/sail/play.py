"""`sail play`: the whole job on the embedded world, through the commands a user's own model would take.

It writes run files and calls what `sail sft` and `sail train` call; every file it leaves can be changed and run again by hand.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sail.build import make_model, make_tokenizer, run_sft, run_training
from sail.config import load_config
from sail.data.encode import encode_prompt, eos_ids
from sail.evaluation.stats import mean_interval, paired_interval
from sail.generation import SamplingSettings, TransformersGenerator
from sail.playground.build_data import write_pairs, write_world
from sail.playground.gold import gold_maximum, gold_reward
from sail.playground.world import prompts
from sail.report.page import write_report
from sail.results import RESULTS, write_json

METHODS = ("dpo", "online-dpo", "sail-ddp", "sail-dpp", "sail-dpr")
MAX_NEW_TOKENS = 50


@dataclass(frozen=True)
class Size:
    """How much of everything; chosen by the time it takes, before any alignment result was looked at."""

    sft_rows: int
    sft_epochs: float
    prompts: int
    steps: int
    rows_per_step: int
    held_out: int
    evaluations: int = 6
    eval_samples: int = 128


FULL = Size(sft_rows=16000, sft_epochs=1, prompts=4000, steps=150, rows_per_step=32, held_out=512)
QUICK = Size(
    sft_rows=8000,
    sft_epochs=1,
    prompts=640,
    steps=40,
    rows_per_step=16,
    held_out=128,
    evaluations=2,
    eval_samples=64,
)

SFT = {
    "learning_rate": 4e-3,
    "per_device_train_batch_size": 32,
    "adam_beta2": 0.99,
    "warmup_steps": 50,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
    "train_sampling_strategy": "group_by_length",
    "max_length": 128,
}
# The learning rate is the best of 1e-4, 2e-4 and 4e-4 for DPO, the method that the others are compared with (LOG.md).
ALIGN = {
    "beta": 0.1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "max_length": 128,
    "max_prompt_length": 48,
    "max_new_tokens": MAX_NEW_TOKENS,
    "logging_steps": 5,
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "per_device_eval_batch_size": 64,
}


def play(out: Path, *, quick: bool, seed: int) -> Path:
    """Train the playground's assistant, align it by each method, compare; returns the report. A stopped play continues."""
    size = QUICK if quick else FULL
    out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    prepare(out, size, seed)
    for method in METHODS:
        _say(method, "")
        _align(out, method, size, seed)
    table = summary(out, list(METHODS))
    if quick:
        table["notes"].append(
            f"This was the quick play: {size.steps} steps show that everything works, and are too few to compare methods by. "
            "The full one (make play) is for that."
        )
    report = write_report(
        [out / method for method in METHODS], out / "report.html", title="sail play", summary_table=table
    )
    _print_table(table)
    print(f"\n{(time.time() - began) / 60:.1f} minutes. Read the answers getting better: {report}")
    return report


def prepare(out: Path, size: Size, seed: int) -> Path:
    """The fine-tuned assistant (its folder is returned) and its preference pairs; what is there already is kept."""
    out.mkdir(parents=True, exist_ok=True)
    sft = _fine_tuned(out, size, seed)
    _say(
        "preference pairs",
        "the assistant answers every prompt twice; Bradley-Terry on the gold reward picks the better",
    )
    _make_pairs(out, sft, size, seed)
    return sft


def _say(what: str, why: str) -> None:
    print(f"\n== {what}" + (f": {why}" if why else ""), flush=True)


def _fine_tuned(out: Path, size: Size, seed: int) -> Path:
    """The assistant before alignment, from scratch, by `sail sft`."""
    folder = out / "sft"
    if (folder / "model.safetensors").exists():
        return folder
    _say("sft", "a model of about a million parameters learns to imitate a mediocre assistant")
    write_world(out / "world", n_sft=size.sft_rows, seed=seed)
    section = {
        **SFT,
        "train": "world/sft.jsonl",
        "output_dir": str(folder),
        "num_train_epochs": size.sft_epochs,
        "seed": seed,
    }
    return run_sft(load_config(_run_file(out / "sft.yaml", {"model": "world/base", "sft": section})))


def _make_pairs(out: Path, sft: Path, size: Size, seed: int) -> None:
    """Two samples of the fine-tuned assistant per prompt, labelled by the world."""
    world = out / "world"
    if (world / "pairs.held.jsonl").exists():
        return
    tokenizer, model = make_tokenizer(str(sft)), make_model(str(sft))
    settings = SamplingSettings(
        MAX_NEW_TOKENS,
        1.0,
        eos_ids(tokenizer, model.generation_config),
        pad_id=tokenizer.pad_token_id,
        batch_size=256,
    )
    generator = TransformersGenerator(lambda: model, tokenizer, settings)
    for split, count, held in (("train", size.prompts, False), ("held-out", size.held_out, True)):
        asked = prompts(split)[:count]
        ids = [encode_prompt(tokenizer, prompt) for prompt in asked for _ in (0, 1)]
        keys = [(seed, "pairs", split, place, one) for place in range(len(asked)) for one in (0, 1)]
        texts = [one.text for one in generator.sample(ids, keys)]
        triples = [(prompt, texts[2 * place], texts[2 * place + 1]) for place, prompt in enumerate(asked)]
        # Held out, every prompt is kept: they are the prompts that all methods are compared on.
        written = write_pairs(world, triples, seed=seed, held=held, keep_identical=held)
        print(f"{split}: {written} pairs")


def _align(out: Path, method: str, size: Size, seed: int) -> None:
    """One method by `sail train`, from the same start, for the same number of steps."""
    folder = out / method
    if (folder / RESULTS).exists():
        print("already there")
        return
    train = {
        **ALIGN,
        "output_dir": str(folder),
        "preset": method,
        "max_steps": size.steps,
        "per_device_train_batch_size": size.rows_per_step,
        "eval_steps": max(1, size.steps // size.evaluations),
        "eval_samples": size.eval_samples,
        "save_steps": max(1, size.steps // 3),
        "seed": seed,
    }
    values = {
        "model": "sft",
        # The assistant now and then says nothing at all; such a pair is left out, and counted.
        "data": {"train": "world/pairs.jsonl", "eval": "world/pairs.held.jsonl", "bad_rows": "skip"},
        "oracle": {"kind": "function", "path": "world/reward.py:reward"},
        "train": train,
    }
    path = _run_file(out / f"{method}.yaml", values)
    run_training(
        load_config(path), resume=folder.exists(), overwrite=False, config_path=str(path), show_config=False
    )


def _run_file(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def summary(out: Path, methods: list[str]) -> dict[str, Any]:
    """The closing table: one row per method, the start first; and the paired differences to DPO."""
    results = {name: json.loads((out / name / RESULTS).read_text(encoding="utf-8")) for name in methods}
    start = next(iter(results.values()))
    asked = [sample["prompt"] for sample in start["samples"]]
    rows: list[list[Any]] = [
        ["sft (the reference)", start["metrics"]["reward_reference"], "0", "0.5", "0", "-"]
    ]
    baseline = results.get("dpo", start)["seconds_per_step"]
    for name, result in results.items():
        metrics = result["metrics"]
        timed = result["seconds_per_step"] and baseline  # a run shorter than its logging_steps has no times
        result["seconds_ratio"] = result["seconds_per_step"] / baseline if timed else None
        write_json(out / name / RESULTS, result)
        cells = [name, metrics["reward"], metrics["kl"], metrics["win_rate"], str(result["oracle_calls"])]
        rows.append([*cells, f"{result['seconds_ratio']:.2f}" if timed else "-"])
    best = mean_interval([gold_maximum(prompt) for prompt in asked]).mean
    notes = [
        f"Gold reward is a published rule on text; the best possible mean on these {len(asked)} prompts is {best:.2f}."
    ]
    notes += [difference_to_dpo(results, name) for name in methods if name != "dpo" and "dpo" in results]
    columns = [
        "method",
        "gold reward",
        "KL to the reference (nats)",
        "win rate over it",
        "oracle calls",
        "seconds per step / DPO",
    ]
    caption = "Held-out prompts, one seeded sample each, equal optimiser steps; 95% intervals over prompts."
    return {"columns": columns, "rows": rows, "caption": caption, "notes": notes}


def difference_to_dpo(results: dict[str, Any], name: str) -> str:
    """`sail-dpr minus dpo: +0.31 [0.12, 0.50], paired over 512 prompts`."""
    gold = [
        [gold_reward(one["prompt"], one["response"]) for one in results[key]["samples"]]
        for key in (name, "dpo")
    ]
    gap = paired_interval(gold[0], gold[1])
    return (
        f"{name} minus dpo: {gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}], paired over {gap.n} prompts."
    )


def _print_table(table: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*table["columns"], title=table["caption"])
    for row in table["rows"]:
        shown.add_row(*[_cell(cell) for cell in row])
    console = Console()
    console.print(shown)
    for note in table["notes"]:
        console.print(note, highlight=False)


def _cell(cell: Any) -> str:
    if isinstance(cell, dict):
        return f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"
    return str(cell)
