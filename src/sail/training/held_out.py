"""Evaluation during training: held-out pairs scored, held-out prompts answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sail.errors import OracleError, SailError
from sail.evaluation.stats import mean_interval
from sail.generation import Generator
from sail.generation.scoring import score_sequences
from sail.mixture import ROUTES, Share
from sail.objective import kl_estimate
from sail.online import Example, collate, compare, dataset_responses, orient
from sail.oracles import Oracle, ScoringOracle
from sail.training.reference import Reference
from sail.training.step import column, fill_weights, gather, place_among_processes
from sail.types import Prompt


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


def pair_batch(
    rows: Sequence[dict[str, Any]], reference: Reference, pad_id: int, device: torch.device
) -> dict[str, Any]:
    """Held-out pairs as a batch of the data route, each row with weight 1 / rows."""
    share = Share(ROUTES["data"], 1.0)
    examples = [Example(row, share, 0.0, *dataset_responses(row)) for row in rows]
    compare(examples, None)
    orient(examples, "soft", "soft")
    batch = collate(examples, pad_id)
    batch["ref_logps"] = reference.log_probs(batch, examples, device, remembered=False)
    batch["examples"] = examples
    fill_weights(batch, 1, {"active": len(rows), "online": 0, "paired": len(rows)}, False)
    for name in ("baseline", "kl_baseline_first", "kl_baseline_second"):
        batch[name] = column([0.0] * len(rows))
    return batch


def answer_metrics(
    rows: Sequence[dict[str, Any]],
    *,
    generator: Generator,
    reference: Reference,
    oracle: Oracle | None,
    gold: Oracle | None,
    seed: int,
    pad_id: int,
    temperature: float,
    batch_size: int,
    warn: Callable[[str], None],
) -> dict[str, float | None]:
    """One seeded sample per prompt: KL to the reference that the run began with (nats per response), length, share cut, the
    oracle's reward and, where there is one, the evaluation oracle's (`gold`). Answers without a score are left out of its mean
    and, where there are any, counted as reward_abstained or gold_abstained.

    The seeds do not depend on the step, so checkpoints are compared on common random numbers.
    """
    sampled = generator.sample(
        [row["prompt_ids"] for row in rows], [(seed, "eval", int(row["index"])) for row in rows]
    )
    model, adapter_off = reference.start()
    with adapter_off:
        sequences = [(row["prompt_ids"], list(one.ids)) for row, one in zip(rows, sampled, strict=True)]
        scores = score_sequences(
            model, sequences, pad_id=pad_id, batch_size=batch_size, chunk=reference.chunk
        )
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
    prompts, texts = [row["prompt"] for row in rows], [one.text for one in sampled]
    for name, scorer in (("reward", oracle), ("gold", gold)):
        if not isinstance(scorer, ScoringOracle):
            continue
        try:
            given = scored_once(scorer, prompts, texts)
        except OracleError as error:
            # Measuring must not cost a run what it has learned; labels are another matter.
            warn(f"Oracle {scorer.name} failed in an evaluation, which has no {name} therefore: {error}")
            given = []
        scored = [value for value in given if value is not None]
        interval = mean_interval(scored)
        numbers.update({name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high})
        if len(scored) < len(given):
            numbers[f"{name}_abstained"] = float(len(given) - len(scored))
    return numbers


def scored_once(oracle: ScoringOracle, prompts: list[Prompt], responses: list[str]) -> Sequence[float | None]:
    """The oracle's scores, asked for by the first process only: all processes hold the same responses, and asking may cost money
    and differ from call to call. An error of the oracle reaches every process."""
    place, _ = place_among_processes()
    answer: Sequence[float | None] | SailError | None = None
    if place == 0:
        try:
            answer = oracle.score(prompts, responses)
        except SailError as error:
            answer = error
    answer = gather([answer])[0]
    if isinstance(answer, SailError):
        raise answer
    return answer or []
