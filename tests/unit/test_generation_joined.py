"""Pairs whose prompt is read once: the same numbers as separate sequences, and separate ones wherever that is not certain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from test_generation_decoding import GPT2, GROUPED, PLAIN, make
from tiny import PAD, largest_difference, make_model, make_trainer, weights_of
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from sail.data.collate import pad_pairs, prompt_columns, response_positions
from sail.generation import joined as module
from sail.generation.joined import join, joined, joins, pays
from sail.generation.scoring import response_scores

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


class Pretender(LlamaForCausalLM):
    """Looks like one of transformers' own: what follows says how it is not."""

    __module__ = "transformers.models.pretender"

    def __init_subclass__(cls) -> None:
        cls.__module__ = Pretender.__module__

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: Any = None, logits_to_keep: Any = 0,
    ) -> Any:  # fmt: skip
        return super().forward(**self.taken(input_ids, attention_mask, position_ids), use_cache=use_cache)

    def taken(self, ids: Any, mask: Any, positions: Any) -> dict[str, Any]:
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


class WithoutMask(Pretender):
    def taken(self, ids: Any, mask: Any, positions: Any) -> dict[str, Any]:
        return {"input_ids": ids, "position_ids": positions}


class WithoutPositions(Pretender):
    def taken(self, ids: Any, mask: Any, positions: Any) -> dict[str, Any]:
        return {"input_ids": ids, "attention_mask": mask}


class Stubborn(Pretender):
    def taken(self, ids: Any, mask: Any, positions: Any) -> dict[str, Any]:
        assert mask.dim() == 2
        return super().taken(ids, mask, positions)


class Local(Pretender):
    """A window of 3 columns beside the mask."""

    def taken(self, ids: Any, mask: Any, positions: Any) -> dict[str, Any]:
        if mask.dim() == 2:
            columns = torch.arange(ids.shape[1])
            allowed = (columns[:, None] >= columns) & mask[:, None, :].bool()
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
        far = torch.ones(mask.shape[-2:], dtype=torch.bool).tril(-3)
        return super().taken(ids, mask.masked_fill(far, torch.finfo(torch.float32).min), positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [WithoutMask, WithoutPositions, Stubborn, Local, Pretender])
def test_the_trial_finds_models_that_only_look_plain(kind: Any, dtype: torch.dtype) -> None:
    """Also fresh from their initialisation, and in half precision. The last one is what it looks like."""
    if kind is Local and dtype == torch.bfloat16:
        pytest.skip("its window makes a mask of its own type")
    torch.manual_seed(0)
    model = kind(transformers.LlamaConfig(**GROUPED)).to(dtype)
    model.train()
    assert module._looks_able(model)
    assert joins(model) == (kind is Pretender)
    assert model.training


def test_attention_by_columns_is_left_apart() -> None:
    """GPT-Neo's window of 256 columns lies inside the layer, and no cache or short trial shows it."""
    neo = make(
        "GPTNeo",
        {"vocab_size": 32, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    )  # fmt: skip
    assert module.is_full_attention_decoder(neo)
    assert not joins(neo)
    for name, value in {"keep_window_size": 2048, "attn_temperature_tuning": True}.items():
        model = make("Llama", GROUPED)
        setattr(model.config, name, value)
        assert not joins(model)


class Plain(torch.nn.Module):
    """No model of transformers at all."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.body, self.head = torch.nn.Embedding(32, 8), torch.nn.Linear(8, 32)

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        return SimpleNamespace(logits=self.head(self.body(input_ids)))


def test_strange_models_are_scored_as_ever() -> None:
    batch = batch_of(TRIPLES)
    scores, _ = response_scores(Plain(), batch)
    assert torch.isfinite(scores).all()

    class Own(LlamaForCausalLM):
        """Somebody's own forward may do anything."""

    assert not joins(Own(transformers.LlamaConfig(**GROUPED)))


def test_tried_once_and_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = module._trial_passed
    monkeypatch.setattr(module, "_trial_passed", lambda model: tried.append(1) or real(model))
    model, batch = make_model(), batch_of(TRIPLES)
    for _ in range(3):
        response_scores(model, batch)
    assert len(tried) == 1
    model.set_attn_implementation("eager")
    assert joins(model)
    assert len(tried) == 2
    assert joins(model.to(torch.bfloat16))
    assert len(tried) == 3
    assert not joins(model.to(torch.float64))


def test_a_lack_of_memory_is_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> bool:
        raise torch.OutOfMemoryError("no memory")

    model = make_model()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_trial_passed", lacking)
        with pytest.raises(torch.OutOfMemoryError):
            joins(model)
    assert joins(model)


def test_first_asked_inside_autocast() -> None:
    """The trial's weights, cast without gradient, must not be those of the training forward behind it."""
    torch.manual_seed(0)
    model = make_model(scale=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        response_scores(model, batch_of(TRIPLES))[0].sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert max(weight.grad.abs().max() for weight in model.parameters()) > 0  # type: ignore[union-attr]


def test_dropout_and_small_vocabularies() -> None:
    """The trial is without dropout, and its ids are words that the model has."""
    model = make("GPT2", {**GPT2, "vocab_size": 5, "eos_token_id": 4, "bos_token_id": 4})
    assert model.training
    assert model.config.resid_pdrop > 0
    assert joins(model)


def test_the_mask_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast inside the model's forward, as accelerate has it: attention's queries are half precision there, and the layers
    share one mask for the backward pass."""
    model = make_model(num_hidden_layers=3)
    batch = batch_of(TRIPLES)
    real = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    made = join(model, batch, batch["positions"])
    assert made is not None
    shape, seen = made.inputs["attention_mask"].shape, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == shape[-2:] and tensor.dtype == torch.bfloat16:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores, _ = response_scores(model, batch)
    scores.sum().backward()
    assert len([one for one in seen.values() if one.shape == shape]) == 1


def test_where_it_pays() -> None:
    """Fewer tokens against longer rows: a long prompt pays, long responses behind a short one do not, nor what has no room."""
    model = make_model()
    room = model.config.max_position_embeddings
    assert pays(model, batch_of([([3] * 8, [4] * 4, [5] * 4)] * 2))
    assert pays(model, batch_of([([3] * (room - 20), [4] * 10, [5] * 10)]))
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
    assert largest_difference(weights_of(make_model(scale=0.1)), weights[1]) > 1e-3, "nothing was learned"
    assert largest_difference(*weights) <= 1e-5


def test_half_precision_and_autocast() -> None:
    """The scores are those of separate sequences; the mask comes in the type of the weights."""
    batch = batch_of(TRIPLES)
    model = make_model(scale=0.3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = join(model, batch, batch["positions"])
        together, separate = response_scores(model, batch)[0], response_scores(model, apart(batch))[0]
    assert made is not None
    assert together.tolist() == pytest.approx(separate.tolist(), rel=0.02)
    half = make_model(scale=0.3).to(torch.bfloat16)
    made = join(half, batch, batch["positions"])
    assert made is not None
    assert made.inputs["attention_mask"].dtype == torch.bfloat16
