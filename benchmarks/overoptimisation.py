"""Over-optimisation of a reward model -> benchmarks/results/overoptimisation.json and docs/overoptimisation.svg

    python benchmarks/overoptimisation.py --play runs/play-0            (one thread; finished runs are kept, stopped ones go on)

A reward model (the proxy) is trained on the playground's offline pairs; then SAIL-DPR is run with it as the oracle, and beside it
with the gold rule itself: at a usual setting, and at two that push hard (a small beta, a high learning rate). At each evaluation
the same held-out answers are scored by both. Scores are shown as gains over the start, in units of the start's standard deviation
over prompts: where the proxy keeps rising and gold falls, the policy has learned the proxy's mistakes.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "overoptimisation.json"
PICTURE = HERE.parent / "docs" / "overoptimisation.svg"
ORACLES = ("proxy", "gold")


@dataclass(frozen=True)
class Setting:
    """How hard a run pushes."""

    name: str
    learning_rate: float
    beta: float


SETTINGS = (
    Setting("usual", 2e-4, 0.1),
    Setting("small-beta", 2e-4, 0.01),
    Setting("high-rate", 1e-3, 0.1),
)


def main() -> None:
    """Train the proxy, run what is missing, then collect, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--play", type=Path, default=Path("runs/play-0"), help="a finished play; only read")
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--preset", default="sail-dpr")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts at each evaluation")
    parser.add_argument("--pairs", type=int, default=None, help="pairs for the proxy; fewer make it worse")
    parser.add_argument("--collect", action="store_true", help="only collect what has been run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    runs = [(setting, oracle) for setting in SETTINGS for oracle in ORACLES]
    if not options.collect:
        _be_modest()
        proxy = train_proxy(options)
        for setting, oracle in runs:
            align(options, proxy, setting, oracle)
    found = collect(options, runs)
    options.results.parent.mkdir(exist_ok=True, parents=True)
    options.results.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(found))
    draw(found, options.picture)


def _be_modest() -> None:
    import torch

    torch.set_num_threads(1)
    os.nice(10)


# ---- runs


def train_proxy(options: argparse.Namespace) -> Path:
    """The reward model, by what `sail train-reward` calls."""
    from sail.build_reward import run_train_reward
    from sail.config import config_from_dict

    folder, pairs = options.out / "proxy", options.play / "world" / "pairs.jsonl"
    if (folder / "results.json").exists():
        return folder
    options.out.mkdir(parents=True, exist_ok=True)
    if options.pairs is not None:
        lines = pairs.read_text(encoding="utf-8").splitlines()[: options.pairs]
        pairs = options.out / "pairs.jsonl"
        pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = config_from_dict(
        {
            "model": str(options.play / "sft"),
            "data": {
                "train": str(pairs),
                "eval": str(options.play / "world/pairs.held.jsonl"),
                "bad_rows": "skip",
            },
            "reward": {
                "output_dir": str(folder),
                "learning_rate": 3e-4,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 32,
                "per_device_eval_batch_size": 64,
                "lr_scheduler_type": "linear",
                "save_steps": 50,
                "use_cpu": True,
                "seed": 0,
            },
        }
    )
    return run_train_reward(config, resume=folder.exists(), overwrite=False, config_path="...")


