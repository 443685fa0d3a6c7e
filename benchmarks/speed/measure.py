"""Seconds per step, tokens per second and peak live tensor bytes of each composition, against TRL and against the floor.

One process; the contestants of a group take steps by turns, in an order drawn anew each round (turns.py); a ratio is the median
over rounds with a 95% bootstrap interval. All have the same model, rows, tokens (checked), batch, optimiser, learning rate,
logging, precision, activation checkpointing and reference caching. Every response has as many tokens as every other, so what
differs is what is done, not how long texts are. Peak bytes come from an extra, untimed training of a few steps each.

    python benchmarks/speed/measure.py                                   # 1M on this machine's CPU
    python benchmarks/speed/measure.py --size 10M --size 50M
    python benchmarks/speed/measure.py --device cuda --size 0.5B --size 1.5B
    python benchmarks/speed/measure.py --loss-memory                     # the loss at a vocabulary of 150,000
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch: one thread, and threads that sleep while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from contestants import COMPARED, FLOOR, GROUPS, MIXTURES, TRL, Contestant, Settings, build
from datasets import disable_progress_bars
from loss_memory import compared
from peak import PeakBytes
from turns import alternate
from world import PEAK_FLOPS, SHAPES, Shape, make_model, make_rows, train_flops

from sail.evaluation.stats import ratio_interval

PEAK_STEPS = 2
RESULTS = Path(__file__).parents[1] / "results" / "speed.json"


def measure(settings: Settings, tuning: str, folder: Path) -> dict[str, Any]:
    """All groups of one tuning: seconds, tokens, peaks, ratios."""
    shape = SHAPES[settings.size]
    rows = make_rows(shape, settings.rows * (settings.warm_up + settings.steps + 2))
    found: dict[str, Any] = {"contestants": {}, "ratios": {}}
    for number, group in enumerate(groups(settings)):
        place = folder / f"{tuning}{number}"
        made = {name: build(name, settings, shape, tuning, rows, place / name) for name in group}
        seconds = timed(made, settings)
        # In micro-batches rows of like length come together with us: less padding, which is ours to have.
        if settings.accumulation == 1:
            refuse_unequal_work(made)
        for name, one in made.items():
            steps = settings.warm_up + settings.steps
            tokens = {kind: round(total / steps, 1) for kind, total in one.count.tokens.items()}
            scored = round((one.count.asked["policy"] or one.count.tokens["policy"]) / steps, 1)
            found["contestants"].setdefault(
                name, facts(seconds[name], tokens, scored, shape, settings, tuning)
            )
        found["ratios"].update(ratios(seconds, tuning))
        trainable = next(iter(made.values())).models[0].parameters()
        found["trainable_parameters"] = sum(p.numel() for p in trainable if p.requires_grad)
        made.clear()
        _empty(settings.device)
    for name in found["contestants"]:
        peak = peak_bytes(name, settings, shape, tuning, rows, folder / "peak" / tuning / name)
        found["contestants"][name]["peak_bytes"] = peak
    return found


def groups(settings: Settings) -> list[tuple[str, ...]]:
    """Who alternate. The floor takes a step's rows at once: with micro-batches only the trainers are compared."""
    return [
        group for group in GROUPS if settings.accumulation == 1 or not any(FLOOR in name for name in group)
    ]


def timed(made: dict[str, Contestant], settings: Settings) -> dict[str, list[float]]:
    """Seconds of each contestant's steps, by turns."""
    turns = {name: one.make_turn() for name, one in made.items()}
    return alternate(turns, warm_up=settings.warm_up, steps=settings.steps)


def refuse_unequal_work(made: dict[str, Contestant]) -> None:
    """data must score what TRL scores, token for token, however often it reads the prompts."""
    if TRL in made and made[TRL].count.tokens != made["data"].count.asked:
        raise RuntimeError(
            f"Not the same work: TRL scored {made[TRL].count.tokens}, data {made['data'].count.asked}."
        )


def facts(
    seconds: list[float],
    tokens: dict[str, float],
    scored: float,
    shape: Shape,
    settings: Settings,
    tuning: str,
) -> dict[str, Any]:
    """A contestant's row of the table. tokens_per_step: what the models read. tokens_per_second: of the sequences trained on, a
    prompt counted with each of its responses. mfu: of the whole step, by the model's own operations in its training part, for the
    tokens that were read; null where the device's peak is not known."""
    median = statistics.median(seconds)
    length = tokens["policy"] / (2 * settings.rows)
    flops = train_flops(shape, tokens["policy"], tokens["reference"], length, lora=tuning == "lora")
    peak = device_peak(settings.device)
    return {
        "median_seconds": round(median, 5),
        "tokens_per_step": tokens,
        "tokens_per_second": round(scored / median, 1),
        "train_flops_per_step": round(flops),
        "mfu": None if peak is None else round(flops / median / peak, 4),
    }


