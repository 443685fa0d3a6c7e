"""A policy small enough that every outcome of a batch can be enumerated, and both sides of the proof.

One side runs the real code: all outcomes of a batch of two rows, each weighted by its probability, through
`response_log_probs`, `orient`, `self_label`, `leave_one_out` and `row_loss` (`expected_gradient`). The other
side writes the objective J down from its definition and differentiates it (`exact_gradient`); it uses nothing
of sail.objective.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sail.objective as so
from sail.objective import objective as real

TOLERANCE = 1e-10
PROMPTS = 2
BELOW_ONE = 1.0 - 2.0**-53
"""The largest number below 1: as the uniform number of a draw, 0 and this one give its two outcomes."""


@dataclass(frozen=True)
class Shape:
    """The responses: tokens[k] of response k, and for each token the index of the context that predicts it."""

    tokens: tuple[tuple[int, ...], ...]
    contexts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    vocabulary: int


def flat(responses: int) -> Shape:
    """An unrestricted softmax; the stated lengths of the responses differ, so that IPO's d is not h / beta."""
    lengths = (1, 3, 2, 5, 4, 2)[:responses]
    return Shape(tuple((k,) for k in range(responses)), ((0,),) * responses, lengths, responses)


TREE = Shape(((1,), (0, 1), (0, 0, 1), (0, 0, 0)), ((0,), (0, 1), (0, 1, 2), (0, 1, 2)), (1, 2, 3, 3), 2)
"""Autoregressive, tokens a = 0 and EOS = 1, at most three: E, aE, aaE, and aaa, which was cut: no EOS."""


@dataclass(frozen=True)
class World:
    """Policy and reference logits (PROMPTS, contexts, vocabulary), oracle and dataset (PROMPTS, K, K)."""

    shape: Shape
    theta: Tensor
    reference: Tensor
    prefers: Tensor
    dataset: Tensor
    prompts: Tensor
    beta: float = 0.5


def make_world(shape: Shape, seed: int = 0, spread: float = 1.0) -> World:
    """A world drawn from `seed`; p*(y1, y2) = 1 - p*(y2, y1), so that p*(y, y) = 1/2."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    count, contexts = len(shape.tokens), 1 + max(map(max, shape.contexts))
    size = (PROMPTS, contexts, shape.vocabulary)
    gold = normal(PROMPTS, count, count)
    return World(
        shape,
        theta=(spread * normal(*size)).requires_grad_(),
        reference=normal(*size),
        prefers=torch.sigmoid(gold - gold.transpose(1, 2)),
        dataset=torch.softmax(normal(PROMPTS * count * count), 0).view(PROMPTS, count, count),
        prompts=torch.softmax(normal(PROMPTS), 0),
    )


@dataclass(frozen=True)
class Combination:
    """What a config says that reaches the objective. `label` is the mode of the side that labels."""

    route: str
    label: str
    loss_type: str = "sigmoid"
    coefficient: float = 1.0
    baseline: str = "leave_one_out"
    temperature: float = 1.0

    @property
    def name(self) -> str:
        return "-".join(map(str, dataclasses.astuple(self)))

    @property
    def self_labelled(self) -> bool:
        return self.route in ("ddp", "dpp")

    @property
    def on_policy(self) -> bool:
        return self.route in ("dpp", "dpr")

    def settings(self, world: World) -> so.ObjectiveSettings:
        policy_label = self.label if self.self_labelled else "soft"
        return so.ObjectiveSettings(beta=world.beta, loss_type=self.loss_type, policy_label=policy_label)


# -------------------------------------------------------------------------------------------- the code's side


def log_prob_table(world: World, theta: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(y|x), (PROMPTS, K), by `response_log_probs`; position 0 of a sequence is the prompt."""
    shape = world.shape
    longest = max(map(len, shape.tokens))
    ids = torch.zeros(len(shape.tokens), longest + 1, dtype=torch.long)
    mask, contexts = torch.zeros_like(ids), torch.zeros_like(ids)
    for k, (tokens, context) in enumerate(zip(shape.tokens, shape.contexts, strict=True)):
        ids[k, 1 : 1 + len(tokens)] = torch.tensor(tokens)
        mask[k, 1 : 1 + len(tokens)] = 1
        contexts[k, : len(context)] = torch.tensor(context)
    return torch.stack([so.response_log_probs(logits[contexts], ids, mask, temperature) for logits in theta])


