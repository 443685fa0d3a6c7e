"""What the oracle layer costs: milliseconds it adds to a pair, and how busy it keeps a judge of 50 ms at concurrency 32.

Added: `compare` of 64 new pairs with a `send` that returns at once, over a ledger on disk; wall seconds per pair, also for pairs
that the ledger holds already and for pairs asked in both orders. Busy: calls x 50 ms / concurrency, over the wall time, where
`send` sleeps 50 ms. Means over batches with a 95% interval. Texts are of usual length: a prompt of 40 words, responses of 120.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from sail.evaluation.stats import Interval, mean_interval
from sail.oracles import Oracle
from sail.oracles.calls import Answer, Call, CallOracle
from sail.oracles.ledger import Ledger
from sail.oracles.wrappers import BothOrders
from sail.types import Pair

ROWS = 64
LATENCY, CONCURRENCY, WAVES = 0.05, 32, 20


class Sleeper(CallOracle):
    """Answers after `seconds` of doing nothing."""

    seconds = 0.0

    def send(self, call: Call) -> Answer:
        """A verdict."""
        if self.seconds:
            time.sleep(self.seconds)
        return Answer(0.75, None, "[[A]]", 300, 3, 0.001)


def text(chance: random.Random, words: int) -> str:
    """Words that no other text has in this order."""
    return " ".join(f"{chance.getrandbits(24):06x}" for _ in range(words))


def pairs(count: int, chance: random.Random) -> list[Pair]:
    """New pairs of usual length."""
    return [Pair(text(chance, 40), text(chance, 120), text(chance, 120)) for _ in range(count)]


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def added(concurrency: int, batches: int, *, again: bool = False, both: bool = False) -> Interval:
    """Milliseconds per pair that the layer adds, over batches; the first two are left out."""
    chance, times = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        oracle: Oracle = Sleeper("sleeper", ledger=ledger, concurrency=concurrency)
        oracle = BothOrders(oracle) if both else oracle
        for _ in range(batches + 2):
            batch = pairs(ROWS, chance)
            first = seconds_of(lambda batch=batch: oracle.compare(batch))
            times.append(seconds_of(lambda batch=batch: oracle.compare(batch)) if again else first)
    return mean_interval([1000 * one / ROWS for one in times[2:]])


def busy(repetitions: int) -> Interval:
    """The share of the time in which the judge's places were all taken."""
    chance, shares = random.Random(1), []
    count = CONCURRENCY * WAVES
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        oracle = Sleeper("sleeper", ledger=ledger, concurrency=CONCURRENCY)
        oracle.seconds = LATENCY
        for _ in range(repetitions):
            batch = pairs(count, chance)
            shares.append(WAVES * LATENCY / seconds_of(lambda batch=batch: oracle.compare(batch)))
    return mean_interval(shares)


def measure(batches: int, repetitions: int) -> dict[str, Any]:
    """All figures, with where they were taken."""
    milliseconds = {f"new, concurrency {n}": added(n, batches) for n in (1, 8, 32)}
    milliseconds["both orders, concurrency 8"] = added(8, batches, both=True)
    milliseconds["in the ledger"] = added(8, batches, again=True)
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "pairs_per_batch": ROWS,
        "milliseconds_per_pair": {name: asdict(interval) for name, interval in milliseconds.items()},
        "busy": {
            "latency_seconds": LATENCY,
            "concurrency": CONCURRENCY,
            "calls": CONCURRENCY * WAVES,
            "share": asdict(busy(repetitions)),
        },
    }


def show(result: dict[str, Any]) -> None:
    """The figures in words."""

    def of(interval: dict[str, Any]) -> str:
        return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}], n = {interval['n']}"

    for name, interval in result["milliseconds_per_pair"].items():
        print(f"{name:<28} {of(interval)} ms a pair")
    print(f"{'busy, 50 ms at 32':<28} {of(result['busy']['share'])}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=8, help="default: %(default)s")
    results = Path(__file__).parent / "results" / "oracle_layer.json"
    parser.add_argument("--out", type=Path, default=results, help="default: results/oracle_layer.json")
    given = parser.parse_args(argv)
    result = measure(given.batches, given.repetitions)
    show(result)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {given.out}.")


if __name__ == "__main__":
    sys.exit(main())
