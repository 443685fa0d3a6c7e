"""What a run logs beside its loss. Numbers are kept as they come and only read (synchronised) when a log line is due."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sail.mixture import Mixture
from sail.objective import RowLoss, effective_sample_size, kl_estimate
from sail.training.step import Step, gather, place_among_processes


@dataclass
class Counters:
    """Cumulative over the run, kept through checkpoints; of this process, summed over processes when logged.

    `loss` is the sum of the steps' losses up to the last log line, of all processes.
    """

    oracle_calls: int = 0
    abstained: int = 0
    empty_steps: int = 0
    loss: float = 0.0
    prompts: set[int] = field(default_factory=set)
    eval_calls: int = 0

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {**self.__dict__, "prompts": sorted(self.prompts)}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Counters:
        """From `state`."""
        return cls(**{**state, "prompts": set(state["prompts"])})


@dataclass
class Window:
    """What the rows since the last log line showed, as plain numbers, so that a checkpoint between two lines can keep it."""

    steps: int = 0
    loss: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    label: list[float] = field(default_factory=list)
    self: list[bool] = field(default_factory=list)
    active: list[bool] = field(default_factory=list)
    given: list[float] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    online: list[int] = field(default_factory=list)
    ratios: list[tuple[float, float]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    importance: list[float] = field(default_factory=list)


class Tracker:
    """Collects the rows of the steps since the last log line.

    moving_reference: the reference is replaced while training, so that no KL to it is logged: at the samples that it could be
    estimated from, policy and reference are the same. ratio_clip: that of the importance ratios.
    """

    def __init__(
        self, mixture: Mixture, *, moving_reference: bool = False, ratio_clip: float | None = None
    ) -> None:
        self.mixture = mixture
        self.moving_reference = moving_reference
        self.ratio_clip = ratio_clip
        self.reset()

    def reset(self) -> None:
        """Forget everything, for a run that starts."""
        self.counters = Counters()
        self.window = Window()
        self.results: list[tuple[Tensor, ...]] = []

    def add_step(self, step: Step) -> None:
        """Count a prepared step."""
        counters, window = self.counters, self.window
        counters.oracle_calls += step.oracle_calls
        counters.abstained += sum(example.asked and not example.active for example in step.examples)
        counters.empty_steps += step.active_rows == 0
        counters.prompts.update(example.index for example, _ in step.online)
        window.steps += 1
        window.routes.extend(example.share.route.name for example in step.examples)
        for example, row in step.online:
            if row.own and row.log_ratios is not None and not self.moving_reference:
                window.online.append(example.index)
                window.ratios.append(row.log_ratios)
            for response in example.responses:
                if response.log_prob is None:
                    continue
                window.lengths.append(len(response.ids))
                window.cut.append(response.cut)
                window.empty.append(not response.text.strip())
                if row.own:
                    window.log_probs.append(response.log_prob)
                    window.tokens.append(len(response.ids))
        for example in step.examples:
            dataset_verdict = example.share.route.name == "ddp" and not example.row.get("identical", False)
            window.given.append(1.0 if dataset_verdict else math.nan)
            told = (
                example.preference.first_wins
                if example.preference and example.share.route.label == "oracle"
                else None
            )
            window.probability.append(math.nan if told is None else told)

    def add_result(self, result: RowLoss, batch: dict[str, Tensor]) -> None:
        """Keep a micro-batch's per-row results, without reading them."""
        self.results.append(
            (
                result.loss.detach(),
                result.ratio,
                result.margin,
                result.label,
                batch["self_label"],
                batch["pair_weight"] > 0,
            )
        )

    def _read(self) -> Window:
        """The window with all results in it: the one place where the device is waited for."""
        window = self.window
        for result in self.results:
            columns: tuple[list[Any], ...] = (
                window.loss,
                window.importance,
                window.margin,
                window.label,
                window.self,
                window.active,
            )
            for column, values in zip(columns, result, strict=True):
                column.extend(values.tolist())
        self.results = []
        return window

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps, JSON-able, one entry per process; every process must call it."""
        return gather([{"counters": self.counters.state(), "window": dict(self._read().__dict__)}])

    def restore(self, kept: Sequence[dict[str, Any]]) -> None:
        """From `state`. With another number of processes than then, the first one takes everything over."""
        self.reset()
        place, processes = place_among_processes()
        if len(kept) == processes:
            kept = [kept[place]]
        elif place > 0:
            return
        for part in kept:
            _add(self.counters, Counters.restore(part["counters"]))
            _add(self.window, Window(**part["window"]))
        # Counted alike by every process, so they are not summed.
        self.counters.loss = kept[0]["counters"]["loss"]
        self.counters.empty_steps = kept[0]["counters"]["empty_steps"]
        self.window.steps = kept[0]["window"]["steps"]

    def take(self, temperature: float) -> dict[str, float | None]:
        """The log line's numbers over all processes since the last one, then start over.

        `loss` is Trainer's, the mean over the steps since then, made from the rows: it does not depend on where a run was
        interrupted, and a NaN stays one instead of being passed over.
        """
        counters = self.counters
        gathered = gather(
            [(self._read().__dict__, counters.oracle_calls, counters.abstained, counters.prompts)]
        )
        names = [name for name in self.window.__dict__ if name != "steps"]
        joined = {name: [value for window, *_ in gathered for value in window[name]] for name in names}
        total, steps = _sum(joined["loss"]) / len(gathered), self.window.steps
        counters.loss += total
        self.window = Window()
        return {
            "loss": total / max(steps, 1),
            **pair_numbers(joined),
            **{
                f"route/{share.route.name}": _share(joined["routes"], share.route.name)
                for share in self.mixture.shares
            },
            **response_numbers(joined, temperature),
            **ratio_numbers(joined["importance"], self.ratio_clip),
            "online/prompts": len({index for *_, prompts in gathered for index in prompts}),
            "oracle/calls": sum(calls for _, calls, _, _ in gathered),
            "oracle/abstained": sum(abstained for _, _, abstained, _ in gathered),
            "step/empty": counters.empty_steps,
        }

    def totals(self) -> dict[str, int]:
        """The run's cumulative counts over all processes; every process must call it."""
        counters = self.counters
        parts = gather([(counters.oracle_calls, counters.abstained, counters.eval_calls, counters.prompts)])
        return {
            "oracle_calls": sum(calls for calls, *_ in parts),
            "oracle_abstained": sum(abstained for _, abstained, _, _ in parts),
            "oracle_calls_in_evaluation": sum(calls for _, _, calls, _ in parts),
            "distinct_online_prompts": len({index for *_, prompts in parts for index in prompts}),
        }

    def mean_loss(self, steps: int) -> float:
        """The mean loss of the run's steps so far; every process must call it."""
        gathered = gather([self._read().loss])
        return (self.counters.loss + _sum([one for part in gathered for one in part]) / len(gathered)) / max(
            steps, 1
        )