@dataclass(frozen=True)
class Rows:
    """Outcomes of one row (M,): what was drawn, how probably, and the columns that the trainer would build."""

    chance: Tensor
    prompt: Tensor
    first: Tensor
    second: Tensor
    label: Tensor
    uniform: Tensor
    active: Tensor
    self_label: Tensor
    on_policy: Tensor
    score_coefficient: Tensor
    label_coefficient: Tensor

    def take(self, index: Tensor) -> Rows:
        return Rows(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})

    def join(self, other: Rows) -> Rows:
        names = [field.name for field in dataclasses.fields(self)]
        return Rows(**{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names})


def enumerate_rows(world: World, combo: Combination, weight: float = 1.0) -> Rows:
    """Every outcome of one row of this route: the prompt, both responses, and the label where it is drawn."""
    with torch.no_grad():
        sampling = log_prob_table(world, world.theta, combo.temperature).exp()
        ratio = log_prob_table(world, world.theta) - log_prob_table(world, world.reference)
        own = torch.sigmoid(world.beta * (ratio.unsqueeze(2) - ratio.unsqueeze(1)))
        fresh = world.prompts.view(-1, 1, 1) * sampling.unsqueeze(2) * sampling.unsqueeze(1)
    pair_chance = (fresh if combo.on_policy else world.dataset).tolist()
    wins = (own if combo.self_labelled else world.prefers).tolist()
    draws = (0.0, BELOW_ONE) if combo.label == "sampled" else (0.5,)
    outcomes = []
    for x, (i, j), u in itertools.product(range(PROMPTS), pairs(world), draws):
        chance = weight * pair_chance[x][i][j]
        if combo.label == "sampled":
            chance *= wins[x][i][j] if u == 0.0 else 1.0 - wins[x][i][j]
        label = {"data": 1.0, "dpr": so.orient(wins[x][i][j], combo.label, u)}.get(combo.route, 0.0)
        outcomes.append((chance, x, i, j, label or 0.0, u, label is not None))
    table = torch.tensor(outcomes, dtype=torch.float64).T
    ones = torch.ones_like(table[0])
    return Rows(
        table[0],
        *table[1:4].long(),
        *table[4:6],
        active=table[6].bool(),
        self_label=ones.bool() & combo.self_labelled,
        on_policy=ones.bool() & combo.on_policy,
        score_coefficient=ones * combo.coefficient * combo.on_policy,
        label_coefficient=ones * combo.coefficient * combo.self_labelled,
    )


def pairs(world: World) -> list[tuple[int, int]]:
    return list(itertools.product(range(len(world.shape.tokens)), repeat=2))


def row_log_probs(world: World, rows: Rows, temperature: float) -> so.ResponseLogProbs:
    """The responses' log-probs of each row, as forward passes of policy and reference would give them."""
    policy = log_prob_table(world, world.theta)
    tempered = policy if temperature == 1.0 else log_prob_table(world, world.theta, temperature)
    reference = log_prob_table(world, world.reference)
    lengths = torch.tensor(world.shape.lengths, dtype=torch.float64)
    first, second = (rows.prompt, rows.first), (rows.prompt, rows.second)
    return so.ResponseLogProbs(
        policy[first],
        policy[second],
        reference[first],
        reference[second],
        lengths[rows.first],
        lengths[rows.second],
        tempered[first],
        tempered[second],
    )


def make_columns(rows: Rows, weight: Tensor, baseline: Tensor) -> so.RowColumns:
    """The columns of the pair loss; those of the penalties are zero."""
    zero = torch.zeros_like(rows.chance)
    return so.RowColumns(
        label=rows.label,
        self_label=rows.self_label,
        uniform=rows.uniform,
        score_coefficient=rows.score_coefficient,
        label_coefficient=rows.label_coefficient,
        baseline=baseline,
        pair_weight=weight,
        kl_weight=zero,
        kl_baseline_first=zero,
        kl_baseline_second=zero,
        ref_sample_weight=zero,
        nll_weight=zero,
        stale=zero.bool(),
        behaviour_first=zero,
        behaviour_second=zero,
    )


