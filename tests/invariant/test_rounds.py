"""Rounds through the real trainer: a round of one step is a step, plans are what training sees, and every oracle call is
counted once. test_rounds_stale.py is about rows that are older than the weights, and about the reference."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounds_run import ROWS, STEPS, lines, pairs, run, trainer
from tiny import largest_difference, make_model, make_pairs, make_prompts, reward, weights_of
from transformers import TrainerCallback

from sail.errors import ConfigError, SailError
from sail.oracles import PreferenceFunction
from sail.training.rounds import FOLDER, read_round

# ---- a round of one step is a step


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "sail-mix"},
        {"preset": "sail-mix", "generation_batch_size": 3, "kl_policy_ref": 0.05, "temperature": 1.0},
        {"routes": {"dpp": {"weight": 0.5, "coefficient": 1}, "dpr": 0.5}, "temperature": 0.7},
        {"preset": "online-dpo", "samples_per_prompt": 4, "pairing": "best_worst"},
        {"routes": {"spin": 0.5, "dpr": {"weight": 0.2, "coefficient": 1.0}, "replay": 0.3}},
        {
            "routes": {
                "data": {"weight": 0.9, "final_weight": 0.1},
                "dpr": {"weight": 0.1, "final_weight": 0.9},
            }
        },
    ],
    ids=["mix", "in parts, with KL", "tempered", "best_worst", "spin and replay", "changing weights"],
)
def test_a_round_of_one_step_is_a_step(tmp_path: Path, options: dict[str, Any]) -> None:
    """Bit for bit: weights, pairs, logged numbers. The same plan, routes, samples, labels, and no row is stale."""
    options = {"ref_model": None, **options}
    options.pop("ref_model")
    step = run(tmp_path / "step", **options)
    once = run(tmp_path / "round", refresh="round", round_steps=1, **options)
    assert all(
        torch.equal(value, once.model.state_dict()[name]) for name, value in step.model.state_dict().items()
    )
    numbered = pairs(tmp_path / "round")
    assert len(numbered) > 4
    assert all(pair.pop("round") == pair["step"] for pair in numbered)
    assert numbered == pairs(tmp_path / "step")
    assert lines(tmp_path / "round") == lines(tmp_path / "step")


# ---- the plan


class Seen(TrainerCallback):
    """The global random states at every step."""

    def __init__(self) -> None:
        self.states: list[tuple[Any, ...]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002


def test_planning_leaves_the_global_random_states_alone(tmp_path: Path) -> None:
    """Also with a sampler that draws from them: Trainer's own order is unchanged, and so is what comes after."""
    seen = []
    for name, options in (("step", {}), ("round", {"refresh": "round", "round_steps": 3})):
        watcher = Seen()
        run(tmp_path / name, preset="online-dpo", trainer_options={"callbacks": [watcher]}, **options)
        seen.append(watcher.states)
    assert len(seen[0]) == STEPS
    assert seen[0] == seen[1]


