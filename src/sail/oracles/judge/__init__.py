"""A language model as oracle: client (HTTP), rubric and fence (what it is told), verdicts and reply (what it says), judge."""

from sail.oracles.judge.client import Client
from sail.oracles.judge.judge import Judge, Prices, ScoreJudge
from sail.oracles.judge.rubric import Rubric, load_rubric
from sail.oracles.judge.verdicts import read_score, read_verdict

__all__ = ["Client", "Judge", "Prices", "Rubric", "ScoreJudge", "load_rubric", "read_score", "read_verdict"]
