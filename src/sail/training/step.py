"""Preparing one optimiser step: the five verbs, then what needs the whole global batch: weights and baselines."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sail import seeds
from sail.fields import AlignmentFields
from sail.generation import Generator
from sail.mixture import Mixture
from sail.objective import ObjectiveSettings, ResponseLogProbs, importance_ratio, leave_one_out
from sail.objective.objective import labelled_value
from sail.online import Example, by_length, choose, collate, compare, label_column, orient, respond, route
from sail.oracles import Oracle
from sail.training.memory import Memory
from sail.training.reference import Reference
from sail.training.stale import baselines_are_used, log_probs_now

if TYPE_CHECKING:
    from sail.training.rounds import Rounds

PHASES = ("generate", "oracle", "policy", "reference")


class PhaseTimer:
    """Seconds per phase since the last `take`. Wall time of this process; on a GPU a phase ends when its launches return."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's seconds under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The phases and the rest of the wall time, then start over."""
        now = time.perf_counter()
        taken = {**self.seconds, "rest": max(0.0, now - self.started - sum(self.seconds.values()))}
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.started = now
        return taken


@dataclass
class OnPolicyRow:
    """What the global batch must know of an on-policy row: F and its label, and both log-ratios log pi/pi_ref in nats.

    log_ratios and margin are None where the policy did not write both responses. ratios: the importance ratios of both
    responses, 1 where they are fresh. own: both were just drawn from the policy, independently; only such rows say what the
    policy of now does.
    """

    index: int
    active: bool
    value: float
    label: float
    margin: float | None
    log_ratios: tuple[float, float] | None
    ratios: tuple[float, float] = (1.0, 1.0)
    own: bool = True


@dataclass
class Step:
    """A prepared optimiser step of this process, with the rows that were sampled for it."""

    batches: list[dict[str, Any]]
    examples: list[Example]
    online: list[tuple[Example, OnPolicyRow]] = field(default_factory=list)
    oracle_calls: int = 0
    active_rows: int = 0


