"""One optimiser step in five verbs: route, respond, compare, orient, collate. The objective sees only what collate writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sail import seeds
from sail.data.collate import pad_pairs, prompt_columns, response_positions
from sail.errors import OracleError
from sail.generation import Generator
from sail.mixture import Mixture, Share
from sail.objective import orient as orient_label
from sail.oracles import Oracle, ask
from sail.oracles.best_worst import best_and_worst
from sail.oracles.policy import SELF
from sail.types import Pair, Preference

DATASET = "dataset"
NOT_ASKED = "not asked: the policy was surer about it than about others"


@dataclass(frozen=True)
class Response:
    """A response as it is trained: ids, its text, whether it was cut, and where it was sampled, log pi and log mu in nats.

    mu is the tempered policy that was sampled, pi itself at temperature 1; both are of the weights that sampled it.
    """

    ids: tuple[int, ...]
    text: str
    cut: bool
    log_prob: float | None = None
    sampling_log_prob: float | None = None


@dataclass
class Example:
    """One row of a step, filled in by the verbs in turn. `stale`: its responses were sampled by older weights."""

    row: dict[str, Any]
    share: Share
    uniform: float
    first: Response | None = None
    second: Response | None = None
    preference: Preference | None = None
    source: str = DATASET
    label: float = 0.5
    active: bool = True
    asked: bool = True
    step: int = 0
    stale: bool = False
    samples: list[Response] = field(default_factory=list)

    @property
    def index(self) -> int:
        """The row's index in the training set: the key of its seeds."""
        return int(self.row["index"])

    @property
    def self_labelled(self) -> bool:
        """Whether the label must come from the training forward's own margin."""
        return self.source == SELF

    @property
    def responses(self) -> tuple[Response, Response]:
        """Both responses; only after `respond`."""
        assert self.first is not None
        assert self.second is not None
        return self.first, self.second


def route(
    rows: Sequence[dict[str, Any]],
    mixture: Mixture,
    seed: int,
    step: int,
    prompt_only_share: float,
    progress: float = 0.0,
) -> list[Example]:
    """Each row draws its route from its own stateless number, so that the draw survives any other schedule or a resume.

    `progress` is the share of the run's steps that is done, for weights that change.
    """
    examples = []
    mixture = mixture.at(progress)
    for row in rows:
        index = int(row["index"])
        has_pair = row["chosen_ids"] is not None
        share = mixture.draw(
            seeds.uniform(seed, "route", step, index), has_pair=has_pair, prompt_only_share=prompt_only_share
        )
        examples.append(Example(row, share, seeds.uniform(seed, "label", step, index), step=step))
    return examples


def respond(
    examples: Sequence[Example], generator: Generator | None, seed: int, samples_per_prompt: int = 2
) -> None:
    """Give each example its responses: the dataset's, or fresh samples, all of them from one call.

    A row has its own step, because a round samples for many. Which two of more than two samples make the pair is `choose`'s.
    """
    drawn = [
        (example, sample)
        for example in examples
        for sample in range(example.share.route.samples(samples_per_prompt))
    ]
    keys = [(seed, "sample", example.step, example.index, sample) for example, sample in drawn]
    prompts = [example.row["prompt_ids"] for example, _ in drawn]
    called = generator is not None and (bool(drawn) or generator.together)
    sampled = generator.sample(prompts, keys) if generator is not None and called else []
    for (example, _), one in zip(drawn, sampled, strict=True):
        example.samples.append(Response(one.ids, one.text, one.cut, one.log_prob, one.sampling_log_prob))
    for example in examples:
        if example.share.route.from_dataset:
            example.first, example.second = dataset_responses(example.row)
        elif example.share.route.needs_pairs:
            example.first, example.second = dataset_responses(example.row)[0], example.samples[0]
        elif len(example.samples) == 2:
            example.first, example.second = example.samples


def dataset_responses(row: dict[str, Any]) -> tuple[Response, Response]:
    """The chosen response first, the rejected one second."""
    chosen = Response(tuple(row["chosen_ids"]), row["chosen"], row["chosen_cut"])
    rejected = Response(tuple(row["rejected_ids"]), row["rejected"], row["rejected_cut"])
    return chosen, rejected


def choose(examples: Sequence[Example], oracle: Oracle | None, seed: int) -> int:
    """best_worst: of more than two samples the best and the worst by the oracle's scores, with its preference; returns the calls.

    Which of the two stands first is drawn by the row's own number, so that a place in the pair says nothing.
    """
    examples = [example for example in examples if len(example.samples) > 2]
    if not examples:
        return 0
    scorer = None if oracle is None else oracle.own_scores()
    if oracle is None or scorer is None:
        raise OracleError(
            "pairing: best_worst needs an oracle that scores single responses. Give one of the form reward(prompts, responses), "
            "or use pairing: two."
        )
    choices, calls = best_and_worst(
        scorer,
        [example.row["prompt"] for example in examples],
        [[response.text for response in example.samples] for example in examples],
    )
    for example, choice in zip(examples, choices, strict=True):
        pair = (example.samples[choice.best], example.samples[choice.worst])
        swapped = seeds.uniform(seed, "order", example.step, example.index) < 0.5
        example.first, example.second = pair[::-1] if swapped else pair
        example.preference = choice.preference.swap() if swapped else choice.preference
        example.source = f"oracle:{oracle.name}"
    return calls


