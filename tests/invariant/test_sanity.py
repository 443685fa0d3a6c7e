"""Training stays sane where others collapsed: no NaN in weights or metrics, and no step that does nothing in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    EOS,
    largest_difference,
    make_config,
    make_model,
    make_pairs,
    make_prompts,
    make_trainer,
    reward,
    weights_of,
)
from transformers import GPT2Config, GPT2LMHeadModel

from sail.data.collate import pad_pairs
from sail.errors import ConfigError
from sail.generation.scoring import score_sequences
from sail.trainer import SAILTrainer
from sail.training.recorder import METRICS

MAY_BE_NULL = {
    "pair/margin",
    "pair/accuracy",
    "label/entropy",
    "label/agreement",
    "kl/policy_ref",
    "kl/policy_ref_se",
    "response/length",
    "response/cut",
    *("response/entropy", "ratio/mean", "ratio/ess", "ratio/clipped"),
    "response/empty",
    "eval_kl_se",
}
"""An estimate without the rows it needs; everything else is a finite number in every line."""

DPR = {"dpr": {"weight": 1.0, "coefficient": 0.3}}
MIX = {
    "data": {"weight": 0.4},
    "ddp": {"weight": 0.2, "coefficient": 0.2},
    "dpp": {"weight": 0.2, "coefficient": 0.2},
    "dpr": {"weight": 0.2, "coefficient": 0.3},
}
STEPS = 4


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, strictly JSON: NaN and Infinity are refused."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in (folder / METRICS).read_text().splitlines()]


def train_sanely(folder: Path, *, steps: int = STEPS, **options: Any) -> SAILTrainer:
    """Train; weights and logged numbers are finite, every step is logged, and it moved the weights or is counted as empty."""
    trainer = make_trainer(folder, max_steps=steps, logging_steps=1, **options)
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    assert all(torch.isfinite(value).all() for value in after.values())
    lines = [line for line in lines_of(folder) if "loss" in line]
    assert len(lines) == steps
    for line in lines_of(folder):
        assert {name for name, value in line.items() if value is None} <= MAY_BE_NULL, line
    if lines[-1]["step/empty"] < steps:
        assert largest_difference(before, after) > 0
        assert any(line["grad_norm"] > 0 for line in lines)
    return trainer


def last_line(folder: Path) -> dict[str, Any]:
    return [line for line in lines_of(folder) if "loss" in line][-1]


def certain_model(token: int, bonus: float = 1000.0) -> Any:
    """A policy that says `token` with probability 1, wherever it stands; its log-probability is 0 exactly."""
    model = make_model()

    def add(module: Any, arguments: Any, logits: torch.Tensor) -> torch.Tensor:
        raised = torch.zeros(logits.shape[-1])
        raised[token] = bonus
        return logits + raised

    model.lm_head.register_forward_hook(add)
    return model


# ---- what the policy says


@pytest.mark.parametrize("routes", [MIX, DPR], ids=["mix", "dpr"])
def test_deterministic_policy(tmp_path: Path, routes: dict[str, Any]) -> None:
    """log pi = 0 exactly for every response, all of them the same: a hook that divided by log pi would give NaN."""
    if routes is DPR:
        # Of identical responses there is nothing to learn: zero gradient, although every row counts.
        trainer = make_trainer(tmp_path, model=certain_model(5), routes=routes, max_steps=STEPS, optim="sgd")
        before = weights_of(trainer.model)
        trainer.train()
        assert largest_difference(before, weights_of(trainer.model)) == 0
        assert last_line(tmp_path)["oracle/calls"] == 0
        assert last_line(tmp_path)["loss"] == pytest.approx(math.log(2))
    else:
        train_sanely(tmp_path, model=certain_model(5), routes=routes)
    assert last_line(tmp_path)["response/cut"] in (1.0, None)
    assert last_line(tmp_path)["kl/policy_ref"] in (0.0, None) or routes is MIX


def test_empty_responses(tmp_path: Path) -> None:
    """Immediate EOS: one token, no text; the pairs of the data route still teach."""
    train_sanely(tmp_path, model=certain_model(EOS), routes=MIX, oracle=reward)
    empty = [line for line in lines_of(tmp_path) if line.get("response/length")]
    assert empty
    assert all(line["response/length"] == 1 and line["response/empty"] == 1 for line in empty)


def test_some_responses_are_empty(tmp_path: Path) -> None:
    train_sanely(tmp_path, model=certain_model(EOS, bonus=3.0), routes=DPR, steps=6)
    shares = [line["response/empty"] for line in lines_of(tmp_path) if "response/empty" in line]
    assert 0 < max(shares) < 1


def test_identical_responses_in_the_dataset(tmp_path: Path) -> None:
    """A tie: p = 1/2, kept in, no gradient from it; a run of nothing but ties stays where it is."""
    rows = [{**row, "rejected": row["chosen"]} for row in make_pairs(16)]
    trainer = make_trainer(tmp_path, rows=rows, preset="dpo", max_steps=STEPS, optim="sgd")
    before = weights_of(trainer.model)
    trainer.train()
    assert largest_difference(before, weights_of(trainer.model)) < 1e-9
    assert last_line(tmp_path)["loss"] == pytest.approx(math.log(2))
    assert last_line(tmp_path)["pair/accuracy"] is None


def test_every_response_cut_at_one_token(tmp_path: Path) -> None:
    train_sanely(tmp_path, routes=MIX, max_new_tokens=1)
    assert last_line(tmp_path)["response/length"] == 1


# ---- what the oracle says


def abstain(prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[None]:
    return [None] * len(prompts)


def test_an_oracle_that_only_abstains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Zero pair loss, zero gradient (SGD: the weights do not move by a bit), counted, and said."""
    trainer = train_sanely(tmp_path, routes=DPR, oracle=abstain, optim="sgd", learning_rate=1.0)
    fresh = make_model().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in weights_of(trainer.model).items())
    for number, line in enumerate(line for line in lines_of(tmp_path) if "loss" in line):
        assert line["loss"] == 0
        assert line["grad_norm"] == 0
        assert line["step/empty"] == number + 1
        assert line["oracle/abstained"] == 8 * (number + 1)
    assert capsys.readouterr().out.count("every label abstained") == STEPS


