"""What is run, in the order in which it is run: the first parts matter most. A run is named by what it varies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

STEPS, ROWS, PROMPTS = 150, 32, 256
AT = (10, 20, 35, 50, 75, 100, 125, 150)
METHODS = ("dpo", "online-dpo", "sail-ddp", "sail-dpp", "sail-dpr", "sail-mix")

Options = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run: the options that differ from the playground's (sail.play.ALIGN)."""

    part: str
    name: str
    seed: int
    options: Options = field(default_factory=dict)
    noise: float = 0.0
    evaluate_at: tuple[int, ...] = AT

    @property
    def steps(self) -> int:
        """Optimiser steps; 0 only measures the start."""
        return int(self.options.get("max_steps", STEPS))

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells runs apart."""
        return self.part, self.name, self.seed


def routes(**weights: Any) -> Options:
    """`routes(data=.7, dpr=(.3, .3))`: a weight, or (weight, coefficient), or (weight, coefficient, final weight)."""
    table = {}
    for name, entry in weights.items():
        entry = entry if isinstance(entry, tuple) else (entry,)
        table[name] = dict(zip(("weight", "coefficient", "final_weight"), entry, strict=False))
    return {"routes": table}


ARGMAX = {"oracle_label": "argmax"}
FASTER = {"learning_rate": 4e-4}
LABELS: dict[str, Options] = {
    # About 40% of online DPO's oracle calls in each, where nothing else is said.
    "dpr .39, data .61, kl .01, lr 4e-4": {**routes(data=0.61, dpr=0.39), **FASTER, "kl_policy_ref": 0.01},
    "dpr .39, data .61, kl_ref .01, lr 4e-4": {
        **routes(data=0.61, dpr=0.39),
        **FASTER,
        "kl_ref_policy": 0.01,
        "data_from_reference": True,
    },
    "dpr .23, data .77, kl_ref .01, lr 3e-4, 250 steps": {
        **routes(data=0.77, dpr=0.23),
        "learning_rate": 3e-4,
        "max_steps": 250,
        "kl_ref_policy": 0.01,
        "data_from_reference": True,
    },
    "dpr .23, data .77, kl_ref .003, lr 4e-4, 250 steps": {
        **routes(data=0.77, dpr=0.23),
        "learning_rate": 4e-4,
        "max_steps": 250,
        "kl_ref_policy": 0.003,
        "data_from_reference": True,
    },
    "dpr .23, data .77, kl_ref .006, lr 4e-4, 250 steps": {
        **routes(data=0.77, dpr=0.23),
        "learning_rate": 4e-4,
        "max_steps": 250,
        "kl_ref_policy": 0.006,
        "data_from_reference": True,
    },
    "dpr .24, data .76, 250 steps": {**routes(data=0.76, dpr=0.24), "max_steps": 250},
    "dpr .35, data .65, lr 3e-4": {**routes(data=0.65, dpr=0.35), "learning_rate": 3e-4},
    "dpr .6, data .4, lr 3e-4": {**routes(data=0.4, dpr=0.6), "learning_rate": 3e-4},
    "ask the least sure .4, lr 3e-4": {"preset": "online-dpo", "ask_share": 0.4, "learning_rate": 3e-4},
    "online-dpo, lr 3e-4": {"preset": "online-dpo", "learning_rate": 3e-4},
    "dpr .4, data .6, lr 3e-4": {**routes(data=0.6, dpr=0.4), "learning_rate": 3e-4},
    "13 fresh rows a step": {"preset": "online-dpo", "per_device_train_batch_size": 13},
    "dpr .4, data .6": routes(data=0.6, dpr=0.4),
    "dpr .4, c .3, data .6, lr 3e-4": {**routes(data=0.6, dpr=(0.4, 0.3)), "learning_rate": 3e-4},
    "ask the least sure .4": {"preset": "online-dpo", "ask_share": 0.4},
    "dpr .4, replay .6": routes(dpr=0.4, replay=0.6),
    "dpr 0 to .8, data 1 to .2": routes(data=(1.0, 0.0, 0.2), dpr=(0.0, 0.0, 0.8)),
    "dpr .4, data .6, lr 4e-4": {**routes(data=0.6, dpr=0.4), **FASTER},
    "ask the least sure .4, lr 4e-4": {"preset": "online-dpo", "ask_share": 0.4, **FASTER},
    "dpr .6 of which .67 asked, data .4": {**routes(data=0.4, dpr=0.6), "ask_share": 0.667},
}
"""Label efficiency: how few oracle calls reach online DPO's reward at no more KL."""

