"""Write report.html, one file that needs nothing else, and report.json, the same content for programs.

`build_report` makes the content as plain data; `render` only lays it out. What is not in the data is not on the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sail.errors import DataError, MissingExtraError
from sail.report import answer, charts, checks, curves, frontier, palette, provenance, proxy, reading, table
from sail.report.pairs_file import Watch
from sail.report.record import Row, RunRecord, number, read_runs
from sail.report.words import clean, digits_for, show, show_range

FORMAT = "sail-report/2"
SECTIONS = {"results", "health", "curves", "pairs", "runs"}  # ids of parts that every page has
PAIRS = 300  # on-policy pairs of a run that the page carries unless it is told otherwise
FACTS = ["preset", "beta", "loss_type", "policy_label", "oracle_label", "baseline", "learning_rate", "seed"]


def write_report(
    run_folders: list[Path],
    out_html: Path,
    *,
    title: str,
    summary_table: Row | None = None,
    max_pairs: int = PAIRS,
    watch: Watch | None = None,
) -> Path:
    """Read the run folders and write `out_html` and its twin, the same name ending in .json. Returns `out_html`.

    summary_table: {"columns": [str], "rows": [[cell]], "caption": str, "notes": [str]}, a cell being text or
    {"mean", "low", "high", "n"}; without it the table is made from the runs' results.json. Runs appear in the order given.
    max_pairs: on-policy pairs of each run to show, fewer where they would make the page too large. watch: told the bytes of
    pairs read, twice the files' sizes in all.
    Raises DataError without a run folder, MissingExtraError without matplotlib or jinja2.
    """
    if not run_folders:
        raise DataError("A report needs at least one run folder.")
    records = read_runs(run_folders, max_pairs=max_pairs, watch=watch)
    report = build_report(records, title=title, summary_table=summary_table)
    page = render(report)
    out_html.parent.mkdir(parents=True, exist_ok=True)
    _replace(out_html, page)
    _replace(
        out_html.with_suffix(".json"),
        json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1) + "\n",
    )
    return out_html


def build_report(records: list[RunRecord], *, title: str, summary_table: Row | None = None) -> Row:
    """The report's content, ready for JSON. Runs are referred to by their place in `runs`."""
    gains = [answer.gain(record) for record in records]
    health = checks.examine(records)
    found = answer.findings(records, health)
    drawn, missing, zero = curves.charts(records)
    if (both := proxy.chart(records)) is not None:
        drawn.insert(0, both)
    bought, told, often = frontier.chart(records), provenance.facts(records), provenance.common(records)
    there = SECTIONS | {f"chart-{chart['id']}" for chart in drawn}
    there |= {id for id, has in (("frontier", bought["series"]), ("labels", told), ("common", often)) if has}
    for check in health:
        check["evidence"] = next((id for id in check["evidence"] if id in there), "results")
    return {
        "format": FORMAT,
        "title": clean(title),
        "runs": [_run(r, g) for r, g in zip(records, gains, strict=True)],
        "answers": answer.tiles(records, gains, found, health),
        "gain_chart": curves.intervals(gains),
        "table": table.shaped(summary_table or table.results_table(records, gains)),
        "frontier": bought,
        "findings": found,
        "health": health,
        "facts": told,
        "common": often,
        "charts": drawn,
        "not_recorded": missing,
        "zero_throughout": zero,
        "samples": reading.samples(records),
        "pairs": reading.pairs(records),
    }


def render(report: Row) -> str:
    """The page of `report` as HTML. Every text of it is untrusted and is escaped."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            'The report needs matplotlib and jinja2. Install them: pip install "sail-align[report]"'
        ) from error
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters.update(show=show)
    environment.globals.update(show_range=show_range, digits_for=digits_for)
    names = [run["name"] for run in report["runs"]]
    script = _asset("page.js")
    bought = report["frontier"]["series"]
    drawn = [*report["charts"], *filter(None, [report["gain_chart"], report["frontier"] if bought else None])]
    return environment.from_string(_asset("page.html")).render(
        report=report,
        names=names,
        drawings={c["id"]: Markup(charts.draw(c, names)) for c in drawn},
        wide_frontier=Markup(charts.draw(report["frontier"], names, wide=True)) if bought else "",
        describe=lambda chart: describe(chart, names),
        colours=palette.COLOURS,
        part_colours=palette.PARTS,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        # Only this very script may run, and nothing may be fetched: even a hole in the escaping would stay harmless.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def describe(chart: curves.Chart, names: list[str]) -> str:
    """A chart in words, for those who do not see it."""
    said = []
    for series in chart["series"]:
        name = f"{names[series['run']]} {series.get('part', '')}".strip()
        if chart["kind"] == "lines":
            x, y = series["x"], series["y"]
            said.append(f"{name}: {show(y[0])} at {show(x[0])}, {show(y[-1])} at {show(x[-1])}")
        elif chart["kind"] == "stacked":
            parts = zip(chart["parts"], series["values"], strict=True)
            said.append(f"{name}: " + ", ".join(f"{part} {show(value)}" for part, value in parts))
        elif chart["kind"] == "frontier":
            points = [*series["points"], *([series["final"]] if series["final"] else [])]
            ends = points[:: max(1, len(points) - 1)]
            said.append(
                f"{name}: " + ", then ".join(f"{show(p['reward'])} at {show(p['kl'])} nats" for p in ends)
            )
        else:
            said.append(f"{name}: {show(series['mean'])}, {show_range(series['low'], series['high'])}")
    return f"{chart['title']}, {chart['unit']}. " + "; ".join(said) + "."


def _run(record: RunRecord, gained: answer.Gain | None) -> Row:
    """What the page says of one run beside its curves."""
    train = record.config.get("train")
    settings = train if isinstance(train, dict) else {}
    facts = {key: clean(settings[key]) for key in FACTS if settings.get(key) is not None}
    if isinstance(settings.get("routes"), dict):
        facts["routes"] = ", ".join(_route(name, value) for name, value in settings["routes"].items())
    return {
        "name": clean(record.name),
        "verdict": answer.verdict(record, gained),
        "gain": gained,
        "cost": answer.cost(record),
        "facts": facts,
        "config": clean(yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True))
        if record.config
        else "",
    }


def _route(name: Any, value: Any) -> str:
    """`dpr 0.3` of a route's settings."""
    weight = number(value.get("weight")) if isinstance(value, dict) else number(value)
    return clean(f"{name} {weight:g}" if weight is not None else str(name))


def _asset(name: str) -> str:
    return files("sail.report").joinpath("assets", name).read_text(encoding="utf-8")


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(
        text, encoding="utf-8", errors="replace"
    )  # half a character in a file must not cost the report
    os.replace(partial, path)
