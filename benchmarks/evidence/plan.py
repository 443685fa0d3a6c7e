"""What is run, in the order in which it is run: the first parts matter most. A run is named by its method and learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

STEPS, ROWS = 150, 32
EVALUATE_AT = (10, 20, 35, 50, 75, 100, 125, 150)
PROMPTS = 256
METHODS = ("dpo", "online-dpo", "sail-ddp", "sail-dpp", "sail-dpr", "sail-mix")
FIVE, THREE = (0, 1, 2, 3, 4), (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One run: the options that differ from the playground's (sail.play.ALIGN)."""

    part: str
    name: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = STEPS
    noise: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells runs apart."""
        return self.part, self.name, self.seed


def plan() -> Iterator[Run]:
    """All runs, the most important first."""
    for seed in FIVE:
        for method in METHODS:
            yield Run("methods", method, seed, {"preset": method})
