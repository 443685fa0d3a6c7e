"""Every rule refuses what it should, with a message that names the cause and the way out; every preset is allowed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import Any

import pytest

from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import PRESETS, Mixture, mixture_of
from sail.rules import RULES, Resources, apply_preset, check

HAVE = Resources(oracle=True, ref_model=True, pairs=True, prompts=False, oracle_may_abstain=False)
DATA = {"data": 1}
DPR = {"dpr": {"weight": 1, "coefficient": 1.0}}
DPP = {"dpp": {"weight": 1, "coefficient": 1.0}}
DDP = {"ddp": {"weight": 1, "coefficient": 1.0}}
ONLINE_DPO = {"dpr": {"weight": 1, "coefficient": 0.0}}


def checked(have: Resources = HAVE, **options: Any) -> Mixture:
    return check(AlignmentFields(**options), have)


def refusal(have: Resources = HAVE, **options: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        checked(have, **options)
    return str(refused.value)


def without(**resources: Any) -> Resources:
    return dataclasses.replace(HAVE, **resources)


# ---------------------------------------------------------------------------------------------------- single values


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"loss_type": "kto"}, "loss_type is one of sigmoid, ipo, hinge; it was given 'kto'."),
        ({"policy_label": "hard"}, "policy_label is one of soft, sampled, argmax; it was given 'hard'."),
        ({"oracle_label": None}, "oracle_label is one of soft, sampled, argmax; it was given None."),
        ({"baseline": "mean"}, "baseline is one of leave_one_out, none; it was given 'mean'."),
        (
            {"refresh": "round"},
            "refresh is one of step; it was given 'round'. Rounds and best_worst are still to come.",
        ),
        (
            {"pairing": "best_worst"},
            "pairing is one of two; it was given 'best_worst'. Rounds and best_worst are",
        ),
        (
            {"ref_update": "round"},
            "ref_update is one of never; it was given 'round'. Rounds and best_worst are",
        ),
        ({"beta": 0}, "beta must be a number above 0; it is 0."),
        ({"beta": "0.1"}, "beta must be a number above 0; it is '0.1'."),
        ({"beta": float("nan")}, "beta must be a number above 0; it is nan."),
        ({"temperature": 0.0}, "temperature must be a number above 0; it is 0.0."),
        ({"temperature": True}, "temperature must be a number above 0; it is True."),
        ({"kl_limit": -1}, "kl_limit must be a number above 0; it is -1."),
        ({"kl_policy_ref": -0.1}, "kl_policy_ref is a coefficient of at least 0; it is -0.1."),
        ({"kl_ref_policy": None}, "kl_ref_policy is a coefficient of at least 0; it is None."),
        ({"nll": float("inf")}, "nll is a coefficient of at least 0; it is inf."),
        ({"ask_share": 0}, "ask_share is a share of pairs above 0 and at most 1; it is 0."),
        ({"min_confidence": 1.0}, "min_confidence is a probability of at least 0.5 and below 1; it is 1.0."),
        ({"max_length": 0}, "max_length must be a whole number of at least 1; it is 0."),
        ({"max_prompt_length": -1}, "max_prompt_length must be a whole number of at least 1; it is -1."),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number of at least 1; it is 2.5."),
        (
            {"generation_batch_size": 0},
            "generation_batch_size must be a whole number of at least 1; it is 0.",
        ),
        (
            {"samples_per_prompt": 8},
            "pairing: two makes a pair of two samples, so samples_per_prompt must be 2; it is 8.",
        ),
        (
            {"round_steps": 10},
            "round_steps and ratio_clip belong to refresh: round, which is still to come. Remove them.",
        ),
        (
            {"ratio_clip": 2.0},
            "round_steps and ratio_clip belong to refresh: round, which is still to come. Remove them.",
        ),
        ({"eval_samples": -1}, "eval_samples is a number of prompts, 0 for none; it is -1."),
    ],
    ids=lambda value: "-".join(map(str, next(iter(value.items())))) if isinstance(value, dict) else "",
)
def test_value_out_of_range(options: dict[str, Any], cause: str) -> None:
    assert refusal(routes=DATA, **options).startswith(cause)


def test_range_errors_come_before_the_mixture() -> None:
    """A run with two mistakes is told the simple one first."""
    assert refusal(beta=-1).startswith("beta must be")
    assert refusal().startswith("No mixture: set preset")


# --------------------------------------------------------------------------------------------------------- rules

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
        "Prompt-only rows can only be used by on-policy routes.",
        "Add a dpp or dpr route, or remove data.prompts.",
    ),
    (
        "_kl_limit_has_estimate",
        {"routes": DATA, "kl_limit": 5.0},
        HAVE,
        "kl_limit needs an estimate of the KL, which needs responses of the policy.",
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
        "_replay_has_pairs",
        {"routes": {"data": 0.5, "replay": 0.5}},
        HAVE,
        "Route replay trains on pairs that dpr had labelled earlier in the run, and there is no dpr.",
        "Add a dpr route",
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


@pytest.mark.parametrize(
    ("rule", "options", "have", "cause", "way_out"),
    REFUSALS,
    ids=[f"{i}{case[0]}" for i, case in enumerate(REFUSALS)],
)
def test_rule_refuses(rule: str, options: dict[str, Any], have: Resources, cause: str, way_out: str) -> None:
    """The message is that of the named rule, and it alone objects: one mistake, one message."""
    message = refusal(have, **options)
    assert cause in message
    assert way_out in message
    mixture = mixture_alone(options)
    objecting = [one.__name__ for one in RULES if one(AlignmentFields(**options), mixture, have)]
    assert objecting == [rule]


def mixture_alone(options: dict[str, Any]) -> Mixture:

    return mixture_of(options.get("preset"), options.get("routes"))


def test_every_rule_is_tested() -> None:
    assert {rule.__name__ for rule in RULES} == {case[0] for case in REFUSALS}


@pytest.mark.parametrize(
    ("options", "have"),
    [
        ({"routes": DATA, "disable_dropout": False}, without(oracle=False, ref_model=False)),
        (
            {"routes": ONLINE_DPO, "disable_dropout": False, "baseline": "none", "oracle_label": "argmax"},
            HAVE,
        ),
        ({"routes": DPR, "baseline": "none"}, HAVE),
        ({"routes": ONLINE_DPO, "ask_share": 0.5}, HAVE),
        ({"routes": {"dpr": 0.4, "replay": 0.6}}, HAVE),
        ({"routes": DDP, "min_confidence": 0.7}, HAVE),
        ({"routes": DPR, "baseline": "none"}, without(oracle_may_abstain=None)),
        ({"routes": DPR}, without(oracle_may_abstain=True)),
        ({"routes": DPP, "baseline": "none"}, without(oracle=False, pairs=False, prompts=True)),
        ({"routes": {"data": 0.5, "dpp": {"weight": 0.5, "coefficient": 1}}}, without(ref_model=False)),
        ({"routes": {"dpp": 1}, "policy_label": "argmax"}, HAVE),
        ({"routes": {"ddp": 1}, "loss_type": "ipo"}, HAVE),
        ({"routes": DPR, "temperature": 0.7}, HAVE),
        ({"routes": DPR, "kl_policy_ref": 0.1, "kl_limit": 5.0}, HAVE),
        ({"routes": DATA, "kl_limit": 5.0, "eval_samples": 8}, HAVE),
        ({"routes": DATA, "kl_ref_policy": 0.1, "data_from_reference": True, "nll": 0.001}, HAVE),
        ({"routes": DPR, "max_prompt_length": 768, "max_new_tokens": 256}, HAVE),
        ({"routes": DATA, "max_prompt_length": 4096}, HAVE),
        ({"routes": DPR}, Resources(oracle=True, ref_model=False)),
    ],
)
def test_just_inside_is_allowed(options: dict[str, Any], have: Resources) -> None:
    """The neighbour of each refusal passes: a rule refuses no more than it says."""
    checked(have, **options)


# -------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_allowed(name: str) -> None:
    """With an oracle where it needs one, and no reference but the start."""
    options = AlignmentFields(preset=name)
    for key, value in apply_preset(options).items():
        setattr(options, key, value)
    oracle = name in ("online-dpo", "sail-dpr", "sail-mix")
    mixture = check(options, Resources(oracle=oracle, ref_model=False, pairs=True, oracle_may_abstain=oracle))
    assert mixture.needs_oracle == oracle


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("ipo", {"loss_type": "ipo"}),
        ("slic", {"loss_type": "hinge"}),
        ("online-dpo", {"oracle_label": "argmax"}),
        ("self-dpo", {"policy_label": "argmax"}),
        ("sail-mix", {}),
    ],
)
def test_preset_fixes_its_options(name: str, fixed: dict[str, str]) -> None:
    assert apply_preset(AlignmentFields(preset=name)) == fixed


def test_no_preset_fixes_nothing() -> None:
    assert apply_preset(AlignmentFields(routes=DATA, loss_type="hinge")) == {}


def test_what_the_user_wrote_is_never_overwritten() -> None:
    """A conflict is refused with the routes to write out; the default counts as written only where that is known."""
    with pytest.raises(ConfigError) as refused:
        apply_preset(AlignmentFields(preset="ipo", loss_type="hinge"))
    assert str(refused.value) == (
        "Preset ipo is defined with loss_type: ipo, but loss_type: hinge was given. Remove loss_type, or drop the preset and "
        "write its routes out (data: {'weight': 1.0})."
    )
    with pytest.raises(ConfigError, match="loss_type: sigmoid was given"):
        apply_preset(AlignmentFields(preset="ipo"), written=frozenset({"loss_type"}))
    assert apply_preset(AlignmentFields(preset="ipo", loss_type="hinge"), written=frozenset()) == {
        "loss_type": "ipo"
    }
    assert apply_preset(AlignmentFields(preset="ipo", loss_type="ipo"), written=frozenset({"loss_type"}))


def test_defaults_are_the_clean_ones() -> None:
    """Soft labels, leave-one-out, temperature 1, no dropout: what the proofs say is exact."""
    options = AlignmentFields()
    assert (options.policy_label, options.oracle_label) == ("soft", "soft")
    assert (options.baseline, options.temperature, options.disable_dropout) == ("leave_one_out", 1.0, True)


def test_every_option_is_explained_and_its_default_allowed() -> None:
    for field in dataclasses.fields(AlignmentFields):
        assert len(field.metadata["help"]) > 20, field.name
        if field.metadata.get("choices"):
            assert field.default in field.metadata["choices"]


def test_check_either_returns_or_refuses() -> None:
    """No other exception over the product of routes, coefficients, labels and resources."""
    weights = [{name: 1} for name in ("data", "ddp", "dpp", "dpr")] + [
        {"data": 0.5, "dpp": 0.5},
        {"ddp": 0.5, "dpr": 0.5},
    ]
    for routes, coefficient, label, flag in itertools.product(
        weights, (0.0, 1.0), ("soft", "argmax"), (True, False)
    ):
        described = {
            name: {"weight": weight, **({"coefficient": coefficient} if name != "data" else {})}
            for name, weight in routes.items()
        }
        options = AlignmentFields(
            routes=described, policy_label=label, oracle_label=label, baseline="none", nll=0.1 * flag
        )
        for have in itertools.product((True, False), (True, False), (None, True, False), (None, True, False)):
            with contextlib.suppress(ConfigError):
                assert {share.route.name for share in check(options, Resources(*have)).shares} == set(routes)
