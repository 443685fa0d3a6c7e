"""Texts to read: the on-policy pairs that were trained on, and held-out answers side by side."""

from __future__ import annotations

import json
from typing import Any

from sail.report.pairs_file import written_by
from sail.report.record import Row, RunRecord, number
from sail.report.words import clean, messages

MAX_PAIR_BYTES = 1_400_000  # of all runs together, so that the page stays below 3 MB with its drawings
MAX_PROMPTS = 40


def pairs(records: list[RunRecord]) -> dict[str, Any]:
    """{"rows": pairs to embed, "runs": [{"run", "total", "shown", "left_out", "by_route"}]}.

    Where a run's pairs are too many bytes they are thinned evenly, so that start and end can still be read.
    """
    budget = MAX_PAIR_BYTES // max(1, sum(bool(r.pairs) for r in records))
    rows: list[Row] = []
    runs = []
    for index, record in enumerate(records):
        embedded = _thinned([_pair(index, row) for row in record.pairs], budget)
        rows += embedded
        total = record.facts.total
        counted = {clean(route): count for route, count in record.facts.by_route.items()}
        left = total - len(embedded)
        runs.append(
            {"run": index, "total": total, "shown": len(embedded), "left_out": left, "by_route": counted}
        )
    return {"rows": rows, "runs": runs}


def samples(records: list[RunRecord]) -> dict[str, Any]:
    """{"prompts": [{"prompt", "reference", "answers": [per run or None]}], "total", "left_out"}.

    The same prompt of several runs is one row. An answer is {"text", "reward"}. Prompts that more runs answered come first,
    else the order of the first results.json; a prompt sampled k times makes k rows.
    """
    table: dict[tuple[str, int], Row] = {}
    for index, record in enumerate(records):
        given = record.results.get("samples")
        seen: dict[str, int] = {}
        for row in given if isinstance(given, list) else []:
            if not isinstance(row, dict):
                continue
            key = json.dumps(row.get("prompt"), sort_keys=True, default=str)
            seen[key] = seen.get(key, 0) + 1
            entry = table.setdefault((key, seen[key]), _empty_row(row, len(records)))
            entry["answers"][index] = _answer(row.get("response"), row.get("reward"))
    complete = sorted(table.values(), key=lambda entry: entry["answers"].count(None))
    return {
        "prompts": complete[:MAX_PROMPTS],
        "total": len(table),
        "left_out": max(0, len(table) - MAX_PROMPTS),
    }


def _empty_row(row: Row, runs: int) -> Row:
    """A prompt with the reference's answer and a place for each run's."""
    reference = None
    if row.get("reference") is not None:
        reference = _answer(row["reference"], row.get("reward_reference"))
    return {"prompt": messages(row.get("prompt")), "reference": reference, "answers": [None] * runs}


def _answer(text: Any, reward: Any) -> Row:
    return {"text": clean(text), "reward": number(reward)}


def _pair(run: int, row: Row) -> Row:
    """A line of pairs.jsonl.gz with texts cleaned and numbers checked; keys that the page does not know are left out.

    authors: who wrote the first and the second response, "policy" or "dataset" (route spin).
    disagreement: how far the oracle's probability of "first wins" lies from the policy's own when the pair was sampled; None
    where the policy labels itself and in files that do not hold it.
    """
    label, probability = number(row.get("label")), number(row.get("probability"))
    own = number(row.get("policy_probability"))
    told = probability if row.get("route") == "dpr" else None
    return {
        "run": run,
        "step": number(row.get("step")),
        "prompt": messages(row.get("prompt")),
        "first": clean(row.get("first")),
        "second": clean(row.get("second")),
        "route": clean(row.get("route")),
        "authors": list(written_by(row.get("route"))),
        "source": clean(row.get("source")),
        "label": label,
        "probability": probability,
        "policy_probability": own,
        "disagreement": None if told is None or own is None else abs(told - own),
        "lengths": [number(row.get("first_length")), number(row.get("second_length"))],
        "cut": [bool(row.get("first_cut")), bool(row.get("second_cut"))],
        "reason": clean(row.get("reason")) or None,
        "reference": None if row.get("reference") is None else clean(row["reference"]),
    }


def _thinned(rows: list[Row], budget: int) -> list[Row]:
    """Every k-th row, with the smallest k that fits `budget` bytes."""
    sizes = [len(json.dumps(row, ensure_ascii=False).encode()) for row in rows]
    step = 1
    while sum(sizes[::step]) > budget and step < len(rows):
        step += 1
    return rows[::step]
