"""Answers of several models to the same prompts, on the same random numbers, kept in a journal as they are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from sail.evaluation.journal import Journal
from sail.generation import Sampled, SamplingSettings, SeedKey, TransformersGenerator
from sail.generation.scoring import score_sequences, unwrapped
from sail.types import Prompt

Sequences = Sequence[tuple[list[int], list[int]]]


def prompt_key(prompt: Prompt) -> str:
    """One text per prompt: what answers are clustered and runs are paired by."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Questions:
    """The prompts of an evaluation, each to be answered `samples` times. Answers are in the order of prompts, then samples."""

    prompts: list[Prompt]
    ids: list[list[int]]
    samples: int
    seed: int

    @property
    def places(self) -> list[int]:
        """The prompt's place, of each answer."""
        return [place for place in range(len(self.prompts)) for _ in range(self.samples)]

    @property
    def clusters(self) -> list[Hashable]:
        """The prompt's key, of each answer: the same prompt twice in the data is one cluster."""
        return [prompt_key(self.prompts[place]) for place in self.places]

    @property
    def keys(self) -> list[SeedKey]:
        """Seeds, the same for every model. The first sample of a prompt has the seed that `sail train` ends with."""
        return [
            (self.seed, "final", place) if sample == 0 else (self.seed, "final", place, sample)
            for place in range(len(self.prompts))
            for sample in range(self.samples)
        ]


class Speaker:
    """A model, loaded when it is first needed and let go by `close`: one model in memory at a time. Its name is for people only:
    two models may have the same."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self._load = load
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The model, in eval mode."""
        if self._model is None:
            self._model = self._load().eval()
        return self._model

    def close(self) -> None:
        """Give the memory back."""
        self._model = None


def sample(
    speaker: Speaker,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    keys: Sequence[SeedKey],
    settings: SamplingSettings,
    journal: Journal,
    *,
    batch_size: int,
    what: str,
) -> list[Sampled]:
    """One response per prompt and key, in chunks of `batch_size` prompts of like length; see `Journal`.

    `what` names the chunks, so it must tell whose answers these are by the model's part in the evaluation ("policy answers").
    """
    generator = TransformersGenerator(lambda: unwrapped(speaker.model), tokenizer, settings)
    made: list[Sampled | None] = [None] * len(prompts)

    def chunk(rows: list[int]) -> list[dict[str, Any]]:
        sampled = generator.sample([prompts[row] for row in rows], [keys[row] for row in rows])
        return [
            {"row": row, "ids": list(one.ids), "text": one.text, "log_prob": one.log_prob, "cut": one.cut}
            for row, one in zip(rows, sampled, strict=True)
        ]

    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for kept in _in_chunks(order, what, chunk, journal, batch_size):
        # How likely a tempered sampler was to say it is of no use here.
        made[kept["row"]] = Sampled(
            tuple(kept["ids"]), kept["text"], kept["log_prob"], kept["cut"], kept["log_prob"]
        )
    return [one for one in made if one is not None]


def log_probs(
    speaker: Speaker, sequences: Sequences, what: str, journal: Journal, *, pad_id: int, batch_size: int
) -> list[float]:
    """log pi(y|x) in nats of (prompt ids, response ids) under the speaker, in chunks named by `what`, as in `sample`."""
    found = [0.0] * len(sequences)

    def chunk(rows: list[int]) -> list[dict[str, Any]]:
        scores = score_sequences(
            speaker.model, [sequences[row] for row in rows], pad_id=pad_id, batch_size=batch_size
        )
        return [{"row": row, "log_prob": score} for row, score in zip(rows, scores, strict=True)]

    order = sorted(range(len(sequences)), key=lambda row: sum(map(len, sequences[row])))
    for kept in _in_chunks(order, what, chunk, journal, batch_size):
        found[kept["row"]] = kept["log_prob"]
    return found


def in_chunks(
    count: int,
    what: str,
    make: Callable[[list[int]], list[dict[str, Any]]],
    journal: Journal,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Rows 0 to count - 1 in their order, made chunk by chunk; see `Journal`."""
    return _in_chunks(list(range(count)), what, make, journal, batch_size)


def _in_chunks(
    order: list[int],
    what: str,
    make: Callable[[list[int]], list[dict[str, Any]]],
    journal: Journal,
    batch_size: int,
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    with tqdm(total=len(order), desc=what, dynamic_ncols=True, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            made += journal.chunk(f"{what} {start}", lambda rows=rows: make(rows))  # type: ignore[misc]
            bar.update(len(rows))
    return made