def device_peak(device: str) -> float | None:
    """Operations per second that the device's maker promises in bfloat16."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def ratios(seconds: dict[str, list[float]], tuning: str) -> dict[str, dict[str, Any]]:
    """Of those compared that are here: median of the rounds' ratios, 95% interval, n, target."""
    table = {}
    for above, below, target in COMPARED:
        if above in seconds and below in seconds:
            found = ratio_interval(seconds[above], seconds[below])
            aim = 1.0 if tuning == "lora" and below == TRL else target
            table[f"{above} / {below}"] = {
                "median": found.mean,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "target": aim,
            }
    return table


def peak_bytes(
    name: str, settings: Settings, shape: Shape, tuning: str, rows: list[dict[str, str]], folder: Path
) -> int:
    """Peak of live tensor bytes over a few steps of a fresh contestant, weights and optimiser included: counted operation by
    operation on the CPU, by the allocator on a GPU."""
    few = Settings(**{**asdict(settings), "steps": PEAK_STEPS, "warm_up": 0})
    _empty(settings.device)
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    one = build(name, few, shape, tuning, rows, folder)
    turn = one.make_turn()
    if settings.device == "cuda":
        for _ in range(PEAK_STEPS):
            turn.take()
        turn.finish()
        return torch.cuda.max_memory_allocated() - before
    weights = [list(model.parameters()) for model in one.models]
    peak = PeakBytes(start=weights)
    # The mode belongs to a thread: it is entered in the training's own.
    turn.inside(peak)
    for _ in range(PEAK_STEPS):
        turn.take()
    turn.finish()
    return peak.peak


def _empty(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def benchmark(settings: Settings) -> dict[str, Any]:
    """One device and size: an entry of speed.json."""
    with tempfile.TemporaryDirectory() as folder:
        results = {tuning: measure(settings, tuning, Path(folder)) for tuning in settings.tunings}
    names = ("torch", "transformers", "trl", "peft", "accelerate", "sail-align")
    shape = SHAPES[settings.size]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in make_model(shape, "meta").parameters())
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "dtype": "bfloat16" if settings.device == "cuda" else "float32",
        "threads": torch.get_num_threads(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}},
        "settings": {
            **asdict(settings),
            "parameters": parameters,
            "shape": asdict(shape),
            "mixtures": MIXTURES,
        },
        "results": results,
    }


def keep(file: Path, key: str, value: Any) -> None:
    """Put an entry into the results file; the others stay, and so does its other tuning if it was measured alike."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    before = known.get(key, {})
    if "settings" in value and _alike(before.get("settings"), value["settings"]):
        value = {**value, "results": {**before["results"], **value["results"]}}
    known[key] = value
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{key}: written to {file}.")


def _alike(before: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """Whether two measurements differ in the tunings only that they were asked for. Compared as JSON: tuples are lists there."""
    return before is not None and {**before, "tunings": None} == json.loads(
        json.dumps({**now, "tunings": None})
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", action="append", choices=tuple(SHAPES), help="default: 1M; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    for name in ("steps", "warm_up", "rows", "lora_r", "accumulation"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=getattr(Settings, name),
            help="default: %(default)s",
        )
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing, for all")
    parser.add_argument(
        "--precompute", action="store_true", help="reference log-probs of dataset rows once, for all"
    )
    parser.add_argument("--tunings", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument(
        "--loss-memory", action="store_true", help="only the loss at a large vocabulary (8 GB)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results/speed.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    given = parse(argv)
    if given.rows % given.accumulation:
        raise SystemExit(f"{given.rows} rows cannot be parted into {given.accumulation} equal micro-batches.")
    warnings.filterwarnings("ignore")
    disable_progress_bars()
    threading.excepthook = lambda args: None  # a turn hands its error to the main thread
    if given.loss_memory:
        keep(given.out, "loss", compared(150_000, rows=8, length=512))
        return
    names = ("device", "steps", "warm_up", "rows", "lora_r", "accumulation", "checkpointing", "precompute")
    common = {name: getattr(given, name) for name in names}
    for size in given.size or ["1M"]:
        settings = Settings(size=size, tunings=tuple(given.tunings), **common)
        label = f"{given.device} {size}" + "".join(
            f" {name}" for name in ("checkpointing", "precompute") if common[name]
        )
        if settings.accumulation > 1:
            label += f" in {settings.accumulation} micro-batches"
        for tuning in settings.tunings:
            keep(given.out, label, benchmark(replace(settings, tunings=(tuning,))))


if __name__ == "__main__":
    main()
