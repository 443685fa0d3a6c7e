"""Which rows of a step are trained on, and whom they cost a label: replay, ask_share, min_confidence, changing weights."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import Interrupt, Interrupted, assert_same_run, interrupted_and_resumed, trainer
from tiny import make_model, make_pairs, make_trainer, reward

from sail import seeds
from sail.errors import CheckpointError
from sail.training.memory import MEMORY

REPLAY = {"dpr": {"weight": 0.4}, "replay": {"weight": 0.6}}
ONLINE = {"dpr": {"weight": 1.0}}


def watched(made: Any) -> list[Any]:
    """The prepared steps of a trainer, as they are trained."""
    steps: list[Any] = []
    make = made.maker.make

    def keep(*args: Any, **options: Any) -> Any:
        steps.append(make(*args, **options))
        return steps[-1]

    made.maker.make = keep
    made.train()
    return steps


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- replay


def test_replayed_rows_are_earlier_labelled_pairs_and_cost_nothing(tmp_path: Path) -> None:
    made = make_trainer(tmp_path, routes=REPLAY, model=make_model(scale=0.3))
    steps = watched(made)
    seen: list[tuple[Any, ...]] = []
    replayed = 0
    for number, step in enumerate(steps):
        new = []
        for example in step.examples:
            first, second = example.responses
            pair = (example.row["prompt"], first.ids, second.ids, example.label)
            if example.share.route.name == "dpr":
                new.append(pair)
            elif number == 0:
                assert not example.active
            else:
                assert pair in seen
                assert example.active
                replayed += 1
        seen += new
    fresh = [one for step in steps for one in step.examples if one.share.route.name == "dpr"]
    assert replayed > 20
    last = lines_of(tmp_path)[-2]
    assert last["oracle/calls"] == sum(one.responses[0].ids != one.responses[1].ids for one in fresh)
    # What was left out while nothing was remembered is no abstention of the oracle.
    assert last["oracle/abstained"] == 0
    with gzip.open(tmp_path / MEMORY, "rt") as file:
        assert len(file.readlines()) == len(fresh)


def test_a_replayed_row_is_trained_as_an_offline_pair(tmp_path: Path) -> None:
    """The pair loss at the remembered label and no correction: -t log sigmoid(h) - (1 - t) log sigmoid(-h), by hand."""
    made = make_trainer(tmp_path, routes=REPLAY, model=make_model(scale=0.3), learning_rate=0.01, beta=0.5)
    checked = 0
    compute = made.row_losses

    def by_hand(model: Any, batch: dict[str, Any]) -> Any:
        nonlocal checked
        result = compute(model, batch)
        h, t, w = (tensor.double() for tensor in (result.margin, batch["label"], batch["pair_weight"]))
        wanted = -w * (t * torch.nn.functional.logsigmoid(h) + (1 - t) * torch.nn.functional.logsigmoid(-h))
        torch.testing.assert_close(result.loss.double(), wanted, rtol=1e-5, atol=1e-7)
        checked += int((w > 0).sum())
        assert not batch["score_coefficient"].any()
        return result

    made.row_losses = by_hand
    made.train()
    assert checked > 40


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_resumed_run_remembers(tmp_path: Path, step: int) -> None:
    options = {"preset": None, "routes": REPLAY}
    trainer(tmp_path / "whole", **options).train()
    interrupted_and_resumed(tmp_path / "parts", step, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "whole" / MEMORY).read_bytes() == (tmp_path / "parts" / MEMORY).read_bytes()


# ---- ask_share


def test_only_the_least_sure_pairs_are_asked(tmp_path: Path) -> None:
    """Of every step's 8 pairs the 4 with the smallest |h| (from the log-ratios that the step itself recorded)."""
    asked: list[int] = []

    def counted(prompts: list[str], responses: list[str]) -> list[float]:
        asked.append(len(prompts))
        return reward(prompts, responses)

    made = make_trainer(
        tmp_path,
        routes=ONLINE,
        ask_share=0.5,
        oracle=counted,
        model=make_model(scale=0.3),
        learning_rate=0.01,
    )
    for step in watched(made)[1:]:
        sure = [
            abs(row.log_ratios[0] - row.log_ratios[1]) for example, row in step.online if not example.asked
        ]
        unsure = [abs(row.log_ratios[0] - row.log_ratios[1]) for example, row in step.online if example.asked]
        assert (len(unsure), len(sure)) == (4, 4)
        # Up to the rounding below which rows count as equal.
        assert round(max(unsure), 3) <= round(min(sure), 3)
        assert [example.active for example, _ in step.online] == [example.asked for example, _ in step.online]
        assert step.active_rows == 4
    assert lines_of(tmp_path)[-2]["oracle/abstained"] == 0
    assert max(asked) <= 8  # two responses a pair


