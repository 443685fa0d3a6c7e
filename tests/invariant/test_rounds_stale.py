"""Rows older than the weights, through the real trainer: ratios and baselines; and the reference that follows the policy."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounds_run import ROWS, lines, lora, run, trainer
from tiny import largest_difference, make_model, weights_of

from sail.errors import ConfigError
from sail.generation.scoring import score_sequences
from sail.training.rounds import kept_of

# ---- stale rows


def test_stale_rows_are_corrected_and_logged(tmp_path: Path) -> None:
    """No ratio in a round's first step; the logged one of a later step is that of the weights then and now."""
    run(
        tmp_path,
        preset=None,
        routes={"dpr": {"weight": 1, "coefficient": 1.0}},
        refresh="round",
        round_steps=4,
    )
    found = lines(tmp_path)
    for number, line in enumerate(found):
        stale = number % 4 > 0
        for key in ("ratio/mean", "ratio/ess", "ratio/clipped"):
            assert (line[key] is not None) == stale
        for key in ("kl/policy_ref", "response/entropy"):
            assert (line[key] is not None) == (not stale)
        if stale:
            assert 0 < line["ratio/ess"] <= 1
            assert line["ratio/clipped"] == 0
            assert line["ratio/mean"] != 1


def test_the_ratio_is_that_of_two_sets_of_weights(tmp_path: Path) -> None:
    """Step 1 of a round: log-probs of its pairs under the weights after one step, over those of the start, by hand."""
    options = {"routes": {"dpr": {"weight": 1, "coefficient": 1.0}}, "preset": None, "learning_rate": 1e-2}
    options |= {"refresh": "round", "round_steps": 4, "model": make_model(torch.float64, scale=0.1)}
    one = run(tmp_path, max_steps=1, **options)
    after = one.model
    two = run(tmp_path, max_steps=2, **{**options, "model": make_model(torch.float64, scale=0.1)})
    rows = {row["index"]: row for row in two.train_dataset}
    kept = [(key[1], pair) for key, pair in two.maker.rounds.kept.items() if key[0] == 1]
    sequences = [
        (rows[index]["prompt_ids"], list(response.ids))
        for index, pair in kept
        for response in (pair.first, pair.second)
    ]
    now, then = (
        np.array(score_sequences(model, sequences, pad_id=0, batch_size=8)).reshape(-1, 2).sum(1)
        for model in (after, make_model(torch.float64, scale=0.1))
    )
    weights = np.exp(now - then)
    assert np.abs(weights - 1).max() > 0.01
    line = lines(tmp_path)[1]
    assert line["ratio/mean"] == pytest.approx(weights.mean(), rel=1e-5)
    assert line["ratio/ess"] == pytest.approx(
        weights.sum() ** 2 / (weights**2).sum() / len(weights), rel=1e-5
    )


def test_a_clip_is_logged(tmp_path: Path) -> None:
    options = {"routes": {"dpr": {"weight": 1, "coefficient": 1.0}}, "preset": None, "learning_rate": 1e-2}
    run(tmp_path, refresh="round", round_steps=8, ratio_clip=1.0, **options)
    clipped = [line["ratio/clipped"] for line in lines(tmp_path)[1:]]
    assert 0 < sum(clipped) / len(clipped) < 1
    assert all(line["ratio/mean"] <= 1 for line in lines(tmp_path)[1:])


def test_without_a_coefficient_no_ratio_and_no_forward(tmp_path: Path) -> None:
    one = trainer(tmp_path, preset="online-dpo", refresh="round", round_steps=4)
    assert not one.maker.rates_stale
    one.train()
    assert all(line["ratio/mean"] is None for line in lines(tmp_path))


def test_f_of_stale_rows_is_that_of_the_weights_of_now(tmp_path: Path) -> None:
    """The baseline column of a batch of two stale rows is the other's F, from the weights of now: by a forward of our own."""
    one = trainer(
        tmp_path, routes={"dpr": {"weight": 1, "coefficient": 1.0}}, preset=None, refresh="round", round_steps=4,
        gradient_accumulation_steps=1, model=make_model(torch.float64, scale=0.1), beta=0.5,
    )  # fmt: skip
    rows = [one.train_dataset[place] for place in range(2)]
    one.maker.rounds.length, one.maker.rounds.number = 4, 0
    routed = [*one.maker.route(rows, 2, 0.0)]
    one.maker.respond(routed)
    one.maker.compare(routed)
    one.maker.rounds.kept = {(2, example.index): kept_of(example) for example in routed}
    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    step = one.maker.make([rows], 2, one.args.device)
    assert all(example.stale for example in step.examples)
    sequences = [
        (example.row["prompt_ids"], list(response.ids))
        for example in step.examples
        for response in example.responses
    ]
    now = np.array(score_sequences(one.model, sequences, pad_id=0, batch_size=4)).reshape(2, 2)
    reference = np.array(
        score_sequences(one.reference.model()[0], sequences, pad_id=0, batch_size=4)
    ).reshape(2, 2)
    h = 0.5 * ((now - reference)[:, 0] - (now - reference)[:, 1])
    p = np.array([example.preference.first_wins for example in step.examples])
    f = -p * np.log1p(np.exp(-h)) - (1 - p) * np.log1p(np.exp(h))
    assert step.batches[0]["baseline"].tolist() == pytest.approx([f[1], f[0]], rel=1e-8)
    recorded = np.array([response.log_prob for example in step.examples for response in example.responses])
    assert np.abs(recorded - now.ravel()).max() > 1e-3


