"""`sail annotate`: people label pairs on a local page, and the labels become preference rows."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sail.annotate.app import agreement_of
from sail.annotate.items import Item, Label, verdict_of
from sail.annotate.server import PageServer
from sail.annotate.sources import Place, place_of, read_pairs
from sail.annotate.store import Annotations
from sail.data.formats import Row, to_record
from sail.errors import DataError
from sail.evaluation.stats import Interval, rate_interval


def annotate(
    source: Path,
    *,
    labels: Path | None,
    annotators: int,
    host: str,
    port: int,
    question: str | None,
    export: Path | None,
    summary: bool,
) -> None:
    """Serve the page until Ctrl-C; with `export` or `summary`, tell and write what the labels say instead."""
    place = place_of(source, labels)
    if export is not None or summary:
        if not place.labels.exists():
            raise DataError(
                f"Nothing is labelled yet: there is no {place.labels}. Label with sail annotate {source}"
            )
        _tell(place, export)
        return
    store = Annotations(place.labels)
    try:
        _prepare(store, place, annotators, question)
        _serve(store, place, host, port)
    finally:
        store.close()


def _prepare(store: Annotations, place: Place, annotators: int, question: str | None) -> None:
    """Put the pairs of a file into the queue; a run's own queue is left as it is."""
    if place.pairs is not None:
        pairs = read_pairs(place.pairs)
        store.offer(pairs.items, annotators)
        store.fact("kind", "file")
        left_out = [
            f"{count} {what}"
            for count, what in (
                (pairs.identical, "with identical responses"),
                (pairs.repeated, "repeated"),
                (len(pairs.skipped), "that cannot be used"),
            )
            if count
        ]
        print(
            f"{place.name}: {len(pairs.items)} pairs"
            + (f"; rows left out: {', '.join(left_out)}" if left_out else "")
        )
        for message in pairs.skipped[:3]:
            print(f"  {message}")
    store.fact("source", place.name)
    if question is not None:
        store.fact("question", question)


def _serve(store: Annotations, place: Place, host: str, port: int) -> None:
    server = PageServer(place.labels, host=host, port=port).start()
    try:
        if not server.is_private:
            print(
                "Warning: this page can be reached from other machines. Whoever has the link can read every pair and label it, "
                "and what is sent is not encrypted. Use it in a network you trust."
            )
        print(f"Open {server.link}")
        print(
            f"Labels go to {place.labels} at once. Ctrl-C stops; nothing is lost, and the same command goes on.",
            flush=True,
        )
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        given = len(store.labels())
        print(f"\n{given} labels are in {place.labels}. Turn them into training data: --export pairs.jsonl")
    finally:
        server.stop()


# ---- what the labels say


def _tell(place: Place, export: Path | None) -> None:
    store = Annotations(place.labels)
    try:
        found = summarise(store)
        rows = preference_rows(store)
    finally:
        store.close()
    found["exported"] = len(rows)
    print(summary_text(found))
    if export is None:
        return
    if not rows:
        raise DataError(
            "There is no pair with a majority yet, so nothing was exported. Label more with sail annotate."
        )
    export.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    export.write_bytes(text.encode("utf-8", "replace"))  # half a surrogate pair has no UTF-8
    twin = export.with_suffix(".summary.json")
    twin.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(rows)} preference rows are in {export}, this summary in {twin}.")


def preference_rows(store: Annotations) -> list[dict[str, Any]]:
    """One row of TRL's explicit format per pair that has a majority: p = (votes + ties / 2) / votes is above or below 1/2.

    `probability` is that of the chosen response, `votes` how many people gave a verdict. Pairs at 1/2 or without a vote are out.
    """
    rows = []
    for item, labels in _by_pair(store):
        p = verdict_of([label.verdict for label in labels]).probability
        if p is None or p == 0.5:
            continue
        chosen, rejected = (item.first, item.second) if p > 0.5 else (item.second, item.first)
        votes = sum(label.verdict != "skip" for label in labels)
        record = to_record(Row(item.prompt, chosen, rejected, ""))
        rows.append({**record, "probability": max(p, 1 - p), "votes": votes})
    return rows


