"""The tables of docs/speed.md from benchmarks/results/speed.json: `python benchmarks/speed/table.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WANTED = (
    "cpu 1M",
    "cpu 10M",
    "cpu 50M",
    "cuda 0.5B",
    "cuda 1.5B",
)
BEGIN, END = "<!-- tables: made by benchmarks/speed/table.py -->", "<!-- end of tables -->"
ROOT = Path(__file__).parents[2]


def tables(results: dict[str, Any]) -> str:
    """All tables as Markdown; what was not measured is called so."""
    parts = [_loss(results.get("loss"))]
    for key in [*WANTED, *sorted(results.keys() - {*WANTED, "loss"})]:
        found = results.get(key)
        parts.append(f"### {key}\n\n" + (_entry(found) if found else "not yet measured.\n"))
    return "\n".join(parts)


def _loss(found: dict[str, Any] | None) -> str:
    head = "### The loss at a large vocabulary\n\n"
    if found is None:
        return head + "not yet measured.\n"
    plain, chunks = ("{:.2f} GB".format(found[name]["peak"] / 1e9) for name in ("plain", "chunks"))
    return head + (
        f"Vocabulary {found['vocabulary']:,}, {found['rows']} x {found['length']} tokens, float32: peak above the weights "
        f"{plain} with the model's logits, {chunks} in chunks, {found['share']:.1%} of it.\n"
    )


def _entry(found: dict[str, Any]) -> str:
    asked = found["settings"]
    lines = [
        f"{found['date']}, {found['device']}, {found['dtype']}, {found['threads']} thread(s), load {found['load'][0]:.1f}; "
        f"{asked['parameters']:,} parameters, {asked['rows']} rows a step, responses of {asked['shape']['response']} tokens; "
        f"{asked['steps']} rounds after {asked['warm_up']}.",
        "",
    ]
    for tuning, part in found["results"].items():
        lines += [
            f"**{tuning}** ({part['trainable_parameters']:,} trainable)",
            "",
            *_ratios(part),
            "",
            *_rows(part),
            "",
        ]
    return "\n".join(lines)


def _ratios(part: dict[str, Any]) -> list[str]:
    lines = ["| ratio | median | 95% interval | target |", "|---|---|---|---|"]
    for name, one in part["ratios"].items():
        interval = "" if one["low"] is None else f"[{one['low']:.2f}, {one['high']:.2f}]"
        target = (
            "1 inside"
            if name == "ddp / data"
            else ""
            if one["target"] is None
            else f"at most {one['target']:.2f}"
        )
        lines.append(f"| {name} | {one['median']:.2f} | {interval} | {target} |")
    return lines


def _rows(part: dict[str, Any]) -> list[str]:
    lines = [
        "| | seconds | tokens/s | peak MB | tokens: policy, reference, generated | MFU |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in sorted(part["contestants"].items()):
        kinds = ("policy", "reference", "generated")
        tokens = ", ".join(f"{one['tokens_per_step'][kind]:.0f}" for kind in kinds)
        mfu = "" if one["mfu"] is None else f"{one['mfu']:.1%}"
        lines.append(
            f"| {name} | {one['median_seconds']:.4f} | {one['tokens_per_second']:,.0f} | {one['peak_bytes'] / 1e6:.1f} | "
            f"{tokens} | {mfu} |"
        )
    return lines


def main() -> None:
    """Put the tables between their marks."""
    file = ROOT / "benchmarks" / "results" / "speed.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    page = ROOT / "docs" / "speed.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