def test_at_the_start_no_part_of_the_data_set_is_asked_first(tmp_path: Path) -> None:
    """Policy and reference are the same, so h is 0 for all rows: the rows' own numbers say which quarter is asked."""
    made = make_trainer(
        tmp_path, rows=make_pairs(16), routes=ONLINE, ask_share=0.25, max_steps=2, learning_rate=0.0,
        per_device_train_batch_size=16, gradient_accumulation_steps=1, model=make_model(scale=0.3),
    )  # fmt: skip
    for number, step in enumerate(watched(made)):
        lots = {
            one.index: seeds.uniform(7, "ask", number, one.index)
            for one, _ in step.online
            if one.responses[0].text != one.responses[1].text
        }
        asked = {one.index for one, _ in step.online if one.asked and one.index in lots}
        assert asked == set(sorted(lots, key=lots.__getitem__)[: math.ceil(0.25 * len(lots))])


def test_identical_responses_are_no_question(tmp_path: Path) -> None:
    """A third of the pairs is the same text twice, with h = 0 exactly: they are neither asked nor counted, and not remembered."""
    made = make_trainer(
        tmp_path,
        routes={"dpr": 0.5, "replay": 0.5},
        ask_share=0.5,
        max_new_tokens=1,
        model=make_model(scale=1.0),
    )
    same = asked = 0
    for step in watched(made):
        online = [example for example, _ in step.online]
        open_ones = [one for one in online if one.responses[0].text != one.responses[1].text]
        same += len(online) - len(open_ones)
        asked += step.oracle_calls
        assert sum(one.asked for one in open_ones) == math.ceil(0.5 * len(open_ones)) == step.oracle_calls
    assert same > 5
    assert asked > 5
    assert len(made.maker.memory.pairs) == asked


def test_a_broken_memory_is_named(tmp_path: Path) -> None:
    options = {"preset": None, "routes": REPLAY}
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(4), **options).train()
    (tmp_path / MEMORY).write_bytes(b"not gzip")
    with pytest.raises(
        CheckpointError,
        match=r"memory\.jsonl\.gz cannot be read .* Put the file of that run back, or start anew",
    ):
        trainer(tmp_path, **options).train(resume_from_checkpoint=True)


def test_another_number_of_steps_is_another_schedule(tmp_path: Path) -> None:
    routes = {"data": {"weight": 1.0, "final_weight": 0.2}, "dpr": {"weight": 0.0, "final_weight": 0.8}}
    options = {"preset": None, "routes": routes}
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(4), **options).train()
    with pytest.raises(CheckpointError, match="steps of the schedule"):
        trainer(tmp_path, **options, max_steps=40).train(resume_from_checkpoint=True)


def test_asking_about_all_is_the_default(tmp_path: Path) -> None:
    losses = []
    for name, options in (("all", {"ask_share": 1.0}), ("default", {})):
        make_trainer(tmp_path / name, routes=ONLINE, **options).train()
        losses.append([line["loss"] for line in lines_of(tmp_path / name) if "loss" in line])
    assert losses[0] == losses[1]


# ---- min_confidence


def test_unsure_self_labels_have_no_gradient(tmp_path: Path) -> None:
    """At the first step h = 0 everywhere, so that every self-label is 1/2: with a confidence asked for, nothing moves; after
    that, rows with sigmoid(|h|) below it have no share in the loss."""
    made = make_trainer(
        tmp_path,
        routes={"data": 0.4, "dpp": {"weight": 0.6, "coefficient": 0.5}},
        min_confidence=0.51,
        learning_rate=0.01,
        model=make_model(scale=0.3),
        beta=0.2,
    )
    compute, counts = made.row_losses, Counter()

    def checked(model: Any, batch: dict[str, Any]) -> Any:
        result = compute(model, batch)
        for own, h, loss in zip(batch["self_label"], result.margin, result.loss, strict=True):
            if own:
                unsure = torch.sigmoid(h.abs()).item() < 0.51
                assert (loss.item() == 0.0) == unsure
                counts[unsure] += 1
        return result

    made.row_losses = checked
    made.train()
    assert counts[True] > 3
    assert counts[False] > 3


# ---- weights that change


def test_a_weight_goes_linearly_to_its_final_weight(tmp_path: Path) -> None:
    """data 1 -> 0, dpr 0 -> 1 over 30 steps of 32 rows: the realised share of dpr in each third within 4 standard errors."""
    routes = {"data": {"weight": 1.0, "final_weight": 0.0}, "dpr": {"weight": 0.0, "final_weight": 1.0}}
    made = make_trainer(
        tmp_path, routes=routes, max_steps=30, per_device_train_batch_size=16, max_new_tokens=2
    )
    steps = watched(made)
    assert all(one.share.route.name == "data" for one in steps[0].examples)
    assert all(one.share.route.name == "dpr" for one in steps[-1].examples)
    for start in (0, 10, 20):
        wanted = sum(number / 29 for number in range(start, start + 10)) / 10
        drawn = [one.share.route.name == "dpr" for step in steps[start : start + 10] for one in step.examples]
        error = math.sqrt(wanted * (1 - wanted) / len(drawn))
        assert abs(sum(drawn) / len(drawn) - wanted) < 4 * error


def test_a_changing_weight_survives_a_resume(tmp_path: Path) -> None:
    routes = {"data": {"weight": 1.0, "final_weight": 0.2}, "dpr": {"weight": 0.0, "final_weight": 0.8}}
    options = {"preset": None, "routes": routes}
    trainer(tmp_path / "whole", **options).train()
    interrupted_and_resumed(tmp_path / "parts", 3, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