class StepMaker:
    """Turns the raw rows of an optimiser step into micro-batches of tensors. Uses no global random state."""

    def __init__(
        self,
        *,
        mixture: Mixture,
        options: AlignmentFields,
        settings: ObjectiveSettings,
        generator: Generator,
        oracle: Oracle | None,
        reference: Reference,
        seed: int,
        prompt_only_share: float,
        pad_id: int,
        timer: PhaseTimer,
    ) -> None:
        self.mixture = mixture
        self.options = options
        self.settings = settings
        self.generator = generator
        self.oracle = oracle
        self.reference = reference
        self.seed = seed
        self.prompt_only_share = prompt_only_share
        self.pad_id = pad_id
        self.timer = timer
        self.memory = Memory()
        self.rounds: Rounds | None = None
        self.rates_stale = baselines_are_used(options, mixture)

    def route(self, rows: Sequence[dict[str, Any]], step: int, progress: float) -> list[Example]:
        """The rows of a step with the routes they draw."""
        return route(rows, self.mixture, self.seed, step, self.prompt_only_share, progress)

    def respond(self, examples: Sequence[Example], generator: Generator | None = None) -> int:
        """Give the rows their pairs; returns the oracle calls that choosing took. `generator` stands in for the usual one."""
        with self.timer.phase("generate"):
            respond(examples, generator or self.generator, self.seed, self.options.samples_per_prompt)
        with self.timer.phase("oracle"):
            return choose(examples, self.oracle, self.seed)

    def compare(self, examples: Sequence[Example]) -> int:
        """Give the rows their preferences; the number of oracle calls."""
        with self.timer.phase("oracle"):
            return compare(examples, self.oracle)

    def _respond_or_recall(self, examples: Sequence[Example], step: int) -> int:
        """The step's pairs: fresh ones, those that the round keeps, or those of the memory; the number of oracle calls."""
        fresh, calls = list(examples), 0
        if self.rounds is not None:
            self.rounds.give([example for example in examples if example.share.route.on_policy])
            fresh = [example for example in examples if not example.share.route.on_policy]
            calls = self.rounds.take_calls()
        calls += self.respond(fresh)
        if self.options.vllm_importance_sampling_correction:
            for example in examples:
                example.stale = example.stale or example.share.route.has_score_term
        self.memory.recall(examples, self.seed, step)
        return calls

    def make(
        self,
        micro_batches: Sequence[Sequence[dict[str, Any]]],
        step: int,
        device: torch.device,
        progress: float = 0.0,
    ) -> Step:
        """Route, respond, collate, compare and orient all rows; fill in reference log-probs, weights and baselines."""
        every_row = [row for rows in micro_batches for row in rows]
        examples = self.route(every_row, step, progress)
        calls = self._respond_or_recall(examples, step)
        made = Step(self._collated(examples, [len(rows) for rows in micro_batches], device), examples)
        if self.options.ask_share < 1.0:
            leave_the_surest_unasked(made.batches, self.options.ask_share, self.seed, step)
        made.oracle_calls = calls + self.compare(examples)
        orient(examples, self.options.oracle_label, self.options.policy_label)
        for batch in made.batches:
            batch["label"] = label_column(batch["examples"])
        self._weigh(made, device)
        return made

    def _collated(
        self, examples: list[Example], sizes: list[int], device: torch.device
    ) -> list[dict[str, Any]]:
        """Micro-batches of tensors, of rows of like length, with their reference log-probs; labels are not known yet."""
        batches = []
        for part in by_length(examples, sizes):
            batch = collate(part, self.pad_id)
            with self.timer.phase("reference"):
                batch["ref_logps"] = self.reference.log_probs(batch, part, device)
            batch["examples"] = part
            batches.append(batch)
        return batches

    def _weigh(self, step: Step, device: torch.device) -> None:
        """Weights and baselines, from all processes' rows: one gather of small Python objects."""
        for batch in step.batches:
            step.online.extend(self._values(batch, device))
        order = {id(example): place for place, example in enumerate(step.examples)}
        step.online.sort(key=lambda pair: order[id(pair[0])])
        counts = {
            "active": sum(example.active for example in step.examples),
            "online": sum(example.share.route.has_score_term for example in step.examples),
            "paired": sum(example.share.route.from_dataset for example in step.examples),
        }
        gathered = gather([(counts, [row for _, row in step.online])])
        processes = len(gathered)
        total = {name: sum(one[name] for one, _ in gathered) for name in counts}
        step.active_rows = total["active"]
        baselines = Baselines([row for _, rows in gathered for row in rows], self.options.baseline)
        position = {id(example): row for example, row in step.online}
        for batch in step.batches:
            fill_weights(batch, processes, total, self.options.data_from_reference)
            baselines.fill(batch, [position.get(id(example)) for example in batch["examples"]])

    def _values(self, batch: dict[str, Any], device: torch.device) -> list[tuple[Example, OnPolicyRow]]:
        """F of the batch's on-policy rows, from the log-probs recorded while sampling; only stale rows, and they only where a
        baseline is used, need a forward of the policy."""
        examples = batch["examples"]
        places = [place for place, one in enumerate(examples) if one.share.route.has_score_term]
        found = dict(zip(places, self._own_values(batch, places, device), strict=True)) if places else {}
        return [
            (
                one,
                found.get(place) or OnPolicyRow(one.index, one.active, 0.0, one.label, None, None, own=False),
            )
            for place, one in enumerate(examples)
            if one.share.route.on_policy
        ]

    def _own_values(
        self, batch: dict[str, Any], places: list[int], device: torch.device
    ) -> list[OnPolicyRow]:
        """The same for the rows at `places`, both of whose responses the policy wrote."""
        examples = [batch["examples"][place] for place in places]
        policy, ratios = self._policy_log_probs(examples, device)
        reference = batch["ref_logps"].double().cpu()
        here = torch.tensor(places)
        logps = ResponseLogProbs(
            first=policy[:, 0],
            second=policy[:, 1],
            ref_first=reference[here],
            ref_second=reference[here + len(batch["examples"])],
            first_length=torch.tensor([len(one.responses[0].ids) for one in examples]),
            second_length=torch.tensor([len(one.responses[1].ids) for one in examples]),
            sampled_first=torch.zeros(len(places), dtype=torch.float64),
            sampled_second=torch.zeros(len(places), dtype=torch.float64),
        )
        value, label, _, _, margin = labelled_value(
            logps, batch["label"][here], batch["self_label"][here], batch["uniform"][here], self.settings
        )
        log_ratios = zip(
            (logps.first - logps.ref_first).tolist(), (logps.second - logps.ref_second).tolist(), strict=True
        )
        facts = zip(
            *(examples, value.tolist(), label.tolist(), margin.tolist(), log_ratios, ratios.tolist()),
            strict=True,
        )
        independent = self.options.pairing == "two"
        return [
            OnPolicyRow(one.index, one.active, f, t, h, pair, (w1, w2), own=independent and not one.stale)
            for one, f, t, h, pair, (w1, w2) in facts
        ]

    def _policy_log_probs(self, examples: list[Example], device: torch.device) -> tuple[Tensor, Tensor]:
        """log pi of both responses of each row, and their importance ratios; (N, 2) each.

        Fresh rows: as recorded while sampling, and 1. Stale rows, if a baseline is used: by the weights of now, else as recorded.
        """
        recorded = [[one.log_prob for one in example.responses] for example in examples]
        then = [[one.sampling_log_prob for one in example.responses] for example in examples]
        policy, behaviour = (
            torch.tensor(recorded, dtype=torch.float64),
            torch.tensor(then, dtype=torch.float64),
        )
        ratios = torch.ones_like(policy)
        stale = [place for place, example in enumerate(examples) if example.stale and self.rates_stale]
        if stale:
            with self.timer.phase("policy"):
                policy[stale], now = log_probs_now(
                    self.reference.policy(),
                    [examples[place] for place in stale],
                    pad_id=self.pad_id,
                    device=device,
                    temperature=self.options.temperature,
                    precision=self.reference.precision,
                    chunk=self.reference.chunk,
                )
            everything = torch.ones_like(now, dtype=torch.bool)
            ratios[stale] = importance_ratio(now, behaviour[stale], everything, self.options.ratio_clip)
        return policy, ratios


