"""The estimate against reality: real steps on the CPU are the expected side, and published parameter counts."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_config, make_model, make_pairs, make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, Phi3Config, Qwen2Config, Qwen3Config

from sail.dry_run import few_points, steps_of, work_of
from sail.errors import ConfigError
from sail.estimate import (
    Work,
    activation_bytes,
    bytes_of,
    cache_bytes,
    estimate,
    load_shape,
    logit_bytes,
    optimiser_bytes,
    over,
    parameters,
    shape_of,
    weight_bytes,
    with_adapter,
)
from sail.generation import response_scores

FACTOR = 1.25
"""docs/real_runs.md states it: estimated peaks are within this factor of measured ones, on models of one to ten million."""


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **changes)


# ---- parameters: the counts that the models' own cards give, or that arithmetic does


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (GPT2Config(), 124_439_808),
        (
            Qwen2Config(
                vocab_size=151_936,
                hidden_size=896,
                intermediate_size=4864,
                num_hidden_layers=24,
                num_attention_heads=14,
                num_key_value_heads=2,
                tie_word_embeddings=True,
            ),
            494_032_768,
        ),
        (
            LlamaConfig(
                vocab_size=128_256,
                hidden_size=4096,
                intermediate_size=14_336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
            ),
            8_030_261_248,
        ),
    ],
    ids=["gpt2", "qwen2.5-0.5b", "llama-3-8b"],
)
def test_parameters_of_known_models(config: Any, count: int) -> None:
    assert parameters(shape_of(config)) == (count, count)


def test_trainable_parameters_are_those_of_the_real_adapter() -> None:
    real = get_peft_model(make_model(), lora())
    trained = sum(one.numel() for one in real.parameters() if one.requires_grad)
    every = sum(one.numel() for one in real.parameters())
    assert parameters(with_adapter(shape_of(make_model().config), lora())) == (every, trained)


def test_a_folder_without_weights_is_enough_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    make_model(dtype=torch.bfloat16).config.save_pretrained(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]
    assert parameters(load_shape(str(tmp_path)))[0] == sum(one.numel() for one in make_model().parameters())
    with pytest.raises(ConfigError, match="could not be loaded"):
        load_shape(str(tmp_path / "nowhere"))


# ---- what is there after a step, tensor by tensor


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop", "sgd", "adagrad"])
def test_weights_gradients_and_state_are_exact(tmp_path: Path, optim: str, adapter: bool) -> None:
    """Counted on the tensors of a real trainer after its second step."""
    gradients: list[int] = []

    trainer = make_trainer(
        tmp_path,
        optim=optim,
        max_steps=2,
        preset="dpo",
        trainer_options={"peft_config": lora() if adapter else None},
    )
    trainer.create_optimizer()
    step = trainer.optimizer.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        gradients.append(bytes_of(one.grad for one in trainer.model.parameters() if one.grad is not None))
        return step(*args, **kwargs)

    trainer.optimizer.step = counted
    trainer.train()
    state = [
        value
        for one in trainer.optimizer.state.values()
        for value in one.values()
        if isinstance(value, torch.Tensor)
    ]
    config = make_model().config
    shape = with_adapter(shape_of(config), lora() if adapter else None)
    found = estimate(shape, Work(4, 32), optimiser=optim, peft_config=lora() if adapter else None)
    assert found.weights == bytes_of(trainer.model.parameters())
    assert {found.gradients} == set(gradients)
    assert found.optimiser == bytes_of(state)
    frozen = trainer.reference.frozen
    assert found.reference == (0 if frozen is None else bytes_of(frozen.parameters()))
    assert (frozen is None) == adapter


def test_states_that_this_machine_cannot_make() -> None:
    """By hand: 8-bit AdamW keeps two bytes a value and a float32 scale per 256 values; small tensors stay in float32. Adafactor
    keeps a row and a column."""
    large, small = torch.empty(256, 256), torch.empty(100)
    assert optimiser_bytes("adamw_8bit", [large, small]) == 2 * (65_536 + 4 * 256) + 2 * 400
    assert optimiser_bytes("rmsprop_bnb_8bit", [large]) == 65_536 + 4 * 256
    assert optimiser_bytes("adafactor", [large, small]) == 4 * 512 + 400


def test_four_bits_leave_embeddings_head_and_adapter_alone() -> None:
    """By hand: half a byte a value and a float32 scale per 64, for the linear layers; bfloat16 for the rest."""
    model = shape_of(make_model(dtype=torch.bfloat16).config, torch.bfloat16)
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    rest = sum(one.numel() for one in model.parameters()) - linear
    for one in model.parameters():
        one.requires_grad_(False)
    assert weight_bytes(model, 4) == linear // 2 + linear // 16 + 2 * rest
    with_lora = with_adapter(shape_of(make_model().config, torch.bfloat16), lora())
    adapter = bytes_of(one for one in with_lora.parameters() if one.requires_grad)
    assert weight_bytes(with_lora, 4) == linear // 2 + linear // 16 + 2 * rest + adapter


# ---- activations and logits: the peak of live bytes of a real forward and backward pass


class LiveBytes(TorchDispatchMode):
    """The peak of bytes of the storages that operations have made and that are still alive; `given` ones do not count."""

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.given = {one.untyped_storage()._cdata for one in given}
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.given and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, which: int) -> None:
        self.now -= self.alive.pop(which, 0)


def shape(**changes: Any) -> LlamaConfig:
    given = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
    }
    return LlamaConfig(**{**given, **changes})


def measured_peak(model: Any, work: Work, *, start: int) -> int:
    """Peak of what a forward and backward pass over 2 x rows texts adds to weights and gradients."""
    ids = torch.randint(3, model.config.vocab_size, (2 * work.rows, work.length))
    mask = torch.ones_like(ids)
    responses = mask.clone()
    responses[:, :start] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "response_mask": responses, "start": start}
    for one in model.parameters():
        one.grad = torch.zeros_like(one) if one.requires_grad else None
    autocast = torch.autocast("cpu", work.compute, enabled=work.compute != torch.float32)
    weights = list(model.parameters())
    with LiveBytes([*weights, *(one.grad for one in weights if one.grad is not None)]) as live:
        with autocast:
            loss = response_scores(model, batch, chunk=work.chunk)[0].sum()
        loss.backward()
    return live.peak


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_peak_activations_are_within_the_stated_factor(
    adapter: bool, checkpointing: bool, compute: torch.dtype
) -> None:
    """Of a model of four million parameters, on texts of 128 tokens, with a small vocabulary: layers dominate."""
    config, work = shape(), Work(4, 128, checkpointing=checkpointing, compute=compute)
    peft_config = lora() if adapter else None
    estimated = with_adapter(shape_of(config), peft_config)
    said = activation_bytes(estimated, work, peft_config) + logit_bytes(estimated, work)
    model = LlamaForCausalLM(config)
    if checkpointing:
        model.activation_checkpointing_enable()
    real = get_peft_model(model, peft_config) if peft_config else model
    real.train()
    found = measured_peak(real, work, start=1)
    assert found / FACTOR < said < found * FACTOR, (said, found, said / found)


def test_peak_logits_are_within_the_stated_factor() -> None:
    """A large vocabulary on one small layer: logits dominate."""
    config = shape(vocab_size=20_000, num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    work = Work(2, 64)
    estimated = shape_of(config)
    said = activation_bytes(estimated, work) + logit_bytes(estimated, work)
    found = measured_peak(LlamaForCausalLM(config).train(), work, start=1)
    assert found / FACTOR < said < found * FACTOR, (said, found, said / found)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("chunk", [8, 32, 0])
def test_logits_in_chunks_are_within_the_stated_factor(
    chunk: int, compute: torch.dtype, adapter: bool
) -> None:
    """The same model with 8 or 32 of its 256 positions at a time, or with its own logits."""
    config = shape(vocab_size=20_000, num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    work = Work(2, 64, chunk=chunk, compute=compute)
    peft_config = lora() if adapter else None
    estimated = with_adapter(shape_of(config), peft_config)
    said = activation_bytes(estimated, work, peft_config) + logit_bytes(estimated, work)
    model = LlamaForCausalLM(config)
    found = measured_peak(
        (get_peft_model(model, peft_config) if peft_config else model).train(), work, start=1
    )
    assert found / FACTOR < said < found * FACTOR, (said, found, said / found)


def test_the_automatic_chunk_holds_2_to_the_25_logits() -> None:
    frozen = with_adapter(shape_of(shape(vocab_size=20_000)), lora())
    assert logit_bytes(frozen, Work(8, 512)) == 2**25 // 20_000 * 20_000 * 8
    assert logit_bytes(frozen, Work(8, 512, chunk=0)) == 2 * 8 * 512 * 20_000 * 12


def test_activations_grow_by_the_same_for_every_layer() -> None:
    two, six = (activation_bytes(shape_of(shape(num_hidden_layers=count)), Work(2, 64)) for count in (2, 6))
    eight = activation_bytes(shape_of(shape(num_hidden_layers=8)), Work(2, 64))
    assert (eight - six) * 2 == six - two > 0


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
        ),
        Phi3Config(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
        ),
        GPT2Config(n_embd=64, n_layer=3, n_head=4),
    ],
    ids=["qwen3", "phi3", "gpt2"],
)
def test_other_architectures_are_walked_too(config: Any) -> None:
    assert activation_bytes(shape_of(config), Work(1, 16)) > 0


# ---- the sampling cache, the split, the work


def test_the_cache_is_that_of_generate() -> None:
    """Counted in the cache that a real forward pass leaves."""
    model = make_model()
    cache = model(input_ids=torch.ones(6, 10, dtype=torch.long), use_cache=True).past_key_values
    real = sum(bytes_of([layer.keys, layer.values]) for layer in cache.layers)
    assert cache_bytes(shape_of(model.config), Work(1, 32, sampled=6, prompt=7, new_tokens=3)) == real


@pytest.mark.parametrize(
    ("split", "shares"),
    [
        ("none", (1, 1, 1)),
        ("zero1", (1, 1, 4)),
        ("zero2", (1, 4, 4)),
        ("zero3", (4, 4, 4)),
        ("fsdp", (4, 4, 4)),
    ],
)
def test_what_is_split_over_devices(split: str, shares: tuple[int, int, int]) -> None:
    whole = estimate(shape_of(shape()), Work(1, 8), optimiser="rmsprop")
    one, four = over(whole, split, 1), over(whole, split, 4)
    for name, share in zip(("weights", "gradients", "optimiser"), shares, strict=True):
        assert getattr(four, name) == -(-getattr(one, name) // share)
    assert four.reference == one.reference == whole.weights
    assert four.buckets == (one.gradients if split == "none" else 0)
    assert (four.activations, four.logits) == (one.activations, one.logits)
    assert four.gathered == (whole.weights if split in ("zero3", "fsdp") else 0)


def test_split_weights_are_whole_while_a_step_is_prepared() -> None:
    """By hand, as docs/scale.md says: a share and a whole copy of the policy, a whole reference, and what sampling needs."""
    whole = estimate(shape_of(shape()), Work(1, 8, sampled=2, prompt=4, new_tokens=4), optimiser="rmsprop")
    four = over(whole, "fsdp", 4)
    state = -(-whole.weights // 4) + whole.weights + -(-whole.optimiser // 4)
    assert four.while_sampling == state + whole.weights + whole.cache + whole.sampling
    assert four.while_training == state + -(-whole.gradients // 4) + whole.activations + whole.own_logits
    assert four.total == four.while_sampling > four.while_training
    assert over(whole, "zero2", 4).while_sampling == (
        2 * whole.weights + -(-whole.optimiser // 4) + whole.cache + whole.sampling
    )


def test_shared_out_weights_take_the_models_own_logits() -> None:
    """By hand: 2 x 8 x 512 positions of 20,000 words at 12 bytes; in chunks 2^25 logits at 8 bytes (a frozen head)."""
    model = with_adapter(shape_of(shape(vocab_size=20_000)), lora())
    whole = estimate(model, Work(8, 512), optimiser="rmsprop", peft_config=lora())
    for split in ("zero3", "fsdp"):
        assert over(whole, split, 8).logits == 2 * 8 * 512 * 20_000 * 12
    for split in ("none", "zero1", "zero2"):
        assert over(whole, split, 8).logits == whole.logits == 2**25 // 20_000 * 20_000 * 8


@pytest.mark.parametrize("rows", [7, 33])
@pytest.mark.parametrize("batch", [{}, {"gradient_accumulation_steps": 3}, {"dataloader_drop_last": True}])
@pytest.mark.parametrize("length", [{"max_steps": 5}, {"max_steps": -1, "num_train_epochs": 2.5}])
def test_steps_are_those_of_trainer(
    tmp_path: Path, rows: int, batch: dict[str, Any], length: dict[str, Any]
) -> None:
    trainer = make_trainer(tmp_path, rows=make_pairs(rows), preset="dpo", **batch, **length)
    loader = trainer.get_train_dataloader()
    real = trainer.set_initial_training_values(trainer.args, loader)
    plan = steps_of(trainer.args, rows)
    assert (plan.steps, plan.rows, plan.per_pass) == (real[-1], real[4], real[1])


def test_a_run_too_short_for_its_own_curves_is_told(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 50, "logging_steps": 5}
    args = make_config(tmp_path, preset="dpo", **options)
    assert few_points(args, 6) == [
        "few points for curves: logging_steps 5 and eval_steps 50 in 6 steps; set to at most 1"
    ]
    assert few_points(args, 60) == ["few points for curves: eval_steps 50 in 60 steps; set to at most 12"]
    assert few_points(args, 150) == []
    assert few_points(make_config(tmp_path, preset="dpo", logging_strategy="no"), 6) == []


def test_the_work_of_a_step(tmp_path: Path) -> None:
    """By hand: 4 x 2 rows, 0.3 of them with two responses each: 4.8, so 5 at most half of the time; in calls of 3, 3."""
    trainer = make_trainer(tmp_path, temperature=0.9, max_length=40, max_prompt_length=16)
    work = work_of(trainer.args, trainer.mixture, torch.float32)
    assert (work.rows, work.length, work.sampled, work.prompt, work.new_tokens) == (4, 40, 5, 16, 8)
    assert (work.tempered, work.checkpointing) == (True, False)
    trainer.args.generation_batch_size = 3
    assert work_of(trainer.args, trainer.mixture, torch.float32).sampled == 3
