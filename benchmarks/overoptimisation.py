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
import statistics
from collections.abc import Sequence
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
    """One run; its evaluations' scores by both oracles go to scores.jsonl in the run folder."""
    from sail.build import make_trainer
    from sail.config import config_from_dict
    from sail.oracles import RewardFunction, ScoringOracle
    from sail.oracles.reward_model import RewardModel
    from sail.playground.gold import gold_reward

    folder = options.out / f"{setting.name}-{oracle}"
    if (folder / "done").exists():
        return
    print(f"== {folder.name}", flush=True)
    world = options.play / "world"
    kinds = {
        "proxy": {"kind": "reward_model", "model": str(proxy), "batch_size": 64},
        "gold": {"kind": "function", "path": f"{world / 'reward.py'}:reward"},
    }
    every = max(1, options.steps // 10)
    config = config_from_dict(
        {
            "model": str(options.play / "sft"),
            "data": {
                "train": str(world / "pairs.jsonl"),
                "eval": str(world / "pairs.held.jsonl"),
                "bad_rows": "skip",
            },
            "oracle": kinds[oracle],
            "train": {
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
            },
        }
    )
    trainer, _ = make_trainer(config)

    def gold(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        return [gold_reward(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]

    scorers: dict[str, ScoringOracle] = {
        "proxy": RewardModel(str(proxy), batch_size=64),
        "gold": RewardFunction(gold),
    }

    class Both(ScoringOracle):
        """Only evaluation asks it: the oracle that labels was handed on when the trainer was built."""

        name, may_abstain = "both", False

        def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
            given = {key: one.score(prompts, responses) for key, one in scorers.items()}
            with (folder / "scores.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.state.global_step, **given}) + "\n")
            return given[oracle]

        def compare(self, pairs: Sequence[Any]) -> list[Any]:
            raise AssertionError("training asks the oracle itself")

    trainer.oracle = Both()
    begun = any(folder.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if begun else None)
    (folder / "done").write_text("")


# ---- what came of them


def collect(options: argparse.Namespace, runs: list[tuple[Setting, str]]) -> dict[str, Any]:
    """For each run the curve (KL, both scores as gains in standard deviations of the start), and what gold lost since."""
    from sail.evaluation.stats import mean_interval, paired_interval

    found: dict[str, Any] = {
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "play": options.play.name,
        "preset": options.preset,
        "steps": options.steps,
        "runs": {},
    }
    proxy = json.loads((options.out / "proxy" / "results.json").read_text())
    found["proxy"] = {
        key: proxy[key]
        for key in ("train_pairs", "accuracy", "calibration_error", "calibrating_temperature", "seconds")
    }
    for setting, oracle in runs:
        folder = options.out / f"{setting.name}-{oracle}"
        if not (folder / "done").exists():
            continue
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        kl = {line["step"]: line["eval_kl"] for line in lines if line.get("eval_kl") is not None}
        scores = {
            line["step"]: line for line in map(json.loads, (folder / "scores.jsonl").read_text().splitlines())
        }
        steps = sorted(scores)
        start = scores[steps[0]]
        spread = {key: statistics.stdev(start[key]) for key in ORACLES}
        curve = []
        for step in steps:
            point: dict[str, Any] = {"step": step, "kl": kl.get(step, 0.0 if step == 0 else None)}
            for key in ORACLES:
                gap = paired_interval(scores[step][key], start[key])
                point[key] = {
                    "mean": gap.mean / spread[key],
                    "low": gap.low / spread[key],
                    "high": gap.high / spread[key],
                    "n": gap.n,
                    "raw": asdict(mean_interval(scores[step][key])),
                }
            curve.append(point)
        best = max(steps, key=lambda step: statistics.fmean(scores[step]["gold"]))
        lost = paired_interval(scores[steps[-1]]["gold"], scores[best]["gold"])
        found["runs"][folder.name] = {
            "setting": asdict(setting),
            "oracle": oracle,
            "curve": curve,
            "gold_peak_step": best,
            "gold_last_minus_peak": asdict(
                lost
            ),  # the peak was chosen among noisy points: read it as a lower bound
        }
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: a row per run, gains over the start at its end."""
    rows = [
        "| run | KL | proxy gain (sd) | gold gain (sd) | gold peak at step | gold points lost since |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in found["runs"].items():
        last, lost = run["curve"][-1], run["gold_last_minus_peak"]
        cells = [
            f"{last[key]['mean']:+.2f} [{last[key]['low']:+.2f}, {last[key]['high']:+.2f}]" for key in ORACLES
        ]
        kl = "-" if last["kl"] is None else f"{last['kl']:.1f}"
        rows.append(
            f"| {name} | {kl} | {cells[0]} | {cells[1]} | {run['gold_peak_step']} | {lost['mean']:+.2f} |"
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
            if run["oracle"] != oracle:
                continue
            points = [point for point in run["curve"] if point["kl"] is not None]
            x, name = [point["kl"] for point in points], run["setting"]["name"]
            for key, style in (("gold", "-"), ("proxy", "--")):
                y = [point[key]["mean"] for point in points]
                panel.plot(x, y, style, color=colours[name], label=f"{name}, {key}", marker="o", markersize=3)
            low, high = ([point["gold"][end] for point in points] for end in ("low", "high"))
            panel.fill_between(x, low, high, color=colours[name], alpha=0.12, linewidth=0)
        panel.set_title(f"labelled by the {oracle}")
        panel.set_xlabel("KL to the reference, nats per response")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=7, frameon=False)
    panels[0].set_ylabel("gain, standard deviations of the start")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