def leave_the_surest_unasked(batches: Sequence[dict[str, Any]], share: float, seed: int, step: int) -> None:
    """Of the global batch's pairs for the oracle, only the `share` with the smallest |h| will be asked: those whose winner
    the policy is least sure of (h up to the factor beta, from the log-probs recorded while sampling). Identical responses are
    no question and take nobody's place. Among equals a random number of the row and step decides, so that at the start, where
    all are equal, no part of the data set is asked first."""
    margins: list[tuple[tuple[float, float, int, int, int], Example]] = []
    rank = place_among_processes()[0]
    for batch in batches:
        reference = batch["ref_logps"].double().tolist()
        examples = batch["examples"]
        for place, example in enumerate(examples):
            first, second = example.responses
            if example.share.route.label == "oracle" and first.text != second.text:
                ratios = first.log_prob - reference[place], second.log_prob - reference[len(examples) + place]
                # Rounded, so that what is equal but for rounding (everything, at the start) is told apart by the row instead.
                unsure = round(abs(ratios[0] - ratios[1]), 3)
                lot = seeds.uniform(seed, "ask", step, example.index)
                margins.append(((unsure, lot, example.index, rank, len(margins)), example))
    everyone = sorted(gather([key for key, _ in margins]))
    kept = set(everyone[: math.ceil(share * len(everyone))])
    for key, example in margins:
        example.asked = key in kept


