"""The head apart from the body: values and every gradient equal those of the model's own logits; only faithful heads are used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EOS, PAD, VOCABULARY, make_model, make_trainer, weights_of
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from sail.data.collate import pad_pairs, response_positions
from sail.generation.head import find_head
from sail.generation.scoring import response_scores
from sail.objective import log_probs_of_hidden

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "speed"))

from loss_memory import compared

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

SEQUENCES = [
    ([3, 4, 5], [6, 7, 1]),
    ([8, 9, 10, 11], [12, 1]),
    ([5, 6, 7], [1]),
    ([20, 21, 22, 23, 24, 25], [26, 27, 28, 29, 30, 31, 3]),
]
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "initializer_range": 0.3,
}


def batch_of(sequences: Any = SEQUENCES) -> dict[str, Any]:
    return {**pad_pairs(sequences, PAD), "start": min(len(prompt) for prompt, _ in sequences)}


def made(config_class: Any, model_class: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return model_class(config_class(**{**SHAPE, **changes}))


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=2,
            initializer_range=0.3,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def with_bias() -> Any:
    model = made(PhiConfig, PhiForCausalLM)
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def adapted(**options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = make_model(scale=0.3, tie_word_embeddings=False)
    model = get_peft_model(base, LoraConfig(**{"r": 2, "target_modules": ["q_proj", "lm_head"], **options}))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model


MODELS: dict[str, Any] = {
    "tied": lambda: make_model(scale=0.3),
    "untied": lambda: make_model(scale=0.3, tie_word_embeddings=False),
    "bias": with_bias,
    "gpt2": gpt2,
    "soft cap": lambda: made(Gemma2Config, Gemma2ForCausalLM, head_dim=16, final_logit_softcapping=2.0),
    "logit_scale": lambda: made(CohereConfig, CohereForCausalLM, logit_scale=0.0625),
    "logits_scaling": lambda: made(GraniteConfig, GraniteForCausalLM, logits_scaling=7.0),
    "lora on the head": adapted,
    "head to save": lambda: adapted(target_modules=["q_proj"], modules_to_save=["lm_head"]),
}


def scored(
    model: Any, chunk: int | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Scores and the gradients of a sum in which each sequence and both temperatures have a weight of their own."""
    model.zero_grad()
    scores = response_scores(model, batch_of(), temperature, chunk)
    return with_gradients(model, scores)


def defined(model: Any, temperature: float) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The same from the definition, with torch's own log-softmax and nothing of ours."""
    model.zero_grad()
    batch = batch_of()
    ids, mask = batch["input_ids"], batch["response_mask"][:, 1:]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    found = []
    for heat in (1.0, temperature):
        picked = torch.log_softmax(logits / heat, -1).gather(2, ids[:, 1:, None]).squeeze(2)
        found.append(torch.where(mask, picked, 0.0).sum(1))
    return with_gradients(model, (found[0], found[1]))


