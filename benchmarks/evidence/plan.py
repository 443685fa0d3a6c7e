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


FASTER = {"learning_rate": 4e-4}
KL_REF = {"kl_ref_policy": 0.01, "data_from_reference": True}
MET = "dpr .23, data .77, kl_ref .01, lr 4e-4, 250 steps"
LABELS: dict[str, Options] = {
    # About 40% of online DPO's oracle calls in each.
    "dpr .35, data .65, lr 3e-4": {**routes(data=0.65, dpr=0.35), "learning_rate": 3e-4},
    "dpr .39, data .61, kl .01, lr 4e-4": {**routes(data=0.61, dpr=0.39), **FASTER, "kl_policy_ref": 0.01},
    "dpr .39, data .61, kl_ref .01, lr 4e-4": {**routes(data=0.61, dpr=0.39), **FASTER, **KL_REF},
    "dpr .23, data .77, kl_ref .01, lr 3e-4, 250 steps": {
        **routes(data=0.77, dpr=0.23),
        **KL_REF,
        "learning_rate": 3e-4,
        "max_steps": 250,
    },
    MET: {
        **routes(data=0.77, dpr=0.23),
        **FASTER,
        **KL_REF,
        "max_steps": 250,
    },
    "dpr .23, data .77, kl_ref .006, lr 4e-4, 250 steps": {
        **routes(data=0.77, dpr=0.23),
        **FASTER,
        **KL_REF,
        "max_steps": 250,
        "kl_ref_policy": 0.006,
    },
}
"""Label efficiency: how few oracle calls reach online DPO's reward at no more KL. All seeds."""

OVERSHOOT: dict[str, Options] = {
    "dpr .23, data .77, kl_ref .003, lr 4e-4, 250 steps": {
        **routes(data=0.77, dpr=0.23),
        **FASTER,
        **KL_REF,
        "max_steps": 250,
        "kl_ref_policy": 0.003,
    },
}
"""A third of the penalty: more than online DPO's KL in both seeds that it was run on."""

CONFIRMED: dict[str, Options] = {
    "online-dpo": {"preset": "online-dpo"},
    MET: LABELS[MET],
}
"""The setting that met the aim on the seeds it was found on, again on seeds that nothing was chosen by."""

ONCE: dict[str, Options] = {
    "dpr .24, data .76, kl_ref .01, lr 3e-4, 250 steps": {
        **routes(data=0.76, dpr=0.24),
        **KL_REF,
        "learning_rate": 3e-4,
        "max_steps": 250,
    },
    "dpr .24, data .76, 250 steps": {**routes(data=0.76, dpr=0.24), "max_steps": 250},
    "dpr .4, data .6": routes(data=0.6, dpr=0.4),
    "dpr .4, data .6, lr 3e-4": {**routes(data=0.6, dpr=0.4), "learning_rate": 3e-4},
    "dpr .4, data .6, lr 4e-4": {**routes(data=0.6, dpr=0.4), **FASTER},
    "dpr .4, replay .6": routes(dpr=0.4, replay=0.6),
    "dpr .4, replay .6, argmax": {**routes(dpr=0.4, replay=0.6), "oracle_label": "argmax"},
    "dpr .4, replay .4, data .2": routes(data=0.2, dpr=0.4, replay=0.4),
    "dpr .6 of which .67 asked, data .4": {**routes(data=0.4, dpr=0.6), "ask_share": 0.667},
    "dpr .6 of which .67 asked, data .4, lr 4e-4": {
        **routes(data=0.4, dpr=0.6),
        "ask_share": 0.667,
        **FASTER,
    },
    "ask the least sure .4": {"preset": "online-dpo", "ask_share": 0.4},
    "ask the least sure .4, lr 4e-4": {"preset": "online-dpo", "ask_share": 0.4, **FASTER},
    "13 fresh rows a step": {"preset": "online-dpo", "per_device_train_batch_size": 13},
}
"""The search for such settings: one seed each, which picks what LABELS runs on all."""

