"""A judge for benchmark questions of the playground world: the gold reward as a score from 1 to 10. No torch.

    score = 1 + 9 * clip((gold + 3) / (best + 3), 0, 1)

with `gold` the gold reward of the last answer to the last question, and `best` the most that any text can get for that question
(4 to 6). So saying nothing (-3), or worse, scores 1, a perfect answer 10, and a mediocre one (about 1.2) near 6. Every turn is
judged as a question of its own: the world has no sentence that refers back. A question that is not of the world: abstains.
"""

from __future__ import annotations

from sail.errors import DataError
from sail.playground.gold import gold_maximum, gold_reward
from sail.types import Message

NOTHING = -3.0


def score(conversations: list[list[Message]]) -> list[float | None]:
    """One score per conversation for its last message; see above.

    >>> score([[{"role": "user", "content": "how do i bake bread ?"}, {"role": "assistant", "content": ""}]])
    [1.0]
    """
    return [_score(talk[-2]["content"], talk[-1]["content"]) for talk in conversations]


def _score(prompt: str, answer: str) -> float | None:
    try:
        gold, best = gold_reward(prompt, answer), gold_maximum(prompt)
    except DataError:
        return None
    return 1.0 + 9.0 * min(max((gold - NOTHING) / (best - NOTHING), 0.0), 1.0)
