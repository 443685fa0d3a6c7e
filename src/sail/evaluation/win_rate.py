"""Whose answer is preferred, by any oracle: asked in both orders where the order may matter, with ties, abstentions and bias."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sail.evaluation.length_control import length_controlled
from sail.evaluation.stats import mean_interval, rate_interval, win_rate
from sail.oracles import Oracle, ask
from sail.types import Pair

TIE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What an oracle said of our answer (first in the pair) against its rival.

    p: probability that ours wins, the mean over the orders asked; None if it abstained in either, since the other order alone
    would bring the position's bias in. shown_first, shown_second: the probability it gave to the answer it was *shown first*,
    with ours shown first and second; the latter is None where one order is enough.
    """

    p: float | None
    shown_first: float | None = None
    shown_second: float | None = None
    reason: str | None = None

    @property
    def outcome(self) -> float | None:
        """1, 1/2 or 0 for ours; None for an abstention."""
        if self.p is None:
            return None
        return 0.5 if abs(self.p - 0.5) < TIE else float(self.p > 0.5)

    @property
    def flips(self) -> bool:
        """Whether the winner changes with the order in which the same two answers are shown."""
        if self.shown_first is None or self.shown_second is None:
            return False
        return (self.shown_first - 0.5) * (0.5 - self.shown_second) < 0


def is_symmetric(oracle: Oracle) -> bool:
    """Whether the order cannot matter: each response is scored by itself, or both orders are asked."""
    return oracle.symmetric


def judge(oracle: Oracle, pairs: Sequence[Pair]) -> tuple[list[Verdict], int]:
    """A verdict per pair for its first response, and how many pairs the oracle was asked about (both orders count).

    Identical responses are a tie without asking.
    """
    one_way, calls = ask(oracle, pairs)
    if is_symmetric(oracle):
        return [Verdict(said.first_wins, said.first_wins, None, said.reason) for said in one_way], calls
    other_way, more = ask(oracle, [pair.swap() for pair in pairs])
    verdicts = []
    for pair, first, second in zip(pairs, one_way, other_way, strict=True):
        if pair.first == pair.second:
            verdicts.append(Verdict(0.5, None, None, first.reason))
            continue
        a, b = first.first_wins, second.first_wins
        p = None if a is None or b is None else (a + 1.0 - b) / 2
        verdicts.append(Verdict(p, a, b, first.reason if a is None else second.reason))
    return verdicts, calls + more


def from_scores(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[Verdict]:
    """Verdicts of a scoring oracle whose scores are known already: asking again would cost the same again. An abstention where
    either has no score."""
    return [
        Verdict(None, reason="no score")
        if a is None or b is None
        else Verdict(0.5 + 0.5 * ((a > b) - (a < b)))
        for a, b in zip(ours, theirs, strict=True)
    ]


def summary(
    verdicts: Sequence[Verdict],
    clusters: Sequence[Hashable],
    length_differences: Sequence[float],
    *,
    symmetric: bool,
) -> dict[str, Any]:
    """{"win_rate", "length_controlled", "position"}: intervals clustered by prompt. length_differences: ours less theirs."""
    outcomes = [verdict.outcome for verdict in verdicts]
    judged = [place for place, outcome in enumerate(outcomes) if outcome is not None]
    controlled = length_controlled(
        [float(outcomes[place] or 0.0) for place in judged],
        [float(length_differences[place]) for place in judged],
        [clusters[place] for place in judged],
    )
    return {
        "win_rate": asdict(win_rate(outcomes, clusters)),
        "length_controlled": asdict(controlled),
        "position": {"kind": "symmetric"} if symmetric else position(verdicts, clusters),
    }


def position(verdicts: Sequence[Verdict], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """How much the order of showing decides.

    first_wins: mean probability given to the answer shown first, over both orders of each pair (.5 without bias; bias is that
    less .5); disagreement: share of pairs whose winner changes with the order. Only pairs judged in both orders count.
    """
    both = [
        place
        for place, verdict in enumerate(verdicts)
        if verdict.shown_first is not None and verdict.shown_second is not None
    ]
    keys = [clusters[place] for place in both]
    shown = [((verdicts[p].shown_first or 0.0) + (verdicts[p].shown_second or 0.0)) / 2 for p in both]
    return {
        "kind": "ordered",
        "first_wins": asdict(mean_interval(shown, keys)),
        "bias": asdict(mean_interval([value - 0.5 for value in shown], keys)),
        "disagreement": asdict(rate_interval([float(verdicts[p].flips) for p in both], keys)),
    }
