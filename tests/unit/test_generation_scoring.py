"""Scoring given responses: the same numbers however they are computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import PAD, make_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from sail.data.collate import pad_pairs
from sail.generation.scoring import accepts_logits_to_keep, response_scores, score_sequences, unwrapped

SEQUENCES = [
    ([3, 4, 5], [6, 7, 1]),
    ([8, 9, 10, 11], [12, 1]),
    ([5, 6, 7], [1]),
    ([20, 21, 22, 23, 24, 25], [26, 27, 28, 29, 30, 31, 3]),
]


class Plain(LlamaForCausalLM):
    """An architecture that always makes all logits."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, use_cache: Any = None) -> Any:
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def plain(dtype: torch.dtype = torch.float64) -> Any:
    model = make_model(dtype, scale=0.3)
    other = Plain(model.config).to(dtype)
    other.load_state_dict(model.state_dict())
    return other


def batch_of(sequences: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    return {**pad_pairs(sequences, PAD), "start": min(len(prompt) for prompt, _ in sequences)}


def by_hand(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> float:
    """The definition, token by token, without padding or cache."""
    total = 0.0
    for place in range(len(response)):
        ids = torch.tensor([[*prompt, *response[:place]]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double() / temperature
        total += torch.log_softmax(logits, -1)[response[place]].item()
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_the_definition(temperature: float) -> None:
    model = make_model(torch.float64, scale=0.3)
    scores, tempered = response_scores(model, batch_of(SEQUENCES), temperature)
    assert scores.tolist() == pytest.approx([by_hand(model, *one) for one in SEQUENCES], abs=1e-11)
    assert tempered.tolist() == pytest.approx(
        [by_hand(model, *one, temperature) for one in SEQUENCES], abs=1e-11
    )
    assert (tempered is scores) == (temperature == 1.0)


def test_making_only_the_last_logits_changes_nothing() -> None:
    assert accepts_logits_to_keep(LlamaForCausalLM)
    assert not accepts_logits_to_keep(Plain)
    asked: list[int] = []
    model = make_model(torch.float64, scale=0.3)
    model.lm_head.register_forward_hook(lambda m, inputs, logits: asked.append(logits.shape[1]))
    few = response_scores(model, batch_of(SEQUENCES), chunk=0)[0]
    every = response_scores(plain(), batch_of(SEQUENCES))[0]
    assert torch.allclose(few, every, atol=1e-12, rtol=0)
    length = max(len(prompt) + len(response) for prompt, response in SEQUENCES)
    assert asked == [length - min(len(prompt) for prompt, _ in SEQUENCES) + 1]


def test_gradients_do_not_depend_on_it_either() -> None:
    gradients = []
    for model in (make_model(torch.float64, scale=0.3), plain()):
        response_scores(model, batch_of(SEQUENCES), chunk=0)[0].sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-11) for name in gradients[0])


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_batches_of_any_size_equal_one_by_one(size: int) -> None:
    model = make_model(torch.float64, scale=0.3)
    scores = score_sequences(model, SEQUENCES, pad_id=PAD, batch_size=size)
    alone = [score_sequences(model, [one], pad_id=PAD, batch_size=1)[0] for one in SEQUENCES]
    assert scores == pytest.approx(alone, abs=1e-11)
    assert alone == pytest.approx([by_hand(model, *one) for one in SEQUENCES], abs=1e-11)


def test_pad_ids_inside_a_response_are_scored() -> None:
    """Masks come from lengths: a response may hold the pad id, and the pad may be the EOS."""
    model = make_model(torch.float64, scale=0.3)
    sequences = [([3, 4], [PAD, 6, PAD]), ([5], [7])]
    scores = score_sequences(model, sequences, pad_id=PAD, batch_size=2)
    assert scores == pytest.approx([by_hand(model, *one) for one in sequences], abs=1e-11)
    assert score_sequences(model, sequences, pad_id=1, batch_size=2) == pytest.approx(scores, abs=1e-11)


def test_positions_of_a_model_with_absolute_ones() -> None:
    """Right padding needs no position ids: GPT-2's are those of the unpadded sequence."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3, use_cache=False
    )
    model = GPT2LMHeadModel(config).double().eval()
    scores = score_sequences(model, SEQUENCES, pad_id=PAD, batch_size=4)
    assert scores == pytest.approx([by_hand(model, *one) for one in SEQUENCES], abs=1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_no_gradient_kept(training: bool) -> None:
    model = make_model(attention_dropout=0.5).train(training)
    first = score_sequences(model, SEQUENCES, pad_id=PAD, batch_size=2)
    assert first == score_sequences(model, SEQUENCES, pad_id=PAD, batch_size=2)
    assert model.training is training
    assert score_sequences(model, [], pad_id=PAD, batch_size=2) == []


def test_bfloat16_is_scored_in_float32() -> None:
    model = make_model(torch.bfloat16, scale=0.3)
    scores, _ = response_scores(model, batch_of(SEQUENCES))
    assert scores.dtype == torch.float32
    exact = score_sequences(make_model(torch.float64, scale=0.3), SEQUENCES, pad_id=PAD, batch_size=4)
    for score, truth, (_, response) in zip(scores.tolist(), exact, SEQUENCES, strict=True):
        assert abs(score - truth) < 0.1 * len(response)


def test_unwrapped() -> None:
    from peft import LoraConfig, get_peft_model

    model = make_model()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert isinstance(unwrapped(adapted), LlamaForCausalLM)
    assert unwrapped(torch.nn.DataParallel(adapted)) is unwrapped(adapted)
    assert unwrapped(model) is model
    scores, _ = response_scores(adapted, batch_of(SEQUENCES))
    assert torch.equal(scores, response_scores(make_model(), batch_of(SEQUENCES))[0])