def align(options: argparse.Namespace, proxy: Path, setting: Setting, oracle: str) -> None:
    """One run, as `sail train` does it; one that was stopped goes on."""
    from sail.build import run_training
    from sail.config import config_from_dict

    folder, world = options.out / f"{setting.name}-{oracle}", options.play / "world"
    if (folder / "results.json").exists():
        return
    print(f"== {folder.name}", flush=True)
    gold = {"kind": "function", "path": f"{world / 'reward.py'}:reward"}
    labels: dict[str, Any] = {"oracle": gold}
    if oracle == "proxy":
        labels = {
            "oracle": {"kind": "reward_model", "model": str(proxy), "batch_size": 64},
            "eval_oracle": gold,
        }
    every = max(1, options.steps // 10)
    train = {
        "output_dir": str(folder),
        "preset": options.preset,
        "beta": setting.beta,
        "learning_rate": setting.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 10,
        "max_steps": options.steps,
        "max_length": 128,
        "max_prompt_length": 48,
        "max_new_tokens": 50,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "eval_strategy": "steps",
        "eval_steps": every,
        "eval_on_start": True,
        "eval_samples": options.prompts,
        "save_steps": every,
        "save_total_limit": 1,
        "logging_steps": 5,
        "use_cpu": True,
        "seed": 0,
    }
    data = {
        "train": str(world / "pairs.jsonl"),
        "eval": str(world / "pairs.held.jsonl"),
        "bad_rows": "skip",
    }
    config = config_from_dict({"model": str(options.play / "sft"), "data": data, **labels, "train": train})
    begun = any(folder.glob("checkpoint-*"))
    run_training(config, resume=begun, overwrite=False, config_path="...", show_config=False)


# ---- what came of them


def collect(options: argparse.Namespace, runs: list[tuple[Setting, str]]) -> dict[str, Any]:
    """Each run's curves (KL; gains of proxy and gold in standard deviations of the start) and its end, as the report has them."""
    from sail.report.page import write_report
    from sail.report.proxy import chart
    from sail.report.record import read_runs

    finished = [
        (setting, oracle, folder)
        for setting, oracle in runs
        if ((folder := options.out / f"{setting.name}-{oracle}") / "results.json").exists()
    ]
    records = read_runs([folder for _, _, folder in finished], max_pairs=0)
    drawn = chart(records) or {"series": []}
    proxy = json.loads((options.out / "proxy" / "results.json").read_text())
    found: dict[str, Any] = {
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "play": options.play.name,
        "preset": options.preset,
        "steps": options.steps,
        "prompts": options.prompts,
        "proxy": {
            key: proxy[key]
            for key in ("train_pairs", "accuracy", "calibration_error", "calibrating_temperature")
        },
        "runs": {},
    }
    for place, (setting, oracle, folder) in enumerate(finished):
        metrics = records[place].results["metrics"]
        ends = {"gold": "gold_gain", "proxy": "reward_gain"} if oracle == "proxy" else {"gold": "reward_gain"}
        found["runs"][folder.name] = {
            "setting": asdict(setting),
            "oracle": oracle,
            "kl": metrics["kl"],
            "gain": {part: metrics[key] for part, key in ends.items()},
            "curves": [one for one in drawn["series"] if one["run"] == place],
        }
    write_report(
        [folder for _, _, folder in finished], options.out / "report.html", title="Over-optimisation"
    )
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: a row per run, gains over the reference at its end in the oracles' own units, and where gold was highest."""
    rows = [
        "| run | KL at the end | proxy gain | gold gain | gold highest at KL | gold lost since (sd) |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in found["runs"].items():
        cells = [
            f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]" if gain else "-"
            for gain in (run["gain"].get(part) for part in ORACLES)
        ]
        (gold,) = [one for one in run["curves"] if one["part"] == "gold"]
        best = max(range(len(gold["y"])), key=lambda place: gold["y"][place])
        rows.append(
            f"| {name} | {run['kl']['mean']:.1f} | {cells[0]} | {cells[1]} | {gold['x'][best]:.1f} "
            f"| {gold['y'][-1] - gold['y'][best]:+.2f} |"
        )
    return "\n".join(rows)


def draw(found: dict[str, Any], path: Path) -> None:
    """Gain over KL: proxy dashed, gold solid; one panel per oracle that labelled, one colour per setting."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "sail"
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    colours = dict(zip((one.name for one in SETTINGS), ("#0072b2", "#d55e00", "#009e73"), strict=True))
    for panel, oracle in zip(panels, ORACLES, strict=True):
        for run in found["runs"].values():
            name = run["setting"]["name"]
            for one in run["curves"] if run["oracle"] == oracle else ():
                panel.plot(
                    *(one["x"], one["y"], one["dash"]),
                    color=colours[name],
                    label=f"{name}, {one['part']}",
                    marker="o",
                    markersize=3,
                )
                panel.fill_between(
                    one["x"], one["low"], one["high"], color=colours[name], alpha=0.12, linewidth=0
                )
        panel.set_title(f"labelled by the {oracle}")
        panel.set_xlabel("KL to the reference, nats per response (logarithmic above 3)")
        panel.set_xscale("symlog", linthresh=3)
        panel.axhline(0, color="#999999", lw=0.8, ls=":")
        panel.spines[["top", "right"]].set_visible(False)
        if panel.lines:
            panel.legend(fontsize=7, frameon=False)
    panels[0].set_ylabel("gain, standard deviations of the start")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
