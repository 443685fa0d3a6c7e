"""The decoding loop: the same responses as `generate`, for families of models, and nothing else where it may not be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from test_generation_transformers import speaker
from tiny import EOS, PAD, make_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from sail.errors import SailError
from sail.generation import Sampled, SamplingSettings, TransformersGenerator, decoding
from sail.generation import transformers as in_process
from sail.generation.scoring import score_sequences

PROMPTS = [[5, 6], [7, 8, 9, 10, 11], [12], [3, 4, 5, 6], [20, 21, 22]] * 3
KEYS = [(7, "sample", 0, index, 0) for index in range(len(PROMPTS))]
SHAPE = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS,
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
GPT2 = {
    "vocab_size": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "eos_token_id": EOS,
    "bos_token_id": EOS,
}
PLAIN: dict[str, dict[str, Any]] = {
    "Llama": GROUPED, "Qwen2": GROUPED, "Qwen3": GROUPED | {"head_dim": 8}, "Mistral": GROUPED | {"sliding_window": None},
    "Gemma": GROUPED | {"head_dim": 8}, "Olmo2": GROUPED, "SmolLM3": GROUPED, "Qwen3Moe": GROUPED | EXPERTS,
    "GPT2": GPT2, "GPTNeoX": SHAPE, "OPT": {**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "bos_token_id": EOS},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "Mistral": GROUPED,  # a window slides
    "Phi3": GROUPED,  # prepares its inputs itself
    "Gemma3Text": GROUPED | {"head_dim": 8},
    "Bloom": {"vocab_size": 32, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def make(name: str, options: dict[str, Any], attention: str = "eager") -> Any:
    """A model with opinions."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.3)
    return model


def generator(model: Any, **options: Any) -> TransformersGenerator:
    settings = SamplingSettings(
        **{"max_new_tokens": 12, "temperature": 0.8, "eos_ids": (EOS, 4), "pad_id": PAD, **options}  # type: ignore[arg-type]
    )
    return TransformersGenerator(lambda: model, make_tokenizer(), settings)


def by_generate(model: Any, **options: Any) -> list[Sampled]:
    """The responses of `model.generate`."""
    one = generator(model, **options)
    one._plain = False
    return one.sample(PROMPTS, KEYS)


