"""A process that asks an oracle of paid calls about numbered rows: for tests that start several, or kill them.

python ask_oracle.py LEDGER --rows N [--first F] [--seconds S] [--calls CAP] [--served FILE]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from sail.oracles.calls import Answer, Call, CallOracle, Caps
from sail.oracles.ledger import Ledger
from sail.types import Pair


class Sleeper(CallOracle):
    """Answers after a while; the probability is a function of the prompt. Every call leaves a line in `served`."""

    def __init__(self, seconds: float, served: Path | None, **options: object) -> None:
        super().__init__("sleeper", concurrency=8, **options)  # type: ignore[arg-type]
        self.seconds, self.served = seconds, served

    def send(self, call: Call) -> Answer:
        if self.served is not None:
            descriptor = os.open(self.served, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{call.prompt}\n".encode())
            os.close(descriptor)
        time.sleep(self.seconds)
        return Answer(int(str(call.prompt)[1:]) % 7 / 7, tokens_in=10, tokens_out=1, cost=0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.01)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--served", type=Path)
    options = parser.parse_args()
    ledger = Ledger(options.ledger, run="r")
    oracle = Sleeper(options.seconds, options.served, ledger=ledger, caps=Caps(calls=options.calls))
    print("begun", flush=True)
    rows = range(options.first, options.first + options.rows)
    oracle.compare([Pair(f"p{row}", "x", "y") for row in rows])


if __name__ == "__main__":
    main()
