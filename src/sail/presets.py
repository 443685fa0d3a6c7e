"""The named runs: mixtures with the options that are part of their definition. A new one is one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sail.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """A named mixture, with the options that are part of its definition."""

    name: str
    routes: Mapping[str, Mapping[str, float]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("dpo", {"data": {"weight": 1.0}}, {"loss_type": "sigmoid"}, "offline DPO, arXiv 2305.18290"),
        Preset("ipo", {"data": {"weight": 1.0}}, {"loss_type": "ipo"}, "offline IPO, arXiv 2310.12036"),
        Preset(
            "slic", {"data": {"weight": 1.0}}, {"loss_type": "hinge"}, "offline SLiC-HF, arXiv 2305.10425"
        ),
        Preset(
            "online-dpo",
            {"dpr": {"weight": 1.0, "coefficient": 0.0}},
            {"oracle_label": "argmax"},
            "a fresh pair and an oracle label every step (OAIF), arXiv 2402.04792",
        ),
        Preset(
            "iterative-dpo",
            {"dpr": {"weight": 1.0, "coefficient": 0.0}},
            {
                "samples_per_prompt": 8,
                "pairing": "best_worst",
                "oracle_label": "argmax",
                "refresh": "round",
                "ref_update": "never",
            },
            "once per round 8 answers per prompt, the best against the worst (RLHF Workflow), arXiv 2405.07863",
        ),
        Preset(
            "self-dpo",
            {"data": {"weight": 0.7}, "dpp": {"weight": 0.3, "coefficient": 0.0}},
            {"policy_label": "argmax"},
            "fresh pairs labelled by the implicit reward's argmax (as DICE, arXiv 2406.09760), beside the given pairs",
        ),
        Preset(
            "spin",
            {"spin": {"weight": 1.0}},
            {"refresh": "round", "ref_update": "round"},
            "the dataset's answer against that of the last round's policy, which is the reference, arXiv 2401.01335",
        ),
        Preset(
            "sail-ddp",
            {"data": {"weight": 0.6}, "ddp": {"weight": 0.4, "coefficient": 0.2}},
            about="SAIL-DDP with the paper's weight and coefficient, arXiv 2406.15567",
        ),
        Preset(
            "sail-dpp",
            {"data": {"weight": 0.7}, "dpp": {"weight": 0.3, "coefficient": 0.2}},
            about="SAIL-DPP with the paper's weight and coefficient, arXiv 2406.15567",
        ),
        Preset(
            "sail-dpr",
            {"data": {"weight": 0.7}, "dpr": {"weight": 0.3, "coefficient": 0.3}},
            about="SAIL-DPR with the paper's weight and coefficient, arXiv 2406.15567",
        ),
        Preset(
            "sail-mix",
            {
                "data": {"weight": 0.4},
                "ddp": {"weight": 0.2, "coefficient": 0.2},
                "dpp": {"weight": 0.2, "coefficient": 0.2},
                "dpr": {"weight": 0.2, "coefficient": 0.3},
            },
            about="all routes together; the weights are ours, the coefficients the paper's",
        ),
    )
}


def preset_of(name: str) -> Preset:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}. The presets are {', '.join(PRESETS)}.")
    return PRESETS[name]
