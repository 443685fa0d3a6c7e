"""What the report's charts show, as plain numbers: one dict per chart, the same in report.json and in the drawing.

Three kinds. "lines": series of x, y and, where known, low and high. "stacked": one bar per run made of named parts.
"intervals": one estimate with its interval per run.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from sail.mixture import ROUTES
from sail.report.record import RunRecord

Chart = dict[str, Any]

MAX_POINTS = 60
Z = 1.96  # half width of a 95% band in standard errors


@dataclass(frozen=True)
class Curve:
    """A chart of one logged key over steps.

    key: the metrics.jsonl key; `error` the key of its standard error, or `low`/`high` those of its interval.
    rule: a constant worth comparing with, as (value, label).
    """

    id: str
    title: str
    unit: str
    key: str
    about: str
    error: str | None = None
    low: str | None = None
    high: str | None = None
    rule: tuple[float, str] | None = None


CURVES: dict[str, list[Curve]] = {
    "Outcome": [
        Curve(
            "eval-reward",
            "Reward on held-out prompts",
            "reward",
            "eval_reward",
            "Mean reward of fresh responses to held-out prompts.",
            low="eval_reward_low",
            high="eval_reward_high",
        ),
        Curve(
            "eval-kl",
            "KL to the reference, held-out prompts",
            "nats per response",
            "eval_kl",
            "How far the policy has moved from the reference, on held-out prompts.",
            error="eval_kl_se",
        ),
        Curve(
            "eval-length",
            "Response length, held-out",
            "tokens",
            "eval_length",
            "Mean length on held-out prompts.",
        ),
    ],
    "Learning": [
        Curve("loss", "Training loss", "", "loss", "The pair loss of the optimiser steps."),
        Curve(
            "margin",
            "Margin of the training pairs",
            "implicit reward",
            "pair/margin",
            "Implicit reward of the winner minus that of the loser.",
            rule=(0.0, "no preference"),
        ),
        Curve(
            "accuracy",
            "Accuracy on training pairs",
            "share",
            "pair/accuracy",
            "Share of pairs where the winner has the higher implicit reward.",
            rule=(0.5, "chance"),
        ),
        Curve("eval-loss", "Held-out loss", "", "eval_loss", "The pair loss on held-out pairs."),
        Curve(
            "eval-margin",
            "Margin of held-out pairs",
            "implicit reward",
            "eval_margin",
            "Implicit reward of the winner minus that of the loser.",
            rule=(0.0, "no preference"),
        ),
        Curve(
            "eval-accuracy",
            "Accuracy on held-out pairs",
            "share",
            "eval_accuracy",
            "Share of held-out pairs where the winner has the higher implicit reward.",
            rule=(0.5, "chance"),
        ),
        Curve("grad-norm", "Gradient norm", "", "grad_norm", "Before clipping."),
    ],
    "On-policy responses": [
        Curve(
            "kl",
            "KL to the reference, training prompts",
            "nats per response",
            "kl/policy_ref",
            "From the on-policy responses of each step.",
            error="kl/policy_ref_se",
        ),
        Curve(
            "length", "Response length", "tokens", "response/length", "Mean length of on-policy responses."
        ),
        Curve(
            "response-entropy",
            "Entropy of responses",
            "nats per token",
            "response/entropy",
            "How much the policy varies where it goes; near 0 it always says the same.",
        ),
        Curve(
            "cut",
            "Responses cut by the limit",
            "share",
            "response/cut",
            "Share of on-policy responses that reached the token limit before they ended.",
        ),
        Curve(
            "empty",
            "Empty responses",
            "share",
            "response/empty",
            "Share of on-policy responses without a token.",
        ),
        Curve(
            "prompts",
            "Distinct on-policy prompts",
            "count",
            "online/prompts",
            "Dataset rows answered so far.",
        ),
        Curve(
            "ratio-ess",
            "Effective sample size of stale rows",
            "share",
            "ratio/ess",
            "How many of the rows that are older than the weights carry the gradient: 1 is all alike.",
            rule=(0.1, "few rows"),
        ),
        Curve(
            "ratio-clipped",
            "Ratios at the clip",
            "share",
            "ratio/clipped",
            "Share of the stale rows whose importance ratio was cut at ratio_clip.",
        ),
    ],
    "Labels and cost": [
        Curve(
            "label-entropy",
            "Label entropy",
            "nats",
            "label/entropy",
            "How unsure the labels are: 0 is certain, ln 2 is a coin.",
            rule=(math.log(2), "a coin"),
        ),
        Curve(
            "agreement",
            "Policy labels that agree",
            "share",
            "label/agreement",
            "Share of the policy's own labels that agree with the given ones.",
            rule=(0.5, "chance"),
        ),
        Curve(
            "calls", "Oracle calls", "count", "oracle/calls", "Comparisons the oracle was asked for so far."
        ),
    ],
}
"""The curves of logged keys, by group, in reading order."""

PHASES = ["generate", "oracle", "policy", "reference", "rest"]


def charts(records: list[RunRecord]) -> tuple[list[Chart], list[str], list[str]]:
    """The charts in reading order, the titles of those without data and of those that are zero throughout."""
    made = [{**_lines(curve, records), "group": group} for group, own in CURVES.items() for curve in own]
    made += [{**chart, "group": "Labels and cost"} for chart in (_routes(records), _phases(records))]
    empty = [c["title"] for c in made if not c["series"]]
    zero = [
        c["title"] for c in made if c["series"] and not any(v for s in c["series"] for v in s.get("y", [1]))
    ]
    return [c for c in made if c["title"] not in empty + zero], empty, zero


def intervals(gains: list[dict[str, Any] | None]) -> Chart | None:
    """The reward gain of each run with its interval; None unless there are two to compare."""
    series = [
        {"run": index, **{k: _round(gain[k]) for k in ("mean", "low", "high")}, "n": gain["n"]}
        for index, gain in enumerate(gains)
        if gain and gain["low"] is not None and gain["high"] is not None
    ]
    if len(series) < 2:
        return None
    return {
        "id": "gain",
        "kind": "intervals",
        "title": "Reward gained over the reference",
        "unit": "reward",
        "about": "Mean over held-out prompts of the run's reward minus the reference's, with 95% intervals.",
        "rule": [0.0, "the reference"],
        "series": series,
    }


def _lines(curve: Curve, records: list[RunRecord]) -> Chart:
    """The chart of one key: a series for every run that logged it."""
    series = []
    most = 1
    for index, record in enumerate(records):
        steps, values = record.column(curve.key)
        if not steps:
            continue
        bands = [_aligned(record, key, steps) for key in (curve.low, curve.high)]
        errors = _aligned(record, curve.error, steps)
        per_bin = math.ceil(len(steps) / MAX_POINTS)
        most = max(most, per_bin)
        entry: dict[str, Any] = {"run": index, "x": _binned(steps, per_bin), "y": _binned(values, per_bin)}
        if errors:
            band = _binned_errors(errors, per_bin)
            entry["low"] = [
                None if e is None else _round(y - Z * e) for y, e in zip(entry["y"], band, strict=True)
            ]
            entry["high"] = [
                None if e is None else _round(y + Z * e) for y, e in zip(entry["y"], band, strict=True)
            ]
        elif bands[0] and bands[1]:
            entry["low"], entry["high"] = (_binned(b, per_bin) for b in bands)
        series.append(entry)
    about = curve.about + (" Band: 95% interval." if any("low" in s for s in series) else "")
    return {
        "id": curve.id,
        "kind": "lines",
        "title": curve.title,
        "unit": curve.unit,
        "about": about,
        "averaged": most,
        "x_unit": "optimiser step",
        "rule": list(curve.rule) if curve.rule else None,
        "series": series,
    }


def _routes(records: list[RunRecord]) -> Chart:
    """The realised share of each route over the whole run."""
    logged = {key[6:] for r in records for row in r.metrics for key in row if key.startswith("route/")}
    names = [*ROUTES, *sorted(logged - set(ROUTES))]
    shares = [{name: _mean(record.column(f"route/{name}")[1]) for name in names} for record in records]
    about = "Share of rows that took each route."
    return _stacked("routes", "Realised routes", "share", about, names, shares)


def _phases(records: list[RunRecord]) -> Chart:
    """Seconds per optimiser step in each phase. The log holds sums since the line before, so steps are counted from it."""
    seconds = []
    for record in records:
        steps = max(record.column("seconds/policy")[0], default=0.0)
        spent = {p: math.fsum(record.column(f"seconds/{p}")[1]) for p in PHASES}
        seconds.append({p: s / steps if steps and s else None for p, s in spent.items()})
    about = "Where the time of an optimiser step goes."
    return _stacked("seconds", "Time of a step", "seconds", about, PHASES, seconds)


def _stacked(
    id: str, title: str, unit: str, about: str, names: list[str], values: list[dict[str, float | None]]
) -> Chart:
    """One bar per run; a part that no run has is left out of the legend."""
    parts = [name for name in names if any(v[name] for v in values)]
    series = [
        {"run": index, "values": [_round(v[name] or 0.0) for name in parts]}
        for index, v in enumerate(values)
        if any(v[name] for name in parts)
    ]
    return {
        "id": id,
        "kind": "stacked",
        "title": title,
        "unit": unit,
        "about": about,
        "parts": parts,
        "rule": None,
        "series": series,
    }


def _aligned(record: RunRecord, key: str | None, steps: list[float]) -> list[float | None]:
    """Values of `key` at `steps`; [] if it was never logged."""
    if key is None:
        return []
    found = dict(zip(*record.column(key), strict=True))
    return [found.get(step) for step in steps] if found else []


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _groups(values: list[Any], size: int) -> list[list[Any]]:
    """`values` cut into groups of about `size` neighbours, even to within one: a short last group would be noisy."""
    count = math.ceil(len(values) / size)
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [values[a:b] for a, b in itertools.pairwise(edges)]


def _binned(values: list[Any], size: int) -> list[Any]:
    """Means over groups of about `size` neighbours; a group with a gap keeps what it has."""
    return [_round(_mean([v for v in group if v is not None])) for group in _groups(values, size)]


def _binned_errors(errors: list[float | None], size: int) -> list[float | None]:
    """Standard errors of those means: the steps' samples are independent, so squares add. A gap leaves no band."""
    return [
        None if None in group else math.sqrt(math.fsum(e * e for e in group)) / len(group)
        for group in _groups(errors, size)
    ]


def _round(value: float | None) -> float | None:
    """Six significant digits: what a drawing can show, at a third of the bytes."""
    return None if value is None else float(f"{value:.6g}")
