"""The first screen: did it get better, by how much, how sure, at what cost, and is anything wrong."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from sail.evaluation.stats import paired_interval
from sail.report.health import FINE, UNMEASURED, WARNING
from sail.report.pairs_file import FILE
from sail.report.record import Row, RunRecord, number
from sail.report.words import clean, digits_for, show, show_range

Gain = dict[str, Any]


def gain(record: RunRecord) -> Gain | None:
    """How much the reward rose, as {"mean", "low", "high", "n", "over"}, from the best evidence the folder holds.

    In this order: results.json's own `reward_gain`; its samples that carry both rewards, paired by prompt; the last
    evaluation against the first one (a difference without an interval). None if no reward was measured.
    """
    stated = record.metric("reward_gain")
    if stated:
        return {**stated, "over": "the reference"}
    rows = [
        s
        for s in _samples(record)
        if None not in (number(s.get("reward")), number(s.get("reward_reference")))
    ]
    if rows:
        prompts = [json.dumps(row.get("prompt"), sort_keys=True) for row in rows]
        paired = paired_interval([r["reward"] for r in rows], [r["reward_reference"] for r in rows], prompts)
        return {**{k: asdict(paired)[k] for k in ("mean", "low", "high", "n")}, "over": "the reference"}
    rewards = record.column("eval_reward")[1]
    if len(rewards) > 1:
        change = rewards[-1] - rewards[0]
        return {"mean": change, "low": None, "high": None, "n": None, "over": "its first evaluation"}
    return None


def verdict(record: RunRecord, gained: Gain | None) -> str:
    """better, worse, unclear or unmeasured. Better and worse need an interval on one side of zero."""
    if gained is None:
        return "unmeasured"
    low, high = gained["low"], gained["high"]
    if low is None or high is None:
        # Without a paired interval, the two evaluations' own intervals must lie apart: stricter, but sound.
        lows, highs = record.column("eval_reward_low")[1], record.column("eval_reward_high")[1]
        if len(lows) < 2 or len(highs) < 2:
            return "unclear"
        low, high = lows[-1] - highs[0], highs[-1] - lows[0]
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def cost(record: RunRecord) -> Row:
    """Oracle calls, optimiser steps and seconds: whatever is known, else None. `ratio` is relative to the base run."""
    calls = number(record.results.get("oracle_calls"))
    return {
        "oracle_calls": record.last("oracle/calls") if calls is None else calls,
        "steps": max(
            (s for s in (number(m.get("step")) for m in record.metrics) if s is not None), default=None
        ),
        "seconds": record.last("time"),
        "seconds_per_step": number(record.results.get("seconds_per_step")),
        "seconds_ratio": number(record.results.get("seconds_ratio")),
    }


def findings(records: list[RunRecord], health: list[Row]) -> list[Row]:
    """What the checks and the reading of the folders found, warnings before notes: {"run", "level", "check", "text"}.

    health: what `checks.examine` says of the same records.
    """
    found = []
    for index, record in enumerate(records):
        for check in health:
            outcome = check["runs"][index]
            if outcome["state"] == WARNING:
                found.append({"run": index, "level": "warning", "check": check["id"], "text": check["alarm"]})
        for problem in record.problems:
            without_pairs = problem.file == FILE and not record.last("online/prompts")
            if problem.missing and without_pairs:
                continue  # a run on the dataset's responses writes none
            vital = not problem.missing or problem.file in ("metrics.jsonl", FILE)
            text = f"{problem.file}: {problem.text}."
            found.append(
                {"run": index, "level": "warning" if vital else "note", "check": "files", "text": text}
            )
        notes = record.results.get("notes")
        for note in notes if isinstance(notes, list) else []:
            found.append({"run": index, "level": "note", "check": "results", "text": clean(note)})
    return sorted(found, key=lambda row: row["level"] != "warning")


def tiles(
    records: list[RunRecord], gains: list[Gain | None], found: list[Row], health: list[Row]
) -> list[Row]:
    """The five answers, each {"id", "question", "answer", "detail", "tone"}; several runs are told by the best one."""
    verdicts = [verdict(r, g) for r, g in zip(records, gains, strict=True)]
    heights = [-math.inf if g is None else g["mean"] for g in gains]
    best = heights.index(max(heights))
    record, gained = records[best], gains[best]
    who = f"{record.name}, the largest of {len(records)} runs" if len(records) > 1 else ""
    return [
        _better(records, verdicts),
        _how_much(gained, who),
        _how_sure(gained),
        _at_what_cost(records, best),
        _anything_wrong(found, health, records),
    ]


def _better(records: list[RunRecord], verdicts: list[str]) -> Row:
    question, better = "Did it get better?", verdicts.count("better")
    if len(records) == 1:
        answer = {
            "better": "Yes",
            "worse": "No, worse",
            "unclear": "Not clear",
            "unmeasured": "Not measured",
        }[verdicts[0]]
        detail = {
            "better": "The 95% interval of the gain lies above zero.",
            "worse": "The 95% interval of the gain lies below zero.",
            "unclear": "The 95% interval of the gain contains zero, or there is none.",
            "unmeasured": "The run folder holds no reward on held-out prompts.",
        }[verdicts[0]]
    elif set(verdicts) == {"unmeasured"}:
        answer, detail = "Not measured", "No run folder holds a reward on held-out prompts."
    else:
        answer = f"{better} of {len(records)} runs"
        others = {
            v: [r.name for r, w in zip(records, verdicts, strict=True) if w == v] for v in set(verdicts)
        }
        words = {"worse": "worse", "unclear": "not clear", "unmeasured": "not measured"}
        rest = [f"{words[v]}: {', '.join(n)}" for v, n in sorted(others.items()) if v != "better"]
        detail = "; ".join(rest) + "." if rest else "Each gain's 95% interval lies above zero."
    bad = "worse" in verdicts
    tone = "bad" if bad else "good" if better == len(records) else "plain"
    return _tile("better", question, answer, detail, tone)


def _how_much(gained: Gain | None, who: str) -> Row:
    question = "By how much?"
    if gained is None:
        return _tile("gain", question, "—", "No reward to compare.")
    digits = digits_for(gained["low"], gained["high"])
    answer = show(gained["mean"], sign=True, digits=digits)
    return _tile("gain", question, answer, f"In reward over {gained['over']}" + (f": {who}." if who else "."))


def _how_sure(gained: Gain | None) -> Row:
    question = "How sure?"
    if gained is None or gained["low"] is None or gained["high"] is None:
        return _tile("sure", question, "—", "There is no interval for it.")
    n = f"over {show(gained['n'])} held-out responses, by prompt" if gained["n"] else "by prompt"
    return _tile("sure", question, show_range(gained["low"], gained["high"]), f"95% interval, {n}.")


def _at_what_cost(records: list[RunRecord], best: int) -> Row:
    question, spent = "At what cost?", cost(records[best])
    calls = spent["oracle_calls"]
    answer = "—" if calls is None else "1 oracle call" if calls == 1 else f"{show(calls)} oracle calls"
    base = [r.name for r in records if number(r.results.get("seconds_ratio")) == 1]
    parts = []
    if spent["seconds_ratio"] is not None:
        per = f"of {base[0]}" if base else "of DPO"
        parts.append(f"{show(spent['seconds_ratio'])} × the seconds per step {per}")
    elif spent["seconds_per_step"] is not None:
        parts.append(f"{show(spent['seconds_per_step'])} seconds per step")
    if spent["steps"] is not None:
        parts.append(f"{show(spent['steps'])} optimiser steps")
    who = f"{records[best].name}: " if len(records) > 1 else ""
    return _tile("cost", question, answer, who + (", ".join(parts) or "time not recorded") + ".")


def _anything_wrong(found: list[Row], health: list[Row], records: list[RunRecord]) -> Row:
    """Warnings first. Without any: how much was looked at, as a check that measured nothing has found nothing either."""
    question = "Is anything wrong?"
    warnings = [row for row in found if row["level"] == "warning"]
    outcomes = [outcome for check in health for outcome in check["runs"]]
    states = [outcome["state"] for outcome in outcomes if outcome["applies"]]
    absent = len(outcomes) - len(states)
    counted = [f"{states.count(FINE)} checks are fine", f"{states.count(UNMEASURED)} not measured"]
    counted += [f"{absent} do{'es' if absent == 1 else ''} not apply"]
    looked = ", ".join(part for part in counted if not part.startswith("0 ")) + "."
    if not warnings:
        if not states.count(FINE):
            return _tile("wrong", question, "Not measured", "No check had anything to look at.")
        return _tile("wrong", question, "Nothing found", looked, "good")
    first = f"{records[warnings[0]['run']].name}: " if len(records) > 1 else ""
    more = f" And {len(warnings) - 1} more below." if len(warnings) > 1 else ""
    answer = f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}"
    return _tile("wrong", question, answer, first + warnings[0]["text"] + more, "bad")


def _tile(id: str, question: str, answer: str, detail: str, tone: str = "plain") -> Row:
    return {"id": id, "question": question, "answer": answer, "detail": detail, "tone": tone}


def _samples(record: RunRecord) -> list[Row]:
    """results.json's samples that are objects."""
    samples = record.results.get("samples")
    return [s for s in samples if isinstance(s, dict)] if isinstance(samples, list) else []