def with_gradients(model: Any, scores: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Scores, and the gradients of a sum in which each has a weight of its own."""
    weights = torch.arange(1.0, 9.0, dtype=scores[0].dtype).view(2, 4)
    (torch.stack(scores) * weights).sum().backward()
    gradients = {
        name: p.grad.clone() if p.grad is not None else None
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return *scores, gradients


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Relative to the largest number of the tensor."""
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        assert gradient is not None
        assert (found[2][name] - gradient).abs().max() <= tolerance * gradient.abs().max().clamp(min=1e-3), (
            name
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [None, 1, 5])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_logits(
    name: str, chunk: int | None, temperature: float
) -> None:
    model = MODELS[name]().double()
    head = find_head(model)
    assert head is not None
    assert_close(scored(model, chunk, temperature), defined(model, temperature), 1e-10)


@pytest.mark.parametrize("name", ["tied", "soft cap", "lora on the head"])
def test_in_float32(name: str) -> None:
    model = MODELS[name]()
    assert_close(scored(model, 3, 0.7), defined(model, 0.7), 1e-5)


def test_a_lost_factor_would_be_seen() -> None:
    """The comparison above is not blind: a head whose scaling is forgotten, or used twice, is far off in both."""
    model = MODELS["logits_scaling"]().double()
    head = find_head(model)
    plain = scored(model, 0, 1.0)
    for wrong in (lambda logits: logits, lambda logits: head.after(head.after(logits))):
        hidden: list[torch.Tensor] = []
        handle = model.lm_head.register_forward_pre_hook(lambda m, inputs: hidden.append(inputs[0]))  # noqa: B023
        batch = batch_of()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        handle.remove()
        places = response_positions(batch["response_mask"])
        found, _ = log_probs_of_hidden(
            hidden[0].flatten(0, 1)[places],
            batch["input_ids"].flatten()[places + 1],
            lambda part: wrong(model.lm_head(part)),  # noqa: B023
            rows=4,
        )
        assert abs(found.sum() - plain[0].sum()) > 0.1


class Masked(LlamaForCausalLM):
    """Forbids a word after the head: not a function of each logit alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits[..., 7] = -100.0
        return output


class Clamped(LlamaForCausalLM):
    """The identity on small numbers, and on small numbers only."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.clamp(-50, 50)
        return output


@pytest.mark.parametrize("kind", [Masked, Clamped])
def test_what_cannot_be_reproduced_is_left_to_the_model(kind: Any) -> None:
    model = kind(make_model(scale=0.3).config)
    assert find_head(model) is None
    batch = batch_of()
    assert torch.equal(response_scores(model, batch, chunk=3)[0], response_scores(model, batch, chunk=0)[0])


def test_copies_of_a_model_use_its_own_logits() -> None:
    assert find_head(torch.nn.DataParallel(make_model())) is None
    assert find_head(torch.nn.Linear(2, 2)) is None


def test_a_head_that_was_replaced_is_looked_at_again() -> None:
    model = make_model(torch.float64, scale=0.3, tie_word_embeddings=False)
    assert find_head(model).module is model.lm_head
    model.set_output_embeddings(torch.nn.Linear(32, VOCABULARY + 4, dtype=torch.float64))
    assert find_head(model).module is model.lm_head
    assert_close(scored(model, 2, 1.0), scored(model, 0, 1.0), 1e-10)


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_model_is_called_once_and_its_head_sees_responses_only(chunk: int | None) -> None:
    model = make_model(torch.float64, scale=0.3)
    assert find_head(model) is not None
    bodies: list[int] = []
    rows: list[int] = []
    model.register_forward_hook(lambda m, inputs, output: bodies.append(1))
    model.lm_head.register_forward_hook(lambda m, inputs, logits: rows.append(logits.shape[:-1].numel()))
    response_scores(model, batch_of(), chunk=chunk)[0].sum().backward()
    tokens = sum(len(response) for _, response in SEQUENCES)
    # One position for the model's own call; with chunks each is made again in the backward pass.
    assert bodies == [1]
    assert sum(rows) == 1 + tokens * (1 if chunk is None else 2)
    assert max(rows) == (chunk or tokens)


def test_no_response_token_at_all() -> None:
    """Rows of a replay that remembers nothing yet: log-prob 0, gradients 0, and the graph still reaches every weight."""
    model = make_model(torch.float64)
    for chunk in (None, 2):
        model.zero_grad()
        scores, _ = response_scores(model, batch_of([([3, 4], []), ([5], [])]), chunk=chunk)
        assert scores.tolist() == [0.0, 0.0]
        scores.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.model.layers.parameters())


@pytest.mark.parametrize("name", ["tied", "lora on the head"])
def test_under_activation_checkpointing(name: str) -> None:
    model = MODELS[name]().double().train()
    expected = scored(model, 0, 1.0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    assert_close(scored(model, 3, 1.0), expected, 1e-10)


def test_under_autocast() -> None:
    """bfloat16 in the matrix products, float32 in the normalisation; chunks add up the head's gradient in float32."""
    model = make_model(scale=0.3, tie_word_embeddings=False)
    exact = scored(model, 0, 1.0)[2]["lm_head.weight"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, chunks = scored(model, 0, 1.0), scored(model, 2, 1.0)
    assert chunks[0].dtype == torch.float32
    assert (chunks[0] - plain[0]).abs().max() < 0.02 * plain[0].abs().max()
    errors = [(one[2]["lm_head.weight"] - exact).abs().max() / exact.abs().max() for one in (plain, chunks)]
    assert errors[1] < 1.5 * errors[0] + 1e-3


def narrow() -> Any:
    """A head that comes after a projection to another width."""
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=16, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS,
        )
    )  # fmt: skip


