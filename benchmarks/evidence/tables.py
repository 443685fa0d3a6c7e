"""The tables of docs/evidence.md, as Markdown, from results/evidence.json."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]
ORDER = ("dpo", "sail-ddp", "sail-dpp", "sail-dpr", "sail-mix", "online-dpo")


def tables(found: Entry) -> dict[str, str]:
    """Name of the table -> Markdown."""
    told = found["compared"]
    made = {"methods": _against_dpo(told, "methods", ORDER), "labels": _labels(told, ("labels", "methods"))}
    made["confirmed"] = _labels(told, ("confirm",))
    made["penalised"] = _against(told, ("methods", "cures"), "minus_penalised", "penalised DPO")
    for part in ("cures", "terms", "others", "rates", "noise"):
        names = [key.split("/", 1)[1] for key in told if key.startswith(f"{part}/")]
        if part in ("rates", "noise"):
            names.sort(key=lambda name: (float(name.split()[-1]), ORDER.index(name.split()[0])))
        made[part] = _against_dpo(told, part, names)
    made["cost"] = (
        f"{found['runs']} runs, {found['core_hours_of_training']:.1f} core-hours of training on one thread "
        "(measuring the checkpoints and making the starting models, about a seventh more, not counted)."
    )
    return made


def _against_dpo(told: Entry, part: str, names: Any) -> str:
    rows = _head(
        "run",
        "gold reward",
        "KL, nats",
        "oracle calls",
        "minus DPO, equal KL",
        "minus DPO along the frontier",
        "minus DPO, equal steps",
        "seeds",
    )
    for name in names:
        entry = told.get(f"{part}/{name}")
        if entry is None:
            continue
        end, gap = entry["end"], entry.get("minus_dpo")
        cells = [name, _interval(end["reward"]), _interval(end["kl"]), f"{end['calls']:.0f}"]
        for key in ("equal_kl", "frontier", "equal_steps"):
            cells.append(_gap(gap[key]) if gap else "-")
        cells.append(str(end["reward"]["n"]))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _against(told: Entry, parts: tuple[str, ...], key: str, base: str) -> str:
    """Runs of several parts against one base."""
    rows = _head(
        "run",
        f"minus {base}, equal KL",
        f"minus {base} along the frontier",
        f"minus {base}, equal steps",
        "seeds",
    )
    for name, entry in told.items():
        gap = entry.get(key)
        if gap is None or name.split("/", 1)[0] not in parts:
            continue
        cells = [_gap(gap[one]) for one in ("equal_kl", "frontier", "equal_steps")]
        seeds = str(len(gap["equal_kl"]["seeds"]))
        rows.append(f"| {' | '.join([name.split('/', 1)[1], *cells, seeds])} |")
    return "\n".join(rows)


def _labels(told: Entry, parts: tuple[str, ...]) -> str:
    """Runs of some parts against online DPO."""
    rows = _head(
        "run",
        "oracle calls, share of online DPO's",
        "gold reward, share of online DPO's",
        "gain over the start, share of online DPO's",
        "KL minus online DPO's",
        "minus online DPO, equal KL",
        "minus online DPO, equal calls",
        "seeds",
    )
    for key, entry in told.items():
        against = entry.get("against_online")
        if against is None or key.split("/", 1)[0] not in parts:
            continue
        cells = [
            key.split("/", 1)[1],
            _percent(against["calls"]),
            _percent(against["share"]["over_seeds"]),
            _percent(against["share_of_gain"]["over_seeds"]),
            _interval(against["kl"]["over_seeds"], "+"),
            _gap(against["equal_kl"]),
            _gap(against["equal_calls"]),
            str(against["calls"]["n"]),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _gap(compared: Entry) -> str:
    """`+0.33 [0.20, 0.46] (3/0)`: mean over seeds with its interval; seeds whose own interval is above / below 0."""
    return f"{_interval(compared['over_seeds'], '+')} ({compared['above']}/{compared['below']})"


def _interval(value: Entry, sign: str = "") -> str:
    if value["mean"] is None:
        return "-"
    text = f"{value['mean']:{sign}.2f}"
    return text if value["low"] is None else f"{text} [{value['low']:{sign}.2f}, {value['high']:{sign}.2f}]"


def _percent(value: Entry) -> str:
    text = f"{value['mean']:.0%}"
    return text if value["low"] is None else f"{text} [{value['low']:.0%}, {value['high']:.0%}]"
