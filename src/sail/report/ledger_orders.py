"""What the ledger of a run folder says of the order of two responses."""

from __future__ import annotations

from pathlib import Path

from sail.errors import SailError
from sail.evaluation.orders import orders_of
from sail.oracles.ledger import Ledger
from sail.oracles.ledger_place import ledger_in, run_name
from sail.report.lines import Problem, Row


def of_folder(folder: Path, problems: list[Problem]) -> list[Row]:
    """The measured orders of the oracles in a run's ledger (evaluation/orders.py); [] without one."""
    path = ledger_in(folder)
    if path is None:
        return []
    try:
        with Ledger(path, run=run_name(folder.resolve(), path.resolve())) as ledger:
            return orders_of(ledger)
    except SailError as error:
        problems.append(Problem(path.name, f"cannot be read ({error}), left out"))
        return []
