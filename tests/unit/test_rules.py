"""Every rule refuses what it should, with a message that names the cause and the way out; every preset is allowed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import Any

import pytest
from refusals import BEST, DATA, DDP, DPP, DPR, HAVE, ONLINE_DPO, REFUSALS, without

from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import PRESETS, Mixture, mixture_of
from sail.rules import RULES, Resources, apply_preset, check


def checked(have: Resources = HAVE, **options: Any) -> Mixture:
    return check(AlignmentFields(**options), have)


def refusal(have: Resources = HAVE, **options: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        checked(have, **options)
    return str(refused.value)


# ---------------------------------------------------------------------------------------------------- single values


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"loss_type": "kto"}, "loss_type is one of sigmoid, ipo, hinge; it was given 'kto'."),
        ({"policy_label": "hard"}, "policy_label is one of soft, sampled, argmax; it was given 'hard'."),
        ({"oracle_label": None}, "oracle_label is one of soft, sampled, argmax; it was given None."),
        ({"baseline": "mean"}, "baseline is one of leave_one_out, none; it was given 'mean'."),
        ({"refresh": "epoch"}, "refresh is one of step, round; it was given 'epoch'."),
        ({"pairing": "best"}, "pairing is one of two, best_worst; it was given 'best'."),
        ({"ref_update": "step"}, "ref_update is one of never, round; it was given 'step'."),
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
            {"samples_per_prompt": 1},
            "samples_per_prompt must be a whole number of at least 2, a pair; it is 1.",
        ),
        ({"samples_per_prompt": 2.0}, "samples_per_prompt must be a whole number of at least 2"),
        (
            {"round_steps": 0},
            "round_steps must be a whole number of at least 1, or null for one pass; it is 0.",
        ),
        (
            {"ratio_clip": 0.9},
            "ratio_clip must be a number of at least 1, the ratio of a fresh row, or null; it is 0.9.",
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
        ({"routes": DPR, "refresh": "round"}, HAVE),
        ({"routes": DPR, "refresh": "round", "round_steps": 2, "ratio_clip": 1.0, "temperature": 0.7}, HAVE),
        ({"routes": ONLINE_DPO, "refresh": "round", "kl_policy_ref": 0.1, "ratio_clip": 2.0}, HAVE),
        ({"routes": {"spin": 1}}, without(oracle=False, ref_model=False)),
        ({"routes": {"spin": 0.5, "dpr": 0.5}, **BEST}, without(oracle_scores=True, prompts=True)),
        ({"routes": {"data": 0.5, "dpr": 0.5}, "kl_limit": 5.0, "eval_samples": 8, **BEST}, HAVE),
        (
            {"routes": DPR, "refresh": "round", "ref_update": "round", "kl_limit": 5.0, "eval_samples": 8},
            HAVE,
        ),
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
    oracle = name in ("online-dpo", "iterative-dpo", "sail-dpr", "sail-mix")
    mixture = check(options, Resources(oracle=oracle, ref_model=False, pairs=True, oracle_may_abstain=oracle))
    assert mixture.needs_oracle == oracle


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("ipo", {"loss_type": "ipo"}),
        ("slic", {"loss_type": "hinge"}),
        ("online-dpo", {"oracle_label": "argmax"}),
        (
            "iterative-dpo",
            {
                "samples_per_prompt": 8,
                "pairing": "best_worst",
                "oracle_label": "argmax",
                "refresh": "round",
                "ref_update": "never",
            },
        ),
        ("spin", {"refresh": "round", "ref_update": "round"}),
        ("self-dpo", {"policy_label": "argmax"}),
        ("sail-mix", {}),
    ],
)
def test_preset_fixes_its_options(name: str, fixed: dict[str, Any]) -> None:
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