class Baselines:
    """Leave-one-out baselines over the on-policy rows of the global batch, of F for T1 and of log pi/pi_ref for the KL penalty.

    Rows of the same dataset index hold the same samples (a sampler that pads an epoch repeats rows): they share a response,
    so they are left out of each other's baseline. Stale rows have the values of the weights of now, and the weight of their
    importance ratio; rows of which the policy wrote one response only take no part.
    """

    def __init__(self, rows: Sequence[OnPolicyRow], kind: str) -> None:
        rows = [row for row in rows if row.log_ratios is not None]
        index = torch.tensor([row.index for row in rows], dtype=torch.long)
        active = torch.tensor([row.active for row in rows], dtype=torch.bool)
        values = torch.tensor([row.value for row in rows], dtype=torch.float64)
        ratios = torch.tensor([one for row in rows for one in row.log_ratios or ()], dtype=torch.float64)
        weights = torch.tensor([row.ratios for row in rows], dtype=torch.float64).view(-1, 2)
        sides = torch.stack([2 * index, 2 * index + 1], dim=1).flatten()
        used = kind == "leave_one_out"
        both = weights.prod(dim=1)
        self.value = leave_one_out(values, active, index, both) if used else torch.zeros_like(values)
        every = torch.ones_like(sides, dtype=torch.bool)
        self.ratio = leave_one_out(ratios, every, sides, weights.flatten()).view(-1, 2)
        self.place = {row.index: place for place, row in enumerate(rows)}

    def fill(self, batch: dict[str, Any], rows: Sequence[OnPolicyRow | None]) -> None:
        """Write the batch's baseline columns; 0 for rows of other routes."""
        places = [None if row is None else self.place.get(row.index) for row in rows]
        batch["baseline"] = column([0.0 if place is None else float(self.value[place]) for place in places])
        for side, name in enumerate(("kl_baseline_first", "kl_baseline_second")):
            batch[name] = column(
                [0.0 if place is None else float(self.ratio[place, side]) for place in places]
            )


def fill_weights(
    batch: dict[str, Any], processes: int, total: dict[str, int], data_from_reference: bool
) -> None:
    """Each term is a mean over the rows of the global batch that it applies to. Data parallelism averages gradients over
    processes, hence the factor; a row's weight is the same however the batch is split."""
    examples = batch["examples"]

    def weights(flags: list[bool], count: int) -> Tensor:
        return column([processes / count if flag else 0.0 for flag in flags])

    online = [example.share.route.has_score_term for example in examples]
    paired = [example.share.route.from_dataset for example in examples]
    batch["pair_weight"] = weights([example.active for example in examples], total["active"])
    batch["kl_weight"] = weights(online, total["online"])
    batch["nll_weight"] = weights(paired, total["paired"])
    batch["ref_sample_weight"] = weights([flag and data_from_reference for flag in paired], total["paired"])


def progress_at(step: int, steps: int) -> float:
    """The share of the run's steps that is done, 0 at the first and 1 at the last one: what changing weights depend on."""
    return min(step / max(steps - 1, 1), 1.0)


def tensors_of(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The batch without Python objects, and with columns in float64 only where the model is: some devices have none."""
    ready = {key: value for key, value in batch.items() if key != "examples"}
    if dtype == torch.float64:
        return ready
    return {
        key: value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value
        for key, value in ready.items()
    }


def column(values: Sequence[float]) -> Tensor:
    """A per-row column; float64, cast to the log-probs' type where it is used."""
    return torch.tensor(values, dtype=torch.float64)


def gather(local: list[Any]) -> list[Any]:
    """The lists of all processes, concatenated; the list itself in a single process."""
    processes = place_among_processes()[1]
    if processes == 1:
        return local
    parts: list[Any] = [None] * processes
    torch.distributed.all_gather_object(parts, local)
    return [one for part in parts for one in part]


def place_among_processes() -> tuple[int, int]:
    """(rank, number of processes)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