Spoil = Callable[[so.ResponseLogProbs, so.RowColumns], tuple[so.ResponseLogProbs, so.RowColumns]]


def expected_gradient(
    world: World, rows: Rows, settings: so.ObjectiveSettings, combo: Combination, spoil: Spoil | None = None
) -> Tensor:
    """Expected gradient of the loss of a batch of two rows: all joint outcomes, through `row_loss`.

    The weight of a row is 1 / (active rows of its batch). `spoil` changes what row_loss is given (controls).
    """
    count = len(rows.chance)
    index = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    with torch.no_grad():
        columns = make_columns(rows, torch.ones_like(rows.chance), torch.zeros_like(rows.chance))
        log_probs = row_log_probs(world, rows, combo.temperature)
        values = real.labelled_value(log_probs, columns.label, columns.self_label, columns.uniform, settings)[
            0
        ]
    active = rows.active[index]
    baseline = torch.zeros(index.shape, dtype=torch.float64)
    if combo.baseline == "leave_one_out":
        baseline = batch_baseline(values[index], active & rows.on_policy[index])
    weight = active / active.sum(dim=1, keepdim=True).clamp(min=1)
    chance = rows.chance[index].prod(dim=1, keepdim=True).expand(-1, 2)
    both = rows.take(index.reshape(-1))
    log_probs = row_log_probs(world, both, combo.temperature)
    columns = make_columns(both, weight.double().reshape(-1), baseline.reshape(-1))
    if spoil:
        log_probs, columns = spoil(log_probs, columns)
    loss = so.row_loss(log_probs, columns, settings).loss
    return torch.autograd.grad((chance.reshape(-1) * loss).sum(), world.theta)[0]


def batch_baseline(values: Tensor, active: Tensor) -> Tensor:
    """`leave_one_out` of each of N batches of two unrelated rows; (N, 2)."""
    group = torch.arange(values.shape[1]).expand(values.shape)
    return torch.func.vmap(so.leave_one_out)(values, active, group)


# -------------------------------------------------------------------------------------- the definition's side