def summarise(store: Annotations) -> dict[str, Any]:
    """Everything the summary says, JSON-able. Intervals are 95%, clustered by prompt."""
    pairs = _by_pair(store)
    given = [
        (item, labels, verdict_of([label.verdict for label in labels]).probability) for item, labels in pairs
    ]
    labels = [(item, label) for item, all_labels in pairs for label in all_labels]
    labelled = [(item, p) for item, _, p in given if p is not None]
    return {
        "pairs": len(pairs),
        "labelled": len(labelled),
        "ties": sum(p == 0.5 for _, p in labelled),
        "skipped": sum(bool(all_labels) and p is None for _, all_labels, p in given),
        "labels": len(labels),
        "people": _people([label for _, label in labels]),
        "agreement": asdict(agreement_of(store)),
        "left_preferred": asdict(_left_preferred(labels)),
        "agrees_with_source": asdict(_with_source(labelled)),
    }


def _by_pair(store: Annotations) -> list[tuple[Item, list[Label]]]:
    items = store.items()
    found: dict[str, list[Label]] = {pair: [] for pair in items}
    for label in store.labels():
        if label.pair in found:
            found[label.pair].append(label)
    return [(items[pair], labels) for pair, labels in found.items()]


def _people(labels: Sequence[Label]) -> list[dict[str, Any]]:
    paces: dict[str, list[float]] = defaultdict(list)
    for label in labels:
        paces[label.annotator].append(label.seconds)
    return [
        {"name": name, "labels": len(seconds), "median_seconds": round(statistics.median(seconds), 2)}
        for name, seconds in sorted(paces.items())
    ]


def _left_preferred(labels: Sequence[tuple[Item, Label]]) -> Interval:
    """How often the answer on the left won among labels with a winner: far from 1/2, people follow the place."""
    won = [(item, label) for item, label in labels if label.verdict in ("first", "second")]
    outcomes = [float(label.verdict == label.shown_left) for _, label in won]
    return rate_interval(outcomes, [json.dumps(item.prompt) for item, _ in won])


def _with_source(labelled: Sequence[tuple[Item, float]]) -> Interval:
    """How often the people's majority is the source's own preference, where both have one."""
    both = [(item, p) for item, p in labelled if p != 0.5 and item.given is not None and item.given != 0.5]
    outcomes = [float((p > 0.5) == (item.given > 0.5)) for item, p in both if item.given is not None]
    return rate_interval(outcomes, [json.dumps(item.prompt) for item, _ in both])


def summary_text(found: dict[str, Any]) -> str:
    """The summary as lines a person reads."""
    lines = [
        f"{found['labelled']} of {found['pairs']} pairs have a verdict, from {found['labels']} labels; "
        f"{found['ties']} of them are ties, {found['skipped']} pairs were skipped only"
    ]
    lines += [
        f"  {one['name']}: {one['labels']} labels, median {one['median_seconds']:.1f} s"
        for one in found["people"]
    ]
    told = found["agreement"]
    if told["alpha"] is None:
        lines.append(f"agreement (Krippendorff's alpha): not known, {told['why']}")
    else:
        between = "" if told["low"] is None else f" [{told['low']:.2f}, {told['high']:.2f}]"
        lines.append(
            f"agreement (Krippendorff's alpha): {told['alpha']:.2f}{between}, n = {told['pairs']} pairs"
        )
    lines.append(f"the left answer wins: {_rate(found['left_preferred'])}")
    lines.append(f"as the source prefers: {_rate(found['agrees_with_source'])}")
    return "\n".join(lines)


def _rate(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "not known"
    between = "" if value["low"] is None else f" [{value['low']:.0%}, {value['high']:.0%}]"
    return f"{value['mean']:.0%}{between}, n = {value['n']}"