def compare(examples: Sequence[Example], oracle: Oracle | None) -> int:
    """Who prefers which: the dataset's verdict, the oracle's, or the mark that the policy will say so itself.

    Returns how many pairs the oracle was asked about; a pair that already has its preference is not asked about again. The
    dataset's verdict on identical responses is a tie.
    """
    of_oracle = [
        example
        for example in examples
        if example.share.route.label == "oracle" and example.preference is None
    ]
    asked = [example for example in of_oracle if example.asked]
    calls = 0
    if asked and oracle is not None:
        pairs = [
            Pair(example.row["prompt"], *(response.text for response in example.responses))
            for example in asked
        ]
        preferences, calls = ask(oracle, pairs)
        for example, preference in zip(asked, preferences, strict=True):
            example.preference, example.source = preference, f"oracle:{oracle.name}"
    for example in of_oracle:
        if oracle is not None and not example.asked:
            example.preference, example.source = Preference(None, NOT_ASKED), f"oracle:{oracle.name}"
    for example in examples:
        if example.share.route.label == "policy":
            example.source = SELF
        elif example.share.route.label == "dataset":
            example.preference = Preference(0.5, "identical responses") if _same(example) else Preference(1.0)
    return calls


def _same(example: Example) -> bool:
    """Whether a pair that the dataset labels is of identical responses."""
    if example.share.route.from_dataset:
        return bool(example.row.get("identical", False))
    first, second = example.responses
    return first.ids == second.ids or first.text == second.text


def orient(examples: Sequence[Example], oracle_label: str, policy_label: str) -> None:
    """Probability to label t; an abstention makes the row inactive. Self-labelled rows keep their mark."""
    for example in examples:
        if example.self_labelled:
            first, second = example.responses
            # Of identical responses the policy's margin is 0 exactly: under argmax that abstains, known beforehand.
            example.active = not (policy_label == "argmax" and first.ids == second.ids)
            continue
        assert example.preference is not None
        mode = oracle_label if example.share.route.label in ("oracle", "memory") else "soft"
        label = orient_label(example.preference.first_wins, mode, example.uniform)
        example.active = label is not None
        example.label = 0.5 if label is None else label


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Any]:
    """A micro-batch of tensors: sequences of all first responses, then of all second ones, and the columns that are known.

    Weights, baselines and reference log-probs are zero here; the trainer fills them once the whole step is known.
    """
    pairs = [example.responses for example in examples]
    sequences = [
        (example.row["prompt_ids"], list(first.ids))
        for example, (first, _) in zip(examples, pairs, strict=True)
    ]
    sequences += [
        (example.row["prompt_ids"], list(second.ids))
        for example, (_, second) in zip(examples, pairs, strict=True)
    ]
    batch: dict[str, Any] = dict(pad_pairs(sequences, pad_id))
    batch["positions"] = response_positions(batch["response_mask"])
    batch["start"] = min(len(prompt) for prompt, _ in sequences)
    lengths = [len(response) for _, response in sequences]
    batch["lengths"] = torch.tensor(lengths)
    batch |= prompt_columns([example.row["prompt_ids"] for example in examples], lengths)
    batch["label"] = label_column(examples)
    batch["self_label"] = torch.tensor([example.share.route.label == "policy" for example in examples])
    batch["uniform"] = torch.tensor([example.uniform for example in examples], dtype=torch.float64)
    # Only where both were sampled: a single stale response has no ratio over the pair.
    ages = [example.stale and example.share.route.has_score_term for example in examples]
    batch["stale"] = torch.tensor(ages)
    for side, name in enumerate(("behaviour_first", "behaviour_second")):
        then = [pair[side].sampling_log_prob or 0.0 for pair in pairs]
        batch[name] = torch.tensor(then, dtype=torch.float64)
    batch["score_coefficient"] = _column(
        examples, lambda share: share.coefficient * share.route.has_score_term
    )
    batch["label_coefficient"] = _column(
        examples, lambda share: share.coefficient * share.route.has_label_term
    )
    return batch


def label_column(examples: Sequence[Example]) -> torch.Tensor:
    """The labels t, (B,)."""
    return torch.tensor([example.label for example in examples], dtype=torch.float64)


def _column(examples: Sequence[Example], value: Any) -> torch.Tensor:
    return torch.tensor([float(value(example.share)) for example in examples], dtype=torch.float64)


def by_length(examples: Sequence[Example], sizes: Sequence[int]) -> list[list[Example]]:
    """The step's rows dealt out to micro-batches of these sizes, the longest first, so that little is padded and a lack of
    memory shows early. A row's weight is the same in any of them; a step of one micro-batch stays as it is."""
    rows = list(examples)
    if len(sizes) > 1:
        rows.sort(
            key=lambda one: len(one.row["prompt_ids"]) + max(len(response.ids) for response in one.responses),
            reverse=True,
        )
    taken = iter(rows)
    return [[next(taken) for _ in range(size)] for size in sizes]
