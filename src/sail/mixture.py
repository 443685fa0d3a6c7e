"""Routes and mixtures: a composition is a row of a table, never a branch in the code.

A route says where the two responses and the label of an example come from. A run is a mixture of routes whose
weights sum to 1. As (first, second, label): DPO = (dataset, dataset, dataset), DDP = (dataset, dataset, policy),
DPP = (policy, policy, policy), DPR = (policy, policy, oracle).
"DDP" is SAIL's name for "dataset prompt, dataset response, policy label"; it never means data parallel here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sail.errors import ConfigError
from sail.presets import PRESETS, preset_of

Source = Literal["dataset", "policy", "memory"]
Labeller = Literal["dataset", "policy", "oracle", "memory"]


@dataclass(frozen=True)
class Route:
    """One composition: who wrote the first and the second response, and who labels the pair."""

    name: str
    first: Source
    second: Source
    label: Labeller
    about: str

    @property
    def on_policy(self) -> bool:
        """Whether responses must be sampled for it."""
        return "policy" in (self.first, self.second)

    @property
    def needs_pairs(self) -> bool:
        """Whether its rows need the dataset's responses."""
        return "dataset" in (self.first, self.second)

    @property
    def from_dataset(self) -> bool:
        """Whether both responses are the dataset's."""
        return self.first == self.second == "dataset"

    def samples(self, per_prompt: int) -> int:
        """Responses sampled for one row: `per_prompt` where the policy writes both, one where it writes one."""
        return (0, 1, per_prompt)[(self.first, self.second).count("policy")]

    @property
    def has_score_term(self) -> bool:
        """T1 exists where the policy wrote both responses."""
        return self.first == self.second == "policy"

    @property
    def has_label_term(self) -> bool:
        """T3 exists where the policy gave the label."""
        return self.label == "policy"


ROUTES = {
    route.name: route
    for route in (
        Route("data", "dataset", "dataset", "dataset", "offline DPO on the given pairs"),
        Route(
            "ddp",
            "dataset",
            "dataset",
            "policy",
            "dataset pairs, labelled by the policy's own implicit reward",
        ),
        Route(
            "dpp", "policy", "policy", "policy", "fresh pairs, labelled by the policy's own implicit reward"
        ),
        Route("dpr", "policy", "policy", "oracle", "fresh pairs, labelled by an oracle"),
        Route(
            "spin", "dataset", "policy", "dataset", "the dataset's answer, which wins, against the policy's"
        ),
        Route(
            "replay",
            "memory",
            "memory",
            "memory",
            "pairs that dpr had labelled earlier in the run, with that label, as offline pairs",
        ),
    )
}


@dataclass(frozen=True)
class Share:
    """A route with its weight in the mixture and the coefficient c of its corrections.

    With `final_weight` the weight goes linearly from `weight` at the first step to it at the last one.
    """

    route: Route
    weight: float
    coefficient: float = 0.0
    final_weight: float | None = None

    def weight_at(self, progress: float) -> float:
        """The weight when the share `progress` (0 to 1) of the steps is done."""
        return (
            self.weight
            if self.final_weight is None
            else self.weight + progress * (self.final_weight - self.weight)
        )


