"""One optimiser step in five verbs: route, respond, compare, orient, collate. The objective sees only what collate writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sail import seeds
from sail.data.collate import pad_pairs
from sail.generation import Generator
from sail.mixture import Mixture, Share
from sail.objective import orient as orient_label
from sail.oracles import Oracle, ask
from sail.oracles.policy import SELF
from sail.types import Pair, Preference

DATASET = "dataset"
NOT_ASKED = "not asked: the policy was surer about it than about others"


@dataclass(frozen=True)
class Response:
    """A response as it is trained: ids, its text, whether it was cut, and log pi where it was just sampled (nats)."""

    ids: tuple[int, ...]
    text: str
    cut: bool
    log_prob: float | None = None


@dataclass
class Example:
    """One row of a step, filled in by the verbs in turn."""

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
        examples.append(Example(row, share, seeds.uniform(seed, "label", step, index)))
    return examples


def respond(examples: Sequence[Example], generator: Generator | None, seed: int, step: int | str) -> None:
    """Give each example its two responses: the dataset's, or two fresh samples, all of them from one call."""
    online = [example for example in examples if example.share.route.on_policy]
    keys = [(seed, "sample", step, example.index, sample) for example in online for sample in (0, 1)]
    prompts = [example.row["prompt_ids"] for example in online for _ in (0, 1)]
    sampled = generator.sample(prompts, keys) if online and generator is not None else []
    responses = [Response(one.ids, one.text, one.cut, one.log_prob) for one in sampled]
    for position, example in enumerate(online):
        example.first, example.second = responses[2 * position], responses[2 * position + 1]
    for example in examples:
        if example.share.route.needs_pairs:
            example.first, example.second = dataset_responses(example.row)


def dataset_responses(row: dict[str, Any]) -> tuple[Response, Response]:
    """The chosen response first, the rejected one second."""
    chosen = Response(tuple(row["chosen_ids"]), row["chosen"], row["chosen_cut"])
    rejected = Response(tuple(row["rejected_ids"]), row["rejected"], row["rejected_cut"])
    return chosen, rejected


def compare(examples: Sequence[Example], oracle: Oracle | None) -> int:
    """Who prefers which: the dataset's verdict, the oracle's, or the mark that the policy will say so itself.

    Returns how many pairs the oracle was asked about. The dataset's verdict on identical responses is a tie.
    """
    of_oracle = [example for example in examples if example.share.route.label == "oracle"]
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
            same = example.row.get("identical", False)
            example.preference = Preference(0.5, "identical responses") if same else Preference(1.0)
    return calls


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
    batch["start"] = min(len(prompt) for prompt, _ in sequences)
    batch["lengths"] = torch.tensor([len(response) for _, response in sequences])
    batch["label"] = label_column(examples)
    batch["self_label"] = torch.tensor([example.share.route.label == "policy" for example in examples])
    batch["uniform"] = torch.tensor([example.uniform for example in examples], dtype=torch.float64)
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
