"""`sail compare`: finished runs side by side, paired by prompt, and whether that is a fair comparison. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sail.errors import DataError
from sail.evaluation import checked
from sail.evaluation.comparability import BY_PATH, differences, sentences
from sail.evaluation.files import read_json, write_json
from sail.evaluation.frontier import Cells, Curve, as_curve, at_equal_kl, at_equal_kl_by_prompt
from sail.evaluation.show import limits, print_table
from sail.evaluation.stats import paired_interval
from sail.oracle_config import described

PAIRED = {"reward": "reward", "gain": "gain", "win": "win rate", "log_ratio": "KL", "length": "length"}
"""What is compared prompt by prompt, and its name in the table."""
SHOWN = {
    "reward": "reward",
    "reward_gain": "gain",
    "win_rate": "win rate",
    "kl": "KL, nats",
    "accuracy": "accuracy",
    "length": "length",
}
NO_FRONTIER = "evaluations while training keep no answers by prompt; sail eval --checkpoints of each run does"
NO_CELLS = (
    "it needs the answers to at least 10 prompts that both were asked, at every checkpoint: repeat sail eval --checkpoints "
    "--overwrite of each run, with the same prompts"
)
COLUMNS = (*PAIRED, "reward_reference")
PER = {
    "per_1000_steps": "per 1,000 steps",
    "per_1000_oracle_calls": "per 1,000 oracle calls",
    "per_hour": "per hour",
}


@dataclass(frozen=True)
class Run:
    """A run folder as it is compared: its settings, what it cost (results.json), and what was measured of it (`measured`:
    the same file, or eval/results.json). All three as checked.py lets them through."""

    name: str
    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    measured: dict[str, Any]
    source: str

    @property
    def train(self) -> dict[str, Any]:
        """The section train of the settings."""
        return self.config.get("train") or {}

    @property
    def metrics(self) -> dict[str, Any]:
        """Intervals by name."""
        return self.measured.get("metrics") or {}

    @cached_property
    def by_prompt(self) -> dict[str, dict[str, float]]:
        """Means over the samples of each prompt: reward, gain, win, log_ratio, length, where they were measured."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for one in self.measured.get("samples") or []:
            groups.setdefault(json.dumps(one["prompt"], sort_keys=True), []).append(_with_gain(one))
        return {
            prompt: {
                key: sum(values) / len(values)
                for key in PAIRED
                if (values := [one[key] for one in rows if one.get(key) is not None])
            }
            for prompt, rows in groups.items()
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same for two runs to be comparable; None where the folder does not say."""
        prints = self.results.get("fingerprints") or {}
        data, settings = self.config.get("data") or {}, self.measured.get("settings") or {}
        train_rows = prints.get("train_rows") or _checkpoint_rows(self.folder)
        paths = " ".join(str(data[key]) for key in ("train", "prompts") if data.get(key))
        prompts = "".join(sorted(self.by_prompt))
        return {
            "start_model": prints.get("start_model") or _by_path(str(self.config.get("model") or "")),
            "reference": prints.get("reference")
            or _by_path(str(self.config.get("ref_model") or self.config.get("model") or "")),
            "train_rows": train_rows or _by_path(paths),
            "steps": self.results.get("steps"),
            "rows_per_step": self.results.get("rows_per_step") or _rows_per_step(self.train),
            "oracle_calls": self.results.get("oracle_calls"),
            "oracle": settings.get("oracle") or described(self.config.get("oracle")),
            "held_out": hashlib.sha256(prompts.encode()).hexdigest() if prompts else None,
            "sampling": " ".join(
                f"{key}={settings.get(key, self.train.get(key, default))}"
                for key, default in (
                    ("temperature", 1.0),
                    ("max_new_tokens", 256),
                    ("samples", 1),
                    ("seed", 42),
                )
            ),
            "seed": self.train.get("seed", 42),
        }

    @property
    def frontier(self) -> Curve:
        """Reward over KL of the checkpoints that `sail eval --checkpoints` measured."""
        points = self.measured.get("frontier") or []
        return as_curve(
            [((p.get("kl") or {}).get("mean"), (p.get("reward") or {}).get("mean")) for p in points]
        )

    @property
    def frontier_cells(self) -> Cells:
        """What each prompt tells of the frontier's points, means over its samples; {} where the file does not keep it."""
        points = self.measured.get("frontier_samples") or []
        if len(points) != len(self.measured.get("frontier") or []):
            return {}
        places: dict[str, list[int]] = {}
        for place, one in enumerate(self.measured.get("samples") or []):
            places.setdefault(json.dumps(one["prompt"], sort_keys=True), []).append(place)
        columns = [(point["log_ratio"], point["reward"]) for point in points]
        return {
            prompt: [(_mean_at(kl, rows), _mean_at(reward, rows)) for kl, reward in columns]
            for prompt, rows in places.items()
        }

    @property
    def course(self) -> Curve:
        """Reward over KL of the evaluations while training."""
        lines = _lines(self.folder / "metrics.jsonl")
        points = [(line.get("eval_kl"), line.get("eval_reward")) for line in lines]
        return as_curve([point for point in points if all(map(checked.is_number, point))])

    @property
    def hours(self) -> float | None:
        """Hours of training, without evaluation and saving."""
        seconds, steps = self.results.get("seconds_per_step"), self.results.get("steps")
        return None if not seconds or not steps else seconds * steps / 3600


def compare(
    folders: Sequence[Path], *, to: str | None = None, out: Path = Path("compare.json")
) -> dict[str, Any]:
    """Compare runs with the first (or the one named `to`), print it and write it to `out`; returns what was written.

    Raises DataError if there are fewer than two runs, or a folder that holds no results.
    """
    runs = read_runs(folders)
    if len(runs) < 2:
        raise DataError("sail compare needs at least two runs. Name their folders.")
    named = {run.name: run for run in runs}
    if to is not None and to not in named:
        raise DataError(
            f"There is no run {to} among those given: {', '.join(named)}. Name one of them with --to."
        )
    first = runs[0] if to is None else named[to]
    others = [run for run in runs if run is not first]
    found: dict[str, Any] = {
        "to": first.name,
        "runs": {run.name: {"folder": str(run.folder), "source": run.source, **_about(run)} for run in runs},
        "comparable": {run.name: differences(run.facts, first.facts) for run in others},
        "differences": {run.name: paired(run, first) for run in others},
        "equal_kl": {run.name: equal_kl(run, first) for run in others},
    }
    if out.is_dir():
        raise DataError(f"{out} cannot be written: it is a folder. Name a file with --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}. Name another file with --out.") from None
    _print(found)
    print(f"\nAll of it: {out}")
    return found


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each measured by the same kind of file: eval/results.json if all have one, else results.json."""
    own = [folder.resolve().name for folder in folders]
    names = [
        f"{folder.resolve().parent.name}/{name}" if own.count(name) > 1 else name
        for folder, name in zip(folders, own, strict=True)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"Two of the folders are called {twice}. Give each run once, or rename one of them.")
    evaluated = all((folder / "eval" / "results.json").is_file() for folder in folders)
    return [_read_run(folder, name, evaluated) for folder, name in zip(folders, names, strict=True)]


def _read_run(folder: Path, name: str, evaluated: bool) -> Run:
    settings = folder / "config.resolved.yaml"
    if not settings.is_file():
        raise DataError(
            f"{folder} is not a run folder: it has no {settings.name}. Give the train.output_dir of a run."
        )
    config = checked.settings(settings)
    results = checked.results(folder / "results.json", COLUMNS)
    source = folder / "eval" / "results.json"
    measured = checked.results(source, COLUMNS) if evaluated else results
    source = source if evaluated else folder / "results.json"
    if not measured:
        raise DataError(
            f"{folder} has no results yet. Let the run end, or measure every run to be compared with sail eval."
        )
    return Run(name, folder, config, results, measured, str(source))


def paired(run: Run, to: Run) -> dict[str, Any]:
    """Differences run less `to` on the prompts that both were asked: {"prompts", metric: interval}."""
    shared = [prompt for prompt in run.by_prompt if prompt in to.by_prompt]
    found: dict[str, Any] = {"prompts": len(shared)}
    for key in PAIRED:
        both = [
            (run.by_prompt[prompt][key], to.by_prompt[prompt][key])
            for prompt in shared
            if key in run.by_prompt[prompt] and key in to.by_prompt[prompt]
        ]
        if both:
            found[key] = asdict(paired_interval([one for one, _ in both], [other for _, other in both]))
    return found


def equal_kl(run: Run, to: Run) -> dict[str, Any] | None:
    """Both runs' rewards at equal KL (see frontier.py), on the frontiers that sail eval measured, else on their evaluations.

    "interval": of the mean difference, over the prompts that both were asked; where it is None, "no_interval" says why.
    """
    if len(run.frontier) < 2 or len(to.frontier) < 2:
        found = at_equal_kl(run.course, to.course)
        why = {"curves": "metrics.jsonl", "interval": None, "no_interval": NO_FRONTIER}
        return None if found is None else {**found, **why}
    sure = at_equal_kl_by_prompt(run.frontier_cells, to.frontier_cells)
    if sure is not None:
        return {**sure, "interval": asdict(sure["interval"]), "curves": "frontier", "no_interval": None}
    found = at_equal_kl(run.frontier, to.frontier)
    why = {"curves": "frontier", "interval": None, "no_interval": NO_CELLS}
    return None if found is None else {**found, **why}


def _mean_at(values: Sequence[float], places: Sequence[int]) -> float:
    return sum(values[place] for place in places) / len(places)


def normalised(run: Run) -> dict[str, Any]:
    """The gain over the reference per 1,000 optimiser steps, per 1,000 oracle calls and per hour; None without such a cost."""
    gain = run.metrics.get("reward_gain")
    costs = {
        "per_1000_steps": (run.results.get("steps") or 0) / 1000,
        "per_1000_oracle_calls": (run.results.get("oracle_calls") or 0) / 1000,
        "per_hour": run.hours or 0,
    }
    return {name: _divided(gain, cost) for name, cost in costs.items()}


def _divided(gain: dict[str, Any] | None, cost: float) -> dict[str, Any] | None:
    if not gain or not cost:
        return None
    scaled = {part: None if gain[part] is None else gain[part] / cost for part in ("mean", "low", "high")}
    return {**gain, **scaled}


def _about(run: Run) -> dict[str, Any]:
    keys = ("steps", "oracle_calls", "oracle_calls_in_evaluation", "seconds_per_step")
    costs = {key: run.results.get(key) for key in keys}
    return {
        **costs,
        "hours": run.hours,
        "metrics": run.metrics,
        "normalised": normalised(run),
        "facts": run.facts,
    }


def _with_gain(one: dict[str, Any]) -> dict[str, Any]:
    reward, start = one.get("reward"), one.get("reward_reference")
    return one if reward is None or start is None else {**one, "gain": reward - start}


def _rows_per_step(train: dict[str, Any]) -> int:
    """Of one process: how many there were is not in the settings."""
    return int(train.get("per_device_train_batch_size", 8)) * int(train.get("gradient_accumulation_steps", 1))


def _by_path(paths: str) -> str | None:
    return BY_PATH + paths if paths else None


def _checkpoint_rows(folder: Path) -> str | None:
    """The fingerprint of the training rows, from any checkpoint."""
    found = [read_json(path).get("run") for path in sorted(folder.glob("checkpoint-*/sail_state.json"))]
    return next(
        (run["training rows"] for run in found if isinstance(run, dict) and run.get("training rows")), None
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


# ---- printing


def _print(found: dict[str, Any]) -> None:
    runs = found["runs"]
    rows = [
        (
            name,
            *(limits(run["metrics"].get(key)) for key in SHOWN),
            _count(run["steps"]),
            _count(run["oracle_calls"]),
        )
        for name, run in runs.items()
    ]
    print_table("runs", ("run", *SHOWN.values(), "steps", "oracle calls"), rows)
    shared = [
        (name, *(limits(gap.get(key), sign=True) for key in PAIRED), str(gap["prompts"]))
        for name, gap in found["differences"].items()
    ]
    print_table(f"minus {found['to']}, paired by prompt", ("run", *PAIRED.values(), "prompts"), shared)
    gains = [(name, *(limits(run["normalised"][key]) for key in PER)) for name, run in runs.items()]
    print_table("gain over the reference", ("run", *PER.values()), gains)
    for name, read in found["equal_kl"].items():
        _print_equal_kl(name, found["to"], read)
    for name, verdict in found["comparable"].items():
        print("\n" + "\n".join(sentences(name, found["to"], verdict)))


def _print_equal_kl(name: str, to: str, read: dict[str, Any] | None) -> None:
    if read is None:
        print(
            f"{name} and {to} at equal KL: their curves share no range, or one was not evaluated at two points "
            "(train with eval_strategy and eval_samples, or run sail eval --checkpoints)."
        )
        return
    points = "; ".join(f"{one['difference']:+.2f} at {one['kl']:.2f}" for one in read["reads"])
    if read["interval"] is None:
        mean, luck = f"{read['mean_difference']:+.2f}", f"no interval: {read['no_interval']}"
    else:
        mean = limits(read["interval"], sign=True)
        luck = f"95% interval over {read['interval']['n']} prompts; one run each, so the luck of the seed is not in it"
    print(f"{name} minus {to} at equal KL (nats): {points}; mean {mean} ({luck}).")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
