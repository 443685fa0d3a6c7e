"""The reward-KL frontier: what each nat of distance from the reference bought, along a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sail.report.record import Row, RunRecord, interval, number

Z = 1.96  # half width of a 95% interval in standard errors
LOGGED, EVALUATED = "the evaluations while training", "sail eval"


@dataclass(frozen=True)
class Point:
    """An evaluation: held-out reward and KL to the reference (nats per response), with 95% limits where they are known."""

    step: float
    kl: float
    reward: float
    kl_low: float | None = None
    kl_high: float | None = None
    reward_low: float | None = None
    reward_high: float | None = None


def logged(record: RunRecord) -> list[Point]:
    """The evaluations in metrics.jsonl that have both a reward and a KL, in order."""
    columns = {
        key: dict(zip(*record.column(f"eval_{key}"), strict=True))
        for key in ("kl", "kl_se", "reward", "reward_low", "reward_high")
    }
    points = []
    for step in sorted(columns["kl"].keys() & columns["reward"].keys()):
        kl, error = columns["kl"][step], columns["kl_se"].get(step)
        points.append(
            Point(
                step,
                kl,
                columns["reward"][step],
                None if error is None else kl - Z * error,
                None if error is None else kl + Z * error,
                columns["reward_low"].get(step),
                columns["reward_high"].get(step),
            )
        )
    return points


def evaluated(record: RunRecord) -> list[Point]:
    """The checkpoints that `sail eval` measured, in order; entries without a step, a reward or a KL are left out."""
    points = []
    for row in record.frontier:
        step, kl, reward = number(row.get("step")), interval(row.get("kl")), interval(row.get("reward"))
        if step is not None and kl and reward:
            points.append(
                Point(step, kl["mean"], reward["mean"], kl["low"], kl["high"], reward["low"], reward["high"])
            )
    return sorted(points, key=lambda point: point.step)


def measured(record: RunRecord) -> tuple[list[Point], str]:
    """The points to draw and where they come from: `sail eval` if it measured two checkpoints or more, else the log."""
    own = evaluated(record)
    return (own, EVALUATED) if len(own) > 1 else (logged(record), LOGGED)


def final(record: RunRecord) -> Point | None:
    """The finished policy on the prompts of results.json, which are more than those of an evaluation while training."""
    kl, reward = record.metric("kl"), record.metric("reward")
    if kl is None or reward is None:
        return None
    steps = number(record.results.get("steps")) or max(record.column("loss")[0], default=0.0)
    return Point(steps, kl["mean"], reward["mean"], kl["low"], kl["high"], reward["low"], reward["high"])


def chart(records: list[RunRecord]) -> Row:
    """{"kind": "frontier", "series": [{"run", "points", "final", "start", "source"}], "missing": [runs without], ...}.

    `start` is the reference's own reward, at KL 0, measured on the same prompts as `final`.
    """
    series: list[dict[str, Any]] = []
    missing = []
    for run, record in enumerate(records):
        points, source = measured(record)
        last = final(record)
        if not points and last is None:
            missing.append(run)
            continue
        series.append(
            {
                "run": run,
                "points": [_row(point) for point in points],
                "final": _row(last) if last else None,
                "start": record.metric("reward_reference"),
                "source": source if points else None,
            }
        )
    return {
        "id": "frontier",
        "kind": "frontier",
        "title": "Reward against KL",
        "unit": "reward on held-out prompts",
        "x_unit": "KL to the reference, nats per response",
        "about": _about(series),
        "rule": None,
        "missing": missing,
        "series": series,
    }


def _about(series: list[dict[str, Any]]) -> str:
    """The legend in words: what is drawn, and only that."""
    if not series:
        return ""
    said = ["Higher at the same KL is better; moving right without rising is paid for and not earned."]
    sources = sorted({s["source"] for s in series if s["source"]})
    if sources:
        said.append(f"Small dots: {' and '.join(sources)}, joined in order; numbers are steps.")
    if any(s["final"] for s in series):
        said.append("Ringed: the finished policy on the prompts of results.json.")
    if any(s["start"] for s in series):
        said.append("Diamond: the reference.")
    return " ".join([*said, "Bars are 95% intervals."])


def _row(point: Point) -> Row:
    """Six significant digits: what a drawing can show."""
    return {key: None if v is None else float(f"{v:.6g}") for key, v in asdict(point).items()}
