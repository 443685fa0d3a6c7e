"""The colours of drawings: stand-ins for matplotlib, replaced by CSS variables of the page (`--c0`, `--p0`, ...)."""

from __future__ import annotations

from typing import Any

COLOURS = 8  # --c0 to --c7 of page.css, for runs: Okabe and Ito's colour-blind safe set
PARTS = 6  # --p0 to --p5, for the parts of a bar: steps of lightness, so that they are not taken for runs
TEXT, GRID, PANEL = "#010203", "#040506", "#04050a"
SERIES = [f"#0708{i:02x}" for i in range(COLOURS)]
SERIES_PARTS = [f"#0709{i:02x}" for i in range(PARTS)]
DASHES: list[Any] = ["-", (0, (6, 1.6)), (0, (4, 1.4, 1.2, 1.4)), (0, (1.6, 1.3)), (0, (9, 2))]


def style(run: int) -> tuple[str, Any]:
    """Colour and dash of run number `run`: the dash tells lines apart where colours cannot (print, colour blindness)."""
    return SERIES[run % COLOURS], DASHES[(run + run // COLOURS) % len(DASHES)]