def _add(total: Any, part: Any) -> None:
    for name, value in part.__dict__.items():
        so_far = getattr(total, name)
        setattr(total, name, so_far | value if isinstance(value, set) else so_far + value)


def pair_numbers(rows: dict[str, list[Any]]) -> dict[str, float | None]:
    """Margin and accuracy of rows with a label from outside the policy; entropy and agreement of labels.

    margin: h in the direction of the label. accuracy: share of rows whose margin points to the label (ties count half).
    entropy: nats, of the probabilities behind policy and oracle labels. agreement: share of policy labels (ddp) that agree
    with the dataset's own.
    """
    margins: list[float] = []
    accuracy: list[float] = []
    entropy: list[float] = []
    agreement: list[float] = []
    for margin, label, own, active, given, told in zip(
        *(rows[name] for name in ("margin", "label", "self", "active", "given", "probability")), strict=True
    ):
        if own:
            entropy.append(_entropy(1.0 / (1.0 + math.exp(-max(min(margin, 700.0), -700.0)))))
            if not math.isnan(given):
                agreement.append(_half_step(margin))
        elif active and label != 0.5:
            sign = 1.0 if label > 0.5 else -1.0
            margins.append(sign * margin)
            accuracy.append(_half_step(sign * margin))
        if not math.isnan(told):
            entropy.append(_entropy(told))
    return {
        "pair/margin": _mean(margins),
        "pair/accuracy": _mean(accuracy),
        "label/entropy": _mean(entropy),
        "label/agreement": _mean(agreement),
    }


def response_numbers(rows: dict[str, list[Any]], temperature: float) -> dict[str, float | None]:
    """KL to the reference with its error, entropy, and the shape of the sampled responses.

    KL and entropy are of the policy of now, so they come from its own samples only: null at another temperature than 1, and
    where all rows are stale, chosen among more samples, or half the dataset's.
    """
    # A prompt met twice since the last line (in another epoch) is one cluster.
    by_prompt: dict[int, list[float]] = {}
    for index, ratios in zip(rows["online"], rows["ratios"], strict=True):
        by_prompt.setdefault(index, []).extend(ratios)
    means = torch.tensor([[_mean(ratios)] for ratios in by_prompt.values()])
    estimate = kl_estimate(means) if temperature == 1.0 and by_prompt else None
    error = None if estimate is None or math.isnan(estimate[1]) else estimate[1]
    return {
        "kl/policy_ref": None if estimate is None else estimate[0],
        "kl/policy_ref_se": error,
        "response/length": _mean(rows["lengths"]),
        "response/entropy": _per_token(rows["log_probs"], rows["tokens"]) if temperature == 1.0 else None,
        "response/cut": _mean(rows["cut"]),
        "response/empty": _mean(rows["empty"]),
    }


def ratio_numbers(ratios: list[float], clip: float | None) -> dict[str, float | None]:
    """Importance ratios of stale rows as they were used: their mean, effective sample size (share of the rows, in (0, 1]) and
    the share at the clip. nan stands for a row without one; null without any."""
    used = [ratio for ratio in ratios if not math.isnan(ratio)]
    if not used:
        return {"ratio/mean": None, "ratio/ess": None, "ratio/clipped": None}
    return {
        "ratio/mean": _mean(used),
        "ratio/ess": effective_sample_size(torch.tensor(used, dtype=torch.float64)),
        "ratio/clipped": _mean([clip is not None and ratio >= clip for ratio in used]),
    }


def _per_token(log_probs: list[float], lengths: list[int]) -> float | None:
    """-sum of log-probs / sum of tokens: the entropy of the next token where the policy goes, estimated from samples; nats."""
    return -_sum(log_probs) / sum(lengths) if sum(lengths) else None


def _entropy(probability: float) -> float:
    return -sum(p * math.log(p) for p in (probability, 1.0 - probability) if p > 0.0)


def _half_step(value: float) -> float:
    return 0.5 if value == 0.0 else float(value > 0.0)


def _mean(values: list[Any]) -> float | None:
    return _sum(values) / len(values) if values else None


def _sum(values: Sequence[float]) -> float:
    """Exact, so that the order of rows does not matter; numbers that are not finite stay what they are."""
    return math.fsum(values) if all(math.isfinite(value) for value in values) else float(sum(values))


def _share(values: list[str], name: str) -> float:
    return values.count(name) / len(values) if values else 0.0
