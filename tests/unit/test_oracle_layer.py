"""The benchmark of the oracle layer measures what it says: a slower oracle layer and an idle judge show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import oracle_layer

from sail.oracles.calls import CallOracle


def test_figures_are_those_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_layer, "WAVES", 2)
    result = oracle_layer.measure(2, 2)
    new = result["milliseconds_per_pair"]["new, concurrency 1"]
    assert 0.0 < result["milliseconds_per_pair"]["in the ledger"]["mean"] < new["mean"] < 50.0
    assert 0.1 < result["busy"]["share"]["mean"] <= 1.0
    compare = CallOracle.compare

    def slowly(self: CallOracle, pairs: list[object]) -> object:
        oracle_layer.time.sleep(0.064)
        return compare(self, pairs)  # type: ignore[arg-type]

    monkeypatch.setattr(CallOracle, "compare", slowly)
    # 64 ms a batch of 64 are 1 ms a pair.
    assert (oracle_layer.added(1, 2).mean or 0.0) >= 1.0
