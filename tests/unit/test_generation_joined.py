"""Pairs whose prompt is read once: the same numbers as separate sequences, and separate ones wherever that is not certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_generation_decoding import GROUPED, PLAIN, SHAPE, make
from tiny import PAD, largest_difference, make_model, make_trainer, weights_of
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from sail.data.collate import pad_pairs
from sail.generation import joined as module
from sail.generation.joined import join, joined, joins, pays, prompt_columns, trial_batch
from sail.generation.scoring import response_positions, response_scores

TRIPLES = [
    ([3, 4, 5, 6, 7], [8, 9, 1], [10, 1]),
    ([11, 12, 13, 14, 15, 16, 17], [18, 1], [19, 20, 21, 22]),
    ([5, 6, 7], [1], [23, 24, 1]),
]
BY_MASK = {"GPT2", "GPTNeoX", "OPT"}
"""Families whose norms compute in the model's own type."""


def batch_of(triples: list[Any]) -> dict[str, Any]:
    """As `online.collate` makes it, as far as scoring goes."""
    sequences = [(one[0], one[side]) for side in (1, 2) for one in triples]
    lengths = [len(response) for _, response in sequences]
    batch: dict[str, Any] = {**pad_pairs(sequences, PAD), "lengths": torch.tensor(lengths)}
    batch["positions"] = response_positions(batch["response_mask"])
    batch["start"] = min(len(prompt) for prompt, _ in sequences)
    return batch | prompt_columns([one[0] for one in triples], lengths)


def apart(batch: dict[str, Any]) -> dict[str, Any]:
    """The same without what joining needs."""
    return {key: value for key, value in batch.items() if key not in ("prompt_lengths", "joined_length")}


def test_by_hand() -> None:
    """Prompt 3 4, responses 5 6 and 7; prompt 8, responses 9 and 10 11: ids, positions, who is hidden, who predicts."""
    batch = batch_of([([3, 4], [5, 6], [7]), ([8], [9], [10, 11])])
    made = joined(make_model(), batch, batch["positions"])
    assert made.inputs["input_ids"].tolist() == [
        [3, 4, 5, 6, 7],
        [8, 9, 10, 11, made.inputs["input_ids"][1, 4]],
    ]
    assert made.inputs["position_ids"][0].tolist() == [0, 1, 2, 3, 2]
    assert made.inputs["position_ids"][1, :4].tolist() == [0, 1, 1, 2]
    seen = made.inputs["attention_mask"][:, 0] == 0
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1],
    ]  # fmt: skip
    assert seen[1, :4, :4].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    # First responses, then second ones: 5 and 6, 9, 7, 10 and 11 are predicted here.
    assert made.places.tolist() == [1, 2, 5, 1, 5, 7]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PLAIN)
def test_families_say_the_same(name: str, attention: str) -> None:
    """float32: log-probs of joined pairs are those of separate ones."""
    model = make(name, PLAIN[name], attention).eval()
    batch = batch_of(TRIPLES)
    assert join(model, batch, batch["positions"]) is not None
    with torch.no_grad():
        together, separate = response_scores(model, batch)[0], response_scores(model, apart(batch))[0]
    assert together.tolist() == pytest.approx(separate.tolist(), abs=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", sorted(BY_MASK))
def test_values_and_gradients_exactly(name: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64, norms in float64: scores, and the gradient of any weighting of them, to 1e-12. A response that saw the other, a
    position or a place that is off, or a pair's prompt counted once in the gradient would show."""
    monkeypatch.setattr(module, "APART", set())
    model = make(name, PLAIN[name], "sdpa").eval().double()
    batch = batch_of(TRIPLES)
    assert join(model, batch, batch["positions"]) is not None
    weights = torch.linspace(-1.0, 2.0, 2 * len(TRIPLES), dtype=torch.float64)
    found = []
    for one in (batch, apart(batch)):
        model.zero_grad()
        plain, tempered = response_scores(model, one, temperature)
        (weights * plain + weights.flip(0) * tempered).sum().backward()
        gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        found.append((torch.cat([plain, tempered]).detach(), gradients))
    (scores, ours), (expected, theirs) = found
    assert (scores - expected).abs().max() <= 1e-12
    assert max(one.abs().max() for one in theirs) > 1e-2
    assert max((one - other).abs().max() for one, other in zip(ours, theirs, strict=True)) <= 1e-12


@pytest.mark.parametrize("side", [1, 2])
def test_no_response_sees_the_other(side: int) -> None:
    """Other tokens in one response leave the other's log-prob as it is, bit for bit."""
    model = make_model(scale=0.3)
    changed = [list(one) for one in TRIPLES]
    for one in changed:
        one[side] = [29 for _ in one[side]]
    with torch.no_grad():
        before, after = (response_scores(model, batch_of(one))[0].view(2, -1) for one in (TRIPLES, changed))
    assert torch.equal(before[2 - side], after[2 - side])
    assert not torch.isclose(before[side - 1], after[side - 1]).any()


def test_who_is_left_apart() -> None:
    """float64, families with windows, without positions of their own, or with attention that takes no such mask."""
    batch = batch_of(TRIPLES)
    assert join(make_model(torch.float64), batch, batch["positions"]) is None
    assert join(make_model(), apart(batch), batch["positions"]) is None
    windowed = make("Mistral", GROUPED)
    assert windowed.config.sliding_window is not None
    assert not joins(windowed)
    assert not joins(make("Bloom", {"vocab_size": 32, "hidden_size": 32, "n_layer": 2, "n_head": 4}))
    flex = AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**GROUPED), attn_implementation="flex_attention"
    )
    assert not joins(flex)


