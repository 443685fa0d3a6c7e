"""A finished run against its reference on held-out prompts: one seeded sample each, on the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from sail.data.encode import EncodedRow
from sail.evaluation import win_rate
from sail.evaluation.metrics import (
    Numbers,
    gain_number,
    kl_number,
    pair_numbers,
    response_numbers,
    score_number,
    unscored_note,
)
from sail.evaluation.responses import prompt_key
from sail.evaluation.stats import mean_interval
from sail.generation import Sampled, SamplingSettings, TransformersGenerator
from sail.generation.scoring import score_sequences, unwrapped
from sail.oracles import Oracle, ScoringOracle
from sail.types import Pair, Prompt

Loaded = Callable[[], AbstractContextManager[Any]]
"""A context in which a model speaks: an adapter on or off, the precision of the training."""


@dataclass(frozen=True)
class Voice:
    """What one model did: its answers in order, and its log-probs (nats) of each held-out pair."""

    sampled: list[Sampled]
    pairs: list[tuple[float, float]]

    @property
    def texts(self) -> list[str]:
        """The answers as text."""
        return [one.text for one in self.sampled]


@dataclass
class Findings:
    """What results.json holds: metrics with their 95% intervals, the answers to read, and how often the oracle was asked."""

    metrics: Numbers = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    calls: int = 0


@dataclass(frozen=True)
class Closing:
    """The held-out rows and how a run's two models are measured on them. `pairs`: at most so many are scored."""

    rows: Sequence[EncodedRow]
    tokenizer: Any
    settings: SamplingSettings
    seed: int
    beta: float
    batch_size: int = 64
    pairs: int = 256

    @property
    def clusters(self) -> list[str]:
        """The prompt of each row."""
        return [prompt_key(row["prompt"]) for row in self.rows]

    @property
    def paired(self) -> list[EncodedRow]:
        """The rows whose two responses are scored."""
        return [row for row in self.rows if row["chosen_ids"] is not None][: self.pairs]

    def voice(self, model: Any) -> Voice:
        """One response per prompt, and the held-out pairs scored. The seed of a prompt is its position, so that models are
        compared on equal numbers."""
        generator = TransformersGenerator(lambda: unwrapped(model), self.tokenizer, self.settings)
        keys: list[Any] = [(self.seed, "final", position) for position in range(len(self.rows))]
        sampled = generator.sample([row["prompt_ids"] for row in self.rows], keys)
        both = [(row["prompt_ids"], list(row["chosen_ids"] or [])) for row in self.paired]
        both += [(row["prompt_ids"], list(row["rejected_ids"] or [])) for row in self.paired]
        found, count = self.log_probs(model, both), len(self.paired)
        return Voice(sampled, list(zip(found[:count], found[count:], strict=True)))

    def log_probs(self, model: Any, sequences: list[tuple[list[int], list[int]]]) -> list[float]:
        """log pi(y|x) in nats."""
        return score_sequences(model, sequences, pad_id=self.settings.pad_id, batch_size=self.batch_size)


def close(
    closing: Closing,
    policy: Any,
    reference: Loaded,
    oracle: Oracle | None,
    precision: Loaded,
    gold: Oracle | None = None,
) -> Findings:
    """Reward, its paired change, win rate over the reference (ties one half), margin and accuracy on held-out pairs, KL to the
    reference, length and diversity, each with n and interval. An oracle that fails costs its own metrics only, with a note.

    The KL is KL(policy || reference) in nats per response, estimated from the policy's own samples; at another temperature
    than 1 they are not its own, so it is left out.
    """
    findings, clusters = Findings(), closing.clusters
    with precision():
        ours = closing.voice(policy)
    with reference() as model:
        theirs = closing.voice(model)
        ratios = None
        if closing.settings.temperature == 1.0:
            sequences = [
                (row["prompt_ids"], list(one.ids))
                for row, one in zip(closing.rows, ours.sampled, strict=True)
            ]
            scores = closing.log_probs(model, sequences)
            ratios = [one.log_prob - score for one, score in zip(ours.sampled, scores, strict=True)]
    judged: dict[str, Sequence[Any]] = {}
    if oracle is not None:
        try:
            judged = _ask(findings, oracle, closing, ours, theirs)
        except Exception as error:
            findings.notes.append(f"The oracle failed when the run was closed, so it judged nothing: {error}")
    if isinstance(gold, ScoringOracle):
        try:
            judged |= _score_gold(findings, gold, closing, ours, theirs)
        except Exception as error:
            findings.notes.append(f"The evaluation oracle failed when the run was closed: {error}")
    metrics, left_out = response_numbers(ours.sampled, clusters, closing.settings.eos_ids)
    findings.metrics.update(metrics)
    findings.notes += [f"{name} was left out: {why}." for name, why in left_out.items()]
    if ratios is not None:
        findings.metrics["kl"] = kl_number(ratios, clusters)
    lengths = [float(len(one.ids)) for one in theirs.sampled]
    findings.metrics["length_reference"] = asdict(mean_interval(lengths, clusters))
    if closing.paired:
        keys = [prompt_key(row["prompt"]) for row in closing.paired]
        findings.metrics.update(pair_numbers(ours.pairs, theirs.pairs, closing.beta, keys))
    findings.samples = _samples(closing, ours, theirs, judged, ratios)
    return findings


