"""All health checks, and what they say of runs."""

from __future__ import annotations

from sail.report import checks_labels, checks_pairs, checks_training
from sail.report.health import Check, Outcome
from sail.report.record import Row, RunRecord

GROUPS: dict[str, list[Check]] = {
    "Outcome": checks_training.OUTCOME,
    "Prompts and responses": checks_pairs.CHECKS,
    "Labels": checks_labels.CHECKS,
    "Training": checks_training.TRAINING,
}
"""All checks by the part of a run they look at, in reading order."""


def examine(records: list[RunRecord]) -> list[Row]:
    """Every check on every run: [{"id", "group", "question", "limit", "alarm", "advice", "evidence", "runs": [outcome]}].

    An outcome is {"state", "measured", "value", "applies"}; they stand in the order of `records`.
    """
    return [
        {
            "id": check.id,
            "group": group,
            "question": check.question,
            "limit": check.limit,
            "alarm": check.alarm,
            "advice": check.advice,
            "evidence": list(check.evidence),
            "runs": [_row(check.look(record)) for record in records],
        }
        for group, checks in GROUPS.items()
        for check in checks
    ]


def _row(outcome: Outcome) -> Row:
    return {
        "state": outcome.state,
        "measured": outcome.measured,
        "value": outcome.value,
        "applies": outcome.applies,
    }
