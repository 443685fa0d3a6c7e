"""Does the order of two responses decide? What the ledger, the audit or the wrappers of a run say, the best source first."""

from __future__ import annotations

from typing import Any

from sail.report.lines import Row, number
from sail.report.measure import percent, rate_of_counts
from sail.report.record import RunRecord, interval
from sail.report.words import show

NO_PLACE = {
    "scores": "it scores each response by itself, so the order cannot matter",
    "symmetric": "symmetric by construction, so the order cannot matter",
}


def found(record: RunRecord) -> list[Row]:
    """[{"oracle", "order", "first_wins", "disagreement", "source"}], an entry per oracle whose verdict may depend on the order
    and that was asked; the intervals None where they are not known."""
    results = record.results.get("oracle")
    told = results if isinstance(results, dict) else {}
    written = told.get("orders")
    rows = record.orders or (written if isinstance(written, list) else [])
    measured = [_entry(row, "ledger") for row in rows if isinstance(row, dict)]
    measured = [row for row in measured if row["first_wins"] or row["disagreement"]]
    if measured:
        return measured
    audit = record.audit.get("oracle_swap")
    audited = _entry(audit, "audit") if isinstance(audit, dict) else None
    if audited and (audited["first_wins"] or audited["disagreement"]):
        return [audited]
    counts = told.get("both_orders")
    counts = counts if isinstance(counts, dict) else {}
    answered = number(counts.get("answered"))
    if not answered:
        return []
    same = sum(number(counts.get(f"{place}_place_wins_both")) or 0.0 for place in ("first", "second"))
    rate = interval(rate_of_counts(min(same, answered), answered))
    return [
        {"oracle": "", "order": "both_orders", "first_wins": None, "disagreement": rate, "source": "wrapper"}
    ]


def without_place(record: RunRecord) -> str | None:
    """Why the order cannot matter, in words; None where it may."""
    return NO_PLACE.get(kind(record) or "")


def kind(record: RunRecord) -> str | None:
    """How the audit says that the order is dealt with; None without an audit, and where an older one says "symmetric" of a judge,
    which may have meant both orders."""
    audit = record.audit.get("oracle_swap")
    if not isinstance(audit, dict):
        return None
    named = audit.get("kind")
    if named == "symmetric" and _asks_orders(record.config.get("oracle")):
        return None
    return named if isinstance(named, str) else "ordered"


def words(row: Row) -> str:
    """`judge small: another verdict in 12% (...) of 400 pairs, first place wins with 53% (...), from the ledger`."""
    said = []
    if row["disagreement"]:
        said.append(f"another verdict in {percent(row['disagreement'])}{_of(row['disagreement'])}")
    if row["first_wins"]:
        more = "" if row["disagreement"] else _of(row["first_wins"])
        said.append(f"first wins with {percent(row['first_wins'])}{more}")
    if row["source"] == "ledger":
        said.append("from the ledger")
    return (f"{row['oracle']}: " if row["oracle"] else "") + ", ".join(said)


def _entry(row: Row, source: str) -> Row:
    return {
        "oracle": str(row.get("oracle") or ""),
        "order": str(row.get("order") or row.get("kind") or "as_given"),
        "first_wins": interval(row.get("first_wins")),
        "disagreement": interval(row.get("disagreement")),
        "source": source,
    }


def _of(measured: Row) -> str:
    return f" of {show(measured['n'])} pairs" if measured["n"] else ""


def _asks_orders(section: Any) -> bool:
    """Whether an oracle section of the run file asks in one order or both, itself or a member."""
    if not isinstance(section, dict):
        return False
    wraps = section.get("wrap")
    named = isinstance(wraps, list) and any(one in ("both_orders", "one_order") for one in wraps)
    members = section.get("members")
    return named or (isinstance(members, list) and any(map(_asks_orders, members)))
