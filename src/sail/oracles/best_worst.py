"""The best and the worst of several responses to a prompt, by an oracle's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sail.oracles.base import ScoringOracle
from sail.types import Preference, Prompt


@dataclass(frozen=True)
class Choice:
    """Places of the best and the worst response of a prompt, and what the oracle says of (best, worst)."""

    best: int
    worst: int
    preference: Preference


def best_and_worst(
    oracle: ScoringOracle, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]
) -> tuple[list[Choice], int]:
    """The choice for each prompt, among the responses that have a score, and how many oracle calls it took: a call is a pair, so
    n scores are n/2 calls, rounded up.

    The probability is the oracle's own for that pair, without asking again. Equal texts are scored once; a prompt whose
    responses are all the same text is a tie by definition (p = 1/2, of the first two places) and is not scored at all. Of
    equal scores the first place counts; where all scores are equal, the first two places are a tie. With fewer than two scores
    there is an abstention; where some are missing, the reason says how many.
    """
    distinct = [list(dict.fromkeys(texts)) for texts in responses]
    asked = [(place, text) for place, texts in enumerate(distinct) if len(texts) > 1 for text in texts]
    scores: dict[tuple[int, str], float | None] = {}
    if asked:
        given = oracle.score([prompts[place] for place, _ in asked], [text for _, text in asked])
        scores = dict(zip(asked, given, strict=True))
    choices = []
    for place, texts in enumerate(responses):
        if len(distinct[place]) == 1:
            choices.append(Choice(0, 1, Preference(0.5, "identical responses")))
            continue
        choices.append(_choice(oracle, [scores[place, text] for text in texts]))
    return choices, (len(asked) + 1) // 2


def _choice(oracle: ScoringOracle, scores: Sequence[float | None]) -> Choice:
    """The best and the worst of one prompt's responses."""
    own = {place: score for place, score in enumerate(scores) if score is not None}
    missing = len(scores) - len(own)
    reason = f"{missing} of {len(scores)} responses have no score" if missing else None
    if len(own) < 2:
        return Choice(0, 1, Preference(None, reason))
    best, worst = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
    if best == worst:
        best, worst, *_ = own
    said = oracle.preference(own[best], own[worst])
    return Choice(best, worst, said if reason is None else replace(said, reason=reason))
