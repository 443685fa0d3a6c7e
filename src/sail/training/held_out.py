"""Evaluation during training: held-out pairs scored, held-out prompts answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sail.evaluation.stats import mean_interval
from sail.generation import Generator
from sail.generation.scoring import score_sequences
from sail.objective import kl_estimate
from sail.oracles import Oracle, ScoringOracle
from sail.training.reference import Reference


def pair_metrics(predictions: np.ndarray) -> dict[str, float]:
    """Mean loss, margin and accuracy over held-out pairs. predictions (N, 3): loss, margin, has a pair; see prediction_step."""
    rows = predictions[predictions[:, 2] > 0]
    if not len(rows):
        return {}
    correct = (rows[:, 1] > 0) + 0.5 * (rows[:, 1] == 0)
    return {
        "loss": float(rows[:, 0].mean()),
        "margin": float(rows[:, 1].mean()),
        "accuracy": float(correct.mean()),
    }


def answer_metrics(
    rows: Sequence[dict[str, Any]],
    *,
    generator: Generator,
    reference: Reference,
    oracle: Oracle | None,
    seed: int,
    pad_id: int,
    temperature: float,
    batch_size: int,
) -> dict[str, float | None]:
    """One seeded sample per prompt: KL to the reference (nats per response), length, share cut, and the oracle's reward.

    The seeds do not depend on the step, so checkpoints are compared on common random numbers.
    """
    import torch

    sampled = generator.sample(
        [row["prompt_ids"] for row in rows], [(seed, "eval", int(row["index"])) for row in rows]
    )
    model, adapter_off = reference.model()
    with adapter_off:
        sequences = [(row["prompt_ids"], list(one.ids)) for row, one in zip(rows, sampled, strict=True)]
        scores = score_sequences(model, sequences, pad_id=pad_id, batch_size=batch_size)
    ratios = torch.tensor(
        [[one.log_prob - score] for one, score in zip(sampled, scores, strict=True)], dtype=torch.float64
    )
    estimate = kl_estimate(ratios) if temperature == 1.0 else None
    numbers: dict[str, float | None] = {
        "kl": None if estimate is None else estimate[0],
        "kl_se": None if estimate is None else estimate[1],
        "length": sum(len(one.ids) for one in sampled) / len(sampled),
        "cut": sum(one.cut for one in sampled) / len(sampled),
    }
    if isinstance(oracle, ScoringOracle):
        interval = mean_interval(oracle.score([row["prompt"] for row in rows], [one.text for one in sampled]))
        numbers.update(reward=interval.mean, reward_low=interval.low, reward_high=interval.high)
    return numbers