def log_probs_by_hand(world: World, theta: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(y|x), (PROMPTS, K): sum over tokens of logit / T minus the log of the sum of exponentials."""
    scaled = theta / temperature
    per_token = scaled - scaled.exp().sum(dim=-1, keepdim=True).log()
    columns = []
    for tokens, contexts in zip(world.shape.tokens, world.shape.contexts, strict=True):
        columns.append(sum(per_token[:, c, v] for c, v in zip(contexts, tokens, strict=True)))
    return torch.stack(columns, dim=1)


def value_by_hand(world: World, loss_type: str, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F(+), F(-) and h of every prompt and ordered pair, (PROMPTS, K, K), from their definitions."""
    ratio = log_probs_by_hand(world, theta) - log_probs_by_hand(world, world.reference)
    mean = ratio / torch.tensor(world.shape.lengths, dtype=torch.float64)
    h = world.beta * (ratio.unsqueeze(2) - ratio.unsqueeze(1))
    d = mean.unsqueeze(2) - mean.unsqueeze(1)
    half = 1.0 / (2.0 * world.beta)
    if loss_type == "sigmoid":
        return (1.0 / (1.0 + (-h).exp())).log(), (1.0 / (1.0 + h.exp())).log(), h
    if loss_type == "ipo":
        return -((d - half) ** 2), -((-d - half) ** 2), h
    return -(1.0 - h).clamp(min=0.0), -(1.0 + h).clamp(min=0.0), h


@dataclass(frozen=True)
class Terms:
    """grad T2, T1 and T3 as parts of the gradient of J, and how often a row abstains.

    score: T1 of J conditional on not abstaining, which a baseline gives; plain_score: the same with the chance
    of not abstaining held fixed, which is what remains without a baseline. Equal where nothing abstains.
    """

    pair: Tensor
    score: Tensor
    plain_score: Tensor
    label: Tensor
    total: Tensor
    kept: float


def terms_by_hand(world: World, combo: Combination) -> Terms:
    """J with a copy of theta for each of its three roles: in F, in the sampling, in the label."""
    keep = torch.ones_like(world.prefers)
    if (combo.route, combo.label) == ("dpr", "argmax"):
        keep = (world.prefers != 0.5).double()

    def objective(
        theta_pair: Tensor, theta_sampling: Tensor, theta_label: Tensor, live_share: bool = True
    ) -> Tensor:
        first, second, _ = value_by_hand(world, combo.loss_type, theta_pair)
        chance = world.dataset
        if combo.on_policy:
            mu = log_probs_by_hand(world, theta_sampling, combo.temperature).exp()
            chance = world.prompts.view(-1, 1, 1) * mu.unsqueeze(2) * mu.unsqueeze(1)
        share = (chance * keep).sum()
        q = label_by_hand(world, combo, theta_label)
        value = (chance * keep * (q * first + (1.0 - q) * second)).sum()
        return value / (share if live_share else share.detach())

    copies = [world.theta.detach().clone().requires_grad_() for _ in range(3)]
    pair, score, label = _gradients(objective(*copies), copies)
    plain = _gradients(objective(*copies, live_share=False), copies)[1]
    total = _gradients(objective(world.theta, world.theta, world.theta), [world.theta])[0]
    kept = (objective_chance(world, combo) * keep).sum().item()
    return Terms(pair, score, plain, label, total, kept)


def objective_chance(world: World, combo: Combination) -> Tensor:
    """rho(x, y1, y2), no gradient; (PROMPTS, K, K)."""
    if not combo.on_policy:
        return world.dataset
    mu = log_probs_by_hand(world, world.theta.detach(), combo.temperature).exp()
    return world.prompts.view(-1, 1, 1) * mu.unsqueeze(2) * mu.unsqueeze(1)


def label_by_hand(world: World, combo: Combination, theta: Tensor) -> Tensor:
    """q(first wins) of every prompt and pair; (PROMPTS, K, K)."""
    if combo.route == "data":
        return torch.ones_like(world.prefers)
    if combo.route == "dpr":
        return (world.prefers > 0.5).double() if combo.label == "argmax" else world.prefers
    h = value_by_hand(world, "sigmoid", theta)[2]
    if combo.label == "argmax":
        return (h > 0).double() + 0.5 * (h == 0).double()
    return 1.0 / (1.0 + (-h).exp())


def _gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]


def exact_gradient(world: World, combo: Combination) -> Tensor:
    """T2 + c (T1 + T3), the expected ascent direction of a batch of two rows.

    At c = 1, where nothing abstains, it is the gradient of J taken in one piece. Where a row can abstain, a batch
    with two verdicts climbs J conditional on a verdict, one with a single verdict has no baseline to subtract, and
    one with none is a zero step.
    """
    terms = terms_by_hand(world, combo)
    if combo.coefficient == 1.0 and combo.label != "argmax":
        return terms.total
    both, one = terms.kept**2, 2.0 * terms.kept * (1.0 - terms.kept)
    if combo.baseline == "none":
        score = (both + one) * terms.plain_score
    else:
        score = both * terms.score + one * terms.plain_score
    return (both + one) * (terms.pair + combo.coefficient * terms.label) + combo.coefficient * score


# -------------------------------------------------------------------------------------------------- the check


def relative_error(measured: Tensor, exact: Tensor) -> float:
    return ((measured - exact).norm() / exact.norm()).item()


def assert_climbs(loss_gradient: Tensor, exact: Tensor) -> float:
    """The check of all proofs: the loss's expected gradient is minus `exact`. Returns the relative error."""
    assert exact.norm() > 1e-3, "nothing to compare: the exact gradient is (nearly) zero"
    error = relative_error(-loss_gradient, exact)
    assert error <= TOLERANCE, f"relative error {error:.3g} above {TOLERANCE:g}"
    return error


def prove(world: World, combo: Combination, spoil: Spoil | None = None) -> float:
    """The expected gradient through the real code equals the exact one; returns the relative error."""
    measured = expected_gradient(world, enumerate_rows(world, combo), combo.settings(world), combo, spoil)
    return assert_climbs(measured, exact_gradient(world, combo))
