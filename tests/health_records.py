"""Made-up records for the tests of the health checks."""

from __future__ import annotations

from sail.report import RunRecord
from sail.report.checks import GROUPS
from sail.report.pairs_file import Brief, PairFacts, Verdict

CHECKS = [check for checks in GROUPS.values() for check in checks]
DPR = {"train": {"routes": {"data": 0.7, "dpr": 0.3}}, "oracle": {"kind": "function"}}


def state(record: RunRecord, id: str) -> str:
    (check,) = (check for check in CHECKS if check.id == id)
    return check.look(record).state


def said(record: RunRecord, id: str) -> str:
    (check,) = (check for check in CHECKS if check.id == id)
    return check.look(record).measured


def lines(**columns) -> RunRecord:
    """A record of log lines: each column is a list, or a constant over the longest of them."""
    count = max((len(v) for v in columns.values() if isinstance(v, list)), default=20)
    values = {k.replace("__", "/"): v if isinstance(v, list) else [v] * count for k, v in columns.items()}
    return RunRecord(
        "r", metrics=[{"step": i + 1, **{k: v[i] for k, v in values.items()}} for i in range(count)]
    )


def brief(number: int, *, prompt=None, first=None, second=None, length=10.0, cut=False, empty=False) -> Brief:
    responses = (2 * number if first is None else first, 2 * number + 1 if second is None else second)
    return Brief(
        number if prompt is None else prompt, responses, (length, length), (cut, cut), (empty, empty)
    )


def windows(late, early=None) -> RunRecord:
    """A record whose pairs have these first and last windows."""
    early = [brief(i) for i in range(100)] if early is None else early
    return RunRecord(
        "r", config=DPR, facts=PairFacts(total=300, early=early, late=late, by_route={"dpr": 300})
    )


def verdicts(probabilities, **more) -> RunRecord:
    told = [Verdict(i, p, None, None) for i, p in enumerate(probabilities)]
    facts = PairFacts(total=len(told), verdicts=told, by_route={"dpr": len(told)})
    return RunRecord("r", config={**DPR, "train": {**DPR["train"], **more}}, facts=facts)


def fair(count: int, spread: float = 0.4) -> list[float]:
    """Probabilities that favour neither place: p and 1 - p by turns."""
    return [0.5 + spread * (1 if i % 2 else -1) * (0.5 + (i % 7) / 14) for i in range(count)]