def same(rows: list[Sampled], expected: list[Sampled]) -> bool:
    """Equal but for rounding."""
    facts = [[(row.ids, row.text, row.cut) for row in some] for some in (rows, expected)]
    numbers = [[(row.log_prob, row.sampling_log_prob) for row in some] for some in (rows, expected)]
    return facts[0] == facts[1] and bool(torch.allclose(*map(torch.tensor, numbers), rtol=0, atol=1e-5))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each pass of the loop had."""
    sizes: list[int] = []
    real = decoding._logits

    def counted(model: Any, cache: Any, ids: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(len(ids))
        return real(model, cache, ids, *others)

    monkeypatch.setattr(decoding, "_logits", counted)
    return sizes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_loop_says_what_generate_says(name: str, attention: str) -> None:
    model = make(name, PLAIN[name], attention)
    one = generator(model)
    rows = one.sample(PROMPTS, KEYS)
    assert one._plain
    assert same(rows, by_generate(model))
    assert len({len(row.ids) for row in rows}) > 1


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_is_not_plain_is_left_to_generate(name: str, batches: list[int]) -> None:
    model = make(name, OTHERS[name])
    one = generator(model)
    assert same(one.sample(PROMPTS, KEYS), by_generate(model))
    assert not decoding.is_plain(model)
    assert not batches


def test_alibi_takes_no_mask_of_ours_and_the_trial_finds_it() -> None:
    """Falcon has the signature of a plain model; with alibi it reads distances from a two-dimensional mask."""
    options = {**SHAPE, "alibi": True, "new_decoder_architecture": False, "bos_token_id": EOS}
    model = make("Falcon", options)
    one = generator(model)
    assert same(one.sample(PROMPTS, KEYS), by_generate(model))
    assert decoding.is_plain(model)
    assert one._plain is False


@pytest.mark.parametrize("patched", ["instance", "class", "attention"])
def test_a_patched_model_is_not_plain(patched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("Llama", GROUPED, "sdpa")
    assert decoding.is_plain(model)
    if patched == "instance":
        model.generate = model.generate
    elif patched == "class":
        monkeypatch.setattr(type(model), "generate", lambda self, **options: None)
    else:
        model.config._attn_implementation_internal = "flash_attention_2"
    assert not decoding.is_plain(model)


def test_the_trial_sees_a_wrong_mask_a_wrong_position_and_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("Llama", GROUPED, "sdpa")
    expected = by_generate(model)
    real_mask, real_logits = decoding._as_attention_takes_it, decoding._logits

    def all_allowed(model: Any, mask: torch.Tensor) -> torch.Tensor:
        return real_mask(model, torch.ones_like(mask))

    def late(model: Any, cache: Any, ids: Any, mask: Any, positions: torch.Tensor) -> torch.Tensor:
        return real_logits(model, cache, ids, mask, positions + (ids.shape[1] == 1))

    def failing(*arguments: Any) -> torch.Tensor:
        raise TypeError("no such argument")

    for name, wrong in (("_as_attention_takes_it", all_allowed), ("_logits", late), ("_logits", failing)):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, name, wrong)
            one = generator(model)
            assert same(one.sample(PROMPTS, KEYS), expected)
            assert one._plain is False


def test_rows_that_have_ended_leave_the_batch(batches: list[int]) -> None:
    model = speaker(torch.float32)
    rows = generator(model, max_new_tokens=24).sample(PROMPTS, KEYS)
    assert same(rows, by_generate(model, max_new_tokens=24))
    after = batches[batches.index(len(PROMPTS)) :]
    assert after == sorted(after, reverse=True)
    assert len(set(after)) > 2
    # Nobody is waited for: as many passes as the longest response has tokens.
    assert len(after) == max(len(row.ids) for row in rows)


@pytest.mark.parametrize(("leave", "look"), [(2.0, 1), (0.25, 8), (0.01, 3)])
def test_when_rows_leave_changes_nothing(leave: float, look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaker(torch.float32)
    expected = generator(model, max_new_tokens=24).sample(PROMPTS, KEYS)
    monkeypatch.setattr(decoding, "LEAVE", leave)
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", look)
    assert same(generator(model, max_new_tokens=24).sample(PROMPTS, KEYS), expected)


def test_stop_strings_are_found_across_a_departure(batches: list[int]) -> None:
    """The window of the newest tokens reaches behind the moment at which other rows left."""
    model = speaker(torch.float32)
    free = generator(model, max_new_tokens=24, temperature=1.0).sample(PROMPTS, KEYS)
    longest = max(free, key=lambda row: len(row.ids))
    stop = " ".join(longest.text.split()[-4:-2])
    rows = generator(model, max_new_tokens=24, temperature=1.0, stop_strings=(stop,)).sample(PROMPTS, KEYS)
    assert same(rows, by_generate(model, max_new_tokens=24, temperature=1.0, stop_strings=(stop,)))
    assert rows != free


def test_recorded_log_probs_are_the_scored_ones() -> None:
    model = make("Qwen3", PLAIN["Qwen3"], "sdpa")
    rows = generator(model).sample(PROMPTS, KEYS)
    sequences = [(prompt, list(row.ids)) for prompt, row in zip(PROMPTS, rows, strict=True)]
    expected = score_sequences(model, sequences, pad_id=PAD, batch_size=4)
    assert [row.log_prob for row in rows] == pytest.approx(expected, abs=1e-4)


def test_nan_is_named() -> None:
    model = make("Llama", GROUPED, "sdpa")
    one = generator(model)
    one.sample(PROMPTS, KEYS)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(SailError, match="logits are NaN"):
        one.sample(PROMPTS, KEYS)


@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_a_model_trains_on_after_it_has_spoken(rope: str) -> None:
    """Tensors of inference mode may not stay in the model: dynamic rope keeps its frequencies in a buffer."""
    config = LlamaConfig(**GROUPED | {"max_position_embeddings": 8})
    config.rope_parameters = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    one = generator(model, max_new_tokens=16)
    one.sample(PROMPTS, KEYS)
    assert one._plain
    assert isinstance(decoding.without_gradient(model), torch.inference_mode)
    model.train()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_no_inference_mode_for_weights_that_are_not_plain() -> None:
    class Quantised(nn.Parameter):
        pass

    model = nn.Linear(2, 2)
    assert isinstance(decoding.without_gradient(model), torch.inference_mode)
    model.weight = Quantised(model.weight.data)
    assert isinstance(decoding.without_gradient(model), torch.no_grad)


def test_the_trial_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = in_process.TransformersGenerator._agrees
    monkeypatch.setattr(
        in_process.TransformersGenerator, "_agrees", lambda *given: calls.append(0) or real(*given)
    )
    one = generator(make("Llama", GROUPED, "sdpa"), batch_size=4)
    one.sample(PROMPTS, KEYS)
    one.sample(PROMPTS, KEYS)
    assert len(calls) == 1