CURES: dict[str, Options] = {
    "dpo kl_ref .01": {"preset": "dpo", **KL_REF},
    "dpp nll .01": {"preset": "sail-dpp", "nll": 0.01},
    "dpo nll .01": {"preset": "dpo", "nll": 0.01},
    "ddp kl_ref .01": {"preset": "sail-ddp", **KL_REF},
    "dpp kl_ref .01": {"preset": "sail-dpp", **KL_REF},
}
"""What made a run without an oracle better than plain DPO; with DPO under the same penalties. All seeds."""

THRICE: dict[str, Options] = {
    "dpp kl .02": {"preset": "sail-dpp", "kl_policy_ref": 0.02},
    "dpp .3 to 0": routes(data=(0.7, 0.0, 1.0), dpp=(0.3, 0.2, 0.0)),
    "ddp weight .15": routes(data=0.85, ddp=(0.15, 0.2)),
    "dpp weight .1": routes(data=0.9, dpp=(0.1, 0.2)),
}
"""What looked like a cure for dpp or ddp on seed 0 or 1 and was run on a third."""

TWICE: dict[str, Options] = {
    "dpp kl .05": {"preset": "sail-dpp", "kl_policy_ref": 0.05},
    "dpp c .05": routes(data=0.7, dpp=(0.3, 0.05)),
    "ddp confidence .6": {"preset": "sail-ddp", "min_confidence": 0.6},
    "dpp confidence .6": {"preset": "sail-dpp", "min_confidence": 0.6},
    "ddp c 1": routes(data=0.6, ddp=(0.4, 1.0)),
    "ddp weight .7": routes(data=0.3, ddp=(0.7, 0.2)),
    "dpp c 1": routes(data=0.7, dpp=(0.3, 1.0)),
}
"""What else was tried for them."""

TERMS: dict[str, Options] = {
    "dpr c 0": routes(data=0.7, dpr=(0.3, 0.0)),
    "dpr c 1": routes(data=0.7, dpr=(0.3, 1.0)),
    "dpr c .3, no baseline": {"preset": "sail-dpr", "baseline": "none"},
    "dpr sampled label": {"preset": "sail-dpr", "oracle_label": "sampled"},
    "dpr argmax label": {"preset": "sail-dpr", "oracle_label": "argmax"},
    "dpr alone c 0": routes(dpr=(1.0, 0.0)),
    "dpr alone c .3": routes(dpr=(1.0, 0.3)),
    "dpr alone c 1": routes(dpr=(1.0, 1.0)),
}
"""Corrections, baselines and labels."""

GRID: dict[str, Options] = {
    "dpr alone c 1, no baseline": {**routes(dpr=(1.0, 1.0)), "baseline": "none"},
    "dpp sampled label": {"preset": "sail-dpp", "policy_label": "sampled"},
    "dpr weight .1": routes(data=0.9, dpr=(0.1, 0.3)),
    "dpr weight .6": routes(data=0.4, dpr=(0.6, 0.3)),
}
"""The same, once; weights of dpr."""

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
    fresh = (5, 6, 7, 8, 9)
    for seed in fresh:
        yield Run("start", "sft", seed, {"preset": "dpo", "max_steps": 0})
    yield from _runs("confirm", CONFIRMED, fresh)
    yield from _runs("labels", OVERSHOOT, (1, 2))
    yield from _runs("labels", ONCE, (0,))
    yield from _runs("cures", CURES, (0, 1, 2, 3, 4))
    yield from _runs("cures", THRICE, (0, 1, 2))
    yield from _runs("cures", TWICE, (0, 1))
    for rate in (1e-4, 4e-4):
        five = {f"{name} {rate:g}": {"preset": name, "learning_rate": rate} for name in METHODS[:5]}
        yield from _runs("rates", five, (0,))
    yield from _runs("terms", TERMS, (0, 1))
    yield from _runs("terms", GRID, (0,))
    yield from _runs("others", OTHERS, (0,))
    yield from noises(0)


def noises(seed: int) -> Iterator[Run]:
    """An oracle with a share of its verdicts turned round."""
    for share in (0.1, 0.2, 0.4):
        for name in ("online-dpo", "sail-dpr"):
            yield Run("noise", f"{name} {share:g}", seed, {"preset": name}, noise=share)
