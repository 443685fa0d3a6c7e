"""Health checks: what can be wrong with a run, each with its threshold, what was measured and where to look.

A check answers fine, warning or not measured, and never takes silence for health. Where the data have a sampling error, the
whole 95% interval must lie beyond the threshold before there is a warning. docs/report.md gives the reason of each threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sail.report.record import RunRecord

FINE, WARNING, UNMEASURED = "fine", "warning", "not measured"


@dataclass(frozen=True)
class Outcome:
    """What a check found: its state, the measurement in words, and the number that was compared with the threshold.

    applies: False where there is nothing to measure in a run of this kind, as on-policy responses in one of DPO.
    """

    state: str
    measured: str
    value: float | None = None
    applies: bool = True


@dataclass(frozen=True)
class Check:
    """A thing that can be wrong.

    question: answered by yes when all is well. limit: the threshold in words. alarm: what a warning says. advice: what it
    means and what to do. evidence: ids of the page where the cause can be seen, the best first.
    """

    id: str
    question: str
    limit: str
    alarm: str
    advice: str
    evidence: tuple[str, ...]
    look: Callable[[RunRecord], Outcome]


def fine(measured: str, value: float | None = None) -> Outcome:
    """Looked at, and within its threshold."""
    return Outcome(FINE, measured, value)


def warning(measured: str, value: float | None = None) -> Outcome:
    """Beyond its threshold."""
    return Outcome(WARNING, measured, value)


def unmeasured(why: str) -> Outcome:
    """Nothing, or too little, to look at."""
    return Outcome(UNMEASURED, why)


def absent(why: str) -> Outcome:
    """Nothing to measure in a run of this kind."""
    return Outcome(UNMEASURED, why, applies=False)


def judged(beyond: bool, measured: str, value: float | None = None) -> Outcome:
    """A warning if `beyond`, else fine."""
    return warning(measured, value) if beyond else fine(measured, value)
