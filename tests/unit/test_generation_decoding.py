"""The decoding loop: the same responses as `generate`, for families of models, and nothing else where it may not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_generation_transformers import speaker
from tiny import EOS, PAD, make_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

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
    """Falcon has the signature of a plain model; with alibi it reads distances from a two-dimensional mask. The trial is its own:
    a first batch that ends at once tells nothing."""
    options = {**SHAPE, "alibi": True, "new_decoder_architecture": False, "bos_token_id": EOS}
    model = make("Falcon", options)
    one = generator(model, eos_ids=tuple(range(32)))
    assert {len(row.ids) for row in one.sample(PROMPTS[:1], KEYS[:1])} == {1}
    assert decoding.is_plain(model)
    assert one._plain is False
    one = generator(model)
    assert same(one.sample(PROMPTS, KEYS), by_generate(model))


@pytest.mark.parametrize("patched", ["instance", "class", "attention", "devices", "sampling"])
def test_a_patched_model_is_not_plain(patched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("Llama", GROUPED, "sdpa")
    assert decoding.is_plain(model)
    if patched == "instance":
        model.generate = model.generate
    elif patched == "class":
        monkeypatch.setattr(type(model), "generate", lambda self, **options: None)
    elif patched == "sampling":
        model._sample = model._sample
    elif patched == "devices":
        model.hf_device_map = {"model.embed_tokens": 0, "model.layers": 1}
    else:
        model.config._attn_implementation_internal = "flash_attention_2"
    assert not decoding.is_plain(model)


@pytest.mark.parametrize(
    ("rope", "plain"), [("dynamic", False), ("longrope", False), ("linear", True), ("yarn", True)]
)
def test_positions_that_depend_on_the_longest_row_are_left_to_generate(rope: str, plain: bool) -> None:
    more: dict[str, Any] = {"original_max_position_embeddings": 16}
    if rope == "longrope":
        more |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = make("Llama", GROUPED, "sdpa")
    model.config.rope_parameters = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0, **more}
    assert decoding.is_plain(model) is plain
    model.config.rope_parameters = {"full_attention": model.config.rope_parameters}
    assert decoding.is_plain(model) is plain


Break = Callable[[pytest.MonkeyPatch], None]


def all_allowed(patch: pytest.MonkeyPatch) -> None:
    real = decoding._as_attention_takes_it
    patch.setattr(decoding, "_as_attention_takes_it", lambda model, mask: real(model, torch.ones_like(mask)))


def one_position_late(patch: pytest.MonkeyPatch) -> None:
    real = decoding._logits
    patch.setattr(
        decoding,
        "_logits",
        lambda model, cache, ids, mask, at: real(model, cache, ids, mask, at + (ids.shape[1] == 1)),
    )


def failing(patch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> torch.Tensor:
        raise TypeError("no such argument")

    patch.setattr(decoding, "_logits", fail)


def wrong_rows_kept(patch: pytest.MonkeyPatch) -> None:
    real = transformers.DynamicCache.batch_select_indices
    patch.setattr(
        transformers.DynamicCache, "batch_select_indices", lambda self, kept: real(self, kept.flip(0))
    )


def wrong_rows_kept_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoding, "_look_every", lambda device: decoding.LOOK_EVERY)
    wrong_rows_kept(patch)


def log_probs_off(patch: pytest.MonkeyPatch) -> None:
    real = decoding.draw

    def off(*given: Any) -> Any:
        drawn = real(*given)
        return replace(drawn, tempered_log_prob=drawn.tempered_log_prob + 0.01)

    patch.setattr(decoding, "draw", off)


@pytest.mark.parametrize(
    "wrong",
    [all_allowed, one_position_late, failing, wrong_rows_kept, wrong_rows_kept_on_a_gpu, log_probs_off],
)
def test_the_trial_sees_a_loop_that_is_wrong(
    wrong: Break, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make("Llama", GROUPED, "sdpa")
    expected = by_generate(model)
    wrong(monkeypatch)
    one = generator(model)
    assert same(one.sample(PROMPTS, KEYS), expected)
    assert one._plain is False
    assert "responses come from generate()" in caplog.text


def test_a_full_device_is_not_a_wrong_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(decoding, "_logits", full)
    with pytest.raises(torch.OutOfMemoryError):
        generator(make("Llama", GROUPED, "sdpa")).sample(PROMPTS, KEYS)


def test_a_context_too_short_for_a_trial(batches: list[int]) -> None:
    model = make("GPT2", GPT2 | {"n_positions": 8}, "sdpa")
    one = generator(model, max_new_tokens=3)
    assert same(one.sample(PROMPTS, KEYS), by_generate(model, max_new_tokens=3))
    assert not batches


@pytest.mark.parametrize("how", ["bfloat16", "autocast", "lora", "lora in bfloat16"])
def test_in_half_precision_and_with_an_adapter(how: str) -> None:
    model = make("Llama", GROUPED, "sdpa")
    if "lora" in how:
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, config).get_base_model()
    if "bfloat16" in how:
        model = model.to(torch.bfloat16)
    precision = torch.autocast("cpu", torch.bfloat16) if how == "autocast" else nullcontext()
    with precision:
        one = generator(model)
        rows, expected = one.sample(PROMPTS, KEYS), by_generate(model)
    assert one._plain
    # When rows leave, matrices have other shapes, and half-precision sums other last bits.
    agreeing = [mine.ids == theirs.ids for mine, theirs in zip(rows, expected, strict=True)]
    assert sum(agreeing) >= (len(rows) if how == "lora" else len(rows) - 3)


def rows_of_passes(batches: list[int]) -> list[int]:
    """How many rows each pass after the trial's spoke for; the first reads each of the five different prompts once."""
    begun = batches.index(5)
    return [len(PROMPTS), *batches[begun + 1 :]]