# ---- the reference


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_reference_is_the_policy_at_the_start_of_the_round(tmp_path: Path, adapter: bool) -> None:
    """In a round's first step every margin is 0, as at the start of the run, and in later steps it is not."""
    options = {"preset": "spin", "round_steps": 3, "learning_rate": 1e-2}
    kept = {"trainer_options": {"peft_config": lora() if adapter else None}}
    one = run(tmp_path / "moving", **options, **kept)
    margins = [line["pair/margin"] for line in lines(tmp_path / "moving")]
    for step, margin in enumerate(margins):
        assert (abs(margin) < 1e-6) == (step % 3 == 0), step
    assert all(line["kl/policy_ref"] is None for line in lines(tmp_path / "moving"))
    # The reference that the run began with can still be asked, and asking leaves the policy and the reference alone.
    sequences = [(row["prompt_ids"], row["chosen_ids"]) for row in one.train_dataset]

    def scores(model: Any) -> list[float]:
        return score_sequences(model, sequences, pad_id=0, batch_size=8)

    policy = scores(one.model)
    found = []
    for of in (one.reference.start, one.reference.model, one.reference.start):
        model, context = of()
        with context:
            found.append(scores(model))
    assert found[0] == found[2] == pytest.approx(scores(make_model()), abs=1e-6)
    assert np.abs(np.array(found[1]) - found[0]).max() > 1e-3
    assert np.abs(np.array(found[1]) - policy).max() > 1e-4
    assert scores(one.model) == policy


def test_the_kept_adapter_speaks_under_autocast_too(tmp_path: Path) -> None:
    """Autocast remembers the casts of parameters: the reference must not speak with those of the policy, nor the other way."""
    one = run(
        tmp_path, preset="spin", round_steps=4, learning_rate=5e-2, trainer_options={"peft_config": lora()}
    )
    sequences = [(row["prompt_ids"], row["chosen_ids"]) for row in one.train_dataset]

    def scores(of: Any) -> list[float]:
        model, context = of()
        with context:
            return score_sequences(model, sequences, pad_id=0, batch_size=8)

    order = [lambda: (one.model, nullcontext()), one.reference.model, one.reference.start]
    alone = []
    for of in order:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone.append(scores(of))
    assert len({tuple(found) for found in alone}) == 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [scores(of) for of in [*order, *order]] == [*alone, *alone]


def test_a_given_reference_gives_way_to_the_policy(tmp_path: Path) -> None:
    """LoRA with ref_model: after the first round the reference is the policy of then, its adapter included."""
    other = make_model(seed=9)
    one = run(
        tmp_path, preset="spin", round_steps=4, learning_rate=1e-2,
        trainer_options={"peft_config": lora(), "ref_model": other},
    )  # fmt: skip
    margins = [line["pair/margin"] for line in lines(tmp_path)]
    assert abs(margins[0]) > 1e-4
    assert abs(margins[4]) < 1e-6
    assert one.reference.start()[0] is other


def test_a_reference_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"ref_model has another shape than the model\. Leave ref_model out"
    ):
        trainer(tmp_path, preset="spin", trainer_options={"ref_model": make_model(hidden_size=16)})


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_remembered_log_probs_follow_the_reference(tmp_path: Path, adapter: bool) -> None:
    """precompute_ref_log_probs with a moving reference: the same run as without, bits of batching aside."""
    options = {
        "routes": {"data": 0.6, "spin": 0.4},
        "preset": None,
        "refresh": "round",
        "ref_update": "round",
    }
    kept = {
        "round_steps": 3,
        "learning_rate": 1e-2,
        "trainer_options": {"peft_config": lora() if adapter else None},
    }
    model = {"model": make_model(torch.float64)}
    plain = run(tmp_path / "plain", **options, **kept, **model)
    model = {"model": make_model(torch.float64)}
    ready = run(tmp_path / "ready", precompute_ref_log_probs=True, **options, **kept, **model)
    assert len(ready.reference.remember) == ROWS
    difference = largest_difference(weights_of(plain.model), weights_of(ready.model))
    assert difference < 1e-9
