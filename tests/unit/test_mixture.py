"""The table of routes, the parsing of mixtures with every refusal, and the drawing of routes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sail.errors import ConfigError
from sail.mixture import PRESETS, ROUTES, Mixture, mixture_of, preset_of
from sail.seeds import uniform

MIX = {
    "data": {"weight": 0.4},
    "ddp": {"weight": 0.1, "coefficient": 0.2},
    "dpp": {"weight": 0.2, "coefficient": 0.2},
    "dpr": {"weight": 0.3, "coefficient": 0.3},
}


def frequencies(
    mixture: Mixture, has_pair: bool, share: float = 0.0, points: int = 10_000
) -> dict[str, float]:
    """How often each route is drawn, over an even grid of uniforms: exact to 1 / points."""
    counts = Counter(
        mixture.draw((i + 0.5) / points, has_pair=has_pair, prompt_only_share=share).route.name
        for i in range(points)
    )
    assert sum(counts.values()) == points
    return {name: counts[name] / points for name in [*MIX, *(share.route.name for share in mixture.shares)]}


@pytest.mark.parametrize(
    ("name", "on_policy", "needs_pairs", "score", "label"),
    [
        ("data", False, True, False, False),
        ("ddp", False, True, False, True),
        ("dpp", True, False, True, True),
        ("dpr", True, False, True, False),
        ("replay", False, False, False, False),
        ("spin", True, True, False, False),
    ],
)
def test_routes_are_the_papers_table(
    name: str, on_policy: bool, needs_pairs: bool, score: bool, label: bool
) -> None:
    """Table of section 2: T1 where the policy wrote both responses, T3 where it labelled."""
    route = ROUTES[name]
    assert (route.on_policy, route.needs_pairs) == (on_policy, needs_pairs)
    assert (route.has_score_term, route.has_label_term) == (score, label)


def test_mixture_properties() -> None:
    mixture = mixture_of(None, MIX)
    assert [(share.route.name, share.weight, share.coefficient) for share in mixture.shares] == [
        ("data", 0.4, 0.0), ("ddp", 0.1, 0.2), ("dpp", 0.2, 0.2), ("dpr", 0.3, 0.3),
    ]  # fmt: skip
    assert [share.route.name for share in mixture.on_policy] == ["dpp", "dpr"]
    assert [share.route.name for share in mixture.offline] == ["data", "ddp"]
    assert mixture.needs_oracle
    assert mixture.corrected
    assert not mixture.only_self_labels


def test_number_is_short_for_a_weight() -> None:
    assert mixture_of(None, {"data": 0.7, "dpr": 0.3}) == mixture_of(
        None, {"data": {"weight": 0.7}, "dpr": {"weight": 0.3}}
    )


def test_weight_zero_leaves_the_route_out() -> None:
    assert mixture_of(None, {"data": 1, "dpr": 0}) == mixture_of(None, {"data": 1})


def test_order_of_writing_does_not_matter() -> None:
    assert mixture_of(None, dict(reversed(MIX.items()))) == mixture_of(None, MIX)


def test_self_labels_only() -> None:
    assert mixture_of(None, {"ddp": 0.5, "dpp": 0.5}).only_self_labels
    assert not mixture_of(None, {"dpp": 0.5, "data": 0.5}).only_self_labels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpo", {"data": (1.0, 0.0)}),
        ("ipo", {"data": (1.0, 0.0)}),
        ("slic", {"data": (1.0, 0.0)}),
        ("online-dpo", {"dpr": (1.0, 0.0)}),
        ("iterative-dpo", {"dpr": (1.0, 0.0)}),
        ("self-dpo", {"data": (0.7, 0.0), "dpp": (0.3, 0.0)}),
        ("spin", {"spin": (1.0, 0.0)}),
        ("sail-ddp", {"data": (0.6, 0.0), "ddp": (0.4, 0.2)}),
        ("sail-dpp", {"data": (0.7, 0.0), "dpp": (0.3, 0.2)}),
        ("sail-dpr", {"data": (0.7, 0.0), "dpr": (0.3, 0.3)}),
        ("sail-mix", {"data": (0.4, 0.0), "ddp": (0.2, 0.2), "dpp": (0.2, 0.2), "dpr": (0.2, 0.3)}),
    ],
)
def test_preset(name: str, expected: dict[str, tuple[float, float]]) -> None:
    """The paper's weights and coefficients (Llama-3-8B, UltraFeedback)."""
    shares = mixture_of(name, None).shares
    assert {share.route.name: (share.weight, share.coefficient) for share in shares} == expected