def test_a_prompt_of_several_rows_is_read_once(batches: list[int]) -> None:
    model = make("Qwen3", PLAIN["Qwen3"], "sdpa")
    one = generator(model)
    one.sample(PROMPTS, KEYS)
    batches.clear()
    rows = one.sample(PROMPTS, KEYS)
    assert batches[:2] == [5, 15]
    alone = [one.sample([prompt], [key])[0] for prompt, key in zip(PROMPTS, KEYS, strict=True)]
    assert same(rows, alone)


def test_rows_that_have_ended_leave_the_batch(batches: list[int]) -> None:
    model = speaker(torch.float32)
    rows = generator(model, max_new_tokens=24).sample(PROMPTS, KEYS)
    assert same(rows, by_generate(model, max_new_tokens=24))
    after = rows_of_passes(batches)
    assert after == sorted(after, reverse=True)
    assert len(set(after)) > 2
    # Nobody is waited for: as many passes as the longest response has tokens.
    assert len(after) == max(len(row.ids) for row in rows)


@pytest.mark.parametrize(("leave", "look"), [(2.0, 1), (0.25, 8), (0.01, 3)])
def test_when_rows_leave_changes_nothing(leave: float, look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaker(torch.float32)
    expected = generator(model, max_new_tokens=24).sample(PROMPTS, KEYS)
    monkeypatch.setattr(decoding, "LEAVE", leave)
    monkeypatch.setattr(decoding, "_look_every", lambda device: look)
    assert same(generator(model, max_new_tokens=24).sample(PROMPTS, KEYS), expected)


def test_stop_strings_are_found_across_a_departure(batches: list[int]) -> None:
    """For each departure, a stop string of the two tokens around it, said by a row that stayed."""
    model = speaker(torch.float32)
    options: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0}
    free = generator(model, **options).sample(PROMPTS, KEYS)
    passes = rows_of_passes(batches)
    departures = [step for step in range(1, len(passes)) if passes[step] < passes[step - 1]]
    longest = max(free, key=lambda row: len(row.ids))
    tokenizer = make_tokenizer()
    tried = 0
    for departure in departures:
        around = longest.ids[departure - 1 : departure + 1]
        stop = tokenizer.decode(list(around), skip_special_tokens=True)
        if len(stop.split()) < 2:
            continue
        tried += 1
        rows = generator(model, stop_strings=(stop,), **options).sample(PROMPTS, KEYS)
        assert same(rows, by_generate(model, stop_strings=(stop,), **options))
        assert len(rows[free.index(longest)].ids) == departure + 1
    assert tried > 1


def test_recorded_log_probs_are_the_scored_ones() -> None:
    model = make("Qwen3", PLAIN["Qwen3"], "sdpa")
    rows = generator(model).sample(PROMPTS, KEYS)
    sequences = [(prompt, list(row.ids)) for prompt, row in zip(PROMPTS, rows, strict=True)]
    expected = score_sequences(model, sequences, pad_id=PAD, batch_size=4)
    assert [row.log_prob for row in rows] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("when", ["first batch", "later batch", "later token"])
@pytest.mark.parametrize("plain", [True, False])
def test_nan_is_named(when: str, plain: bool) -> None:
    model = make("Llama", GROUPED, "sdpa")
    one = generator(model, eos_ids=())
    if not plain:
        one._plain = False
    if when != "first batch":
        one.sample(PROMPTS, KEYS)

    def broken(module: Any, given: Any, logits: torch.Tensor) -> torch.Tensor:
        passes.append(0)
        return logits * float("nan") if when != "later token" or len(passes) > 3 else logits

    passes: list[int] = []
    model.lm_head.register_forward_hook(broken)
    with pytest.raises(SailError, match="logits are NaN"):
        one.sample(PROMPTS, KEYS)


def test_no_tensor_of_inference_mode_stays() -> None:
    """A buffer that is made anew in a forward pass, as some rotary positions are: data parallel would write into it."""
    model = make("Llama", GROUPED, "sdpa")

    def renew(module: Any, given: Any) -> None:
        module.register_buffer("inv_freq", module.inv_freq * 1.0, persistent=False)

    model.model.rotary_emb.register_forward_pre_hook(renew)
    one = generator(model)
    one.sample(PROMPTS, KEYS)
    assert one._plain
    assert not any(buffer.is_inference() for buffer in model.buffers())
    ids = torch.tensor([PROMPTS[1]])
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_inference_mode_only_where_nothing_can_stay() -> None:
    class Quantised(nn.Parameter):
        pass

    class Own(transformers.LlamaForCausalLM):
        """Code of a model's own may keep a table of sines."""

    def inference(model: Any) -> bool:
        with decoding.without_gradient(model):
            assert not torch.is_grad_enabled()
            return torch.is_inference_mode_enabled()

    model = make("Llama", GROUPED, "sdpa")
    assert inference(model)
    assert not inference(Own(model.config))
    model.lm_head.weight = Quantised(model.lm_head.weight.data)
    assert not inference(model)


def test_the_trial_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = in_process.loop_agrees
    monkeypatch.setattr(in_process, "loop_agrees", lambda *given: calls.append(0) or real(*given))
    one = generator(make("Llama", GROUPED, "sdpa"), batch_size=4)
    one.sample(PROMPTS, KEYS)
    one.sample(PROMPTS, KEYS)
    assert len(calls) == 1
