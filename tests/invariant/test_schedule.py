"""One optimiser step is one step, however its rows are split: over micro-batches, accumulation, processes, or a second run.

In float64, because sampling draws a token by comparing a number with a sum: weights that differ in the last bit of
float32 can draw another word. 51 rows in steps of 8: the last step of every epoch is short, with 3 rows.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import largest_difference, leave_together, make_model, make_pairs, make_trainer, weights_of

STEPS = 20
ROWS = 51
SCHEDULES = ((8, 1), (4, 2), (1, 8))
ROUNDS: dict[str, Any] = {
    "preset": None,
    "routes": {"data": 0.2, "spin": 0.2, "dpr": {"weight": 0.6, "coefficient": 0.5}},
    "refresh": "round",
    "round_steps": 4,
    "ref_update": "round",
}
PRESETS: dict[str, dict[str, Any]] = {
    "sail-ddp": {"preset": "sail-ddp"},
    "sail-dpp": {"preset": "sail-dpp"},
    "sail-dpr": {"preset": "sail-dpr"},
    "sail-mix": {"preset": "sail-mix"},
    "online-dpo": {"preset": "online-dpo"},
    "replay": {"preset": None, "routes": {"data": 0.2, "dpr": 0.4, "replay": 0.4}},
    "ask_share": {"preset": "online-dpo", "ask_share": 0.5},
    "penalties": {"preset": "sail-mix", "kl_policy_ref": 0.05, "nll": 0.01, "policy_label": "sampled"},
    "rounds": {**ROUNDS, "ratio_clip": 1.5},
}


def run(
    folder: Path,
    schedule: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float64,
    rows: int = ROWS,
    steps: int = STEPS,
    untied: bool = False,
    lora: tuple[str, ...] = (),
    **options: Any,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], list[dict[str, Any]]]:
    """Weights after the run, its on-policy pairs by step and index, and its log. untied: a head with weights of its own; lora:
    the modules with adapters."""
    adapter = None
    if lora:
        from peft import LoraConfig

        adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(lora))
    trainer = make_trainer(
        folder,
        model=make_model(dtype, scale=0.1, tie_word_embeddings=not untied),
        rows=make_pairs(rows),
        trainer_options={"peft_config": adapter},
        per_device_train_batch_size=schedule[0],
        gradient_accumulation_steps=schedule[1],
        max_steps=steps,
        learning_rate=3e-3,
        **options,
    )
    trainer.train()
    return weights_of(trainer.model), pairs_of(folder), trainer.state.log_history


def pairs_of(folder: Path) -> list[dict[str, Any]]:
    """The recorded on-policy pairs, in an order that does not depend on the schedule."""
    file = folder / "pairs.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).splitlines() if file.is_file() else []
    return sorted((json.loads(line) for line in lines), key=lambda pair: (pair["step"], pair["index"]))


def assert_same_pairs(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Texts, lengths, routes and sources are equal, labels up to rounding."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        exact = {key: value for key, value in one.items() if not isinstance(value, float)}
        assert exact == {key: other[key] for key in exact}
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-10)


@pytest.mark.parametrize("options", PRESETS.values(), ids=PRESETS)
def test_micro_batches_do_not_matter(tmp_path: Path, options: dict[str, Any]) -> None:
    """8 x 1, 4 x 2 and 1 x 8 sample the same texts and end at the same weights."""
    results = {
        schedule: run(tmp_path / f"{schedule[0]}x{schedule[1]}", schedule, **options)
        for schedule in SCHEDULES
    }
    weights, pairs, log = results[SCHEDULES[0]]
    moved = largest_difference(weights, weights_of(make_model(torch.float64, scale=0.1)))
    assert moved > 1e-3
    if options["preset"] != "sail-ddp":
        assert len({(pair["first"], pair["second"]) for pair in pairs}) > 10
    for schedule in SCHEDULES[1:]:
        other_weights, other_pairs, other_log = results[schedule]
        assert_same_pairs(pairs, other_pairs)
        assert largest_difference(weights, other_weights) <= 1e-10
        for line, other in zip(log[:STEPS], other_log[:STEPS], strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
            assert line["kl/policy_ref"] == pytest.approx(other["kl/policy_ref"], abs=1e-9)


def test_the_short_step_has_the_weight_of_a_step(tmp_path: Path) -> None:
    """3 rows at the end of an epoch: the loss is their mean, not 3/8 of it."""
    *_, log = run(tmp_path, (8, 1), preset="sail-mix", steps=7)
    short = log[6]
    assert short["epoch"] == 1.0
    assert sum(short[f"route/{name}"] for name in ("data", "ddp", "dpp", "dpr")) == pytest.approx(1.0)
    # Shares of 3 rows are thirds: the step really was short.
    assert all(
        (3 * short[f"route/{name}"]) % 1 == pytest.approx(0.0) for name in ("data", "ddp", "dpp", "dpr")
    )
    assert 0.3 < short["loss"] < 1.5


def test_two_runs_are_bit_identical(tmp_path: Path) -> None:
    """In float32, on one machine: weights, pairs file and every logged number except seconds."""
    first, second = (
        run(tmp_path / name, (4, 2), dtype=torch.float32, preset="sail-mix", kl_policy_ref=0.05)
        for name in "ab"
    )
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert (tmp_path / "a" / "pairs.jsonl.gz").read_bytes() == (
        tmp_path / "b" / "pairs.jsonl.gz"
    ).read_bytes()

    def numbers(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: line[key] for key in line if not key.startswith("seconds/")} for line in log[:STEPS]]

    assert numbers(first[2]) == numbers(second[2])


def test_a_step_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    """Else a step would depend on how often random numbers were used before it, and a resumed run on where it was resumed."""
    trainer = make_trainer(tmp_path, preset="sail-mix", policy_label="sampled", rows=make_pairs(ROWS))
    rows = [trainer.train_dataset[position] for position in range(ROWS)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    texts = []
    for _ in range(2):
        step = trainer.maker.make([rows], 3, trainer.args.device)
        texts.append([response.text for example in step.examples for response in example.responses])
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        before = torch.get_rng_state()
    assert texts[0] == texts[1]


# ---- two processes. Each takes half of every global batch of 8; 48 rows, so that no sampler has to repeat any.

SPLITS: dict[str, dict[str, Any]] = {
    "sail-dpr": {"preset": "sail-dpr"},
    "penalties": {"preset": "sail-mix", "kl_policy_ref": 0.05, "nll": 0.01},
    "selection": {"routes": {"dpr": 0.5, "replay": 0.5}, "ask_share": 0.6},
    "rounds": ROUNDS,
    "sail-ddp": {"preset": "sail-ddp", "nll": 0.01},
    "sail-dpp": {"preset": "sail-dpp"},
    "best_worst": {"preset": "iterative-dpo", "round_steps": 3},
}
LONG = 2
"""So many of them run all steps, the others SHORT; benchmarks/schedule.py runs all steps of more compositions."""
SHORT = 7


def steps_of(place: int) -> int:
    return STEPS if place < LONG else SHORT


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """torchrun with two gloo processes: weights, pairs and logged numbers are those of one process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, __file__, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for place, (name, options) in enumerate(SPLITS.items()):
        steps = steps_of(place)
        weights, pairs, log = run(tmp_path / "one" / name, (4, 2), rows=48, steps=steps, **options)
        there = torch.load(tmp_path / name / "result.pt", weights_only=True)
        assert there["processes"] == 2
        assert largest_difference(weights, there["weights"]) <= 1e-10
        assert_same_pairs(pairs, pairs_of(tmp_path / name))
        for line, other in zip(log[:steps], there["log"], strict=True):
            for key in (
                "loss",
                "pair/margin",
                "kl/policy_ref",
                "kl/policy_ref_se",
                "oracle/calls",
                "online/prompts",
            ):
                assert line[key] == pytest.approx(other[key], abs=1e-6), key


def run_here(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    for place, (name, options) in enumerate(SPLITS.items()):
        steps = steps_of(place)
        weights, _, log = run(folder / name, ((4, 1), (2, 2))[place % 2], rows=48, steps=steps, **options)
        if int(os.environ["RANK"]) == 0:
            processes = torch.distributed.get_world_size()
            torch.save(
                {"weights": weights, "log": log[:steps], "processes": processes}, folder / name / "result.pt"
            )


if __name__ == "__main__":
    run_here(Path(sys.argv[1]))
    leave_together()
