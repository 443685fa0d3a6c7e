"""The gradient that the real trainer computes is, on average, the gradient of the objective.

A model of three tokens (<eos>, a, b) answers with at most three: 15 responses, so J can be enumerated and
differentiated by code that uses nothing of sail. The other side is SAILTrainer as it is: get_batch_samples, compute_loss,
backward, with learning rate 0 and the gradient read before every optimiser step. A response cut at the limit has no EOS;
only so do the probabilities of the 15 responses sum to 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from sail.generation import TransformersGenerator
from sail.objective import objective
from sail.trainer import SAILTrainer
from sail.training import step

EOS, A, B = 0, 1, 2
LENGTH = 3
BETA = 1.5
POLICY, REFERENCE = 5, 4
"""Seeds of two models whose answers depend on the prompt: else a response paired with another prompt would not show."""
PROMPTS = ("b", "b a", "a b b")
PAIRS = (("a a", "b"), ("b a", "a"), ("a", "b b"))
ROWS, STEPS = 120, 64
"""Rows of a step, a multiple of the prompts so that every step holds each of them equally often; steps of a run."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """No pad token: the trainer pads with the EOS."""
    tokenizer = Tokenizer(models.WordLevel({"<eos>": EOS, "a": A, "b": B}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def make_model(seed: int) -> LlamaForCausalLM:
    """About 600 parameters in float64, with opinions."""
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16,
        initializer_range=0.7,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).double()
    torch.set_rng_state(state)
    return model


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Likes answers with an a in them that begin as their prompt ends."""
    return [
        1.5 * text.split().count("a") - 0.5 * len(text.split()) + 2.0 * (text[:1] == prompt[-1])
        for prompt, text in zip(prompts, responses, strict=True)
    ]


# ---- exact, by enumeration


def all_responses() -> list[tuple[int, ...]]:
    """Every response that ends with an EOS, and every one of LENGTH tokens without any."""
    words = (A, B)
    finished = [(*body, EOS) for size in range(LENGTH) for body in itertools.product(words, repeat=size)]
    return finished + list(itertools.product(words, repeat=LENGTH))


def log_probs(
    model: Any, prompt: Sequence[int], responses: Sequence[tuple[int, ...]], temperature: float
) -> Tensor:
    """log of the probability of each response, token by token, each sequence on its own, so without any padding."""
    rows = []
    for response in responses:
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0] / temperature
        steps = torch.log_softmax(logits, dim=-1)
        rows.append(sum(steps[len(prompt) - 1 + place, token] for place, token in enumerate(response)))
    return torch.stack(rows)


def ids_of(text: str) -> list[int]:
    return [{"a": A, "b": B}[word] for word in text.split()]


def text_of(ids: Sequence[int]) -> str:
    return " ".join({A: "a", B: "b"}[token] for token in ids if token != EOS)


@dataclass
class Case:
    """A run, and what its expected gradient is made of: routes as weight and coefficient."""

    routes: dict[str, dict[str, float]]
    options: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    kl: float = 0.0


def exact_gradient(policy: Any, reference: Any, case: Case) -> Tensor:
    """d/d theta of: minus the sum over routes of weight * (T2 + c * (T1 + T3)), plus kl * KL(pi || ref); at c = 1 that is -dJ.

    The three terms come from one enumerated sum of products: a factor that a term does not differentiate is detached.
    """
    total = torch.zeros((), dtype=torch.float64)
    responses = all_responses()
    for prompt, pair in zip(PROMPTS, PAIRS, strict=True):
        ids = ids_of(prompt)
        log_pi = log_probs(policy, ids, responses, 1.0)
        log_mu = log_probs(policy, ids, responses, case.temperature)
        with torch.no_grad():
            log_ref = log_probs(reference, ids, responses, 1.0)
        assert log_mu.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
        ratio = BETA * (log_pi - log_ref)
        margin = ratio[:, None] - ratio[None, :]
        rewards = torch.tensor(reward([prompt] * len(responses), [text_of(one) for one in responses]))
        told = torch.sigmoid(rewards[:, None] - rewards[None, :]).double()
        both = (log_mu[:, None] + log_mu[None, :]).exp()
        given = [responses.index((*ids_of(text), EOS)) for text in pair]
        for name, share in case.routes.items():
            c = share.get("coefficient", 0.0)
            online = name in ("dpp", "dpr")
            h = margin if online else margin[given[0], given[1]]
            weight = both if online else torch.ones((), dtype=torch.float64)
            first = {"data": torch.ones_like(h), "dpr": told}.get(name, torch.sigmoid(h))
            total = total - share["weight"] * mixed_terms(weight, first, h, c) / len(PROMPTS)
        if case.kl:
            total = total + case.kl * (log_pi.exp() * (log_pi - log_ref)).sum() / len(PROMPTS)
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, list(policy.parameters()))])


