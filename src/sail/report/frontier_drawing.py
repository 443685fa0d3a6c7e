"""Draw the reward-KL frontier."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

from sail.report.curves import Chart
from sail.report.palette import PANEL, TEXT, style
from sail.report.record import Row
from sail.report.words import show


class Label(NamedTuple):
    """A text beside a point: a run's name, or the step of an evaluation."""

    x: float
    y: float
    text: str
    run: int
    is_step: bool

    @property
    def size(self) -> float:
        """Of the font, in points."""
        return 10.5 if self.is_step else 12.0


Box = tuple[float, float, float, float]

_AROUND = [  # where a label may stand beside its point, in points
    (dx * far, dy * far - 5)
    for far in (1, 2, 3.5)
    for dx, dy in ((9, 8), (9, -8), (-9, 8), (-9, -8), (0, 15), (0, -15), (12, 0), (-12, 0))
]
_LABEL = 100.0  # how much worse it is to cover a label than a piece of line


def draw_frontier(axes: Any, chart: Chart, names: list[str]) -> None:
    """One joined line of evaluations per run with bars, the finished policy ringed, the reference as a diamond at KL 0."""
    series = chart["series"]
    faint = 0.28 if len(series) > 1 else 0.5
    labels: list[Label] = []
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
    _place(axes, labels, _joined(series))


def _joined(series: list[Row]) -> list[list[tuple[float, float]]]:
    """What is drawn as (KL, reward): a line per run, and each finished policy by itself."""
    lines = [[(p["kl"], p["reward"]) for p in row["points"]] for row in series if row["points"]]
    return lines + [[(row["final"]["kl"], row["final"]["reward"])] for row in series if row["final"]]


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


def _labels(row: Row, name: str) -> list[Label]:
    """The run's name at its end, then the steps of the first and the last evaluation."""
    points, run = row["points"], row["run"]
    found = []
    if name:
        end = row["final"] or points[-1]
        found.append(
            Label(end["kl"], end["reward"], name if len(name) <= 20 else name[:19] + "…", run, False)
        )
    for point in [*points[:1], *points[1:][-1:]]:
        found.append(Label(point["kl"], point["reward"], f"step {show(point['step'])}", run, True))
    return found


def _place(axes: Any, labels: list[Label], lines: list[list[tuple[float, float]]]) -> None:
    """Write labels where they cover least: names always, a step's number only where it covers no other label.

    Runs that were evaluated at the same step near each other say it once.
    """
    axes.figure.draw_without_rendering()  # settles the layout, so that places are known
    window = axes.get_window_extent()
    frame = (window.x0, window.y0, window.x1 + 4, window.y1 + 4)
    covered = [(box, 1.0) for line in lines for box in _along([axes.transData.transform(p) for p in line])]
    said: list[tuple[str, float, float]] = []
    for label in sorted(labels, key=lambda label: label.is_step):
        at = axes.transData.transform((label.x, label.y))
        if any(label.text == text and abs(at[0] - x) + abs(at[1] - y) < 70 for text, x, y in said):
            continue
        costs = [
            _cost(_box(label, at, shift), frame, covered) + 0.05 * math.hypot(*shift) for shift in _AROUND
        ]
        if label.is_step and min(costs) >= _LABEL:
            continue
        shift = _AROUND[costs.index(min(costs))]
        covered.append((_box(label, at, shift), _LABEL))
        said.append((label.text, *at))
        axes.annotate(
            label.text,
            (label.x, label.y),
            shift,
            textcoords="offset points",
            ha=_side(shift),
            fontsize=label.size,
            color=TEXT if label.is_step else style(label.run)[0],
            fontweight="normal" if label.is_step else "bold",
            bbox={"facecolor": PANEL, "alpha": 0.7, "lw": 0, "pad": 0.5},
            gid=f"run-{label.run}-label",
            zorder=6,
        )


def _side(shift: tuple[float, float]) -> str:
    """How a text is aligned to where it stands."""
    return "right" if shift[0] < 0 else "center" if shift[0] == 0 else "left"


def _box(label: Label, at: tuple[float, float], shift: tuple[float, float]) -> Box:
    """About what the text of a label covers."""
    width = (0.56 if label.is_step else 0.63) * label.size * len(label.text)
    left = at[0] + shift[0] - {"left": 0.0, "center": width / 2, "right": width}[_side(shift)]
    return (left, at[1] + shift[1], left + width, at[1] + shift[1] + 1.1 * label.size)


def _cost(box: Box, frame: Box, covered: list[tuple[Box, float]]) -> float:
    """How bad it is to write there: what is covered, and far more if it does not fit into the frame."""
    outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
    return 1000.0 * outside + sum(weight for other, weight in covered if _overlap(box, other))


def _along(places: list[tuple[float, float]]) -> list[Box]:
    """Small boxes along a drawn line, 6 pixels apart."""
    boxes = []
    for (ax, ay), (bx, by) in itertools.pairwise([places[0], *places]):
        parts = max(1, int(max(abs(bx - ax), abs(by - ay)) / 6))
        for k in range(1, parts + 1):
            px, py = ax + (bx - ax) * k / parts, ay + (by - ay) * k / parts
            boxes.append((px - 2, py - 2, px + 2, py + 2))
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