class Deaf(LlamaForCausalLM):
    """Looks plain and passes masks by."""

    def forward(  # the signature is what is looked at
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: Any = None, logits_to_keep: Any = 0,
    ) -> Any:  # fmt: skip
        return super().forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)


class Stubborn(Deaf):
    """Takes masks of two dimensions only."""

    def forward(  # the same
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: Any = None, logits_to_keep: Any = 0,
    ) -> Any:  # fmt: skip
        if attention_mask.ndim != 2:
            raise ValueError(attention_mask.shape)
        return super().forward(input_ids, attention_mask, position_ids)


@pytest.mark.parametrize("kind", [Deaf, Stubborn])
def test_the_trial_finds_models_that_only_look_plain(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(transformers.LlamaConfig(**GROUPED))
    model.train()
    assert module.is_full_attention_decoder(model)
    assert not joins(model)
    assert model.training


def test_the_trial_can_tell() -> None:
    """Even of a model fresh from its initialisation: each mistake moves hidden states by far more than is forgiven."""
    model = LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    batch = trial_batch(torch.device("cpu"), model.config.vocab_size)
    places = response_positions(batch["response_mask"])
    made = joined(model, batch, places)
    right = module._hidden(model, made.inputs).flatten(0, 1)[made.places]
    seeing = torch.where(made.inputs["attention_mask"] == 0, 0, made.inputs["attention_mask"])
    causal = torch.full(seeing.shape[-2:], torch.finfo(seeing.dtype).min).triu(1).expand_as(seeing)
    moved = torch.arange(seeing.shape[-1]).expand_as(made.inputs["position_ids"])
    for wrong in ({"attention_mask": causal}, {"position_ids": moved}):
        other = module._hidden(model, {**made.inputs, **wrong}).flatten(0, 1)[made.places]
        assert (other - right).abs().max() > 10 * module.TOLERANCES[torch.float32] * right.abs().max(), (
            wrong.keys()
        )


def test_where_it_pays() -> None:
    """Fewer tokens against longer rows: a long prompt pays, long responses behind a short one do not, nor what has no room."""
    model = make_model()
    room = model.config.max_position_embeddings
    assert pays(model, batch_of([([3] * 8, [4] * 4, [5] * 4)] * 2))
    long = [4] * ((room - 1) // 2)
    assert pays(model, batch_of([([3], long, [5])] * 2))
    assert not pays(model, batch_of([([3], long, long)] * 2))
    assert not pays(model, batch_of([([3] * (room - 20), [4] * 15, [5] * 15)]))


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"preset": "sail-ddp"}], ids=str)
def test_through_the_trainer(tmp_path: Path, options: dict[str, Any]) -> None:
    """Four steps joined and apart (logprob_chunk 0) end alike in float32, and joined the model reads fewer tokens."""
    weights, tokens = [], []
    for chunk in (0, None):
        trainer = make_trainer(
            tmp_path / str(chunk),
            model=make_model(scale=0.1),
            max_steps=4,
            logprob_chunk=chunk,
            **{"preset": "dpo", "oracle": None, **options},
        )
        count = [0]
        trainer.model.register_forward_pre_hook(
            lambda _, args, kwargs, count=count: count.__setitem__(0, count[0] + kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        trainer.train()
        weights.append(weights_of(trainer.model))
        tokens.append(count[0])
    assert tokens[1] < 0.95 * tokens[0]
    assert largest_difference(*weights) <= 1e-5


def test_half_precision_and_autocast() -> None:
    """The mask comes in the type of the queries, so that all layers share it; the scores are those of separate sequences."""
    batch = batch_of(TRIPLES)
    model = make_model(scale=0.3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = join(model, batch, batch["positions"])
        together, separate = response_scores(model, batch)[0], response_scores(model, apart(batch))[0]
    assert made is not None
    assert made.inputs["attention_mask"].dtype == torch.bfloat16
    assert together.tolist() == pytest.approx(separate.tolist(), rel=0.02)
    half = make_model(scale=0.3).to(torch.bfloat16)
    made = join(half, batch, batch["positions"])
    assert made is not None
    assert made.inputs["attention_mask"].dtype == torch.bfloat16