@dataclass(frozen=True)
class Mixture:
    """The routes of one run, in table order; weights sum to 1."""

    shares: tuple[Share, ...]

    @property
    def on_policy(self) -> tuple[Share, ...]:
        """The shares whose responses are sampled."""
        return tuple(share for share in self.shares if share.route.on_policy)

    @property
    def offline(self) -> tuple[Share, ...]:
        """The shares whose responses are both the dataset's."""
        return tuple(share for share in self.shares if share.route.from_dataset)

    @property
    def sampled(self) -> tuple[Share, ...]:
        """The shares whose responses are both drawn from the policy: what its KL can be estimated from."""
        return tuple(share for share in self.shares if share.route.has_score_term)

    @property
    def with_pairs(self) -> tuple[Share, ...]:
        """The shares that use some response of the dataset."""
        return tuple(share for share in self.shares if share.route.needs_pairs)

    @property
    def without_pairs(self) -> tuple[Share, ...]:
        """The shares that a row with a prompt only can take."""
        return tuple(share for share in self.shares if not share.route.needs_pairs)

    @property
    def replays(self) -> bool:
        """Whether labelled pairs are remembered and trained on again."""
        return any(share.route.label == "memory" for share in self.shares)

    def at(self, progress: float) -> Mixture:
        """The mixture when the share `progress` (0 to 1) of the steps is done; weights sum to 1 at any time."""
        if all(share.final_weight is None for share in self.shares):
            return self
        return Mixture(
            tuple(
                replace(share, weight=share.weight_at(progress), final_weight=None) for share in self.shares
            )
        )

    def mean_weight(self, share: Share) -> float:
        """The weight of a share, averaged over the run."""
        return share.weight_at(0.5)

    @property
    def needs_oracle(self) -> bool:
        """Whether some route is labelled by an oracle."""
        return any(share.route.label == "oracle" for share in self.shares)

    @property
    def corrected(self) -> bool:
        """Whether some route carries a correction (c > 0)."""
        return any(share.coefficient > 0 for share in self.shares)

    @property
    def only_self_labels(self) -> bool:
        """Whether no label comes from outside the policy."""
        return all(share.route.label == "policy" for share in self.shares)

    def _bare_weight(self) -> float:
        return sum(share.weight for share in self.without_pairs)

    def draw(self, uniform: float, *, has_pair: bool, prompt_only_share: float = 0.0) -> Share:
        """The share of one row, from its own uniform number in [0, 1).

        A prompt-only row can only take a route that needs no dataset pair; a row with a pair takes correspondingly fewer
        of them, so that the realised mixture keeps its weights:  P(no pair needed | pair) = (W - s) / (1 - s), W the weight
        of these routes, s the share of prompt-only rows in the dataset (`check_prompt_share` refuses s > W).
        """
        bare = self._bare_weight()
        if not has_pair or not self.with_pairs:
            return _pick(self.without_pairs, uniform * bare)
        if prompt_only_share == 0.0:
            return _pick(self.shares, uniform * sum(share.weight for share in self.shares))
        chance = (bare - prompt_only_share) / (1.0 - prompt_only_share)
        if uniform < chance:
            return _pick(self.without_pairs, uniform / chance * bare)
        return _pick(self.with_pairs, (uniform - chance) / (1.0 - chance) * (1.0 - bare))

    def check_prompt_share(self, prompt_only: int, total: int) -> float:
        """The share of prompt-only rows; refuses one that the weights cannot realise."""
        share = prompt_only / total if total else 0.0
        bare = min(self.at(progress)._bare_weight() for progress in (0.0, 1.0))
        if share > bare + 1e-9:
            raise ConfigError(
                f"{prompt_only} of {total} training rows have a prompt only ({share:.0%}), but the routes that need no pair "
                f"weigh {bare:.2f} together, so those weights cannot be realised. Raise the weight of dpp or dpr to at least "
                f"{math.ceil(share * 100) / 100:.2f}, or give fewer prompt-only rows."
            )
        return min(share, bare)


def _pick(shares: Sequence[Share], point: float) -> Share:
    """The share in whose interval of the cumulated weights `point` lies."""
    for share in shares[:-1]:
        if point < share.weight:
            return share
        point -= share.weight
    return shares[-1]


def mixture_of(preset: str | None, routes: Mapping[str, Any] | str | None) -> Mixture:
    """The mixture that `preset` or `routes` describes; ConfigError with the way out if it is none."""
    if preset is not None and routes is not None:
        raise ConfigError(
            "preset and routes were both given. Keep one: the preset, or the routes with their weights."
        )
    if preset is None and routes is None:
        raise ConfigError(
            f"No mixture: set preset to one of {', '.join(PRESETS)}, or give routes with their weights."
        )
    if preset is not None:
        routes = preset_of(preset).routes
    if isinstance(routes, str):
        routes = _from_json(routes)
    return _parse_routes(routes or {})