def test_an_oracle_that_abstains_now_and_then(tmp_path: Path) -> None:
    """An abstained row leaves numerator, baseline and denominator: the rest weigh what they would weigh alone."""

    def sometimes(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        return [None if len(one) % 2 else 0.8 for one in first]

    trainer = train_sanely(tmp_path, routes=DPR, oracle=sometimes)
    batches, _ = _prepared(trainer, 2)
    weights = torch.cat([batch["pair_weight"] for batch in batches])
    active = weights > 0
    assert 0 < active.sum() < len(weights)
    assert weights[active].sum().item() == pytest.approx(1.0)


def _prepared(trainer: SAILTrainer, micro_batches: int) -> tuple[list[dict[str, Any]], int]:
    """The tensors of one optimiser step, as if training were at its start."""
    trainer.state.global_step = 0
    return trainer.get_batch_samples(iter(trainer.get_train_dataloader()), micro_batches, trainer.args.device)


@pytest.mark.parametrize("label", ["soft", "sampled", "argmax"])
def test_huge_rewards(tmp_path: Path, label: str) -> None:
    def huge(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [1e6 * value for value in reward(prompts, responses)]

    train_sanely(tmp_path, routes=DPR, oracle=huge, oracle_label=label)


# ---- which rows there are


def test_a_batch_with_one_on_policy_row_has_no_baseline(tmp_path: Path) -> None:
    options = {"routes": DPR, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    trainer = train_sanely(tmp_path, **options)
    batches, count = _prepared(trainer, 1)
    assert count == 1
    assert batches[0]["baseline"].tolist() == [0.0]
    assert batches[0]["score_coefficient"].tolist() == [pytest.approx(0.3)]


def test_batches_without_on_policy_rows(tmp_path: Path) -> None:
    """With a weight of 2% most steps have none, and a few have one."""
    train_sanely(
        tmp_path, routes={"data": {"weight": 0.98}, "dpr": {"weight": 0.02, "coefficient": 0.3}}, steps=12
    )
    shares = [line["route/dpr"] for line in lines_of(tmp_path) if "route/dpr" in line]
    assert 0.0 in shares
    alone = next(line for line in lines_of(tmp_path) if line.get("route/dpr") == 0.0)
    assert alone["response/length"] is None
    assert alone["kl/policy_ref"] is None


@pytest.mark.parametrize("copies", [1, 8])
def test_one_prompt_only(tmp_path: Path, copies: int) -> None:
    train_sanely(tmp_path, rows=make_pairs(1) * copies, routes=MIX)
    assert last_line(tmp_path)["online/prompts"] <= copies


def test_prompts_only_and_nothing_but_online(tmp_path: Path) -> None:
    train_sanely(tmp_path, rows=[{"prompt": one} for one in make_prompts(16)], routes=DPR)
    assert last_line(tmp_path)["route/dpr"] == 1.0


def test_prompts_beside_pairs_keep_the_weights(tmp_path: Path) -> None:
    """A fifth of the rows can only go online; rows with a pair go there less often, so that the shares come out right."""
    rows = make_pairs(48) + [{"prompt": one} for one in make_prompts(12, seed=9)]
    routes = {"data": {"weight": 0.6}, "dpp": {"weight": 0.1, "coefficient": 0.2}, "dpr": {"weight": 0.3}}
    steps = 30
    train_sanely(tmp_path, rows=rows, routes=routes, steps=steps, max_new_tokens=2)
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    drawn = sum(8 if line["epoch"] % 1 else 4 for line in lines)
    for name, entry in routes.items():
        share = sum(line[f"route/{name}"] * (8 if line["epoch"] % 1 else 4) for line in lines) / drawn
        error = math.sqrt(entry["weight"] * (1 - entry["weight"]) / drawn)
        assert abs(share - entry["weight"]) < 4 * error


def test_last_short_batch(tmp_path: Path) -> None:
    """Five rows in micro-batches of two, two per step: the second step of an epoch is a single row."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = train_sanely(tmp_path, rows=make_pairs(5), routes=MIX, **options)
    assert trainer.state.epoch == 2.0


def test_held_out_rows_without_pairs(tmp_path: Path) -> None:
    prompts = [{"prompt": one} for one in make_prompts(5, seed=4)]
    for name, rows in (("prompts", prompts), ("mixed", [*prompts, *make_pairs(4, seed=6)])):
        options = {"eval_strategy": "steps", "eval_steps": 2, "eval_samples": 4}
        train_sanely(tmp_path / name, routes=MIX, trainer_options={"eval_dataset": rows}, **options)
        lines = [line for line in lines_of(tmp_path / name) if "eval_reward" in line]
        assert len(lines) == 2
        assert all(("eval_margin" in line) == (name == "mixed") for line in lines)


# ---- how it is computed


def test_bfloat16_autocast(tmp_path: Path) -> None:
    train_sanely(tmp_path, routes=MIX, bf16=True)


def test_bfloat16_weights(tmp_path: Path) -> None:
    train_sanely(tmp_path, model=make_model(torch.bfloat16), routes=MIX, learning_rate=1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, reentrant: bool) -> None:
    trained = [
        train_sanely(
            tmp_path / str(on),
            routes=MIX,
            gradient_checkpointing=on,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )
        for on in (False, True)
    ]
    assert largest_difference(*(weights_of(trainer.model) for trainer in trained)) < 1e-6


def test_precomputed_reference_changes_nothing(tmp_path: Path) -> None:
    trained = [
        train_sanely(tmp_path / str(on), routes=MIX, precompute_ref_log_probs=on) for on in (False, True)
    ]
    assert largest_difference(*(weights_of(trainer.model) for trainer in trained)) < 1e-5


# ---- LoRA and dropout


def lora(dropout: float = 0.0) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])


SEQUENCES = [([3, 4, 5], [6, 7, 1]), ([8, 9], [10, 11, 12, 13, 1])]


def test_adapter_is_saved_and_its_reference_does_not_move(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, routes=MIX, learning_rate=1e-2, trainer_options={"peft_config": lora()}, max_steps=STEPS
    )

    def reference_scores() -> list[float]:
        model, adapter_off = trainer.reference.model()
        with adapter_off:
            return score_sequences(model, SEQUENCES, pad_id=0, batch_size=2)

    before = reference_scores()
    trainer.train()
    assert reference_scores() == before
    assert before == score_sequences(make_model(), SEQUENCES, pad_id=0, batch_size=2)
    assert score_sequences(trainer.model, SEQUENCES, pad_id=0, batch_size=2) != before
    trainer.save_model(str(tmp_path / "adapter"))
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert "model.safetensors" not in files


def test_a_model_with_an_adapter_needs_an_explicit_reference(tmp_path: Path) -> None:
    from peft import get_peft_model

    adapted = get_peft_model(make_model(), lora())
    with pytest.raises(ConfigError, match="merge_and_unload"):
        make_trainer(tmp_path, model=adapted)
    with pytest.raises(ConfigError, match="merge_and_unload"):
        make_trainer(tmp_path, model=adapted, trainer_options={"peft_config": lora()})
    train_sanely(tmp_path, model=adapted, routes=MIX, trainer_options={"ref_model": make_model(seed=3)})


def test_adapter_with_gradient_checkpointing(tmp_path: Path) -> None:
    train_sanely(
        tmp_path, routes=MIX, gradient_checkpointing=True, trainer_options={"peft_config": lora(0.1)}
    )


def dropout_everywhere(kind: str) -> Any:
    if kind == "llama":
        return make_model(attention_dropout=0.5)
    config = GPT2Config(
        vocab_size=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.5,
        embd_pdrop=0.5,
        attn_pdrop=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "lora"])
def test_dropout_is_off(tmp_path: Path, kind: str, attention: str) -> None:
    model = dropout_everywhere("llama" if kind == "lora" else kind)
    model.set_attn_implementation(attention)
    assert not torch.equal(*(_logits(model.train()) for _ in range(2)))
    options = {"peft_config": lora(0.5)} if kind == "lora" else {}
    trainer = make_trainer(tmp_path, model=model, trainer_options=options)
    if kind == "lora":
        # A fresh adapter adds nothing: only with weights in it would its dropout show.
        for name, value in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value)
    assert torch.equal(_logits(trainer.model.train()), _logits(trainer.model.eval()))


def _logits(model: Any) -> torch.Tensor:
    batch = pad_pairs(SEQUENCES, 0)
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_a_nan_is_not_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trainer's own filter would replace the loss of such a step by the mean of the others; it is said and logged as null."""
    model = make_model()
    model.lm_head.register_forward_hook(lambda module, arguments, logits: logits * float("nan"))
    make_trainer(tmp_path, model=model, preset="dpo", max_steps=2).train()
    assert last_line(tmp_path)["loss"] is None
    assert "the loss is nan" in capsys.readouterr().out


def test_trainer_needs_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="processing_class"):
        SAILTrainer(make_model(), args=make_config("unused"), train_dataset=make_pairs(4), oracle=reward)
