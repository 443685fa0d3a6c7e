"""What a run was trained on: the realised mixture, who labelled, how far the labels can be relied on, which prompts came.

A table of facts with a column per run, each with its interval where it has one; and the texts that came most often.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sail.report import measure, orders
from sail.report.measure import amount, percent
from sail.report.record import Row, RunRecord, interval, number
from sail.report.words import clean, messages, show

Cell = dict[str, Any]
"""{"lines": [text], "value": number or interval or None}."""


def facts(records: list[RunRecord]) -> list[Row]:
    """[{"id", "name", "about", "cells": [Cell per run]}]; a fact that no run can tell is left out."""
    rows: list[Row] = [
        {"id": id, "name": name, "about": about, "cells": [tell(record) for record in records]}
        for id, name, about, tell in FACTS
    ]
    return [row for row in rows if any(cell["lines"] for cell in row["cells"])]


def common(records: list[RunRecord]) -> list[Row]:
    """The most common prompts and responses of each run that has on-policy pairs, with how often they came."""
    return [
        {
            "run": index,
            "pairs": record.facts.total,
            "prompts": [{"text": _one_line(text), "times": n} for text, n in record.facts.common_prompts],
            "responses": [{"text": _one_line(text), "times": n} for text, n in record.facts.common_responses],
        }
        for index, record in enumerate(records)
        if record.facts.total
    ]


def _one_line(text: object) -> str:
    """A prompt or response in one line, its start."""
    words = " / ".join(str(message["content"]) for message in messages(text)) if text else ""
    return words if len(words) <= 160 else words[:159] + "…"


def _cell(*lines: str, value: Any = None) -> Cell:
    return {"lines": [line for line in lines if line], "value": value}


def _routes(record: RunRecord) -> Cell:
    wanted, realised = measure.wanted_routes(record), measure.realised_routes(record)
    rows = measure.rows_seen(record)
    lines, values = [], {}
    for route in [*wanted, *(name for name in realised if name not in wanted)]:
        share = realised.get(route)
        if share is None:
            continue
        rate = measure.rate_of_counts(share * rows, rows) if rows else {"mean": share, "low": None}
        aim = f", wanted {wanted[route]:.0%}" if route in wanted else ""
        lines.append(f"{route} {percent({'high': None, **rate})}{aim}")
        values[route] = {"wanted": wanted.get(route), "realised": rate}
    return _cell(*lines, value=values or None)


def _sources(record: RunRecord) -> Cell:
    given = record.facts.by_source
    return _cell(*(f"{clean(source)}: {show(n)} pairs" for source, n in given.items()), value=given or None)


def _calls(record: RunRecord) -> Cell:
    calls = number(record.results.get("oracle_calls"))
    calls = record.last("oracle/calls") if calls is None else calls
    if calls is None:
        return _cell()
    steps = max(record.column("loss")[0], default=0.0)
    parts = [f"{show(calls)} for training" + (f", {show(calls / steps)} a step" if steps and calls else "")]
    more = number(record.results.get("oracle_calls_in_evaluation"))
    parts += [f"{show(more)} to measure"] if more else []
    return _cell(*parts, value=calls)


def _left_out(record: RunRecord) -> Cell:
    given = record.facts
    if not given.by_route.get("dpr"):
        return _cell()
    total = given.by_route["dpr"]
    counted = {"abstained": given.abstained, "not asked": given.unasked, "ties": given.ties}
    words = {"abstained": "without a verdict", "not asked": "not asked", "ties": "ties without a label"}
    lines = [f"{show(n)} {words[name]}" for name, n in counted.items() if n]
    return _cell(", ".join(lines or ["none"]), f"of {show(total)}", value=counted)


def _of_verdicts(
    look: Callable[[list[Any]], Row | None], words: Callable[[Row], str]
) -> Callable[[RunRecord], Cell]:
    def tell(record: RunRecord) -> Cell:
        found = look(record.facts.verdicts) if record.facts.verdicts else None
        if found is None or found["mean"] is None:
            return _cell()
        return _cell(words(found), f"{show(found['n'])} pairs", value=found)

    return tell


def _swap(record: RunRecord) -> Cell:
    measured = orders.found(record)
    if measured:
        value = measured[0]["disagreement"] or measured[0]["first_wins"]
        return _cell(*map(orders.words, measured), value=value)
    why = orders.without_place(record)
    return _cell() if why is None else _cell(why, value=0.0)


def _with_dataset(record: RunRecord) -> Cell:
    found = interval(record.audit.get("oracle_agreement"))
    if found is None:
        return _cell()
    return _cell(percent(found), f"{show(found['n'])} pairs" if found["n"] else "", value=found)


def _prompts(record: RunRecord) -> Cell:
    given = record.facts
    if not given.total:
        return _cell()
    expected = measure.expected_rows(record)
    lines = [f"{show(given.prompts)} different in {show(given.total)} pairs"]
    lines += [f"drawing gives about {expected:,.0f} rows"] if expected else []
    return _cell(*lines, value=given.prompts)


def _fit(record: RunRecord) -> Cell:
    found = record.audit.get("prompt_fit")
    if not isinstance(found, dict):
        return _cell()
    fits = {"data": interval(found.get("data")), "sampled": interval(found.get("sampled"))}
    names = {"data": "dataset's", "sampled": "policy's"}
    lines = [f"{names[key]} {amount(fit, sign=True)} nats" for key, fit in fits.items() if fit]
    return _cell(*lines, value=fits)


def _entropy(record: RunRecord) -> Cell:
    found = measure.ends(record, "response/entropy")
    if found is None:
        return _cell()
    start, end = found
    return _cell(f"{amount(start)} → {amount(end)} nats per token", value=end)


FACTS: list[tuple[str, str, str, Callable[[RunRecord], Cell]]] = [
    ("routes", "Realised routes", "Share of rows, with the mixture that was asked for.", _routes),
    ("sources", "Who labelled the on-policy pairs", "", _sources),
    ("calls", "Oracle calls", "", _calls),
    ("left-out", "Rows left out", "On-policy pairs of route dpr that got no label.", _left_out),
    (
        "decisive",
        "How sure the oracle is",
        "Mean probability of the likelier response; 50% says nothing.",
        _of_verdicts(measure.decisiveness, percent),
    ),
    (
        "position",
        "First wins with",
        "Both responses are drawn alike, so 50% is right; anything else is position bias.",
        _of_verdicts(measure.position, percent),
    ),
    ("swap", "The same pairs, order swapped", "How often the oracle contradicts itself.", _swap),
    (
        "dataset",
        "Oracle agrees with the dataset",
        "Share of dataset pairs where it prefers the chosen response.",
        _with_dataset,
    ),
    (
        "policy",
        "Policy agrees with the oracle",
        "Share of pairs where the policy's own verdict, when they were sampled, takes the oracle's side.",
        _of_verdicts(measure.agreement, percent),
    ),
    (
        "longer",
        "The longer response wins",
        "By the oracle, where lengths differ; far above 50% it may be length that is learned.",
        _of_verdicts(measure.longer_wins, percent),
    ),
    ("prompts", "Prompts", "Different texts among the on-policy pairs.", _prompts),
    ("entropy", "Entropy of responses", "First and last fifth of the run.", _entropy),
    (
        "fit",
        "Prompt fit",
        "How much likelier a response is after its own prompt than after another row's.",
        _fit,
    ),
]
