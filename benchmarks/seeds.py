"""`sail play` at several seeds, and what may be said of the methods: benchmarks/results/play.json, a table and docs/play.svg

    python benchmarks/seeds.py --seeds 0 1 2                 (about 10 minutes a seed on 2 cores; finished runs are kept)

Every seed has its own model, SFT, pairs and alignment runs; only the world's prompts and rule are shared. "Better than DPO" is
what docs say it is: the paired 95% interval over prompts excludes 0, at each of at least three seeds.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "play.json"
PICTURE = HERE.parent / "docs" / "play.svg"
CURVE = ("step", "eval_reward", "eval_reward_low", "eval_reward_high", "eval_kl", "eval_length")


def main() -> None:
    """Run what is missing, then collect, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="seed N plays in RUNS/play-N")
    parser.add_argument("--quick", action="store_true", help="the small size, to try this script")
    parser.add_argument("--collect", action="store_true", help="only collect what has been run")
    options = parser.parse_args()
    from sail.play import METHODS, play

    folders = {seed: options.runs / f"play-{seed}" for seed in options.seeds}
    if not options.collect:
        for seed, folder in folders.items():
            play(folder, quick=options.quick, seed=seed)
    found = {
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "seeds": {str(seed): collect(folder, METHODS) for seed, folder in folders.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found["seeds"], METHODS))
    draw(found["seeds"], METHODS)


def collect(folder: Path, methods: tuple[str, ...]) -> dict[str, Any]:
    """One seed: each method's closing figures, its difference to DPO, and its held-out curve."""
    from sail.evaluation.stats import paired_interval

    results = {name: json.loads((folder / name / "results.json").read_text()) for name in methods}
    gold = {name: [sample["reward"] for sample in result["samples"]] for name, result in results.items()}
    seed: dict[str, Any] = {}
    for name, result in results.items():
        gap = paired_interval(gold[name], gold["dpo"])
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        seed[name] = {
            **{
                key: result["metrics"][key]
                for key in ("reward", "reward_reference", "reward_gain", "win_rate", "kl", "length")
            },
            "minus_dpo": {"mean": gap.mean, "low": gap.low, "high": gap.high, "n": gap.n},
            "oracle_calls": result["oracle_calls"],
            "curve": [
                {key: line[key] for key in CURVE} for line in lines if line.get("eval_reward") is not None
            ],
        }
    return seed


def table(seeds: dict[str, Any], methods: tuple[str, ...]) -> str:
    """Markdown: a row per seed and method."""
    rows = ["| seed | method | gold reward | minus DPO | KL | win rate over SFT | oracle calls |"]
    rows.append("|---|---|---|---|---|---|---|")
    for seed, runs in seeds.items():
        start = runs["dpo"]["reward_reference"]
        rows.append(f"| {seed} | sft | {cell(start)} | - | 0 | .5 | 0 |")
        for name in methods:
            run = runs[name]
            cells = [cell(run["reward"]), cell(run["minus_dpo"], "+"), cell(run["kl"]), cell(run["win_rate"])]
            rows.append(f"| {seed} | {name} | {' | '.join(cells)} | {run['oracle_calls']} |")
    return "\n".join(rows)


def cell(interval: dict[str, Any], sign: str = "") -> str:
    """`1.23 [1.10, 1.36]`."""
    return "{:{s}.2f} [{:{s}.2f}, {:{s}.2f}]".format(
        interval["mean"], interval["low"], interval["high"], s=sign
    )


def draw(seeds: dict[str, Any], methods: tuple[str, ...]) -> None:
    """Gold reward over steps and over KL, one line per method: the mean over seeds, each seed a thin line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sail", "font.size": 10})
    colours = dict(zip(methods, ("#666666", "#0072b2", "#e69f00", "#cc79a7", "#009e73"), strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for axis, key, label in (
        (axes[0], "step", "optimiser steps"),
        (axes[1], "eval_kl", "KL to the reference, nats per response"),
    ):
        for name in methods:
            curves = [runs[name]["curve"] for runs in seeds.values()]
            for curve in curves:
                axis.plot(
                    [p[key] for p in curve],
                    [p["eval_reward"] for p in curve],
                    color=colours[name],
                    lw=0.6,
                    alpha=0.45,
                )
            points = list(zip(*curves, strict=True))
            mean = [[sum(p[k] for p in point) / len(point) for point in points] for k in (key, "eval_reward")]
            axis.plot(mean[0], mean[1], color=colours[name], lw=2.2, marker="o", ms=3.5, label=name)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("gold reward, held-out prompts")
    axes[1].legend(frameon=False, fontsize=9)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
