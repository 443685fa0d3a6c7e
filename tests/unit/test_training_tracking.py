"""The numbers of a log line, from rows whose numbers are known."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from sail.mixture import mixture_of
from sail.objective import RowLoss
from sail.online import Example, Response
from sail.training import tracking
from sail.training.step import OnPolicyRow, Step
from sail.training.tracking import Counters, Tracker, pair_numbers, ratio_numbers, response_numbers
from sail.types import Preference

MIXTURE = mixture_of("sail-mix", None)
SHARES = {share.route.name: share for share in MIXTURE.shares}


def columns(**rows: list[Any]) -> dict[str, list[Any]]:
    """Rows of pair_numbers; what is not given is a plain labelled row."""
    count = len(next(iter(rows.values())))
    plain: dict[str, Any] = {
        "margin": 0.0, "label": 1.0, "self": False, "active": True, "given": math.nan, "probability": math.nan
    }  # fmt: skip
    return {name: rows.get(name, [value] * count) for name, value in plain.items()}


def example(route: str, index: int, p: float | None = None, *, active: bool = True) -> Example:
    first, second = Response((3, 4), "w1 w2", True, -1.0), Response((1,), "", False, -2.0)
    row = {"index": index, "prompt": "w1", "identical": False}
    made = Example(row, SHARES[route], 0.5, first, second, active=active)
    made.preference = None if p is None else Preference(p)
    made.source = "policy" if SHARES[route].route.label == "policy" else "oracle"
    return made


def online(one: Example, ratios: tuple[float, float]) -> tuple[Example, OnPolicyRow]:
    return one, OnPolicyRow(one.index, one.active, -0.7, 0.5, 0.1, ratios)


def a_step(start: int = 0) -> Step:
    examples = [example("data", start, 1.0), example("ddp", start + 1), example("dpr", start + 2, 0.8)]
    return Step([], examples, [online(examples[2], (0.1, 0.3))], oracle_calls=1, active_rows=3)


def a_result(loss: list[float]) -> tuple[RowLoss, dict[str, torch.Tensor]]:
    margin, label = torch.tensor([0.5, -0.2, 0.0]), torch.tensor([1.0, 0.45, 0.8])
    result = RowLoss(
        torch.tensor(loss, requires_grad=True) * 1.0, margin, margin, margin, label, margin * math.nan
    )
    flags = {"self_label": torch.tensor([False, True, False]), "pair_weight": torch.tensor([1.0, 1.0, 1.0])}
    return result, flags


def filled(*losses: list[float]) -> Tracker:
    tracker = Tracker(MIXTURE)
    for number, loss in enumerate(losses):
        tracker.add_step(a_step(3 * number))
        tracker.add_result(*a_result(loss))
    return tracker


# ---- pairs


def test_margin_points_to_the_label() -> None:
    numbers = pair_numbers(columns(margin=[0.4, 0.4, -0.2], label=[1.0, 0.0, 0.3]))
    assert numbers["pair/margin"] == pytest.approx((0.4 - 0.4 + 0.2) / 3)
    assert numbers["pair/accuracy"] == pytest.approx(2 / 3)


def test_ties_of_the_margin_count_half_and_ties_of_the_label_not_at_all() -> None:
    numbers = pair_numbers(columns(margin=[0.0, 5.0, 3.0], label=[1.0, 0.5, 1.0]))
    assert numbers["pair/accuracy"] == 0.75
    assert numbers["pair/margin"] == 1.5


def test_abstained_rows_count_nowhere() -> None:
    numbers = pair_numbers(columns(margin=[0.4, -9.0], label=[1.0, 1.0], active=[True, False]))
    assert numbers["pair/margin"] == pytest.approx(0.4)
    assert numbers["pair/accuracy"] == 1.0


def test_entropy_and_agreement_of_labels() -> None:
    numbers = pair_numbers(
        columns(
            margin=[0.0, 0.3, -0.3, 0.1],
            self=[True, True, True, False],
            given=[math.nan, 1.0, 1.0, math.nan],
            probability=[math.nan] * 3 + [0.5],
        )
    )
    q = 1 / (1 + math.exp(-0.3))
    own = -(q * math.log(q) + (1 - q) * math.log(1 - q))
    assert numbers["label/entropy"] == pytest.approx((math.log(2) + 2 * own + math.log(2)) / 4)
    assert numbers["label/agreement"] == 0.5
    assert numbers["pair/margin"] == pytest.approx(0.1)


def test_certain_labels_have_no_entropy() -> None:
    numbers = pair_numbers(columns(margin=[1e6, -1e6], self=[True, True]))
    assert numbers["label/entropy"] == pytest.approx(0.0, abs=1e-300)
    assert pair_numbers(columns(margin=[0.0], probability=[1.0]))["label/entropy"] == 0.0


def test_without_rows_there_are_no_numbers() -> None:
    numbers = pair_numbers(columns(margin=[]))
    assert set(numbers.values()) == {None}


# ---- responses


def shape(**rows: list[Any]) -> dict[str, list[Any]]:
    # One prompt per pair of log-ratios, unless a test says otherwise.
    online = list(range(len(rows.get("ratios", []))))
    empty: dict[str, list[Any]] = {"log_probs": [], "tokens": [], "cut": [], "empty": []}
    return {"online": online, "ratios": [], "lengths": [], **empty, **rows}


def test_kl_is_the_mean_log_ratio_with_an_error_by_prompt() -> None:
    numbers = response_numbers(shape(ratios=[(0.1, 0.3), (0.5, 0.7)]), 1.0)
    assert numbers["kl/policy_ref"] == pytest.approx(0.4, abs=1e-7)
    assert numbers["kl/policy_ref_se"] == pytest.approx(math.sqrt(0.08 / 2), abs=1e-7)


def test_one_prompt_has_no_error_and_none_no_estimate() -> None:
    assert response_numbers(shape(ratios=[(0.1, 0.3)]), 1.0)["kl/policy_ref_se"] is None
    # The same prompt met twice is still one prompt.
    twice = shape(online=[7, 7], ratios=[(0.1, 0.3), (0.5, 0.7)])
    assert response_numbers(twice, 1.0)["kl/policy_ref_se"] is None
    assert set(response_numbers(shape(), 1.0).values()) == {None}


def test_entropy_is_per_token_and_of_the_policys_own_samples() -> None:
    rows = shape(log_probs=[-3.0, -1.0], tokens=[3, 5], lengths=[3, 5, 9])
    assert response_numbers(rows, 1.0)["response/entropy"] == pytest.approx(0.5)
    assert response_numbers(rows, 0.7)["response/entropy"] is None


def test_at_another_temperature_there_is_no_kl() -> None:
    numbers = response_numbers(shape(ratios=[(0.1, 0.3)], lengths=[2, 4]), 0.7)
    assert numbers["kl/policy_ref"] is None
    assert numbers["response/length"] == 3


# ---- the line


def test_a_line() -> None:
    line = filled([0.2, 0.3, 0.1], [0.4, 0.1, 0.1]).take(1.0)
    assert line["loss"] == pytest.approx(0.6)
    assert line["route/data"] == line["route/ddp"] == line["route/dpr"] == pytest.approx(1 / 3)
    assert line["route/dpp"] == 0.0
    assert line["online/prompts"] == 2
    assert line["oracle/calls"] == 2
    assert line["oracle/abstained"] == line["step/empty"] == 0
    assert line["response/length"] == 1.5
    assert line["response/cut"] == 0.5
    assert line["response/empty"] == 0.5
    assert line["label/agreement"] == 0.0


def test_a_line_starts_over_and_counters_do_not() -> None:
    tracker = filled([0.2, 0.3, 0.1])
    tracker.take(1.0)
    tracker.add_step(a_step())
    tracker.add_result(*a_result([0.1, 0.1, 0.1]))
    line = tracker.take(1.0)
    assert line["loss"] == pytest.approx(0.3)
    assert line["oracle/calls"] == 2
    assert line["online/prompts"] == 1
    assert tracker.mean_loss(2) == pytest.approx(0.45)


def test_mean_loss_counts_what_is_not_logged_yet() -> None:
    tracker = filled([0.2, 0.3, 0.1])
    tracker.take(1.0)
    tracker.add_step(a_step())
    tracker.add_result(*a_result([0.1, 0.1, 0.1]))
    assert tracker.mean_loss(2) == pytest.approx(0.45)
    assert tracker.take(1.0)["loss"] == pytest.approx(0.3)


def test_abstentions_and_empty_steps_are_counted() -> None:
    tracker = Tracker(MIXTURE)
    rows = [example("dpr", number, active=False) for number in range(4)]
    for row in rows:
        row.preference = Preference(None, "no verdict")
    tracker.add_step(Step([], rows, [online(row, (0.0, 0.0)) for row in rows], active_rows=0))
    zero, no = torch.zeros(4), torch.zeros(4, dtype=torch.bool)
    tracker.add_result(
        RowLoss(zero, zero, zero, zero, zero + 0.5, zero * math.nan), {"self_label": no, "pair_weight": zero}
    )
    line = tracker.take(1.0)
    assert line["pair/accuracy"] is None
    assert (line["oracle/abstained"], line["step/empty"]) == (4, 1)


def test_a_nan_loss_stays_one() -> None:
    assert math.isnan(filled([0.2, math.nan, 0.1]).take(1.0)["loss"])
    assert filled([0.2, math.inf, 0.1]).take(1.0)["loss"] == math.inf
    assert math.isnan(filled([-math.inf, math.inf, 0.1]).take(1.0)["loss"])


def test_no_graph_is_kept() -> None:
    tracker = filled([0.2, 0.3, 0.1])
    assert not any(value.requires_grad for result in tracker.results for value in result)


def test_an_empty_window() -> None:
    line = Tracker(MIXTURE).take(1.0)
    assert line["loss"] == 0.0
    assert line["pair/margin"] is None


# ---- through a checkpoint


def test_state_between_two_lines_survives_json() -> None:
    """Cut anywhere, restored from JSON, the line is the uncut one to the last bit."""
    losses = [[0.1, 0.2, 0.7], [0.3, 1e-17, 0.3], [1.1, 0.1, 0.2]]
    expected = filled(*losses).take(1.0)
    for cut in range(4):
        before = filled(*losses[:cut])
        kept = json.loads(json.dumps(before.state()))
        after = Tracker(MIXTURE)
        after.add_step(a_step())  # forgotten: the state is all that counts
        after.restore(kept)
        for number, loss in enumerate(losses[cut:], start=cut):
            after.add_step(a_step(3 * number))
            after.add_result(*a_result(loss))
        assert after.take(1.0) == expected
        # Taking the state changed nothing for the run that goes on.
        for number, loss in enumerate(losses[cut:], start=cut):
            before.add_step(a_step(3 * number))
            before.add_result(*a_result(loss))
        assert before.take(1.0) == expected


def test_counters_survive_json() -> None:
    counters = Counters(3, 2, 1, 0.1 + 0.2, {5, 1})
    assert Counters.restore(json.loads(json.dumps(counters.state()))) == counters


def test_state_of_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its own part back; with another number of processes the first takes it all, so that sums stay right."""
    parts = [filled([0.2, 0.3, 0.1]), filled([0.4, 0.1, 0.1])]
    for number, part in enumerate(parts):
        part.counters.prompts = {number}
        part.counters.empty_steps, part.counters.loss = 2, 0.5
    kept = [part.state()[0] for part in parts]
    for place in (0, 1):
        monkeypatch.setattr(tracking, "place_among_processes", lambda place=place: (place, 2))
        tracker = Tracker(MIXTURE)
        tracker.restore(kept)
        assert tracker.counters == parts[place].counters
        assert tracker.window.loss == parts[place].window.loss
    monkeypatch.setattr(tracking, "place_among_processes", lambda: (0, 1))
    alone = Tracker(MIXTURE)
    alone.restore(kept)
    assert alone.counters == Counters(2, 0, 2, 0.5, {0, 1})
    assert alone.window.loss == parts[0].window.loss + parts[1].window.loss
    assert alone.window.steps == 1
    monkeypatch.setattr(tracking, "place_among_processes", lambda: (3, 4))
    other = Tracker(MIXTURE)
    other.restore(kept)
    assert other.counters == Counters()