def _from_json(routes: str) -> Mapping[str, Any]:
    """Routes as a command line gives them."""
    try:
        parsed = json.loads(routes)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigError(
            f'Routes are a mapping, or one as JSON: {{"data": {{"weight": 0.7}}, "dpr": {{"weight": 0.3}}}}; got {routes!r}.'
        )
    return parsed


def _parse_routes(routes: Mapping[str, Any]) -> Mixture:
    unknown = [name for name in routes if name not in ROUTES]
    if unknown:
        raise ConfigError(f"There is no route {unknown[0]!r}. The routes are {', '.join(ROUTES)}.")
    shares = []
    for name, route in ROUTES.items():
        if name not in routes:
            continue
        share = _parse_share(route, routes[name])
        if share is not None:
            shares.append(share)
    first = _summed_to_one(shares, 0.0, "weights", "data" not in routes)
    last = _summed_to_one(shares, 1.0, "final weights", False)
    # Weights written with few digits (1/3) miss 1 by a little: what is drawn from sums to 1 exactly.
    return Mixture(
        tuple(
            replace(
                share,
                weight=share.weight / first,
                final_weight=None if share.final_weight is None else share.final_weight / last,
            )
            for share in shares
        )
    )


def _summed_to_one(shares: Sequence[Share], progress: float, what: str, hint_at_data: bool) -> float:
    """The sum of the weights at the beginning or the end of the run, if it is 1 up to rounding."""
    total = sum(share.weight_at(progress) for share in shares)
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        given = ", ".join(f"{share.route.name} {share.weight_at(progress):g}" for share in shares) or "none"
        hint = ""
        if total < 1 and hint_at_data:
            hint = f" For the rest from the dataset, add data: {{weight: {1 - total:g}}}."
        raise ConfigError(f"The {what} of the routes sum to {total:g}, not to 1 (given: {given}).{hint}")
    return total


def _parse_share(route: Route, entry: Any) -> Share | None:
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        entry = {"weight": entry}
    keys = {"weight", "coefficient", "final_weight"}
    if not isinstance(entry, Mapping) or "weight" not in entry or set(entry) - keys:
        raise ConfigError(
            f"Route {route.name} is described by weight and coefficient, for example {{weight: 0.3, coefficient: 0.3}}, and, "
            f"if its weight is to change during the run, final_weight; it was given {entry!r}."
        )
    weight, coefficient = (
        _number(route, entry, "weight"),
        _number(route, {"coefficient": 0.0, **entry}, "coefficient"),
    )
    final = _number(route, entry, "final_weight") if entry.get("final_weight") is not None else None
    for value, what in ((weight, "weight"), (final, "final_weight")):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ConfigError(f"The {what} of route {route.name} must lie in [0, 1]; it is {value:g}.")
    if coefficient < 0.0:
        raise ConfigError(
            f"The coefficient of route {route.name} is {coefficient:g}; a negative one would descend what it should climb. "
            "Use 0 (no correction) to 1 (the exact gradient)."
        )
    if coefficient > 0.0 and route.needs_pairs and route.on_policy:
        raise ConfigError(
            f"Route {route.name} has no correction: its sampled answer stands for an opponent that is held fixed. "
            f"Remove its coefficient ({coefficient:g})."
        )
    if coefficient > 0.0 and not (route.has_score_term or route.has_label_term):
        raise ConfigError(
            f"Route {route.name} has no correction: neither its responses nor its labels come from the policy. "
            f"Remove its coefficient ({coefficient:g})."
        )
    if weight == 0.0 and not final:
        if coefficient > 0.0:
            raise ConfigError(
                f"Route {route.name} has a coefficient ({coefficient:g}) but weight 0, so it is absent. "
                "Give it a weight or remove it."
            )
        return None
    return Share(route, weight, coefficient, final)


def _number(route: Route, entry: Mapping[str, Any], key: str) -> float:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"The {key} of route {route.name} must be a number; it is {value!r}.")
    return float(value)
