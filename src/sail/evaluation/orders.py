"""How much the order of two responses decides with the oracles of a run, from its ledger: all its processes and resumes."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from typing import Any

from sail.evaluation.stats import mean_interval
from sail.evaluation.win_rate import Verdict, position
from sail.oracles.ledger import Ledger, hash_of

MOST = 6_000
"""Pairs that intervals are made of, evenly over all: the bootstrap takes the time, and from more they are hardly narrower."""

Row = dict[str, Any]


@dataclass
class _Pair:
    """A pair of texts: its prompt, and the probability given to the response shown first, by the order of showing."""

    prompt: Hashable
    shown: dict[bool, float] = field(default_factory=dict)
    own: bool = False
    """Whether this run has asked about it, in either order."""


@dataclass
class _Oracle:
    name: str
    states: set[str] = field(default_factory=set)
    pairs: dict[str, _Pair] = field(default_factory=dict)


def orders_of(ledger: Ledger) -> list[Row]:
    """The position bias of each oracle that the run of `ledger` asks in both orders or in one, over the pairs that it has asked
    about (over all of the file where others have paid for every answer):

    [{"oracle", "oracle_hash", "order", "pairs", "first_wins", "bias", "disagreement"}]. first_wins: the mean probability given
    to the response shown first, 1/2 without bias; bias: that less 1/2; disagreement: the share of pairs whose winner changes
    with the order (None where one order is asked). Each with its n and a 95% interval, clustered by prompt.
    """
    used = {use.oracle_hash: use.orders for use in ledger.uses() if use.run == ledger.run}
    found: dict[str, _Oracle] = {}
    for row in ledger.rows():
        orders = used.get(row["oracle_hash"])
        if orders is None and row["run"] == ledger.run and row["settings"].get("mode") == "pairwise":
            # A run that an older sail has written: such a judge was asked in both orders.
            orders = used[row["oracle_hash"]] = "both_orders"
        if orders not in ("both_orders", "one_order") or row["probability"] is None:
            continue
        _add(found.setdefault(row["oracle_hash"], _Oracle(row["oracle"])), row, ledger.run)
    asked = {one.name for one in found.values() if "answered" in one.states}
    return [
        _measured(one, key, used[key])
        for key, one in found.items()
        # What is remembered of an oracle that has its own calls here is the same answers again.
        if "answered" in one.states or one.name not in asked
    ]


def _add(oracle: _Oracle, row: Row, run: str) -> None:
    first, second = row["first"], row["second"]
    straight = first <= second
    prompt = json.dumps(row["prompt"], sort_keys=True)
    key = hash_of([prompt, *((first, second) if straight else (second, first))])
    pair = oracle.pairs.setdefault(key, _Pair(hash_of(prompt)))
    pair.shown[straight] = row["probability"]
    pair.own |= row["run"] == run
    oracle.states.add(row["state"])


def _measured(oracle: _Oracle, key: str, orders: str) -> Row:
    both = orders == "both_orders"
    usable = [pair for pair in oracle.pairs.values() if len(pair.shown) == 2 or not both]
    usable = [pair for pair in usable if pair.own] or usable
    kept = usable[:: -(-len(usable) // MOST) or 1]
    prompts = [pair.prompt for pair in kept]
    if both:
        verdicts = [Verdict(None, pair.shown[True], pair.shown[False]) for pair in kept]
        told = {name: value for name, value in position(verdicts, prompts).items() if name != "kind"}
    else:
        first = [sum(pair.shown.values()) / len(pair.shown) for pair in kept]
        told = {
            "first_wins": asdict(mean_interval(first, prompts)),
            "bias": asdict(mean_interval([value - 0.5 for value in first], prompts)),
            "disagreement": None,
        }
    return {"oracle": oracle.name, "oracle_hash": key, "order": orders, "pairs": len(usable), **told}
