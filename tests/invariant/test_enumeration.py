"""Every combination of options that reaches the objective is refused, or its expected gradient is exact.

No sampling: all outcomes of a batch of two rows are enumerated for a tabular policy, through the real
functions, and compared with autograd of the objective written down by hand (tabular.py). The same table of
combinations is rendered into docs/allowed.md; `python tests/invariant/test_enumeration.py` writes that file.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from tabular import (
    TREE,
    Combination,
    enumerate_rows,
    exact_gradient,
    expected_gradient,
    flat,
    make_world,
    prove,
    relative_error,
    terms_by_hand,
)

from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import ROUTES, mixture_of
from sail.rules import Resources, check

DOCUMENT = Path(__file__).parents[2] / "docs" / "allowed.md"
MODES = ("soft", "sampled", "argmax")
LABELS = {"data": ("given",), "ddp": MODES, "dpp": MODES, "dpr": MODES}
LOSSES = ("sigmoid", "ipo", "hinge")
BASELINES = ("leave_one_out", "none")
TEMPERATURES = (1.0, 0.7)
COEFFICIENTS = (0.0, 0.3, 1.0)
PENALTIES = ("kl_policy_ref", "kl_ref_policy", "nll")

TABLE = tuple(
    Combination(route, label, *rest)
    for route in LABELS
    for label in LABELS[route]
    for rest in itertools.product(LOSSES, COEFFICIENTS, BASELINES, TEMPERATURES)
)
WORLDS = {"K4": flat(4), "K5": flat(5), "K6": flat(6), "tree": TREE}


def refusal(combo: Combination, **options: object) -> str | None:
    """Why `check` refuses a run of this combination alone, all resources given; None if it is allowed."""
    labels = {"ddp": "policy_label", "dpp": "policy_label", "dpr": "oracle_label"}
    if combo.route in labels:
        options[labels[combo.route]] = combo.label
    fields = AlignmentFields(
        routes={combo.route: {"weight": 1.0, "coefficient": combo.coefficient}},
        loss_type=combo.loss_type,
        baseline=combo.baseline,
        temperature=combo.temperature,
        **options,
    )
    have = Resources(oracle=combo.route == "dpr", ref_model=True, pairs=True, oracle_may_abstain=False)
    try:
        check(fields, have)
    except ConfigError as error:
        return str(error)
    return None


ALLOWED = tuple(combo for combo in TABLE if refusal(combo) is None)
REFUSED = tuple(combo for combo in TABLE if refusal(combo) is not None)


def name_of(combo: Combination) -> str:
    return combo.name


def test_table_is_complete() -> None:
    """10 route-and-label pairs x 3 losses x 3 coefficients x 2 baselines x 2 temperatures, counted by hand.

    Refused: data with c > 0 (24); for ddp and dpp each c = 0 with the sigmoid loss, soft or sampled (8), and
    argmax with c > 0 (24); dpr argmax with c > 0 and no baseline (12).
    """
    assert len(TABLE) == len({combo.name for combo in TABLE}) == 10 * 3 * 3 * 2 * 2
    assert len(REFUSED) == 24 + 2 * (8 + 24) + 12
    assert len(ALLOWED) == 260


@pytest.mark.parametrize("combo", ALLOWED, ids=name_of)
def test_allowed_combination_is_exact(combo: Combination) -> None:
    prove(make_world(flat(5), seed=5), combo)


@pytest.mark.parametrize("world", [name for name in WORLDS if name != "K5"])
@pytest.mark.parametrize("route", LABELS)
def test_allowed_combinations_are_exact_in_other_worlds(world: str, route: str) -> None:
    """Four and six responses, and an autoregressive policy of one to three tokens; at temperature 0.7."""
    made = make_world(WORLDS[world], seed=7)
    for combo in ALLOWED:
        if combo.route == route and combo.temperature != 1.0:
            prove(made, combo)


@pytest.mark.parametrize("combo", REFUSED, ids=name_of)
def test_refused_combination_is_refused_for_a_reason(combo: Combination) -> None:
    """What is refused is not exact, has nothing to learn, or no such correction; and a way out is named."""
    message = refusal(combo)
    assert message is not None
    assert any(verb in message for verb in ("Set ", "Use ", "Give ", "Remove ")), message
    world = make_world(flat(5), seed=5)
    if combo.route == "data":
        assert "has no correction" in message
    elif combo.route == "dpr":
        terms = terms_by_hand(world, combo)
        assert relative_error(terms.plain_score, terms.score) > 0.05
    else:
        with pytest.raises(AssertionError, match=r"relative error|nothing to compare"):
            prove(world, combo)


@pytest.mark.parametrize("route", LABELS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_terms_add_up_to_the_gradient_of_the_objective(route: str, loss_type: str) -> None:
    """By hand: J differentiated in one piece is T2 + T1 + T3, and each exists where the route has it."""
    terms = terms_by_hand(make_world(flat(5), seed=3), Combination(route, LABELS[route][0], loss_type))
    torch.testing.assert_close(terms.total, terms.pair + terms.score + terms.label, rtol=0, atol=1e-12)
    assert (terms.score.norm() > 1e-3) == ROUTES[route].has_score_term
    assert (terms.label.norm() > 1e-3) == ROUTES[route].has_label_term


@pytest.mark.parametrize("policy_label", ["soft", "sampled"])
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_mixture_is_exact(policy_label: str, loss_type: str, baseline: str) -> None:
    """The preset sail-mix, all four routes in one batch: the weighted sum of their gradients.

    The baseline of a row then comes from a row of another route, and is 0 beside an offline one.
    """
    world = make_world(flat(4), seed=11)
    rows, exact, first = None, torch.zeros_like(world.theta), None
    for share in mixture_of("sail-mix", None).shares:
        label = {"data": "given", "dpr": "sampled"}.get(share.route.name, policy_label)
        combo = Combination(share.route.name, label, loss_type, share.coefficient, baseline)
        mine = enumerate_rows(world, combo, share.weight)
        rows = mine if rows is None else rows.join(mine)
        exact = exact + share.weight * exact_gradient(world, combo)
        first = combo if combo.route == "ddp" else first
    assert first is not None
    assert rows is not None
    assert rows.chance.sum().item() == pytest.approx(1.0, abs=1e-12)
    measured = expected_gradient(world, rows, first.settings(world), first)
    assert relative_error(-measured, exact) <= 1e-10


# -------------------------------------------------------------------------------------------- docs/allowed.md

INTRODUCTION = """# What may be combined, and what is proven about it

