"""How often our 95% intervals hold the truth, on simulated data whose truth is known: benchmarks/results/coverage.json

    python benchmarks/coverage.py                     (about two minutes on one core)

Every simulated evaluation has prompts ("clusters") of unequal size whose outcomes agree with each other more than chance: the
case that an interval without clusters gets wrong. A right interval covers in 95% of repetitions; 93 to 97% is asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sail.evaluation.length_control import length_controlled
from sail.evaluation.stats import Interval, mean_interval, win_rate

RESULTS = Path(__file__).parent / "results" / "coverage.json"
REPETITIONS = 2000
CLUSTERS = 120
LARGEST = 8
TIES = 0.1
RATES = (0.5, 0.7, 0.9)
Rng = np.random.Generator
Simulated = tuple[Interval, float]


def keys_of(rng: Rng, clusters: int) -> Any:
    """The prompt of each value: 1 to 8 values per prompt."""
    return np.repeat(np.arange(clusters), rng.integers(1, LARGEST + 1, clusters))


def win_rates(rng: Rng, rate: float, clusters: int = CLUSTERS) -> Simulated:
    """Wins with a probability of each prompt's own (beta distributed), 10% ties; the mean outcome is `rate`."""
    keys = keys_of(rng, clusters)
    mean = (rate - TIES / 2) / (1 - TIES)
    own = rng.beta(6 * mean, 6 * (1 - mean), clusters)[keys]
    outcomes = np.where(rng.random(len(keys)) < TIES, 0.5, (rng.random(len(keys)) < own).astype(float))
    return win_rate(outcomes.tolist(), keys.tolist()), rate


def means(rng: Rng, skewed: bool, clusters: int = CLUSTERS) -> Simulated:
    """Values with a part that their prompt shares: normal, or exponential, as KL estimates and lengths are."""
    keys = keys_of(rng, clusters)
    draw = rng.standard_exponential if skewed else rng.standard_normal
    values = draw(clusters)[keys] + draw(len(keys))
    return mean_interval(values, keys.tolist(), resamples=1000), 2.0 if skewed else 0.0


def at_equal_length(rng: Rng, rate: float, clusters: int = CLUSTERS) -> Simulated:
    """Wins by a logistic rule in the length difference, `rate` at equal length; half of a prompt's values repeat one."""
    keys = keys_of(rng, clusters)
    x = rng.normal(2.0, 6.0, len(keys))
    wins = (rng.random(len(keys)) < 1 / (1 + np.exp(-(math.log(rate / (1 - rate)) + 0.15 * x)))).astype(float)
    first = np.concatenate([[0], np.flatnonzero(np.diff(keys)) + 1])[keys]
    again = rng.random(len(keys)) < 0.5
    x, wins = np.where(again, x[first], x), np.where(again, wins[first], wins)
    return length_controlled(wins, x, keys.tolist(), resamples=500), rate


def coverage(simulate: Callable[[Rng], Simulated], repetitions: int, seed: int) -> dict[str, Any]:
    """Share of repetitions whose interval holds the truth, and the mean width."""
    held, width = 0, 0.0
    for repetition in range(repetitions):
        interval, truth = simulate(np.random.default_rng([seed, repetition]))
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= truth <= interval.high
        width += (interval.high - interval.low) / repetitions
    share = held / repetitions
    error = math.sqrt(share * (1 - share) / repetitions)
    return {
        "coverage": share,
        "standard_error": round(error, 4),
        "repetitions": repetitions,
        "mean_width": round(width, 4),
    }


def cases(repetitions: int) -> dict[str, tuple[Callable[[Rng], Simulated], int]]:
    """Each kind of interval by name, with how often it is tried: the logistic one is slow, so less often."""
    found: dict[str, tuple[Callable[[Rng], Simulated], int]] = {}
    for rate in RATES:
        found[f"win rate {rate}"] = (lambda rng, rate=rate: win_rates(rng, rate), repetitions)
    for skewed in (False, True):
        name = "mean of skewed values" if skewed else "mean of normal values"
        found[name] = (lambda rng, skewed=skewed: means(rng, skewed), repetitions)
    for rate in RATES:
        found[f"win rate at equal length {rate}"] = (
            lambda rng, rate=rate: at_equal_length(rng, rate),
            max(1, repetitions // 2),
        )
    return found


def main() -> None:
    """Simulate, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    began = time.perf_counter()
    for number, (name, (simulate, repetitions)) in enumerate(cases(options.repetitions).items()):
        found[name] = coverage(simulate, repetitions, number)
        print(f"{name:<28} {found[name]['coverage']:.3f}  ({repetitions} repetitions)", flush=True)
    settings = {"level": 0.95, "clusters": CLUSTERS, "values per cluster": f"1 to {LARGEST}", "ties": TIES}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"settings": settings, "coverage": found}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{time.perf_counter() - began:.0f} s; {RESULTS}")


if __name__ == "__main__":
    main()
