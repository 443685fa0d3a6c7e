"""Combinations that each rule refuses, and what its message must say: the table of unit/test_rules.py."""

from __future__ import annotations

import dataclasses
from typing import Any

from sail.rules import Resources

HAVE = Resources(oracle=True, ref_model=True, pairs=True, prompts=False, oracle_may_abstain=False)
DATA = {"data": 1}
DPR = {"dpr": {"weight": 1, "coefficient": 1.0}}
DPP = {"dpp": {"weight": 1, "coefficient": 1.0}}
DDP = {"ddp": {"weight": 1, "coefficient": 1.0}}
ONLINE_DPO = {"dpr": {"weight": 1, "coefficient": 0.0}}
BEST = {"pairing": "best_worst", "samples_per_prompt": 4}


def without(**resources: Any) -> Resources:
    return dataclasses.replace(HAVE, **resources)


REFUSALS: list[tuple[str, dict[str, Any], Resources, str, str]] = [
    (
        "_oracle_present",
        {"routes": DPR},
        without(oracle=False),
        "Route dpr needs an oracle; with the policy's own labels it is dpp.",
        "Add an oracle (oracle: {kind: function, path: reward.py:reward}) or use route dpp.",
    ),
    (
        "_self_labels_carry_signal",
        {"routes": {"ddp": {"weight": 1, "coefficient": 0.0}}},
        HAVE,
        "Route ddp with soft self-labels, the sigmoid loss and no correction learns nothing: its gradient is exactly zero.",
        "Give it a coefficient (the paper: 0.2) or set policy_label: argmax.",
    ),
    (
        "_self_labels_carry_signal",
        {"routes": {"data": 0.7, "dpp": 0.3}, "policy_label": "sampled"},
        HAVE,
        "Route dpp with sampled self-labels, the sigmoid loss and no correction learns nothing: its expected gradient is zero",
        "Give it a coefficient",
    ),
    (
        "_argmax_has_no_label_term",
        {"routes": DPP, "policy_label": "argmax"},
        HAVE,
        "Route dpp has coefficient 1, but policy_label: argmax is another objective that has no label correction (T3).",
        "Set policy_label: soft or sampled, or the coefficient to 0.",
    ),
    (
        "_argmax_has_no_label_term",
        {"routes": DDP, "policy_label": "argmax", "loss_type": "hinge"},
        HAVE,
        "Route ddp has coefficient 1, but policy_label: argmax",
        "or the coefficient to 0",
    ),
    (
        "_self_labels_need_a_start",
        {"routes": {"ddp": {"weight": 0.5, "coefficient": 1}, "dpp": {"weight": 0.5, "coefficient": 1}}},
        without(ref_model=False),
        "Every route labels itself and the reference is the starting model, so the implicit reward is 0 for every pair",
        "Add a data or dpr route, or give ref_model (the model before this one).",
    ),
    (
        "_baseline_and_abstention",
        {"routes": DPR, "baseline": "none", "oracle_label": "argmax"},
        HAVE,
        "baseline: none cannot be used when labels may be missing (argmax abstains on ties)",
        "Use baseline: leave_one_out.",
    ),
    (
        "_baseline_and_abstention",
        {"routes": DPR, "baseline": "none"},
        without(oracle_may_abstain=True),
        "baseline: none cannot be used when labels may be missing (this oracle may abstain)",
        "Use baseline: leave_one_out.",
    ),
    (
        "_no_dropout",
        {"routes": DPR, "disable_dropout": False},
        HAVE,
        "disable_dropout: false cannot be used with corrections or kl_policy_ref",
        "Set disable_dropout: true or all coefficients to 0.",
    ),
    (
        "_no_dropout",
        {"routes": ONLINE_DPO, "disable_dropout": False, "kl_policy_ref": 0.1},
        HAVE,
        "disable_dropout: false cannot be used with corrections or kl_policy_ref",
        "Set disable_dropout: true",
    ),
    (
        "_penalties_have_samples",
        {"routes": DATA, "kl_policy_ref": 0.1},
        HAVE,
        "kl_policy_ref needs responses of the policy.",
        "Add a dpp or dpr route, or set it to 0.",
    ),
    (
        "_penalties_have_samples",
        {"routes": DPR, "kl_policy_ref": 0.1, "temperature": 0.7},
        HAVE,
        "kl_policy_ref is estimated from samples at temperature 1, but temperature is 0.7.",
        "Set temperature: 1 or kl_policy_ref: 0.",
    ),
    (
        "_penalties_have_samples",
        {"routes": DATA, "kl_ref_policy": 0.1},
        HAVE,
        "kl_ref_policy needs responses sampled from the reference;",
        "say so with data_from_reference: true and use a data or ddp route; otherwise set kl_ref_policy: 0",
    ),
    (
        "_penalties_have_samples",
        {"routes": DPR, "kl_ref_policy": 0.1, "data_from_reference": True},
        HAVE,
        "on the policy's own responses its expected gradient is zero",
        "use a data or ddp route",
    ),
    (
        "_penalties_have_samples",
        {"routes": DPR, "nll": 0.001},
        HAVE,
        "nll needs dataset responses.",
        "Add a data or ddp route, or set nll: 0.",
    ),
    (
        "_lengths_fit",
        {"routes": DPR, "max_prompt_length": 900, "max_new_tokens": 200},
        HAVE,
        "max_prompt_length 900 + max_new_tokens 200 = 1100 is above max_length 1024",
        "Raise max_length to 1100 or lower the others.",
    ),
    (
        "_data_present",
        {"routes": {"data": 0.5, "ddp": {"weight": 0.2, "coefficient": 1}, "dpr": 0.3}},
        without(pairs=False),
        "Route data and ddp needs preference pairs, but only prompts were given.",
        "Add data.train with pairs, or use dpp and dpr only.",
    ),
    (
        "_data_present",
        {"routes": DATA},
        without(prompts=True),
        "Prompt-only rows can only be used by routes whose responses are all sampled.",
        "Add a dpp or dpr route, or remove data.prompts.",
    ),
    (
        "_kl_limit_has_estimate",
        {"routes": DATA, "kl_limit": 5.0},
        HAVE,
        "kl_limit needs an estimate of the KL, which needs responses drawn from the policy, all of them",
        "Set eval_samples",
    ),
    (
        "_kl_limit_has_estimate",
        {"routes": DPR, "kl_limit": 5.0, "temperature": 0.7},
        HAVE,
        "kl_limit needs an estimate of the KL",
        "Set temperature: 1 or remove kl_limit.",
    ),
    (
        "_data_present",
        {"routes": {"spin": 1}},
        without(prompts=True),
        "Prompt-only rows can only be used by routes whose responses are all sampled.",
        "Add a dpp or dpr route, or remove data.prompts.",
    ),
    (
        "_data_present",
        {"routes": {"spin": 0.5, "dpr": 0.5}},
        without(pairs=False),
        "Route spin needs preference pairs, but only prompts were given.",
        "Add data.train with pairs",
    ),
    (
        "_penalties_have_samples",
        {"routes": {"spin": 1}, "kl_policy_ref": 0.1},
        HAVE,
        "kl_policy_ref needs responses of the policy.",
        "Add a dpp or dpr route",
    ),
    (
        "_penalties_have_samples",
        {"routes": {"spin": 1}, "nll": 0.1},
        HAVE,
        "nll needs dataset responses.",
        "Add a data or ddp route",
    ),
    (
        "_kl_limit_has_estimate",
        {"routes": {"spin": 1}, "kl_limit": 5.0},
        HAVE,
        "which needs responses drawn from the policy, all of them",
        "Set eval_samples",
    ),
    (
        "_kl_limit_has_estimate",
        {"routes": DPR, "refresh": "round", "ref_update": "round", "kl_limit": 5.0},
        HAVE,
        "and a reference that stays",
        "or use route dpp or dpr with pairing: two and ref_update: never.",
    ),
    (
        "_samples_make_a_pair",
        {"routes": DPR, "samples_per_prompt": 8},
        HAVE,
        "pairing: two makes a pair of two samples, but samples_per_prompt is 8.",
        "Set samples_per_prompt: 2, or pairing: best_worst.",
    ),
    (
        "_samples_make_a_pair",
        {"routes": ONLINE_DPO, "pairing": "best_worst"},
        HAVE,
        "pairing: best_worst chooses among more than two samples, but samples_per_prompt is 2.",
        "Set samples_per_prompt to 3 or more (RLHF Workflow: 8), or pairing: two.",
    ),
    (
        "_best_worst_fits",
        {"routes": DATA, **BEST},
        HAVE,
        "pairing: best_worst lets an oracle choose among samples, and no route has both.",
        "Add a dpr route, or use pairing: two with samples_per_prompt: 2.",
    ),
    (
        "_best_worst_fits",
        {"routes": {"dpr": 0.5, "dpp": {"weight": 0.5}}, "policy_label": "argmax", **BEST},
        HAVE,
        "pairing: best_worst needs an oracle's scores, and route dpp is labelled by the policy itself.",
        "Use dpr in its place, or pairing: two",
    ),
    (
        "_best_worst_fits",
        {"routes": DPR, **BEST},
        HAVE,
        "are not drawn independently from the policy, which the correction T1 assumes",
        "Set the coefficient to 0, or pairing: two",
    ),
    (
        "_best_worst_fits",
        {"routes": ONLINE_DPO, **BEST},
        without(oracle_scores=False),
        "pairing: best_worst needs an oracle that scores single responses, and this one only compares two.",
        "Give it the form reward(prompts, responses), or use pairing: two",
    ),
    (
        "_best_worst_fits",
        {"routes": ONLINE_DPO, "kl_policy_ref": 0.1, **BEST},
        HAVE,
        "kl_policy_ref is estimated from samples as they are drawn, and pairing: best_worst keeps the extreme ones.",
        "Set kl_policy_ref: 0, or pairing: two",
    ),
    (
        "_rounds_have_use",
        {"routes": DATA, "refresh": "round"},
        HAVE,
        "refresh: round says when responses are sampled, and no route samples any.",
        "Add a dpp, dpr or spin route, or use refresh: step.",
    ),
    (
        "_rounds_have_use",
        {"routes": DPR, "ref_update": "round"},
        HAVE,
        "ref_update: round replaces the reference at the start of each round, and there are none.",
        "Set refresh: round (and round_steps), or ref_update: never.",
    ),
    (
        "_rounds_have_use",
        {"routes": DPR, "round_steps": 10},
        HAVE,
        "round_steps is the length of a round, and there are none.",
        "Set refresh: round, or remove round_steps.",
    ),
    (
        "_ratio_has_use",
        {"routes": DPR, "ratio_clip": 2.0},
        HAVE,
        "ratio_clip limits the importance ratios of stale rows, and there are none",
        "Remove ratio_clip, or set those.",
    ),
    (
        "_ratio_has_use",
        {"routes": ONLINE_DPO, "refresh": "round", "round_steps": 4, "ratio_clip": 2.0},
        HAVE,
        "and a coefficient or kl_policy_ref above 0",
        "Remove ratio_clip",
    ),
    (
        "_ratio_has_use",
        {"routes": DPR, "refresh": "round", "round_steps": 1, "ratio_clip": 2.0},
        HAVE,
        "rounds of more than one step",
        "Remove ratio_clip",
    ),
    (
        "_moving_reference_fits",
        {
            "routes": {"data": 0.5, "dpr": 0.5},
            "refresh": "round",
            "ref_update": "round",
            "kl_ref_policy": 0.1,
            "data_from_reference": True,
        },
        HAVE,
        "kl_ref_policy needs responses sampled from the reference, and ref_update: round makes it another one",
        "Set ref_update: never or kl_ref_policy: 0.",
    ),
    (
        "_selection_fits",
        {"routes": ONLINE_DPO, "refresh": "round", "ask_share": 0.5},
        HAVE,
        "ask_share below 1 chooses among the fresh pairs of a step",
        "Set ask_share: 1, or refresh: step and pairing: two.",
    ),
    (
        "_selection_fits",
        {"routes": ONLINE_DPO, "ask_share": 0.5, **BEST},
        HAVE,
        "ask_share below 1 chooses among the fresh pairs of a step",
        "Set ask_share: 1, or refresh: step and pairing: two.",
    ),
    (
        "vllm_fits",
        {"routes": {"data": 1}, "use_vllm": True},
        HAVE,
        "use_vllm has nothing to do: no route samples responses.",
        "Remove it.",
    ),
    (
        "_replay_has_pairs",
        {"routes": {"data": 0.5, "replay": 0.5}},
        HAVE,
        "Route replay trains on pairs that dpr had labelled earlier in the run, and there is no dpr.",
        "Add a dpr route",
    ),
    (
        "_selection_fits",
        {
            "routes": {"data": 0.7, "dpp": {"weight": 0.3, "coefficient": 0.2}},
            "min_confidence": 0.6,
            "baseline": "none",
        },
        HAVE,
        "the policy would learn to doubt",
        "Use baseline: leave_one_out.",
    ),
    (
        "_selection_fits",
        {"routes": DATA, "ask_share": 0.5},
        HAVE,
        "ask_share chooses pairs for the oracle, and no route asks one.",
        "Remove it, or add a dpr route.",
    ),
    (
        "_selection_fits",
        {"routes": DPR, "ask_share": 0.5},
        HAVE,
        "chosen pairs are not simply drawn from the policy, which its correction (T1) assumes.",
        "Set the coefficient of dpr to 0, or ask_share: 1.",
    ),
    (
        "_selection_fits",
        {"routes": ONLINE_DPO, "min_confidence": 0.7},
        HAVE,
        "min_confidence concerns the policy's own labels, and no route has them.",
        "Remove it, or add ddp or dpp.",
    ),
]
