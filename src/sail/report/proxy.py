"""Over-optimisation: what the labelling oracle (proxy) and the evaluation oracle (gold) say of the same answers, against KL."""

from __future__ import annotations

import statistics
from typing import Any

from sail.oracle_config import described
from sail.report.record import Row, RunRecord, number
from sail.report.words import clean

MARKS = {"gold": "-", "proxy": "--"}


def chart(records: list[RunRecord]) -> Row | None:
    """Gains over the start in its standard deviations over prompts, so that two scales fit one plot; None without an eval_oracle.

    A run with an eval_oracle has both lines, gold's alone where the labelling oracle gives no scores. One that was labelled by
    that very oracle has gold's, from its own reward. Gain and deviation: (mean at the evaluation - mean at the start) / sd over
    prompts of the reference's scores in results.json.
    """
    golds = {described(record.config.get("eval_oracle")) for record in records} - {None}
    series, unscored, measured = [], [], False
    for run, record in enumerate(records):
        if record.config.get("eval_oracle") is not None:
            keys = {"proxy": "reward", "gold": "gold"}
        elif described(record.config.get("oracle")) in golds:
            keys = {"gold": "reward"}
        else:
            continue
        lines = [_line(record, run, part, key) for part, key in keys.items()]
        drawn = [line for line in lines if line is not None]
        series += drawn
        if "proxy" in keys and drawn:
            measured = True
            unscored += [clean(record.name)] if {one["part"] for one in drawn} == {"gold"} else []
    if not measured:
        return None
    missing = (
        f" {', '.join(unscored)}: the oracle that labels gives no scores, so there is no dashed line."
        if unscored
        else ""
    )
    return {
        "id": "proxy-gold",
        "kind": "lines",
        "group": "Outcome",
        "title": "Proxy and gold reward against KL",
        "unit": "gain, standard deviations of the start",
        "x_unit": "KL to the reference, nats per response",
        "about": "Dashed: the oracle that labels, a proxy. Full: the evaluation oracle, gold. Where the proxy rises and gold "
        "does not, the policy has learned the proxy's mistakes. Band: 95% interval of the mean." + missing,
        "rule": [0.0, "the start"],
        "markers": True,
        "series": series,
    }


def _line(record: RunRecord, run: int, part: str, key: str) -> Row | None:
    """One oracle's scores along a run; None where the run has not ended or has fewer than two evaluations with a KL."""
    start, spread = _start(record, key)
    if start is None or not spread:
        return None
    columns = {
        name: dict(zip(*record.column(f"eval_{name}"), strict=True))
        for name in ("kl", key, f"{key}_low", f"{key}_high")
    }
    steps = sorted(columns["kl"].keys() & columns[key].keys())
    if len(steps) < 2:
        return None
    # An evaluation before the first step answers the same prompts as the later ones: a better start than results.json's.
    start = columns[key].get(0, start)
    points: dict[str, list[Any]] = {"x": [_short(columns["kl"][step]) for step in steps]}
    for name, column in (("y", key), ("low", f"{key}_low"), ("high", f"{key}_high")):
        values = [columns[column].get(step) for step in steps]
        points[name] = [None if one is None else _short((one - start) / spread) for one in values]
    return {"run": run, "part": part, "dash": MARKS[part], **points}


def _start(record: RunRecord, key: str) -> tuple[float | None, float]:
    """Mean and standard deviation over prompts of the reference's scores by that oracle, from results.json's samples."""
    samples = record.results.get("samples")
    rows = [row for row in samples if isinstance(row, dict)] if isinstance(samples, list) else []
    given = [value for row in rows if (value := number(row.get(f"{key}_reference"))) is not None]
    return (statistics.fmean(given), statistics.stdev(given)) if len(given) > 1 else (None, 0.0)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
