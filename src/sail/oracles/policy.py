"""The policy as its own oracle.

In training a self-labelled row is only *marked*: its label must come from the training forward's own margin, or the label
would be that of other weights than the gradient's. Outside training the same implicit reward is an ordinary oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sail.errors import OracleError
from sail.oracles.base import ScoringOracle, check_count
from sail.types import Pair, Preference, Prompt

SELF = "policy"
"""The label source of a row that the policy labels itself."""


class ImplicitReward(ScoringOracle):
    """r(x, y) = beta * log( pi(y|x) / pi_ref(y|x) ), p = sigmoid(r(first) - r(second)).

    `log_ratio(prompts, responses)` returns log pi - log pi_ref in nats, one per response. Source: DPO, arXiv 2305.18290.
    """

    name = SELF
    may_abstain = False

    def __init__(
        self, log_ratio: Callable[[Sequence[Prompt], Sequence[str]], list[float]], beta: float
    ) -> None:
        self.log_ratio = log_ratio
        self.beta = beta

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """The implicit rewards."""
        ratios = self.log_ratio(prompts, responses)
        if not all(math.isfinite(value) for value in ratios):
            raise OracleError(
                "The implicit reward is not finite: the policy or the reference gives a response no probability."
            )
        return [self.beta * value for value in ratios]

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Bradley-Terry on the implicit rewards."""
        prompts = [pair.prompt for pair in pairs]
        rewards = self.score(
            prompts + prompts, [pair.first for pair in pairs] + [pair.second for pair in pairs]
        )
        check_count(self.name, list(pairs) * 2, rewards)
        margins = [a - b for a, b in zip(rewards[: len(pairs)], rewards[len(pairs) :], strict=True)]
        return [Preference(0.5 * (1.0 + math.tanh(margin / 2.0))) for margin in margins]
