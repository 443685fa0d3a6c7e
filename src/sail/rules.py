"""Which combinations of options are refused, and what to do instead. Runs when a run file loads, before any
model does, and again when a trainer is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import Mixture, mixture_of
from sail.presets import Preset, preset_of
from sail.rules_scale import scale_errors, vllm_fits


@dataclass(frozen=True)
class Resources:
    """What the run has beside its options. None means not known yet (a callable that is not imported, say)."""

    oracle: bool
    ref_model: bool
    pairs: bool | None = None
    prompts: bool | None = None
    oracle_may_abstain: bool | None = None
    oracle_scores: bool | None = None


def apply_preset(options: AlignmentFields, written: frozenset[str] | None = None) -> dict[str, Any]:
    """The options that the preset fixes, as a dict to set. What a user wrote is never overwritten: a conflict is refused.

    `written` names the options the user wrote; None means that this is unknown (a Python object), and then an option that
    differs from its default counts as written.
    """
    if options.preset is None:
        return {}
    preset = preset_of(options.preset)
    defaults = {field.name: field.default for field in fields(AlignmentFields)}
    for name, value in preset.fixed.items():
        given = getattr(options, name)
        is_written = given != defaults[name] if written is None else name in written
        if is_written and given != value:
            raise ConfigError(_preset_conflict(preset, name, value, given))
    return dict(preset.fixed)


def _preset_conflict(preset: Preset, name: str, value: Any, given: Any) -> str:
    routes = ", ".join(f"{route}: {dict(entry)}" for route, entry in preset.routes.items())
    return (
        f"Preset {preset.name} is defined with {name}: {value}, but {name}: {given} was given. Remove {name}, or drop the "
        f"preset and write its routes out ({routes})."
    )


def check(options: AlignmentFields, have: Resources) -> Mixture:
    """The mixture of a run whose options are allowed; ConfigError naming cause and way out otherwise."""
    for message in _range_errors(options):
        raise ConfigError(message)
    mixture = mixture_of(options.preset, options.routes)
    for rule in RULES:
        refusal = rule(options, mixture, have)
        if refusal:
            raise ConfigError(refusal)
    return mixture


def _range_errors(options: AlignmentFields) -> Iterator[str]:
    for field in fields(AlignmentFields):
        choices = field.metadata.get("choices")
        value = getattr(options, field.name)
        if choices and value not in choices:
            yield f"{field.name} is one of {', '.join(choices)}; it was given {value!r}."
    yield from scale_errors(options)
    for name in ("beta", "temperature", "kl_limit"):
        value = getattr(options, name)
        if not (_is_number(value) and value > 0) and not (value is None and name == "kl_limit"):
            yield f"{name} must be a number above 0; it is {value!r}."
    for name in ("kl_policy_ref", "kl_ref_policy", "nll"):
        value = getattr(options, name)
        if not (_is_number(value) and value >= 0):
            yield f"{name} is a coefficient of at least 0; it is {value!r}."
    for name in ("max_length", "max_prompt_length", "max_new_tokens", "generation_batch_size"):
        value = getattr(options, name)
        if not (_is_count(value) and value >= 1) and not (value is None and name == "generation_batch_size"):
            yield f"{name} must be a whole number of at least 1; it is {value!r}."
    if not (_is_number(options.ask_share) and 0 < options.ask_share <= 1):
        yield f"ask_share is a share of pairs above 0 and at most 1; it is {options.ask_share!r}."
    if not (_is_number(options.min_confidence) and 0.5 <= options.min_confidence < 1):
        yield f"min_confidence is a probability of at least 0.5 and below 1; it is {options.min_confidence!r}."
    if not _is_count(options.samples_per_prompt) or options.samples_per_prompt < 2:
        yield f"samples_per_prompt must be a whole number of at least 2, a pair; it is {options.samples_per_prompt!r}."
    if options.round_steps is not None and not (_is_count(options.round_steps) and options.round_steps >= 1):
        yield f"round_steps must be a whole number of at least 1, or null for one pass; it is {options.round_steps!r}."
    if options.ratio_clip is not None and not (_is_number(options.ratio_clip) and options.ratio_clip >= 1):
        yield f"ratio_clip must be a number of at least 1, the ratio of a fresh row, or null; it is {options.ratio_clip!r}."
    for name in ("eval_samples", "final_samples"):
        value = getattr(options, name)
        if not _is_count(value) or value < 0:
            yield f"{name} is a number of prompts, 0 for none; it is {value!r}."


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Rule = Callable[[AlignmentFields, Mixture, Resources], str | None]


def _oracle_present(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if mixture.needs_oracle and not have.oracle:
        return (
            "Route dpr needs an oracle; with the policy's own labels it is dpp. Add an oracle "
            "(oracle: {kind: function, path: reward.py:reward}) or use route dpp."
        )
    return None


def _self_labels_carry_signal(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.loss_type != "sigmoid" or options.policy_label == "argmax":
        return None
    for share in mixture.shares:
        if share.route.label == "policy" and share.coefficient == 0.0:
            what = (
                "gradient is exactly zero"
                if options.policy_label == "soft"
                else "expected gradient is zero, only noise remains"
            )
            return (
                f"Route {share.route.name} with {options.policy_label} self-labels, the sigmoid loss and no correction learns "
                f"nothing: its {what}. Give it a coefficient (the paper: 0.2) or set policy_label: argmax."
            )
    return None


def _argmax_has_no_label_term(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.policy_label != "argmax":
        return None
    for share in mixture.shares:
        if share.route.label == "policy" and share.coefficient > 0.0:
            return (
                f"Route {share.route.name} has coefficient {share.coefficient:g}, but policy_label: argmax is another objective "
                "that has no label correction (T3). Set policy_label: soft or sampled, or the coefficient to 0."
            )
    return None


def _self_labels_need_a_start(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if mixture.only_self_labels and not have.ref_model:
        return (
            "Every route labels itself and the reference is the starting model, so the implicit reward is 0 for every pair "
            "and nothing can be learned from it. Add a data or dpr route, or give ref_model (the model before this one)."
        )
    return None


def _baseline_and_abstention(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    corrected = [share for share in mixture.sampled if share.coefficient > 0]
    if options.baseline != "none" or not any(share.route.label == "oracle" for share in corrected):
        return None
    if options.oracle_label == "argmax" or have.oracle_may_abstain:
        why = "argmax abstains on ties" if options.oracle_label == "argmax" else "this oracle may abstain"
        return (
            f"baseline: none cannot be used when labels may be missing ({why}): F is at most 0, so an abstention would be the "
            "best outcome a response can have. Use baseline: leave_one_out."
        )
    return None


def _no_dropout(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if not options.disable_dropout and (mixture.corrected or options.kl_policy_ref > 0):
        return (
            "disable_dropout: false cannot be used with corrections or kl_policy_ref: the responses were sampled without "
            "dropout, so they must be scored without it. Set disable_dropout: true or all coefficients to 0."
        )
    return None


def _penalties_have_samples(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.kl_policy_ref > 0 and not mixture.sampled:
        return "kl_policy_ref needs responses of the policy. Add a dpp or dpr route, or set it to 0."
    if options.kl_policy_ref > 0 and options.temperature != 1.0:
        return (
            f"kl_policy_ref is estimated from samples at temperature 1, but temperature is {options.temperature:g}. "
            "Set temperature: 1 or kl_policy_ref: 0."
        )
    if options.kl_ref_policy > 0 and not (options.data_from_reference and mixture.offline):
        return (
            "kl_ref_policy needs responses sampled from the reference; on the policy's own responses its expected gradient is "
            "zero. If the dataset's responses were sampled from the reference, say so with data_from_reference: true and use a "
            "data or ddp route; otherwise set kl_ref_policy: 0, or use kl_policy_ref."
        )
    if options.nll > 0 and not mixture.offline:
        return "nll needs dataset responses. Add a data or ddp route, or set nll: 0."
    return None


def _lengths_fit(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    needed = options.max_prompt_length + options.max_new_tokens
    if mixture.on_policy and needed > options.max_length:
        return (
            f"max_prompt_length {options.max_prompt_length} + max_new_tokens {options.max_new_tokens} = {needed} is above "
            f"max_length {options.max_length}, and a sampled response is never cut after sampling. Raise max_length to {needed} "
            "or lower the others."
        )
    return None


def _data_present(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if have.pairs is False and mixture.with_pairs:
        names = " and ".join(share.route.name for share in mixture.with_pairs)
        return (
            f"Route {names} needs preference pairs, but only prompts were given. Add data.train with pairs, or use dpp and "
            "dpr only."
        )
    if have.prompts and not mixture.without_pairs:
        return (
            "Prompt-only rows can only be used by routes whose responses are all sampled. Add a dpp or dpr route, or remove "
            "data.prompts."
        )
    return None


def _kl_limit_has_estimate(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.kl_limit is None:
        return None
    if options.temperature != 1.0:
        return (
            f"kl_limit needs an estimate of the KL, which needs samples at temperature 1, but temperature is "
            f"{options.temperature:g}. Set temperature: 1 or remove kl_limit."
        )
    if options.eval_samples == 0 and not kl_is_logged(options, mixture):
        return (
            "kl_limit needs an estimate of the KL, which needs responses drawn from the policy, all of them, and a reference "
            "that stays. Set eval_samples (held-out prompts to answer at each evaluation) and eval_strategy, or use route dpp or "
            "dpr with pairing: two and ref_update: never."
        )
    return None


def kl_is_logged(options: AlignmentFields, mixture: Mixture) -> bool:
    """Whether training rows give an estimate of KL(policy || reference): both responses are the policy's own, not chosen among
    more, and the reference is not replaced by the policy that sampled them."""
    fresh = options.pairing == "two" and not options.vllm_importance_sampling_correction
    return bool(mixture.sampled) and fresh and options.ref_update == "never"


def _samples_make_a_pair(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    count = options.samples_per_prompt
    if options.pairing == "two" and count != 2:
        return (
            f"pairing: two makes a pair of two samples, but samples_per_prompt is {count}. Set samples_per_prompt: 2, or "
            "pairing: best_worst."
        )
    if options.pairing == "best_worst" and count < 3:
        return (
            "pairing: best_worst chooses among more than two samples, but samples_per_prompt is 2. Set samples_per_prompt to 3 "
            "or more (RLHF Workflow: 8), or pairing: two."
        )
    return None


def _best_worst_fits(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.pairing != "best_worst" or options.samples_per_prompt < 3:
        return None
    if not any(share.route.label == "oracle" for share in mixture.sampled):
        return (
            "pairing: best_worst lets an oracle choose among samples, and no route has both. Add a dpr route, or use pairing: "
            "two with samples_per_prompt: 2."
        )
    for share in mixture.sampled:
        if share.route.label != "oracle":
            return (
                f"pairing: best_worst needs an oracle's scores, and route {share.route.name} is labelled by the policy itself. "
                "Use dpr in its place, or pairing: two with samples_per_prompt: 2."
            )
        if share.coefficient > 0:
            return (
                f"pairing: best_worst cannot be used with a coefficient of route {share.route.name} ({share.coefficient:g}): the "
                "best and the worst sample are not drawn independently from the policy, which the correction T1 assumes. Set the "
                "coefficient to 0, or pairing: two with samples_per_prompt: 2."
            )
    if have.oracle_scores is False:
        return (
            "pairing: best_worst needs an oracle that scores single responses, and this one only compares two. Give it the form "
            "reward(prompts, responses), or use pairing: two with samples_per_prompt: 2."
        )
    if options.kl_policy_ref > 0:
        return (
            "kl_policy_ref is estimated from samples as they are drawn, and pairing: best_worst keeps the extreme ones. Set "
            "kl_policy_ref: 0, or pairing: two with samples_per_prompt: 2."
        )
    return None


def _rounds_have_use(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.refresh == "round":
        if not mixture.on_policy:
            return (
                "refresh: round says when responses are sampled, and no route samples any. Add a dpp, dpr or spin route, or use "
                "refresh: step."
            )
        return None
    if options.ref_update == "round":
        return (
            "ref_update: round replaces the reference at the start of each round, and there are none. Set refresh: round (and "
            "round_steps), or ref_update: never."
        )
    if options.round_steps is not None:
        return "round_steps is the length of a round, and there are none. Set refresh: round, or remove round_steps."
    return None


def _ratio_has_use(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.ratio_clip is None:
        return None
    stale = options.refresh == "round" and options.round_steps != 1
    stale = stale or options.vllm_importance_sampling_correction
    if not stale or not (mixture.corrected or options.kl_policy_ref > 0):
        return (
            "ratio_clip limits the importance ratios of stale rows, and there are none: they need refresh: round with rounds of "
            "more than one step, and a coefficient or kl_policy_ref above 0. Remove ratio_clip, or set those."
        )
    return None


def _moving_reference_fits(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.ref_update == "round" and options.kl_ref_policy > 0:
        return (
            "kl_ref_policy needs responses sampled from the reference, and ref_update: round makes it another one than the "
            "dataset's. Set ref_update: never or kl_ref_policy: 0."
        )
    return None


def _replay_has_pairs(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if mixture.replays and not mixture.needs_oracle:
        return (
            "Route replay trains on pairs that dpr had labelled earlier in the run, and there is no dpr. Add a dpr route, or use "
            "data for the pairs of the dataset."
        )
    return None


def _selection_fits(options: AlignmentFields, mixture: Mixture, have: Resources) -> str | None:
    if options.ask_share < 1:
        asked = [share for share in mixture.shares if share.route.label == "oracle"]
        if not asked:
            return "ask_share chooses pairs for the oracle, and no route asks one. Remove it, or add a dpr route."
        if any(share.coefficient > 0 for share in asked):
            return (
                "ask_share below 1 cannot be used with a coefficient of dpr: chosen pairs are not simply drawn from the policy, "
                "which its correction (T1) assumes. Set the coefficient of dpr to 0, or ask_share: 1."
            )
        if options.refresh == "round" or options.pairing == "best_worst":
            return (
                "ask_share below 1 chooses among the fresh pairs of a step, which neither refresh: round nor pairing: best_worst "
                "has before the oracle is asked. Set ask_share: 1, or refresh: step and pairing: two."
            )
    scored = any(
        share.route.has_score_term and share.coefficient > 0
        for share in mixture.shares
        if share.route.label == "policy"
    )
    if options.min_confidence > 0.5 and options.baseline == "none" and scored:
        return (
            "min_confidence cannot be used with baseline: none and a coefficient of dpp: F is at most 0, so a pair that is left "
            "out would be the best outcome a response can have, and the policy would learn to doubt. Use baseline: leave_one_out."
        )
    if options.min_confidence > 0.5 and not any(share.route.label == "policy" for share in mixture.shares):
        return "min_confidence concerns the policy's own labels, and no route has them. Remove it, or add ddp or dpp."
    return None


RULES: tuple[Rule, ...] = (
    _oracle_present,
    _self_labels_carry_signal,
    _argmax_has_no_label_term,
    _self_labels_need_a_start,
    _baseline_and_abstention,
    _no_dropout,
    _penalties_have_samples,
    _lengths_fit,
    _data_present,
    _kl_limit_has_estimate,
    _replay_has_pairs,
    _selection_fits,
    _samples_make_a_pair,
    _best_worst_fits,
    _rounds_have_use,
    _ratio_has_use,
    vllm_fits,
    _moving_reference_fits,
)
