"""Draw the reward-KL frontier."""

from __future__ import annotations

from typing import Any

from sail.report.curves import Chart
from sail.report.palette import PANEL, TEXT, style
from sail.report.record import Row
from sail.report.words import show

_AROUND = [
    (7, 5),
    (7, -13),
    (-7, 5),
    (-7, -13),
    (0, 12),
    (0, -20),
]  # where a label may stand, best place first


def draw_frontier(axes: Any, chart: Chart, names: list[str]) -> None:
    """One joined line of evaluations per run with bars, the finished policy ringed, the reference as a diamond at KL 0."""
    series = chart["series"]
    faint = 0.28 if len(series) > 1 else 0.5
    labels: list[tuple[float, float, str, int]] = []
    for row in series:
        run, points = row["run"], row["points"]
        colour, dash = style(run)
        for point in points:
            _bars(axes, point, colour, faint, run)
        x, y = [p["kl"] for p in points], [p["reward"] for p in points]
        if points:
            axes.plot(x, y, color=colour, linestyle=dash, marker="o", markersize=4.2, gid=f"run-{run}-line")
        last = row["final"]
        if last:
            _bars(axes, last, colour, 0.75, run)
            axes.plot(
                [last["kl"]],
                [last["reward"]],
                "o",
                color=colour,
                markersize=10,
                markerfacecolor=PANEL,
                markeredgewidth=2,
                gid=f"run-{run}-final",
                zorder=4,
            )
            axes.plot(
                [last["kl"]],
                [last["reward"]],
                "o",
                color=colour,
                markersize=4.2,
                zorder=5,
                gid=f"run-{run}-dot",
            )
        labels += _labels(row, names[run] if len(names) > 1 else "")
    _starts(axes, series)
    axes.set_xlabel(chart["x_unit"])
    axes.set_ylabel(chart["unit"])
    axes.margins(x=0.08, y=0.08)
    _place(axes, labels, [(p["kl"], p["reward"]) for row in series for p in _all(row)])


def _all(row: Row) -> list[Row]:
    return [*row["points"], *([row["final"]] if row["final"] else [])]


def _bars(axes: Any, point: Row, colour: str, alpha: float, run: int) -> None:
    """Both intervals of a point as thin lines; a missing one is not drawn."""
    x, y = point["kl"], point["reward"]
    settings = {"color": colour, "alpha": alpha, "lw": 1.1, "gid": f"run-{run}-bars", "zorder": 1.5}
    if point["kl_low"] is not None and point["kl_high"] is not None:
        axes.plot([point["kl_low"], point["kl_high"]], [y, y], **settings)
    if point["reward_low"] is not None and point["reward_high"] is not None:
        axes.plot([x, x], [point["reward_low"], point["reward_high"]], **settings)


def _starts(axes: Any, series: list[Row]) -> None:
    """The reference's reward at KL 0, with its interval; runs that share a reference share the mark."""
    drawn: list[float] = []
    for row in series:
        start = row["start"]
        if not start or any(abs(start["mean"] - other) < 1e-9 for other in drawn):
            continue
        drawn.append(start["mean"])
        if start["low"] is not None and start["high"] is not None:
            axes.plot([0, 0], [start["low"], start["high"]], color=TEXT, alpha=0.5, lw=1.1)
        axes.plot([0], [start["mean"]], "D", color=TEXT, markerfacecolor=PANEL, markersize=6, zorder=4)


def _labels(row: Row, name: str) -> list[tuple[float, float, str, int]]:
    """(x, y, text, run): the steps of the first and the last evaluation, and the run's name at its end."""
    points, final = row["points"], row["final"]
    name = name if len(name) <= 20 else name[:19] + "…"
    found = []
    if final and name:
        found.append((final["kl"], final["reward"], name, row["run"]))
    elif points and name:
        found.append((points[-1]["kl"], points[-1]["reward"], name, row["run"]))
    for point in [*points[:1], *points[1:][-1:]]:
        found.append((point["kl"], point["reward"], f"step {show(point['step'])}", row["run"]))
    return found


def _place(axes: Any, labels: list[tuple[float, float, str, int]], points: list[tuple[float, float]]) -> None:
    """Write labels beside their points: names first, and a step's number only where it covers no label or point."""
    axes.figure.draw_without_rendering()  # settles the layout, so that places are known
    frame = axes.get_window_extent()
    taken: list[tuple[float, float, float, float]] = []
    for point in points:
        px, py = axes.transData.transform(point)
        taken.append((px - 3, py - 3, px + 3, py + 3))
    said: list[tuple[str, float, float]] = []
    for x, y, text, run in sorted(labels, key=lambda label: label[2].startswith("step ")):
        px, py = axes.transData.transform((x, y))
        if any(text == other and abs(px - ox) + abs(py - oy) < 70 for other, ox, oy in said):
            continue  # runs evaluated at the same step say it once
        is_step = text.startswith("step ")
        size = 10.5 if is_step else 12
        width, height = 0.56 * size * len(text), 1.1 * size
        for dx, dy in _AROUND:
            left = px + dx - (width if dx < 0 else width / 2 if dx == 0 else 0)
            box = (left, py + dy, left + width, py + dy + height)
            inside = (
                box[0] >= frame.x0
                and box[2] <= frame.x1 + 4
                and box[1] >= frame.y0
                and box[3] <= frame.y1 + 4
            )
            if inside and not any(_overlap(box, other) for other in taken):
                break
        else:
            if is_step:
                continue
            dx, dy = _AROUND[2]
            box = (px - 7 - width, py + 5, px - 7, py + 5 + height)
        taken.append(box)
        said.append((text, px, py))
        axes.annotate(
            text,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha="right" if dx < 0 else "center" if dx == 0 else "left",
            fontsize=size,
            color=TEXT if is_step else style(run)[0],
            alpha=0.8 if is_step else 1,
            fontweight="normal" if is_step else "bold",
            gid=f"run-{run}-label",
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
