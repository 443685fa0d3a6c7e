"""Draw the charts of curves.py as SVG that lives inside the page.

Colours are CSS variables of the page (`--c0`, ...; text is currentColor), so one drawing serves light, dark and print.
Matplotlib knows only colours, so it is handed stand-ins that are replaced in its output.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from sail.errors import MissingExtraError
from sail.report.curves import Chart
from sail.report.frontier_drawing import draw_frontier
from sail.report.palette import GRID, PANEL, PARTS, SERIES, SERIES_PARTS, TEXT, style

_STYLE = {
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's font
    "font.family": ["sans-serif"],
    "font.size": 12,
    "text.parse_math": False,  # a run's name may hold dollars
    "figure.facecolor": "none",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 6),
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "path.simplify": True,
}


def draw(chart: Chart, names: list[str], *, wide: bool = False) -> str:
    """The chart as an <svg> element, 400 points wide, or 640 for a frontier that has the room; `names` are the runs' in order.

    Raises MissingExtraError without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'The report needs matplotlib and jinja2. Install them: pip install "sail-align[report]"'
        ) from error

    # The salt makes ids repeatable for one chart and different between drawings of one page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{chart['id']} {wide}"}):
        width, height = _size(chart, wide)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        canvas = FigureCanvasSVG(figure)  # no pyplot: no window, no global state
        axes = figure.add_subplot()
        kinds: dict[str, Callable[..., None]] = {
            "lines": _lines,
            "stacked": _stacked,
            "intervals": _intervals,
            "frontier": draw_frontier,
        }
        kinds[chart["kind"]](axes, chart, names)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.print_svg(buffer, metadata=nothing)
    return _embeddable(buffer.getvalue())


def _size(chart: Chart, wide: bool) -> tuple[float, float]:
    """Points of 1/72 inch: a chart is as wide as a narrow card, so that its text is read at its own size."""
    if chart["kind"] == "frontier":
        return (640, 430) if wide else (400, 340)
    return 400, 250 if chart["kind"] == "lines" else 70 + 34 * len(chart["series"])


def _lines(axes: Any, chart: Chart, names: list[str]) -> None:
    """One line per run, its band behind it."""
    for series in chart["series"]:
        colour, dash = style(series["run"])
        x, y = series["x"], [float("nan") if v is None else v for v in series["y"]]
        few = len(x) < 25 or chart.get("markers")
        dot = {"marker": "o", "markersize": 3.6} if few else {}
        dash = series.get("dash", dash)
        axes.plot(x, y, color=colour, linestyle=dash, gid=f"run-{series['run']}-line", **dot)
        if "low" in series:
            band = [
                (a, lo, hi)
                for a, lo, hi in zip(x, series["low"], series["high"], strict=True)
                if lo is not None
            ]
            if band:
                axes.fill_between(
                    *zip(*band, strict=True), color=colour, alpha=0.13, lw=0, gid=f"run-{series['run']}-band"
                )
    if chart["rule"]:
        _rule(axes, chart["rule"], horizontal=True)
    axes.set_xlabel(chart["x_unit"])
    axes.margins(x=0.02)
    values = [v for s in chart["series"] for key in ("y", "low") for v in s.get(key, []) if v is not None]
    if chart["unit"] in {"tokens", "count"} and min(values, default=0.0) >= 0:
        axes.set_ylim(0)


def _stacked(axes: Any, chart: Chart, names: list[str]) -> None:
    """One horizontal bar per run; parts keep their colour over all bars."""
    for row, series in enumerate(chart["series"]):
        left = 0.0
        for part, value in enumerate(series["values"]):
            colour = SERIES_PARTS[part % PARTS]
            axes.barh(row, value, left=left, height=0.62, color=colour, edgecolor=PANEL, linewidth=1)
            left += value
    _rows(axes, chart, names)
    axes.set_xlim(0, 1 if chart["unit"] == "share" else None)


def _intervals(axes: Any, chart: Chart, names: list[str]) -> None:
    """One dot with whiskers per run, zero marked."""
    for row, series in enumerate(chart["series"]):
        colour = style(series["run"])[0]
        axes.plot([series["low"], series["high"]], [row, row], color=colour, lw=2.4, solid_capstyle="round")
        axes.plot([series["mean"]], [row], "o", color=colour, markersize=7)
    _rule(axes, chart["rule"], horizontal=False)
    _rows(axes, chart, names)
    axes.margins(x=0.08)


def _rows(axes: Any, chart: Chart, names: list[str]) -> None:
    """Run names down the side, the first one on top."""
    shown = [names[s["run"]] for s in chart["series"]]
    axes.set_yticks(range(len(shown)), [n if len(n) <= 20 else n[:19] + "…" for n in shown])
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(chart["unit"])


def _rule(axes: Any, rule: list[Any], *, horizontal: bool) -> None:
    """A thin dotted line at a value worth comparing with."""
    value = rule[0]
    line = axes.axhline if horizontal else axes.axvline
    line(value, color=TEXT, lw=1, linestyle=(0, (1, 2.5)), alpha=0.7, zorder=1)


def _embeddable(svg: str) -> str:
    """Matplotlib's document as an element of an HTML page: no prolog, no ids that clash, colours by variable."""
    svg = svg[svg.index("<svg") :]
    # Coordinates in tags only: the text between them is tick labels.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(-?\d+\.\d{2})\d+", r"\1", tag[0]), svg)
    for pattern, replacement in _CLEANING:
        svg = re.sub(pattern, replacement, svg, flags=re.S)
    meant = {TEXT: "currentColor", GRID: "var(--grid)", PANEL: "var(--panel)"}
    meant |= {stand_in: f"var(--c{i})" for i, stand_in in enumerate(SERIES)}
    meant |= {stand_in: f"var(--p{i})" for i, stand_in in enumerate(SERIES_PARTS)}
    return re.sub("|".join(meant), lambda found: meant[found[0]], svg).strip()


_CLEANING = [
    (r"<metadata>.*?</metadata>", ""),
    (r"<!--.*?-->", ""),
    (r"<style.*?</style>", ""),  # matplotlib's would style the whole page
    (r' (xmlns(:xlink)?|version)="[^"]*"', ""),
    (r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">'),
    (r'<g id="(run-\d+)-\w+"', r'<g class="\1"'),
    (r'<g id="[^"]*"', "<g"),
    (r"xlink:href", "href"),
    (r" ?font-family: [^;\"]*;?", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"\s+", " "),
    (r"> <", "><"),
    (r"<g/>|<defs/>|<defs></defs>", ""),
]
