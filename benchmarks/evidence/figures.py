"""The figures of docs/evidence.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "dpo": "#666666",
    "online-dpo": "#0072b2",
    "sail-ddp": "#e69f00",
    "sail-dpp": "#cc79a7",
    "sail-dpr": "#009e73",
    "sail-mix": "#56b4e9",
}


def draw(found: Any, told: dict[str, Any], folder: Path) -> None:
    """frontiers.svg and labels.svg in `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sail", "font.size": 10})
    folder.mkdir(parents=True, exist_ok=True)
    _frontiers(plt, found, folder / "frontiers.svg")
    _labels(plt, told, folder / "labels.svg")
    _gaps(plt, told, folder / "gaps.svg")


def _frontiers(plt: Any, found: Any, path: Path) -> None:
    """Gold reward over KL, over steps and over oracle calls: bold the mean over seeds, thin each seed."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True, layout="constrained")
    for name, colour in COLOURS.items():
        runs = found.get(("methods", name), {})
        for curve in runs.values():
            reward = curve.reward.mean(axis=1)
            for axis, x in zip(axes, (curve.kl.mean(axis=1), curve.steps, curve.calls), strict=True):
                axis.plot(x, reward, color=colour, lw=0.6, alpha=0.4)
        if runs:
            mean = [
                sum(
                    getattr(curve, key).mean(axis=1) if key in ("kl", "reward") else getattr(curve, key)
                    for curve in runs.values()
                )
                / len(runs)
                for key in ("kl", "steps", "calls", "reward")
            ]
            for axis, x in zip(axes, mean[:3], strict=True):
                axis.plot(x, mean[3], color=colour, lw=2.2, marker="o", ms=3, label=name)
    for axis, label in zip(
        axes, ("KL to the start, nats per response", "optimiser steps", "oracle calls"), strict=True
    ):
        axis.set_xlabel(label)
        _plain(axis)
    axes[0].set_ylabel("gold reward, held-out prompts")
    axes[1].legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _labels(plt: Any, told: dict[str, Any], path: Path) -> None:
    """Share of online DPO's reward over share of its oracle calls; numbers are named beside the plot."""
    asked = [
        (key.split("/", 1)[1] + ", fresh seeds" * key.startswith("confirm/"), entry["against_online"])
        for key, entry in told.items()
        if entry.get("against_online") and entry["against_online"]["calls"]["mean"] <= 0.5
    ]
    asked.sort(key=lambda one: -one[1]["share"]["over_seeds"]["mean"])
    sure = [one for one in asked if one[1]["share"]["over_seeds"]["n"] > 2]
    figure, (axis, names) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(3, 2), layout="constrained")
    axis.axhline(0.95, color="#bbbbbb", lw=1, ls="--")
    axis.axvline(0.4, color="#bbbbbb", lw=1, ls="--")
    for _, against in asked:
        share, colour = against["share"]["over_seeds"], _of_kl(against)
        axis.plot(
            against["calls"]["mean"], share["mean"], "o", color=colour, ms=4, mfc="white", alpha=0.6, zorder=1
        )
    for number, (name, against) in enumerate(sure, 1):
        share, x, colour = against["share"]["over_seeds"], against["calls"]["mean"], _of_kl(against)
        axis.plot([x, x], [share["low"], share["high"]], color=colour, lw=1, alpha=0.5)
        axis.plot(x, share["mean"], "o", color=colour, ms=7)
        beside = {"xytext": ((1 if number % 2 else -1) * 9, 0), "textcoords": "offset points"}
        axis.annotate(str(number), (x, share["mean"]), fontsize=9, ha="center", va="center", **beside)
        line = 1 - number / (len(sure) + 2)
        names.text(0, line, f"{number}  {name}  (n = {share['n']})", fontsize=9, va="center", color=colour)
    names.text(0, 0, "green: no more KL than online DPO; hollow: one or two seeds", fontsize=9)
    names.axis("off")
    axis.set_xlabel("oracle calls, share of online DPO's")
    axis.set_ylabel("gold reward, share of online DPO's")
    _plain(axis)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _gaps(plt: Any, told: dict[str, Any], path: Path) -> None:
    """Each setting of the routes without an oracle: its gap to DPO at equal KL, a dot per seed."""
    names = [key for key in told if key.startswith(("cures/d", "methods/sail-dd", "methods/sail-dpp"))]
    figure, axis = plt.subplots(figsize=(8, 0.3 * len(names) + 1.2), layout="constrained")
    axis.axvline(0, color="#888888", lw=1)
    for place, key in enumerate(reversed(names)):
        gap = told[key].get("minus_dpo", {}).get("frontier")
        if gap is None:
            continue
        colour = "#cc79a7" if "dpp" in key else "#e69f00" if "ddp" in key else "#666666"
        axis.plot(
            [one["mean"] for one in gap["seeds"].values()],
            [place] * len(gap["seeds"]),
            "o",
            ms=3,
            color=colour,
            alpha=0.5,
        )
        axis.plot(gap["over_seeds"]["mean"], place, "D", ms=6, color=colour)
    axis.set_yticks(range(len(names)), [key.split("/", 1)[1] for key in reversed(names)])
    axis.set_xlabel("gold reward minus DPO's along the frontier (diamond: mean over seeds)")
    _plain(axis)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _of_kl(against: dict[str, Any]) -> str:
    return "#009e73" if against["kl"]["over_seeds"]["mean"] <= 0 else "#d55e00"


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