def test_a_prepared_reference_is_probed_in_its_own_precision(tmp_path: Path) -> None:
    """accelerate wraps a forward in autocast and leaves the weights: the head then gets bfloat16 where the hidden states are
    another layer's output, and its weights are float32. The head is found, and a step can be trained."""
    trainer = make_trainer(tmp_path, model=narrow(), preset="dpo", oracle=None, max_steps=1, bf16=True)
    assert find_head(trainer.reference.frozen) is not None
    trainer.train()


def test_a_head_that_cannot_be_probed_is_left_to_the_model() -> None:
    class Whole(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            rows, length, _ = hidden.shape
            return super().forward(hidden).view(rows, length, -1)

    model = make_model(scale=0.3, tie_word_embeddings=False)
    model.lm_head = Whole(32, VOCABULARY, bias=False)
    assert find_head(model) is None
    found = scored(model, None, 0.7)
    assert_close(found, defined(model, 0.7), 1e-5)


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    model = make_model(torch.bfloat16, scale=0.3)
    plain, chunks = (response_scores(model, batch_of(), chunk=chunk)[0] for chunk in (0, 3))
    assert chunks.dtype == torch.float32
    assert torch.allclose(chunks, plain, rtol=1e-2)


def test_dropout_on_the_head_is_the_same_the_second_time() -> None:
    """lora_dropout on the head: with the mask drawn anew in the backward pass, the gradients would belong to another loss."""
    model = adapted(target_modules=["lm_head"], lora_dropout=0.5).double().train()
    gradients = []
    for chunk in (10**6, 10**5):
        torch.manual_seed(3)
        gradients.append(scored(model, chunk, 1.0)[2])
    torch.manual_seed(3)
    kept = scored(model, None, 1.0)[2]
    for one in gradients:
        assert all(torch.allclose(one[name], kept[name], atol=1e-12) for name in kept)


@pytest.mark.parametrize("unused", [False, True])
def test_data_parallel(tmp_path: Path, unused: bool) -> None:
    """The wrapper's forward is what is called, and its hooks see every gradient once; one process, gloo."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = make_model(torch.float64, scale=0.3)
        expected = scored(model, 0, 1.0)
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
        seen: list[str] = []
        wrapped.register_comm_hook(None, lambda state, bucket: _noted(seen, bucket))
        found = scored(wrapped, 3, 1.0)
        plain = {name.removeprefix("module."): gradient for name, gradient in found[2].items()}
        assert_close((*found[:2], plain), expected, 1e-10)
        assert sum(map(int, seen)) == sum(parameter.numel() for parameter in model.parameters())
    finally:
        dist.destroy_process_group()


def _noted(seen: list[str], bucket: Any) -> Any:
    seen.append(str(bucket.buffer().numel()))
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_through_the_trainer(tmp_path: Path) -> None:
    """Two steps with chunks, whole and with the model's logits: the same weights, in training and in the reference."""
    weights = []
    for chunk in (0, None, 3):
        trainer = make_trainer(
            tmp_path / str(chunk), model=make_model(torch.float64), max_steps=2, logprob_chunk=chunk
        )
        trainer.train()
        weights.append(weights_of(trainer.model))
    for other in weights[1:]:
        assert max((other[name] - weights[0][name]).abs().max() for name in other) < 1e-10


def test_peak_memory_of_the_loss() -> None:
    """At 20,000 words, 4 x 64 tokens in chunks of 16: no tensor of positions x vocabulary, a quarter of the peak at most."""
    found = compared(20_000, rows=4, length=64, chunk=16, width=16)
    logits = 4 * 64 * 20_000 * 4
    assert found["plain"]["peak"] >= 2.9 * logits
    assert found["plain"]["largest"] >= logits * 0.9
    assert found["chunks"]["largest"] <= logits / 10
    assert found["share"] <= 0.25
