"""An evaluation: one model's answers against its reference, its data and other models. One model in memory at a time.

Everything that takes long (answers, log-probs) or costs money (an oracle's verdicts, a judge's scores) goes through a journal.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sail.data.encode import EncodedRow
from sail.evaluation import win_rate
from sail.evaluation.journal import Journal
from sail.evaluation.metrics import (
    Numbers,
    gain_number,
    kl_number,
    pair_numbers,
    response_numbers,
    score_number,
    unscored_note,
)
from sail.evaluation.questions import Question, Score, converse, scores, table
from sail.evaluation.responses import Questions, Speaker, in_chunks, log_probs, prompt_key, sample
from sail.evaluation.stats import mean_interval
from sail.evaluation.win_rate import Verdict
from sail.generation import Sampled, SamplingSettings
from sail.oracles import Oracle, ScoringOracle
from sail.types import Message, Pair, Prompt

DATASET, REFERENCE, POLICY = "dataset", "reference", "policy"
"""Parts in an evaluation. What is made of a model is kept under its part (these, `part_of_step`, `part_of_rival`), never under
its name: the folders of two models may be called the same."""


def part_of_step(step: int) -> str:
    """The part of a checkpoint."""
    return f"step {step}"


def part_of_rival(name: str) -> str:
    """The part of whom the policy is judged against: one of `rivals`, or the dataset or the reference themselves.

    >>> part_of_rival("reference"), part_of_rival("step 4")
    ('reference', 'rival step 4')
    """
    return name if name in (DATASET, REFERENCE) else f"rival {name}"


@dataclass
class Voice:
    """A model that answers, with its own tokenizer and settings, and the prompts as its own token ids."""

    speaker: Speaker
    tokenizer: Any
    settings: SamplingSettings
    prompt_ids: list[list[int]]


@dataclass
class Setup:
    """What is to be measured, as objects. `against` names what the policy's answers are judged against: "dataset",
    "reference", or a name of `rivals`. `rows` are the held-out rows of the asked prompts. `frontier`: reward and KL of the start,
    the checkpoints and the model, which is of `step`."""

    policy: Voice
    questions: Questions
    rows: list[EncodedRow]
    batch_size: int
    reference: Voice | None = None
    rivals: dict[str, Voice] = field(default_factory=dict)
    checkpoints: dict[int, Voice] = field(default_factory=dict)
    frontier: bool = False
    step: int | None = None
    against: tuple[str, ...] = ()
    oracle: Oracle | None = None
    beta: float | None = None
    benchmark: list[Question] = field(default_factory=list)
    judge: Score | None = None
    judge_name: str = ""


class Evaluation:
    """The stages in order: `speak`, `ask`, `results`. Raises SailError where a model or an oracle cannot be used; what was
    done until then is in the journals."""

    def __init__(self, setup: Setup, answers: Journal, judgements: Journal) -> None:
        self.setup, self.answers, self.judgements = setup, answers, judgements
        self.sampled: dict[str, list[Sampled]] = {}
        self.texts: dict[str, list[str]] = {}
        self.log_ratios: dict[str, list[float]] = {}
        self.pairs: dict[str, list[tuple[float, float]]] = {}
        self.rewards: dict[str, list[float | None]] = {}
        self.verdicts: dict[str, list[Verdict]] = {}
        self.talks: list[list[Message]] = []
        self.scores: list[list[float | None]] = []
        self.calls = 0
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []

    @property
    def paired_rows(self) -> list[EncodedRow]:
        """The held-out rows that have both responses."""
        return [row for row in self.setup.rows if row["chosen_ids"] is not None]

    @property
    def at_one(self) -> bool:
        """Whether responses are sampled from the model itself, and not from a tempered one."""
        return self.setup.policy.settings.temperature == 1.0

    def speak(self) -> None:
        """Every model in turn answers and scores."""
        setup = self.setup
        self._answers(POLICY, setup.policy)
        if setup.beta is not None and setup.reference is not None:
            self._score_pairs(POLICY, setup.policy)
        if setup.benchmark:
            self.talks, notes = converse(
                setup.policy.speaker,
                setup.policy.tokenizer,
                setup.benchmark,
                setup.policy.settings,
                self.answers,
                seed=setup.questions.seed,
                batch_size=setup.batch_size,
                whose=POLICY,
            )
            self.notes += notes
        setup.policy.speaker.close()
        rivals = {part_of_rival(name): voice for name, voice in setup.rivals.items()}
        for part, voice in [*self._checkpoints().items(), *rivals.items()]:
            self._answers(part, voice)
            voice.speaker.close()
        if setup.reference is not None:
            self._reference(setup.reference)

    def _checkpoints(self) -> dict[str, Voice]:
        return {part_of_step(step): voice for step, voice in self.setup.checkpoints.items()}

    def _reference(self, voice: Voice) -> None:
        """The reference's answers, and its log-probs of everybody else's."""
        if self.setup.oracle is not None:
            self._answers(REFERENCE, voice)
        if self.setup.beta is not None:
            self._score_pairs(REFERENCE, voice)
        for name in [POLICY, *self._checkpoints()] if self.at_one else []:
            ids = self.setup.policy.prompt_ids
            said = self.sampled[name]
            sequences = [
                (list(ids[place]), list(one.ids))
                for place, one in zip(self.setup.questions.places, said, strict=True)
            ]
            found = self._log_probs(REFERENCE, voice, sequences, f"the answers of {name}")
            self.log_ratios[name] = [one.log_prob - score for one, score in zip(said, found, strict=True)]
        voice.speaker.close()

    def _answers(self, part: str, voice: Voice) -> None:
        self.sampled[part] = sample(
            voice.speaker,
            voice.tokenizer,
            [voice.prompt_ids[place] for place in self.setup.questions.places],
            self.setup.questions.keys,
            voice.settings,
            self.answers,
            batch_size=self.setup.batch_size,
            what=f"{part} answers",
        )
        self.texts[part] = [one.text for one in self.sampled[part]]

    def _score_pairs(self, part: str, voice: Voice) -> None:
        """log-probs (chosen, rejected) of the held-out pairs."""
        rows = self.paired_rows
        both = [(list(row["prompt_ids"]), list(row["chosen_ids"] or [])) for row in rows]
        both += [(list(row["prompt_ids"]), list(row["rejected_ids"] or [])) for row in rows]
        found = self._log_probs(part, voice, both, "the held-out pairs")
        self.pairs[part] = list(zip(found[: len(rows)], found[len(rows) :], strict=True))

    def _log_probs(
        self, part: str, voice: Voice, sequences: list[tuple[list[int], list[int]]], what: str
    ) -> list[float]:
        return log_probs(
            voice.speaker,
            sequences,
            f"{part} scores {what}",
            self.answers,
            pad_id=voice.settings.pad_id,
            batch_size=self.setup.batch_size,
        )

    def ask(self) -> None:
        """The oracle about every answer, or every pair of answers; the judge about every conversation."""
        setup = self.setup
        if DATASET in setup.against:
            self._take_dataset_answers()
        if isinstance(setup.oracle, ScoringOracle):
            for part, texts in self.texts.items():
                self.rewards[part] = self._reward(setup.oracle, part, texts)
        for name in setup.against if setup.oracle is not None else ():
            if isinstance(setup.oracle, ScoringOracle):
                self.verdicts[name] = win_rate.from_scores(
                    self.rewards[POLICY], self.rewards[part_of_rival(name)]
                )
            elif setup.oracle is not None:
                self.verdicts[name] = self._judge(setup.oracle, name)
        if setup.benchmark and setup.judge is not None:
            self.scores = scores(
                setup.judge,
                setup.judge_name,
                setup.benchmark,
                self.talks,
                self.judgements,
                batch_size=setup.batch_size,
            )
            self.calls += 2 * len(self.scores)

    def _take_dataset_answers(self) -> None:
        """The chosen answer of each prompt's first pair."""
        first: dict[str, EncodedRow] = {}
        for row in self.paired_rows:
            first.setdefault(prompt_key(row["prompt"]), row)
        rows = [
            first[prompt_key(self.setup.questions.prompts[place])] for place in self.setup.questions.places
        ]
        self.texts[DATASET] = [row["chosen"] or "" for row in rows]
        self.sampled[DATASET] = [
            Sampled(tuple(row["chosen_ids"] or ()), row["chosen"] or "", 0.0, row["chosen_cut"], 0.0)
            for row in rows
        ]

    def _asked(self) -> list[Prompt]:
        return [self.setup.questions.prompts[place] for place in self.setup.questions.places]

    def _reward(self, oracle: ScoringOracle, part: str, texts: list[str]) -> list[float | None]:
        prompts = self._asked()

        def chunk(rows: list[int]) -> list[dict[str, Any]]:
            given = oracle.score_to_keep([prompts[row] for row in rows], [texts[row] for row in rows])
            return [{"row": row, "reward": value} for row, value in zip(rows, given, strict=True)]

        what = f"{oracle.name} scores {part}"
        kept = in_chunks(len(texts), what, chunk, self.judgements, self.setup.batch_size)
        self.calls += len(texts)
        found = [None if row["reward"] is None else float(row["reward"]) for row in kept]
        self.notes += unscored_note(f"{oracle.name} ({part})", found)
        return found

    def _judge(self, oracle: Oracle, name: str) -> list[Verdict]:
        part = part_of_rival(name)
        pairs = [Pair(*one) for one in zip(self._asked(), self.texts[POLICY], self.texts[part], strict=True)]

        def chunk(rows: list[int]) -> list[dict[str, Any]]:
            given, _ = win_rate.judge(oracle, [pairs[row] for row in rows])
            return [{"row": row, **asdict(one)} for row, one in zip(rows, given, strict=True)]

        what = f"{oracle.name} compares with {part}"
        kept = in_chunks(len(pairs), what, chunk, self.judgements, self.setup.batch_size)
        self.calls += 2 * sum(pair.first != pair.second for pair in pairs)
        return [Verdict(**{key: value for key, value in row.items() if key != "row"}) for row in kept]

    def results(self) -> dict[str, Any]:
        """metrics (intervals by name), win_rates, questions, frontier, frontier_samples, samples, left_out, notes,
        oracle_calls."""
        setup, clusters = self.setup, self.setup.questions.clusters
        metrics: Numbers = {}
        if clusters:
            numbers, left_out = response_numbers(
                self.sampled[POLICY], clusters, setup.policy.settings.eos_ids
            )
            metrics = {**self._reward_numbers(clusters), **numbers}
            self.left_out.update(left_out)
        if self.log_ratios.get(POLICY):
            metrics["kl"] = kl_number(self.log_ratios[POLICY], clusters)
        if self.sampled.get(REFERENCE):
            lengths = [float(len(one.ids)) for one in self.sampled[REFERENCE]]
            metrics["length_reference"] = asdict(mean_interval(lengths, clusters))
        if self.pairs.get(POLICY) and self.pairs.get(REFERENCE) and setup.beta is not None:
            keys = [prompt_key(row["prompt"]) for row in self.paired_rows]
            metrics.update(pair_numbers(self.pairs[POLICY], self.pairs[REFERENCE], setup.beta, keys))
        win_rates = {name: self._win_rate(name, clusters) for name in self.verdicts}
        for name, found in win_rates.items():
            short = "win_rate" if name == REFERENCE else f"win_rate_{name}"
            metrics[short] = found["win_rate"]
            metrics[f"{short}_length_controlled"] = found["length_controlled"]
        return {
            "metrics": metrics,
            "win_rates": win_rates,
            "questions": table(setup.benchmark, self.scores) if self.scores else None,
            "conversations": self._conversations(),
            "frontier": self._frontier(metrics, clusters),
            "frontier_samples": self._frontier_samples(),
            "samples": self._samples(),
            "left_out": self.left_out,
            "notes": self.notes,
            "oracle_calls": self.calls,
        }

    def _reward_numbers(self, clusters: Sequence[Hashable]) -> Numbers:
        if not self.rewards.get(POLICY):
            return {}
        numbers = {"reward": score_number(self.rewards[POLICY], clusters)}
        for name in (REFERENCE, DATASET):
            if name in self.rewards:
                numbers[f"reward_{name}"] = score_number(self.rewards[name], clusters)
        if REFERENCE in self.rewards:
            numbers["reward_gain"] = gain_number(self.rewards[POLICY], self.rewards[REFERENCE], clusters)
        return {name: number for name, number in numbers.items() if number["n"]}

    def _win_rate(self, name: str, clusters: Sequence[Hashable]) -> dict[str, Any]:
        both = zip(self.sampled[POLICY], self.sampled[part_of_rival(name)], strict=True)
        longer = [float(len(ours.ids) - len(theirs.ids)) for ours, theirs in both]
        symmetric = self.setup.oracle is not None and win_rate.is_symmetric(self.setup.oracle)
        return win_rate.summary(self.verdicts[name], clusters, longer, symmetric=symmetric)

    def _frontier(self, metrics: Numbers, clusters: Sequence[Hashable]) -> list[dict[str, Any]]:
        """Reward, KL and length of the start, every checkpoint and the model itself, in the order of steps."""
        if not self.setup.frontier or not clusters:
            return []
        points = []
        if REFERENCE in self.rewards and self.at_one:
            none = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(clusters), "clusters": len(set(clusters))}
            reward = score_number(self.rewards[REFERENCE], clusters)
            points.append({"step": 0, "reward": reward, "kl": none, "length": metrics["length_reference"]})
        for step in self.setup.checkpoints:
            points.append({"step": step, **self._point(part_of_step(step), clusters)})
        if self.setup.step is not None:
            points.append({"step": self.setup.step, **self._point(POLICY, clusters)})
        return sorted(points, key=lambda point: point["step"])

    def _frontier_samples(self) -> list[dict[str, Any]]:
        """[{"step", "reward", "log_ratio"}] of the points that have both of every answer: lists in the order of `samples`. At the
        start every log-ratio is 0."""
        if not self.setup.frontier or not self.at_one:
            return []
        parts = {step: part_of_step(step) for step in self.setup.checkpoints}
        if self.setup.step is not None:
            parts[self.setup.step] = POLICY
        found: list[dict[str, Any]] = []
        if REFERENCE in self.rewards:
            none = [0.0] * len(self.rewards[REFERENCE])
            found.append({"step": 0, "reward": self.rewards[REFERENCE], "log_ratio": none})
        for step, part in sorted(parts.items()):
            if part in self.rewards and part in self.log_ratios:
                row = {"step": step, "reward": self.rewards[part], "log_ratio": self.log_ratios[part]}
                found.append(row)
        return [row for row in found if None not in row["reward"]]

    def _point(self, name: str, clusters: Sequence[Hashable]) -> dict[str, Any]:
        lengths = [float(len(one.ids)) for one in self.sampled[name]]
        has_reward, has_kl = name in self.rewards, name in self.log_ratios
        return {
            "reward": score_number(self.rewards[name], clusters) if has_reward else None,
            "kl": kl_number(self.log_ratios[name], clusters) if has_kl else None,
            "length": asdict(mean_interval(lengths, clusters)),
        }

    def _samples(self) -> list[dict[str, Any]]:
        """Every answer of the policy, with all that is known of it and of its rivals'."""
        columns: dict[str, Sequence[Any]] = {
            "prompt": self._asked(),
            "response": self.texts[POLICY],
            "length": [len(one.ids) for one in self.sampled[POLICY]],
            "cut": [one.cut for one in self.sampled[POLICY]],
        }
        if POLICY in self.log_ratios:
            columns["log_ratio"] = self.log_ratios[POLICY]
        for name in (REFERENCE, DATASET):
            if name in self.texts:
                columns[name] = self.texts[name]
                columns[f"length_{name}"] = [len(one.ids) for one in self.sampled[name]]
        for name, rewards in self.rewards.items():
            if name in (POLICY, REFERENCE, DATASET):
                columns["reward" if name == POLICY else f"reward_{name}"] = rewards
        for name, verdicts in self.verdicts.items():
            columns["win" if name == REFERENCE else f"win_{name}"] = [one.outcome for one in verdicts]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _conversations(self) -> list[dict[str, Any]]:
        given = self.scores or [[None] * 2 for _ in self.talks]
        return [
            {"question_id": question.id, "category": question.category, "messages": talk, "scores": scored}
            for question, talk, scored in zip(self.setup.benchmark, self.talks, given, strict=True)
        ]
