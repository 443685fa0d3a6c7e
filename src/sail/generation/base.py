"""The contract of a generation back-end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SeedKey = tuple[int | str, ...]
"""What a response's random numbers depend on: (run seed, purpose, step, dataset index, sample)."""


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are sampled. No top-k, top-p or penalty: a truncated policy is another policy than the one trained."""

    max_new_tokens: int
    temperature: float = 1.0
    eos_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    pad_id: int = 0
    batch_size: int | None = None


@dataclass(frozen=True)
class Sampled:
    """One sampled response.

    ids: the sampled ids, the EOS included exactly where one was emitted; trained as they are, never re-tokenised.
    text: decoded without special tokens, for oracles and readers.
    log_prob: log pi(y|x) in nats at temperature 1, of the weights that sampled it.
    cut: it reached max_new_tokens without an EOS or a stop string.
    sampling_log_prob: log mu(y|x) of the tempered policy that was sampled; log_prob at temperature 1.
    """

    ids: tuple[int, ...]
    text: str
    log_prob: float
    cut: bool
    sampling_log_prob: float


class Generator(ABC):
    """Samples one response per prompt. A response depends on weights, prompt, settings and its key, on nothing else:
    not on the other rows, their order, the number of processes, or a resume.

    together: `sample` talks to the other processes, so each of them calls it equally often, without a row if need be.
    """

    together: bool = False
    settings: SamplingSettings

    @abstractmethod
    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]) -> list[Sampled]:
        """One response per row of token ids, in order."""

    def begin(self) -> None:  # noqa: B027
        """A training begins: what was kept of the weights of another one is forgotten."""

    def numbers(self) -> dict[str, float | None]:
        """What a log line should say of the responses since the last one; every process must call it."""
        return {}


def calls_of_everyone(calls: int) -> int:
    """The largest number of calls that any process has to make; with fewer rows it makes the rest without a row."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return calls
    everyone: list[int] = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, calls)
    return max(everyone)
