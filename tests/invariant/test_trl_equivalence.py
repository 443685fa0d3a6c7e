"""The data route alone is trl.DPOTrainer: same tokens, same loss of every step, same weights after 20 steps.

Both trainers get the same rows, seed, optimiser, schedule and clipping through their public arguments; what enters the
policy's forward pass (with us: what is scored, whose prompts are then read once a pair) is recorded and compared token by token,
so equal losses cannot come from different batches.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import largest_difference, make_model, make_pairs, make_tokenizer, make_trainer, weights_of
from trl import DPOConfig, DPOTrainer

from sail.generation.joined import joins
from sail.generation.unwrap import unwrapped
from sail.training import forward

# PEFT and TRL use names that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

STEPS = 20
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "beta": 0.5,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "seed": 11,
}
QUIET: dict[str, Any] = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


class Watch:
    """Records what the policy's forward passes with gradient were given, or with us what was to be scored."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self.seen.append((kwargs["input_ids"].clone(), kwargs["attention_mask"].clone()))


def watch_scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same of our trainer's batches."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = forward.response_scores

    def scores(model: Any, batch: dict[str, Any], *others: Any) -> Any:
        seen.append((batch["input_ids"].clone(), batch["attention_mask"].clone()))
        return real(model, batch, *others)

    monkeypatch.setattr(forward, "response_scores", scores)
    return seen


def pairs_for_both() -> list[dict[str, str]]:
    """Two epochs of ten steps. TRL joins prompt and response as strings, so the space between them belongs to the response."""
    rows = make_pairs(80)
    return [{**row, "chosen": " " + row["chosen"], "rejected": " " + row["rejected"]} for row in rows]


def lora() -> LoraConfig:
    """Dropout is set and both trainers must switch it off."""
    return LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )


def trl_trainer(folder: Any, model: Any, loss_type: str, adapter: LoraConfig | None) -> DPOTrainer:
    """TRL's trainer with the arguments of ours."""
    options = DPOConfig(output_dir=str(folder), loss_type=[loss_type], bf16=False, **OPTIONS, **QUIET)
    return DPOTrainer(
        model,
        # Without one TRL loads it from the model's path, which a model made from a config does not have.
        ref_model=None if adapter else copy.deepcopy(model),
        args=options,
        train_dataset=Dataset.from_list(pairs_for_both()),
        processing_class=make_tokenizer(),
        peft_config=adapter,
    )


def run_both(
    monkeypatch: pytest.MonkeyPatch, folder: Any, preset: str, loss_type: str, *, adapter: bool, **ours: Any
) -> tuple[Any, Any, list[Any], list[Any]]:
    """Train both from the same weights; the trainers, and what each policy was given."""
    mine = make_trainer(
        folder / "sail",
        model=make_model(scale=0.1),
        rows=pairs_for_both(),
        oracle=None,
        trainer_options={"peft_config": lora() if adapter else None},
        preset=preset,
        **OPTIONS,
        **ours,
    )
    theirs = trl_trainer(folder / "trl", make_model(scale=0.1), loss_type, lora() if adapter else None)
    # The adapters start at random: give both the same start.
    theirs.model.load_state_dict(copy.deepcopy(mine.model.state_dict()))
    seen, watch = watch_scored(monkeypatch), Watch(theirs.model)
    mine.train()
    assert joins(unwrapped(mine.model)), "then the path that most runs take would not be compared"
    theirs.train()
    return mine, theirs, seen, watch.seen


def logged(trainer: Any, name: str) -> torch.Tensor:
    """One number per step."""
    return torch.tensor(
        [line[name] for line in trainer.state.log_history if "loss" in line], dtype=torch.float64
    )


def pairs_of(step: list[Any]) -> list[tuple[list[int], list[int]]]:
    """The (chosen, rejected) token ids of a step, in one order: rows of like length share a micro-batch here, and not there."""
    pairs = []
    for ids, mask in step:
        rows = [one[kept.bool()].tolist() for one, kept in zip(ids, mask, strict=True)]
        assert all(
            len(row) == kept.sum() and kept[: len(row)].all() for row, kept in zip(rows, mask, strict=True)
        )
        pairs += list(zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True))
    return sorted(pairs)


def compare(mine: Any, theirs: Any, seen: list[Any], seen_there: list[Any], tolerance: float) -> None:
    """Same pairs of tokens in every step; its loss within `tolerance`, gradient norms and margins too; weights close."""
    assert len(seen) == len(seen_there) == 2 * STEPS
    for step in range(STEPS):
        assert pairs_of(seen[2 * step : 2 * step + 2]) == pairs_of(seen_there[2 * step : 2 * step + 2])
    losses = logged(mine, "loss")
    assert len(losses) == STEPS
    assert losses.std() > 1e-3, "nothing was learned, so nothing was compared"
    assert (losses - logged(theirs, "loss")).abs().max() <= tolerance
    assert (logged(mine, "grad_norm") / logged(theirs, "grad_norm") - 1).abs().max() <= tolerance
    assert (logged(mine, "pair/margin") - logged(theirs, "rewards/margins")).abs().max() <= tolerance
    assert largest_difference(weights_of(mine.model), weights_of(theirs.model)) <= tolerance / 10


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("preset", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("slic", "hinge")])
def test_data_route_is_dpo_trainer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, preset: str, loss_type: str, adapter: bool
) -> None:
    """Measured in float32 over 20 steps: losses differ by at most 1e-6, weights by 2.4e-7."""
    both = run_both(monkeypatch, tmp_path, preset, loss_type, adapter=adapter)
    compare(*both, tolerance=1e-5)
    if loss_type == "hinge" and not adapter:
        assert logged(both[0], "pair/margin").max() > 1.0, "the flat part of the hinge was never reached"


def test_precomputed_reference_is_dpo_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The reference's log-probs computed once, before training, are those of a forward in every step."""
    compare(
        *run_both(monkeypatch, tmp_path, "dpo", "sigmoid", adapter=False, precompute_ref_log_probs=True),
        tolerance=1e-5,
    )