Written by `python tests/invariant/test_enumeration.py` from the rules in `src/sail/rules.py`; a test fails
when it is out of date.

`exact`: the expected gradient of the loss of a batch, enumerated over all outcomes through the functions of
`sail.objective`, equals minus the gradient T2 + c (T1 + T3) of the objective written out by hand, relative
error at most 1e-10. At c = 1 that is the gradient of J itself; at another c it is a heuristic scaling.
Checked at c = 0, 0.3 and 1, at temperatures 1 and 0.7 (at 0.7 the objective is the tempered one), for 5
responses and, at 0.7, for 4, 6 and an autoregressive policy; both rows of a batch are enumerated jointly.
`refused` is a ConfigError when the config loads; its text stands below.

`exact, given a verdict`: argmax abstains on ties, so the objective is the expectation over the pairs that
have a verdict. In a batch where only one on-policy row has a verdict there is no other row to take a baseline
from, and T1 is that of baseline none. The table is for an oracle that always answers; where one may abstain,
baseline none is refused in every dpr row at c > 0, as under argmax.

The temperature changes no cell. With one route alone, labelled by the policy, `ref_model` must be given.

Stale rows (`refresh: round`): every `exact` cell of dpp and dpr holds for responses of older weights too, with the
importance ratios of both responses on T1, T2 and T3 and no `ratio_clip` (tests/invariant/test_enumeration_stale.py,
the same tolerance; without a ratio, or with one on some of the terms only, the test fails). At c = 0 the pairs are
given and no ratio is used. `pairing: best_worst` and route spin exist at c = 0 only.
"""


def outcome(combos: list[Combination], notes: list[str]) -> str:
    """One cell: what all of these combinations have in common; they must agree."""
    messages = [refusal(combo) for combo in combos]
    assert len({message is None for message in messages}) == 1, (
        "the cell mixes allowed and refused combinations"
    )
    if messages[-1] is None:
        ties = combos[-1].label == "argmax" and combos[-1].route == "dpr"
        return "exact, given a verdict" if ties else "exact"
    if messages[-1] not in notes:
        notes.append(messages[-1])
    return f"refused ({notes.index(messages[-1]) + 1})"


def render() -> str:
    """The text of docs/allowed.md."""
    notes: list[str] = []
    lines = [
        INTRODUCTION,
        "| route | label | pair loss | c = 0 | c > 0, leave_one_out | c > 0, none |",
        "|---|---|---|---|---|---|",
    ]
    for route in LABELS:
        for label, loss_type in itertools.product(LABELS[route], LOSSES):
            mine = [
                combo
                for combo in TABLE
                if (combo.route, combo.label, combo.loss_type) == (route, label, loss_type)
            ]
            cells = [outcome([combo for combo in mine if combo.coefficient == 0], notes)]
            for baseline in BASELINES:
                some = [combo for combo in mine if combo.coefficient > 0 and combo.baseline == baseline]
                cells.append(outcome(some, notes))
            lines.append(f"| {' | '.join([route, label, loss_type, *cells])} |")
    lines += [
        "",
        "Penalties, each alone with one route (soft labels, c = 1 beside data; `data_from_reference: true`):",
        "",
    ]
    lines += ["| penalty | temperature | " + " | ".join(LABELS) + " |", "|---|---|---|---|---|---|"]
    for penalty, temperature in itertools.product(PENALTIES, TEMPERATURES):
        cells = []
        for route in LABELS:
            message = penalty_refusal(penalty, route, temperature)
            if message and message not in notes:
                notes.append(message)
            cells.append(f"refused ({notes.index(message) + 1})" if message else "exact")
        lines.append(f"| {penalty} | {temperature:g} | {' | '.join(cells)} |")
    lines += ["", "Messages:", ""]
    lines += [f"{number}. {message}" for number, message in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def penalty_combination(route: str, temperature: float) -> Combination:
    """The combination beside which a penalty is tried and proven."""
    coefficient = 0.0 if route == "data" else 1.0
    return Combination(route, LABELS[route][0], coefficient=coefficient, temperature=temperature)


def penalty_refusal(penalty: str, route: str, temperature: float) -> str | None:
    return refusal(penalty_combination(route, temperature), data_from_reference=True, **{penalty: 0.1})


def test_document_is_what_the_rules_say() -> None:
    """docs/allowed.md is generated; write it anew with `python tests/invariant/test_enumeration.py`."""
    assert DOCUMENT.read_text(encoding="utf-8") == render()


def test_combination_names_every_axis() -> None:
    """A new field of Combination must join the table."""
    assert [field.name for field in dataclasses.fields(Combination)] == [
        "route", "label", "loss_type", "coefficient", "baseline", "temperature",
    ]  # fmt: skip


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"{len(ALLOWED)} combinations allowed, {len(REFUSED)} refused: {DOCUMENT.name} written")