def test_every_preset_is_tested() -> None:
    assert set(PRESETS) == {
        "dpo", "ipo", "slic", "online-dpo", "iterative-dpo", "self-dpo", "spin",
        "sail-ddp", "sail-dpp", "sail-dpr", "sail-mix",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "routes", "cause", "way_out"),
    [
        ("dpo", {"data": 1}, "preset and routes were both given", "Keep one"),
        (None, None, "No mixture", "set preset to one of dpo, ipo"),
        ("dpop", None, "There is no preset 'dpop'", "The presets are dpo, ipo"),
        (None, {"dpx": 1}, "There is no route 'dpx'", "The routes are data, ddp, dpp, dpr"),
        (None, {}, "sum to 0, not to 1 (given: none)", "add data: {weight: 1}"),
        (None, {"dpr": 0.3}, "sum to 0.3, not to 1 (given: dpr 0.3)", "add data: {weight: 0.7}"),
        (None, {"data": 0.8, "dpr": 0.3}, "sum to 1.1, not to 1 (given: data 0.8, dpr 0.3)", "sum to 1"),
        (None, {"dpr": "1"}, "it was given '1'", "for example {weight: 0.3, coefficient: 0.3}"),
        (None, {"dpr": True}, "it was given True", "described by weight and coefficient"),
        (None, {"dpr": {"coefficient": 1}}, "it was given {'coefficient': 1}", "described by weight"),
        (None, {"dpr": {"weight": 1, "c": 1}}, "it was given", "described by weight and coefficient"),
        (None, {"dpr": {"weight": "x"}}, "weight of route dpr must be a number", "it is 'x'"),
        (None, {"dpr": {"weight": True}}, "weight of route dpr must be a number", "it is True"),
        (None, {"dpr": float("nan")}, "weight of route dpr must be a number", "it is nan"),
        (
            None,
            {"dpr": {"weight": 1, "coefficient": None}},
            "coefficient of route dpr must be a number",
            "None",
        ),
        (
            None,
            {"dpr": {"weight": 1, "coefficient": float("inf")}},
            "coefficient of route dpr must be a number",
            "inf",
        ),
        (None, {"data": 1.5, "dpr": -0.5}, "weight of route data must lie in [0, 1]", "it is 1.5"),
        (
            None,
            {"dpr": {"weight": 1, "coefficient": -0.3}},
            "would descend what it should climb",
            "Use 0 (no correction)",
        ),
        (
            None,
            {"data": {"weight": 1, "coefficient": 0.3}},
            "Route data has no correction",
            "Remove its coefficient (0.3)",
        ),
        (
            None,
            {"spin": {"weight": 1, "coefficient": 0.3}},
            "Route spin has no correction: its sampled answer stands for an opponent that is held fixed.",
            "Remove its coefficient (0.3)",
        ),
        (
            None,
            {"data": 1, "dpr": {"weight": 0, "coefficient": 0.3}},
            "but weight 0, so it is absent",
            "Give it a weight",
        ),
    ],
)
def test_refusals(preset: str | None, routes: Any, cause: str, way_out: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mixture_of(preset, routes)
    assert cause in str(refused.value)
    assert way_out in str(refused.value)


def test_unknown_preset_alone() -> None:
    with pytest.raises(ConfigError, match="The presets are dpo"):
        preset_of("sail")


def test_weights_may_miss_one_by_rounding() -> None:
    assert (
        len(
            mixture_of(
                None, {"data": 1 / 3, "ddp": {"weight": 1 / 3, "coefficient": 1}, "dpr": 0.333333}
            ).shares
        )
        == 3
    )
    with pytest.raises(ConfigError, match="not to 1"):
        mixture_of(None, {"data": 0.5, "dpr": 0.4999})


# ----------------------------------------------------------------------------------------------------- schedules


def test_weights_go_linearly_to_their_final_weights() -> None:
    mixture = mixture_of(
        None,
        {
            "data": {"weight": 0.9, "final_weight": 0.1},
            "dpr": {"weight": 0, "final_weight": 0.8},
            "replay": 0.1,
        },
    )
    for progress, wanted in ((0.0, (0.9, 0.0, 0.1)), (0.25, (0.7, 0.2, 0.1)), (1.0, (0.1, 0.8, 0.1))):
        assert [share.weight for share in mixture.at(progress).shares] == pytest.approx(wanted)
    assert mixture.needs_oracle
    assert mixture.replays


def test_without_final_weights_nothing_changes() -> None:
    mixture = mixture_of("sail-mix", None)
    assert mixture.at(0.7) is mixture


@pytest.mark.parametrize(
    ("routes", "cause"),
    [
        ({"data": {"weight": 1, "final_weight": 0.5}, "dpr": 0.0}, "final weights of the routes sum to 0.5"),
        (
            {"data": {"weight": 1, "final_weight": 1.5}},
            "final_weight of route data must lie in [0, 1]; it is 1.5",
        ),
        ({"data": {"weight": 1, "final_weight": "no"}}, "final_weight of route data must be a number"),
    ],
)
def test_final_weights_are_checked(routes: dict[str, object], cause: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mixture_of(None, routes)
    assert cause in str(refused.value)


# ----------------------------------------------------------------------------------------------------- drawing


def test_routes_are_drawn_with_their_weights() -> None:
    assert frequencies(mixture_of(None, MIX), has_pair=True) == pytest.approx(
        {"data": 0.4, "ddp": 0.1, "dpp": 0.2, "dpr": 0.3}, abs=2e-4
    )


def test_prompt_only_rows_take_on_policy_routes_by_their_ratio() -> None:
    assert frequencies(mixture_of(None, MIX), has_pair=False) == pytest.approx(
        {"data": 0.0, "ddp": 0.0, "dpp": 0.4, "dpr": 0.6}, abs=2e-4
    )


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_prompt_only_rows_leave_the_mixture_as_it_is(share: float) -> None:
    """share * (prompt-only draws) + (1 - share) * (draws of rows with a pair) = the weights, up to share = W = 0.5."""
    mixture = mixture_of(None, MIX)
    paired = frequencies(mixture, has_pair=True, share=share)
    alone = frequencies(mixture, has_pair=False, share=share)
    realised = {name: share * alone[name] + (1 - share) * paired[name] for name in MIX}
    assert realised == pytest.approx({"data": 0.4, "ddp": 0.1, "dpp": 0.2, "dpr": 0.3}, abs=5e-4)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_prompt_only_rows_never_take_a_route_that_needs_a_pair(share: float) -> None:
    """spin samples, but its first answer is the dataset's; with the others the weights stay as they are."""
    mixture = mixture_of(None, {"spin": 0.3, "data": 0.2, "dpr": 0.5})
    alone = frequencies(mixture, False, share)
    assert alone["dpr"] == 1.0
    paired = frequencies(mixture, True, share)
    realised = {name: share * alone[name] + (1 - share) * paired[name] for name in ("spin", "data", "dpr")}
    assert realised == pytest.approx({"spin": 0.3, "data": 0.2, "dpr": 0.5}, abs=5e-4)
    with pytest.raises(ConfigError, match=r"need no pair weigh 0\.00 together"):
        mixture_of(None, {"spin": 1}).check_prompt_share(1, 10)


def test_samples_of_a_row() -> None:
    assert [(name, route.samples(8)) for name, route in ROUTES.items()] == [
        ("data", 0), ("ddp", 0), ("dpp", 8), ("dpr", 8), ("spin", 1), ("replay", 0),
    ]  # fmt: skip


def test_at_the_limit_rows_with_pairs_stay_offline() -> None:
    assert frequencies(mixture_of(None, MIX), has_pair=True, share=0.5)["dpr"] == 0.0


def test_only_on_policy_routes_with_and_without_prompt_rows() -> None:
    mixture = mixture_of(None, {"dpp": {"weight": 0.5, "coefficient": 1}, "dpr": 0.5})
    for share in (0.0, 0.3):
        assert frequencies(mixture, True, share) == pytest.approx(
            {"data": 0, "ddp": 0, "dpp": 0.5, "dpr": 0.5}, abs=2e-4
        )


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_extreme_numbers_draw_a_route(number: float, share: float) -> None:
    mixture = mixture_of(None, MIX)
    for has_pair in (True, False):
        assert mixture.draw(number, has_pair=has_pair, prompt_only_share=share) in mixture.shares


def test_a_row_redraws_its_route_every_step() -> None:
    """With the run's own random numbers: 2000 steps of one row, each frequency within four standard errors."""
    mixture = mixture_of(None, MIX)
    drawn = Counter(
        mixture.draw(uniform(0, "route", step, 17), has_pair=True).route.name for step in range(2000)
    )
    for share in mixture.shares:
        error = (share.weight * (1 - share.weight) / 2000) ** 0.5
        assert abs(drawn[share.route.name] / 2000 - share.weight) < 4 * error


def test_prompt_share() -> None:
    mixture = mixture_of(None, MIX)
    assert mixture.check_prompt_share(0, 100) == 0.0
    assert mixture.check_prompt_share(0, 0) == 0.0
    assert mixture.check_prompt_share(25, 100) == 0.25
    assert mixture.check_prompt_share(50, 100) == 0.5


def test_too_many_prompt_only_rows_are_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        mixture_of(None, MIX).check_prompt_share(60, 100)
    assert str(refused.value) == (
        "60 of 100 training rows have a prompt only (60%), but the routes that need no pair weigh 0.50 together, so those "
        "weights cannot be realised. Raise the weight of dpp or dpr to at least 0.60, or give fewer prompt-only rows."
    )
