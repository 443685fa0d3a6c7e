"""Who prefers. Every oracle speaks one currency: the probability that the first response wins, or an abstention."""

from sail.oracles.base import Oracle, ScoringOracle, ask, for_measuring, must_score, without_people
from sail.oracles.function import PreferenceFunction, RewardFunction, as_oracle, load_callable
from sail.oracles.policy import ImplicitReward

__all__ = [
    "ImplicitReward",
    "Oracle",
    "PreferenceFunction",
    "RewardFunction",
    "ScoringOracle",
    "as_oracle",
    "ask",
    "for_measuring",
    "load_callable",
    "must_score",
    "without_people",
]
