"""A finished run against its reference on held-out prompts: one seeded sample each, on the same random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sail.evaluation.stats import Interval, mean_interval, paired_interval, win_rate
from sail.generation import Sampled, SamplingSettings, TransformersGenerator
from sail.generation.scoring import score_sequences, unwrapped
from sail.oracles import Oracle, ScoringOracle, ask
from sail.types import Pair, Prompt


@dataclass(frozen=True)
class Answers:
    """One model's answers to the held-out prompts, in order. rewards is None without a scoring oracle."""

    sampled: list[Sampled]
    rewards: list[float] | None

    @property
    def texts(self) -> list[str]:
        """The answers as text."""
        return [one.text for one in self.sampled]


@dataclass(frozen=True)
class Findings:
    """What results.json holds: metrics with their 95% intervals, and the answers to read."""

    metrics: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[list[int]],
    *,
    settings: SamplingSettings,
    seed: int,
    oracle: Oracle | None,
) -> Answers:
    """Sample one response per prompt. The seed of a prompt is its position, so that models are compared on equal numbers."""
    generator = TransformersGenerator(lambda: unwrapped(model), tokenizer, settings)
    sampled = generator.sample(prompt_ids, [(seed, "final", position) for position in range(len(prompt_ids))])
    if not isinstance(oracle, ScoringOracle):
        return Answers(sampled, None)
    return Answers(sampled, oracle.score(list(prompts), [one.text for one in sampled]))


def compare_with_reference(
    policy: Answers,
    reference: Answers,
    reference_model: Any,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[list[int]],
    *,
    oracle: Oracle | None,
    temperature: float,
    pad_id: int,
    batch_size: int = 64,
) -> Findings:
    """Reward, its paired change, win rate over the reference (ties one half), KL to it and length, each with n and interval.

    The KL is KL(policy || reference) in nats per response, estimated from the policy's own samples; at another temperature
    than 1 they are not its own, so it is left out.
    """
    metrics: dict[str, dict[str, Any]] = {}
    if policy.rewards is not None and reference.rewards is not None:
        metrics["reward"] = asdict(mean_interval(policy.rewards))
        metrics["reward_reference"] = asdict(mean_interval(reference.rewards))
        metrics["reward_gain"] = asdict(paired_interval(policy.rewards, reference.rewards))
    if oracle is not None:
        metrics["win_rate"] = asdict(win_rate(_outcomes(policy, reference, prompts, oracle)))
    if temperature == 1.0:
        sequences = [(list(ids), list(one.ids)) for ids, one in zip(prompt_ids, policy.sampled, strict=True)]
        scores = score_sequences(reference_model, sequences, pad_id=pad_id, batch_size=batch_size)
        ratios = [one.log_prob - score for one, score in zip(policy.sampled, scores, strict=True)]
        metrics["kl"] = asdict(mean_interval(ratios))
    metrics["length"] = asdict(mean_interval([len(one.ids) for one in policy.sampled]))
    metrics["length_reference"] = asdict(mean_interval([len(one.ids) for one in reference.sampled]))
    return Findings(metrics, _samples(policy, reference, prompts))


def has_risen(metrics: dict[str, dict[str, Any]]) -> bool | None:
    """Whether the paired 95% interval of the reward gain lies above 0; None without rewards."""
    gain = metrics.get("reward_gain")
    return None if gain is None or gain["low"] is None else gain["low"] > 0


def _outcomes(
    policy: Answers, reference: Answers, prompts: Sequence[Prompt], oracle: Oracle
) -> list[float | None]:
    """1, 1/2 or 0 per prompt for the policy's answer against the reference's; None where the oracle abstains."""
    pairs = [
        Pair(prompt, *texts) for prompt, *texts in zip(prompts, policy.texts, reference.texts, strict=True)
    ]
    outcomes: list[float | None] = []
    for preference in ask(oracle, pairs)[0]:
        p = preference.first_wins
        outcomes.append(None if p is None else 0.5 if p == 0.5 else float(p > 0.5))
    return outcomes


def _samples(policy: Answers, reference: Answers, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    rows = []
    for place, prompt in enumerate(prompts):
        row: dict[str, Any] = {
            "prompt": prompt,
            "reference": reference.texts[place],
            "response": policy.texts[place],
        }
        if policy.rewards is not None and reference.rewards is not None:
            row.update(reward=policy.rewards[place], reward_reference=reference.rewards[place])
        rows.append(row)
    return rows


def show(interval: Interval | dict[str, Any] | None, digits: int = 2) -> str:
    """`1.23 [1.10, 1.36], n = 512`."""
    if interval is None:
        return "-"
    values = asdict(interval) if isinstance(interval, Interval) else interval
    if values["mean"] is None:
        return "-"
    text = f"{values['mean']:.{digits}f}"
    if values["low"] is not None:
        text += f" [{values['low']:.{digits}f}, {values['high']:.{digits}f}]"
    return f"{text}, n = {values['n']}"