def has_risen(metrics: dict[str, dict[str, Any]]) -> bool | None:
    """Whether the paired 95% interval of the reward gain lies above 0; None without rewards."""
    gain = metrics.get("reward_gain")
    return None if gain is None or gain["low"] is None else gain["low"] > 0


def fell(metrics: dict[str, dict[str, Any]]) -> bool:
    """Whether that interval lies below 0."""
    high = metrics.get("reward_gain", {}).get("high")
    return high is not None and high < 0


def _ask(
    findings: Findings, oracle: Oracle, closing: Closing, ours: Voice, theirs: Voice
) -> dict[str, Sequence[Any]]:
    """The oracle's metrics into `findings`; returns what it said of each prompt, as columns."""
    prompts: list[Prompt] = [row["prompt"] for row in closing.rows]
    clusters = closing.clusters
    columns: dict[str, Sequence[Any]] = {}
    if isinstance(oracle, ScoringOracle):
        findings.calls += 2 * len(prompts)
        rewards = oracle.score(prompts, ours.texts), oracle.score(prompts, theirs.texts)
        columns = {"reward": rewards[0], "reward_reference": rewards[1]}
        verdicts = win_rate.from_scores(*rewards)
        _score_numbers(findings, "reward", oracle.name, *rewards, clusters)
    else:
        texts = zip(prompts, ours.texts, theirs.texts, strict=True)
        verdicts, calls = win_rate.judge(oracle, [Pair(*one) for one in texts])
        findings.calls += calls
    both = zip(ours.sampled, theirs.sampled, strict=True)
    longer = [float(len(one.ids) - len(other.ids)) for one, other in both]
    found = win_rate.summary(verdicts, clusters, longer, symmetric=win_rate.is_symmetric(oracle))
    findings.metrics["win_rate"] = found["win_rate"]
    findings.metrics["win_rate_length_controlled"] = found["length_controlled"]
    return {**columns, "win": [one.outcome for one in verdicts]}


def _score_gold(
    findings: Findings, gold: ScoringOracle, closing: Closing, ours: Voice, theirs: Voice
) -> dict[str, Sequence[Any]]:
    """What the evaluation oracle says of the same answers: gold, gold_reference and their paired difference gold_gain."""
    prompts: list[Prompt] = [row["prompt"] for row in closing.rows]
    given = gold.score(prompts, ours.texts), gold.score(prompts, theirs.texts)
    _score_numbers(findings, "gold", gold.name, *given, closing.clusters)
    return {"gold": given[0], "gold_reference": given[1]}


def _score_numbers(
    findings: Findings,
    name: str,
    who: str,
    ours: Sequence[float | None],
    theirs: Sequence[float | None],
    clusters: Sequence[str],
) -> None:
    """The means and their paired difference into `findings`, as far as there is any score; a note where one is missing."""
    numbers = {
        name: score_number(ours, clusters),
        f"{name}_reference": score_number(theirs, clusters),
        f"{name}_gain": gain_number(ours, theirs, clusters),
    }
    findings.metrics.update({key: number for key, number in numbers.items() if number["n"]})
    findings.notes += unscored_note(who, ours, theirs)


def _samples(
    closing: Closing,
    ours: Voice,
    theirs: Voice,
    judged: dict[str, Sequence[Any]],
    ratios: list[float] | None,
) -> list[dict[str, Any]]:
    columns: dict[str, Sequence[Any]] = {
        "prompt": [row["prompt"] for row in closing.rows],
        "reference": theirs.texts,
        "response": ours.texts,
        "length": [len(one.ids) for one in ours.sampled],
        **judged,
    }
    if ratios is not None:
        columns["log_ratio"] = ratios
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