CURES: dict[str, Options] = {
    "dpp kl .02": {"preset": "sail-dpp", "kl_policy_ref": 0.02},
    "dpp kl .05": {"preset": "sail-dpp", "kl_policy_ref": 0.05},
    "dpp .3 to 0": routes(data=(0.7, 0.0, 1.0), dpp=(0.3, 0.2, 0.0)),
    "dpp confidence .6": {"preset": "sail-dpp", "min_confidence": 0.6},
    "dpp c .05": routes(data=0.7, dpp=(0.3, 0.05)),
    "ddp weight .15": routes(data=0.85, ddp=(0.15, 0.2)),
    "ddp kl_ref .01": {"preset": "sail-ddp", "kl_ref_policy": 0.01, "data_from_reference": True},
    "dpo kl_ref .01": {"preset": "dpo", "kl_ref_policy": 0.01, "data_from_reference": True},
    "dpp kl_ref .01": {"preset": "sail-dpp", "kl_ref_policy": 0.01, "data_from_reference": True},
    "ddp c 1": routes(data=0.6, ddp=(0.4, 1.0)),
    "dpp weight .1": routes(data=0.9, dpp=(0.1, 0.2)),
    "ddp weight .7": routes(data=0.3, ddp=(0.7, 0.2)),
    "dpp nll .01": {"preset": "sail-dpp", "nll": 0.01},
    "dpo nll .01": {"preset": "dpo", "nll": 0.01},
    "ddp confidence .6": {"preset": "sail-ddp", "min_confidence": 0.6},
    "dpp c 1": routes(data=0.7, dpp=(0.3, 1.0)),
}
"""What might make the routes without an oracle better than DPO; with DPO under the same penalties."""

TERMS: dict[str, Options] = {
    "dpr c 0": routes(data=0.7, dpr=(0.3, 0.0)),
    "dpr c 1": routes(data=0.7, dpr=(0.3, 1.0)),
    "dpr c .3, no baseline": {"preset": "sail-dpr", "baseline": "none"},
    "dpr sampled label": {"preset": "sail-dpr", "oracle_label": "sampled"},
    "dpr argmax label": {"preset": "sail-dpr", "oracle_label": "argmax"},
    "dpr alone c 0": routes(dpr=(1.0, 0.0)),
    "dpr alone c .3": routes(dpr=(1.0, 0.3)),
    "dpr alone c 1": routes(dpr=(1.0, 1.0)),
    "dpr alone c 1, no baseline": {**routes(dpr=(1.0, 1.0)), "baseline": "none"},
    "dpp sampled label": {"preset": "sail-dpp", "policy_label": "sampled"},
    "dpr weight .1": routes(data=0.9, dpr=(0.1, 0.3)),
    "dpr weight .6": routes(data=0.4, dpr=(0.6, 0.3)),
}
"""Corrections, baselines and labels; weights of dpr."""

OTHERS: dict[str, Options] = {
    "ipo": {"preset": "ipo"},
    "slic": {"preset": "slic"},
    "self-dpo": {"preset": "self-dpo"},
    "iterative-dpo": {"preset": "iterative-dpo", "round_steps": 50},
    "spin": {"preset": "spin", "round_steps": 50},
}


def _runs(part: str, table: dict[str, Options], seeds: tuple[int, ...]) -> Iterator[Run]:
    for seed in seeds:
        for name, options in table.items():
            yield Run(part, name, seed, options)


def plan() -> Iterator[Run]:
    """All runs, the most important first."""
    for seed in range(5):
        yield Run("start", "sft", seed, {"preset": "dpo", "max_steps": 0})
    presets = {name: {"preset": name} for name in METHODS}
    yield from _runs("methods", presets, (0, 1, 2, 3, 4))
    yield from _runs("labels", LABELS, (0, 1, 2, 3, 4))
    yield from _runs("cures", CURES, (0, 1, 2, 3, 4))
    for rate in (1e-4, 4e-4):
        five = {f"{name} {rate:g}": {"preset": name, "learning_rate": rate} for name in METHODS[:5]}
        yield from _runs("rates", five, (0, 1, 2))
    yield from _runs("terms", TERMS, (0, 1))
    yield from _runs("others", OTHERS, (0, 1))
    for seed in (0, 1):
        for share in (0.1, 0.2, 0.4):
            for name in ("online-dpo", "sail-dpr"):
                yield Run("noise", f"{name} {share:g}", seed, {"preset": name}, noise=share)