@pytest.mark.parametrize("length", [3, 5, None, 100])
def test_a_round_holds_what_its_steps_see(tmp_path: Path, length: int | None) -> None:
    """Rounds that span epochs, equal one, and are longer than the run; the last one ends with training."""
    run(tmp_path / "step", preset="online-dpo")
    one = run(tmp_path / "round", preset="online-dpo", refresh="round", round_steps=length)
    length = 5 if length is None else length
    expected = [(pair["step"], pair["index"]) for pair in pairs(tmp_path / "step")]
    assert [(pair["step"], pair["index"]) for pair in pairs(tmp_path / "round")] == expected
    assert all(pair["round"] == pair["step"] // length for pair in pairs(tmp_path / "round"))
    last = (STEPS - 1) // length
    assert one.maker.rounds.number == last
    assert sorted(one.maker.rounds.kept) == sorted(key for key in expected if key[0] // length == last)


def test_rounds_stay_while_a_checkpoint_may_need_them(tmp_path: Path) -> None:
    """Without a checkpoint only the running round; with one of step 5, in round 2, that one and all since. What is not a round's
    is not touched."""
    run(tmp_path / "none", preset="online-dpo", refresh="round", round_steps=2)
    assert [path.name for path in (tmp_path / "none" / FOLDER).iterdir()] == ["round-3.rank-0.jsonl.gz"]
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "notes.txt").touch()
    saving = {"save_strategy": "steps", "save_steps": 5}
    run(tmp_path, preset="online-dpo", refresh="round", round_steps=2, **saving)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == ["notes.txt", "round-2.rank-0.jsonl.gz", "round-3.rank-0.jsonl.gz"]
    first_step = [pair for pair in pairs(tmp_path) if pair["step"] == 4]
    kept = read_round(tmp_path / FOLDER, 2)
    assert kept[4, first_step[0]["index"]].second.text == first_step[0]["second"]


def test_a_run_that_starts_afresh_removes_old_rounds(tmp_path: Path) -> None:
    """Also the same trainer, trained twice: it begins with round 0 and the reference of the start."""
    options = {"preset": "spin", "round_steps": 2, "learning_rate": 1e-2}
    one = run(tmp_path, **options)
    assert (tmp_path / FOLDER / "round-3.rank-0.jsonl.gz").exists()
    again = trainer(tmp_path, **{**options, "max_steps": 1})
    again.train()
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["round-0.rank-0.jsonl.gz"]
    start = weights_of(make_model())
    assert one.reference.kept
    one.reference.restore(None)
    assert largest_difference(weights_of(one.reference.model()[0]), start) == 0.0


def test_training_that_starts_over_plans_anew(tmp_path: Path) -> None:
    """As auto_find_batch_size does when memory is short: step 0 comes again, with other micro-batches."""
    one = trainer(tmp_path, preset="online-dpo", refresh="round")
    rounds = one.maker.rounds
    rounds.begin(0, STEPS)
    assert (rounds.length, len(rounds.kept)) == (5, ROWS)
    one._train_batch_size = 1
    rounds.begin(0, STEPS)
    assert (rounds.length, len(rounds.kept)) == (9, STEPS * 2)


def test_another_order_than_planned_is_noticed(tmp_path: Path) -> None:
    one = trainer(tmp_path, preset="online-dpo", refresh="round", round_steps=3)
    one.maker.rounds.dataset = list(reversed([one.train_dataset[place] for place in range(ROWS)]))
    with pytest.raises(SailError, match="gives other rows than were planned"):
        one.train()


def test_data_skipping_must_stay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ignore_data_skip: true cannot be used with refresh: round"):
        trainer(tmp_path, refresh="round", ignore_data_skip=True)


# ---- cost


def test_the_oracle_is_asked_once_for_a_round(tmp_path: Path) -> None:
    """One call for all its pairs; the counter jumps at the round's first step, and ends where refresh: step ends."""
    asked: list[int] = []

    def counted(prompts: list[Any], first: list[str], second: list[str]) -> list[float]:
        asked.append(len(prompts))
        return [0.7] * len(prompts)

    run(tmp_path, preset="online-dpo", refresh="round", round_steps=4, oracle=PreferenceFunction(counted))
    calls = [line["oracle/calls"] for line in lines(tmp_path)]
    assert len(asked) == 2
    assert calls == [asked[0]] * 4 + [sum(asked)] * 4
    assert len(pairs(tmp_path)) == sum(asked)


def test_best_worst_counts_half_a_call_per_score(tmp_path: Path) -> None:
    """30 rows of 4 distinct samples: 2 calls each. And the pair is the best and the worst of the four."""
    scored: list[tuple[str, list[str]]] = []

    def counted(prompts: list[str], responses: list[str]) -> list[float]:
        scored.extend(zip(prompts, responses, strict=True))
        return reward(prompts, responses)

    run(
        tmp_path,
        preset="online-dpo",
        refresh="round",
        pairing="best_worst",
        samples_per_prompt=4,
        oracle=counted,
    )
    rows = pairs(tmp_path)
    assert lines(tmp_path)[-1]["oracle/calls"] == len(scored) / 2 == 2 * len(rows)
    by_prompt: dict[str, list[str]] = {}
    for prompt, response in scored[: 4 * 18]:
        by_prompt.setdefault(prompt, []).append(response)
    for row in rows[:18]:
        worth = sorted(reward([row["prompt"]] * 4, by_prompt[row["prompt"]]))
        found = reward([row["prompt"]] * 2, [row["first"], row["second"]])
        assert sorted(found) == [worth[0], worth[-1]]
        if found[0] != found[1]:
            assert row["label"] == float(found[0] > found[1])
            assert row["probability"] == pytest.approx(1 / (1 + np.exp(found[1] - found[0])), rel=1e-12)


# ---- data


def test_prompt_only_rows_of_a_round(tmp_path: Path) -> None:
    rows = [*make_pairs(9), *({"prompt": prompt} for prompt in make_prompts(9, seed=4))]
    run(tmp_path, routes={"spin": 0.4, "dpr": 0.6}, preset=None, refresh="round", rows=rows)
    for pair in pairs(tmp_path):
        if pair["index"] >= 9:
            assert pair["route"] == "dpr"
        if pair["route"] == "spin":
            assert pair["first"] == make_pairs(9)[pair["index"]]["chosen"]
            assert (pair["label"], pair["source"], pair["policy_probability"]) == (1.0, "dataset", None)
    assert {pair["route"] for pair in pairs(tmp_path)} == {"spin", "dpr"}