def mixed_terms(weight: Tensor, first: Tensor, margin: Tensor, c: float) -> Tensor:
    """Sum of weight * (q log sigmoid(h) + (1 - q) log sigmoid(-h)), its three factors differentiated with 1, c and c."""

    def value(w: Tensor, q: Tensor, h: Tensor) -> Tensor:
        wins = torch.nn.functional.logsigmoid
        return (w * (q * wins(h) + (1 - q) * wins(-h))).sum()

    w, q, h = weight.detach(), first.detach(), margin.detach()
    return value(w, q, margin) + c * (value(weight, q, h) + value(w, first, h))


# ---- sampled, by the trainer


class GradientReader(TrainerCallback):
    """The gradient of every step, as the optimiser would get it."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after the last backward pass of a step."""
        parts = [parameter.grad.flatten().clone() for parameter in kwargs["model"].parameters()]
        self.gradients.append(torch.cat(parts))


def run(
    folder: Path, case: Case, *, steps: int = STEPS, micro: int = 1, callbacks: Sequence[TrainerCallback] = ()
) -> SAILTrainer:
    """The trainer of a finished run whose learning rate is 0; it logs one line, over all steps."""
    count = len(PROMPTS)
    data = [
        {"prompt": PROMPTS[i % count], "chosen": PAIRS[i % count][0], "rejected": PAIRS[i % count][1]}
        for i in range(8 * ROWS)
    ]
    options = make_config(
        folder,
        routes=case.routes,
        beta=BETA,
        temperature=case.temperature,
        kl_policy_ref=case.kl,
        max_steps=steps,
        max_new_tokens=LENGTH,
        per_device_train_batch_size=ROWS // micro,
        gradient_accumulation_steps=micro,
        learning_rate=0.0,
        max_grad_norm=0.0,
        optim="sgd",
        train_sampling_strategy="sequential",
        record_pairs=False,
        logging_steps=steps,
        **case.options,
    )
    trainer = SAILTrainer(
        make_model(POLICY),
        args=options,
        train_dataset=data,
        processing_class=make_tokenizer(),
        oracle=reward,
        ref_model=make_model(REFERENCE),
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer


def sampled_gradients(folder: Path, case: Case, **schedule: int) -> Tensor:
    """(steps, parameters): the gradient of every optimiser step of a run."""
    reader = GradientReader()
    run(folder, case, callbacks=[reader], **schedule)
    return torch.stack(reader.gradients)


def standard_error(gradients: Tensor) -> float:
    """Of the mean of the rows, in the Euclidean norm: the square root of the summed variances."""
    return math.sqrt(gradients.var(dim=0).sum().item() / len(gradients))


def standardised(gradients: Tensor, exact: Tensor, block: int) -> Tensor:
    """Errors of the means over blocks of `block` steps, each coordinate in units of its standard deviation over steps.

    Units make the many small coordinates count; a coordinate that never changes must be exact and is left out.
    """
    deviation = gradients.std(dim=0)
    moving = deviation > 1e-12
    assert (gradients[0] - exact)[~moving].abs().max() < 1e-12 if (~moving).any() else True
    means = gradients.view(-1, block, gradients.shape[1]).mean(dim=1)
    return ((means - exact) / deviation)[:, moving]


def errors_in_se(gradients: Tensor, exact: Tensor) -> tuple[float, float]:
    """Error of the mean gradient in estimated standard errors: as a vector, and as root mean square over coordinates."""
    whole = (gradients.mean(dim=0) - exact).norm().item() / standard_error(gradients)
    scaled = standardised(gradients, exact, len(gradients)) * math.sqrt(len(gradients))
    return whole, scaled.pow(2).mean().sqrt().item()


def halvings(gradients: Tensor, exact: Tensor) -> list[float]:
    """How much the error falls when 4 times as many steps are averaged: from 1 to 4, and from 4 to 16 steps."""
    sizes = [standardised(gradients, exact, block).pow(2).mean().sqrt().item() for block in (1, 4, 16)]
    return [before / after for before, after in itertools.pairwise(sizes)]


def whole(route: str, c: float = 1.0) -> dict[str, dict[str, float]]:
    """A run of one route."""
    return {route: {"weight": 1.0, "coefficient": c}}


MIX = {
    "data": {"weight": 0.4},
    "ddp": {"weight": 0.2, "coefficient": 0.2},
    "dpp": {"weight": 0.2, "coefficient": 0.2},
    "dpr": {"weight": 0.2, "coefficient": 0.3},
}
CASES = {
    "dpp": Case(whole("dpp")),
    "dpp-sampled-label": Case(whole("dpp"), {"policy_label": "sampled"}),
    "dpp-temperature": Case(whole("dpp"), temperature=0.7),
    "dpr": Case(whole("dpr")),
    "dpr-sampled-label": Case(whole("dpr"), {"oracle_label": "sampled"}),
    "dpr-temperature": Case(whole("dpr"), temperature=0.7),
    "dpr-kl": Case(whole("dpr"), kl=0.5),
    "mix": Case(MIX),
}


@pytest.fixture(scope="module")
def start() -> tuple[Any, Any]:
    """Policy and reference, as the runs start with them."""
    return make_model(POLICY), make_model(REFERENCE)


@pytest.mark.parametrize("name", CASES)
def test_mean_gradient_is_the_exact_one(tmp_path: Path, start: tuple[Any, Any], name: str) -> None:
    """Within 4 standard errors, and the error halves at 4 times the samples (tolerance: by 1.5 to 2.7 times).

    A wrong gradient does not halve its error at all: see the controls. `mix` runs with accumulation over 4 micro-batches.
    """
    exact = exact_gradient(*start, CASES[name])
    gradients = sampled_gradients(tmp_path, CASES[name], micro=4 if name == "mix" else 1)
    assert max(errors_in_se(gradients, exact)) <= 4.0
    assert all(1.5 < ratio < 2.7 for ratio in halvings(gradients, exact))
    # Precise enough to say something (measured: 0.03 to 0.19).
    assert standard_error(gradients) < 0.25 * exact.norm().item()


def test_baseline_changes_the_noise_and_not_the_mean(tmp_path: Path, start: tuple[Any, Any]) -> None:
    """Without it the gradient is as right, and noisier."""
    exact = exact_gradient(*start, CASES["dpr"])
    with_it = sampled_gradients(tmp_path / "with", CASES["dpr"], steps=32)
    without = sampled_gradients(tmp_path / "without", Case(whole("dpr"), {"baseline": "none"}), steps=32)
    assert max(errors_in_se(without, exact)) <= 4.0
    assert standard_error(without) > 1.3 * standard_error(with_it)


# ---- controls: what must not pass


def assert_caught(gradients: Tensor, exact: Tensor) -> None:
    """Far from the exact gradient, and no nearer with more samples."""
    assert errors_in_se(gradients, exact)[0] > 8.0
    assert halvings(gradients, exact)[1] < 1.2


def test_without_the_correction_it_is_another_gradient(tmp_path: Path, start: tuple[Any, Any]) -> None:
    """c = 0 leaves out T1."""
    assert_caught(sampled_gradients(tmp_path, Case(whole("dpr", 0.0))), exact_gradient(*start, CASES["dpr"]))


@pytest.mark.parametrize("name", ["dpp", "dpr"])
def test_wrong_sign_is_caught(
    tmp_path: Path, start: tuple[Any, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1 with the other sign."""
    right = objective.score_surrogate
    monkeypatch.setattr(objective, "score_surrogate", lambda *given: -right(*given))
    assert_caught(sampled_gradients(tmp_path, CASES[name]), exact_gradient(*start, CASES[name]))


def test_responses_of_other_prompts_are_caught(
    tmp_path: Path, start: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Responses handed to the row after theirs: with three prompts in turn, each gets another prompt's."""
    right = TransformersGenerator.sample

    def shifted(self: Any, prompts: Any, keys: Any) -> list[Any]:
        sampled = right(self, prompts, keys)
        return sampled[-2:] + sampled[:-2]

    monkeypatch.setattr(TransformersGenerator, "sample", shifted)
    assert_caught(sampled_gradients(tmp_path, CASES["dpr"]), exact_gradient(*start, CASES["dpr"]))


def test_lost_batch_size_is_caught(
    tmp_path: Path, start: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum over the rows where a mean belongs."""
    right = step.fill_weights

    def summed(batch: dict[str, Any], *given: Any) -> None:
        right(batch, *given)
        batch["pair_weight"] = (batch["pair_weight"] > 0).double()

    monkeypatch.setattr(step, "fill_weights", summed)
    assert_caught(sampled_gradients(tmp_path, CASES["dpr"]), exact_gradient(*start, CASES["dpr"]))
