"""The adapter merged while sampling: the same policy, and afterwards the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import EOS, PAD, make_model, make_tokenizer, weights_of

from sail.generation import SamplingSettings, TransformersGenerator
from sail.generation.merging import adapter_merged, mergeable_layers
from sail.generation.scoring import score_sequences, unwrapped

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PROMPTS = [[3, 4, 5], [8, 9, 10, 11], [20, 21]]
KEYS = [(0, "sample", row) for row in range(3)]


def adapted(dtype: torch.dtype = torch.float64, *, tie: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    base = make_model(dtype, scale=0.3, tie_word_embeddings=tie)
    model = get_peft_model(
        base, LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    # PEFT's own adapters are in float32, whatever the model is in.
    return model.to(dtype)


def generator_of(model: Any, **more: Any) -> TransformersGenerator:
    settings = SamplingSettings(8, 1.0, (EOS,), (), PAD, None)
    return TransformersGenerator(lambda: unwrapped(model), make_tokenizer(), settings, **more)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_samples_are_the_adapted_policys_and_its_bits_stay(options: dict[str, Any]) -> None:
    model = adapted(**options)
    before = weights_of(model)
    sequences: list[tuple[list[int], list[int]]] = []
    for turn in range(20):
        sampled = generator_of(model).sample(PROMPTS, [(turn, *key) for key in KEYS])
        sequences = [(prompt, list(one.ids)) for prompt, one in zip(PROMPTS, sampled, strict=True)]
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(layer.merged for layer in mergeable_layers(model))
    # Scored by the adapted model, apart: what was recorded while sampling (Llama normalises in float32).
    scores = score_sequences(model, sequences, pad_id=PAD, batch_size=3)
    assert scores == pytest.approx([one.log_prob for one in sampled], abs=1e-5)
    with model.disable_adapter():
        base = score_sequences(model, sequences, pad_id=PAD, batch_size=3)
    assert max(abs(one - other) for one, other in zip(scores, base, strict=True)) > 0.1


def test_every_layer_is_plain_inside() -> None:
    model = adapted()
    with torch.no_grad(), adapter_merged(model):
        assert not mergeable_layers(model), "a layer was not merged"
    assert (
        len(mergeable_layers(model)) == 14
    )  # seven in each of two layers; the head is not among all-linear's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_merged(dtype: torch.dtype) -> None:
    assert not mergeable_layers(adapted(dtype))


@pytest.mark.filterwarnings("ignore:.lora_bias=True.")
def test_nor_under_autocast_nor_switched_off_nor_what_peft_cannot_merge() -> None:
    assert not mergeable_layers(adapted(lora_bias=True))
    model = adapted(torch.float32)
    assert mergeable_layers(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not mergeable_layers(model)
    with model.disable_adapter():
        assert not mergeable_layers(model)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_a_tied_head_is_left_alone() -> None:
    """Merged into the head, the adapter would also change the embeddings."""
    model = adapted(tie=True, target_modules=["q_proj", "lm_head"])
    assert len(mergeable_layers(model)) == 2
    sampled = generator_of(model).sample(PROMPTS, KEYS)
    sequences = [(prompt, list(one.ids)) for prompt, one in zip(PROMPTS, sampled, strict=True)]
    scores = score_sequences(model, sequences, pad_id=PAD, batch_size=3)
    assert scores == pytest.approx([one.log_prob for one in sampled], abs=1e-5)


def test_an_error_while_sampling_puts_everything_back() -> None:
    model = adapted()
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="halfway"), adapter_merged(model):
        raise RuntimeError("halfway")
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(mergeable_layers(model)) == 14


def test_a_model_without_adapter() -> None:
    model = make_model()
    with adapter_merged(model):
        assert not mergeable_layers(model)