# ---- rounds


def test_ratios_are_of_stale_rows_only() -> None:
    """Ratios 1 and 3 at a clip of 3: mean 2, effective sample size 16 / (2 * 10), half of them at the clip."""
    numbers = ratio_numbers([math.nan, 1.0, 3.0, math.nan], 3.0)
    assert numbers == {"ratio/mean": 2.0, "ratio/ess": pytest.approx(0.8), "ratio/clipped": 0.5}
    assert ratio_numbers([1.0, 3.0], None)["ratio/clipped"] == 0.0
    assert set(ratio_numbers([math.nan], None).values()) == {None}


def one_result() -> tuple[RowLoss, dict[str, torch.Tensor]]:
    column = torch.tensor([0.3])
    flags = {"self_label": torch.tensor([False]), "pair_weight": torch.tensor([1.0])}
    return RowLoss(column, column, column, column, column, column * math.nan), flags


def test_only_fresh_independent_samples_speak_for_the_policy_of_now() -> None:
    """Stale or chosen rows: lengths yes, KL and entropy no. A reference that moves has no KL."""
    for own, moving in ((True, False), (False, False), (True, True)):
        tracker = Tracker(MIXTURE, moving_reference=moving)
        one = example("dpr", 0, 0.8)
        row = OnPolicyRow(0, True, -0.7, 0.8, 0.1, (0.1, 0.3), (2.0, 1.0), own=own)
        tracker.add_step(Step([], [one], [(one, row)], active_rows=1))
        tracker.add_result(*one_result())
        line = tracker.take(1.0)
        assert (line["kl/policy_ref"] is not None) == (own and not moving)
        assert (line["response/entropy"] is not None) == own
        assert line["response/length"] == 1.5


def test_of_spin_only_the_sampled_response_is_counted() -> None:
    tracker = Tracker(mixture_of("spin", None))
    share = tracker.mixture.shares[0]
    first, second = Response((3, 4, 1), "w1 w2", False), Response((5,), "", True, -2.0, -2.0)
    one = Example({"index": 0, "prompt": "x"}, share, 0.5, first, second, Preference(1.0))
    tracker.add_step(Step([], [one], [(one, OnPolicyRow(0, True, 0.0, 1.0, None, None, own=False))]))
    tracker.add_result(*one_result())
    line = tracker.take(1.0)
    assert (line["response/length"], line["response/cut"], line["response/empty"]) == (1.0, 1.0, 1.0)
    assert line["kl/policy_ref"] is None
    assert line["online/prompts"] == 1
