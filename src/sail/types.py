"""The nouns every part shares. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

Message = dict[str, str]
"""One chat message: {"role": ..., "content": ...}."""

Prompt = str | list[Message]
"""Plain text, or a conversation that the assistant is to continue."""


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, in the order in which an oracle sees them."""

    prompt: Prompt
    first: str
    second: str

    def swap(self) -> Pair:
        """The same two responses in the other order."""
        return Pair(self.prompt, self.second, self.first)


@dataclass(frozen=True)
class Preference:
    """What an oracle said about a pair: the probability that the first response wins, or an abstention.

    `first_wins` is in [0, 1]; None is an abstention and `reason` says why. An unreadable verdict is an
    abstention: never a tie, never a coin. `passing` marks what may be another verdict when it is asked for again
    (a failed call, a deadline, a spent budget): nothing remembers it.
    """

    first_wins: float | None
    reason: str | None = None
    passing: bool = False

    def swap(self) -> Preference:
        """The same verdict seen from the other order."""
        if self.first_wins is None:
            return self
        return Preference(1.0 - self.first_wins, self.reason)


@dataclass(frozen=True)
class LabelledPair:
    """A pair with its verdict."""

    pair: Pair
    preference: Preference

    def swap(self) -> LabelledPair:
        """Both responses and verdict in the other order; says the same thing."""
        return LabelledPair(self.pair.swap(), self.preference.swap())
