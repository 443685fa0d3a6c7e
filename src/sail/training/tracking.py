"""What a run logs beside its loss. Numbers are kept as they come and only read (synchronised) when a log line is due."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sail.mixture import Mixture
from sail.objective import RowLoss, kl_estimate
from sail.training.step import Step, gather


@dataclass
class Counters:
    """Cumulative over the run, kept through checkpoints; of this process, summed over processes when logged."""

    oracle_calls: int = 0
    abstained: int = 0
    empty_steps: int = 0
    prompts: set[int] = field(default_factory=set)

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {**self.__dict__, "prompts": sorted(self.prompts)}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Counters:
        """From `state`."""
        return cls(**{**state, "prompts": set(state["prompts"])})


class Tracker:
    """Collects the rows of the steps since the last log line."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.counters = Counters()
        self._clear()

    def _clear(self) -> None:
        self.results: list[tuple[RowLoss, Tensor, Tensor]] = []
        self.given: list[float] = []
        self.probabilities: list[float] = []
        self.routes: list[str] = []
        self.ratios: list[tuple[float, float]] = []
        self.lengths: list[int] = []
        self.cut: list[bool] = []
        self.empty: list[bool] = []

    def add_step(self, step: Step) -> None:
        """Count a prepared step."""
        counters = self.counters
        counters.oracle_calls += step.oracle_calls
        counters.abstained += sum(not example.active for example in step.examples)
        counters.empty_steps += step.active_rows == 0
        counters.prompts.update(example.index for example, _ in step.online)
        self.routes.extend(example.share.route.name for example in step.examples)
        for example, row in step.online:
            self.ratios.append(row.log_ratios)
            for response in example.responses:
                self.lengths.append(len(response.ids))
                self.cut.append(response.cut)
                self.empty.append(not response.text.strip())
        for example in step.examples:
            dataset_verdict = example.share.route.name == "ddp" and not example.row.get("identical", False)
            self.given.append(1.0 if dataset_verdict else math.nan)
            told = (
                example.preference.first_wins
                if example.preference and example.share.route.label == "oracle"
                else None
            )
            self.probabilities.append(math.nan if told is None else told)

    def add_result(self, result: RowLoss, batch: dict[str, Tensor]) -> None:
        """Keep a micro-batch's per-row results, without reading them."""
        self.results.append((result, batch["self_label"], batch["pair_weight"] > 0))

    def take(self, temperature: float) -> dict[str, float | None]:
        """The log line's numbers over all processes since the last one, then start over."""
        table = {
            "margin": torch.cat([result.margin for result, _, _ in self.results]).tolist()
            if self.results
            else [],
            "label": torch.cat([result.label for result, _, _ in self.results]).tolist()
            if self.results
            else [],
            "self": torch.cat([flags for _, flags, _ in self.results]).tolist() if self.results else [],
            "active": torch.cat([flags for _, _, flags in self.results]).tolist() if self.results else [],
            "given": self.given,
            "probability": self.probabilities,
            "routes": self.routes,
            "ratios": self.ratios,
            "lengths": self.lengths,
            "cut": self.cut,
            "empty": self.empty,
        }
        counters = self.counters
        own = (table, counters.oracle_calls, counters.abstained, sorted(counters.prompts))
        gathered = gather([own])
        joined = {name: [value for tables, *_ in gathered for value in tables[name]] for name in table}
        self._clear()
        return {
            **pair_numbers(joined),
            **{
                f"route/{share.route.name}": _share(joined["routes"], share.route.name)
                for share in self.mixture.shares
            },
            **response_numbers(joined, temperature),
            "online/prompts": len({index for *_, prompts in gathered for index in prompts}),
            "oracle/calls": sum(calls for _, calls, _, _ in gathered),
            "oracle/abstained": sum(abstained for _, _, abstained, _ in gathered),
            "step/empty": counters.empty_steps,
        }


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
    """KL to the reference with its error, and the shape of the sampled responses. At another temperature than 1 the samples
    are not the policy's own, so there is no KL estimate: null."""
    estimate = kl_estimate(torch.tensor(rows["ratios"])) if temperature == 1.0 and rows["ratios"] else None
    error = None if estimate is None or math.isnan(estimate[1]) else estimate[1]
    return {
        "kl/policy_ref": None if estimate is None else estimate[0],
        "kl/policy_ref_se": error,
        "response/length": _mean(rows["lengths"]),
        "response/cut": _mean(rows["cut"]),
        "response/empty": _mean(rows["empty"]),
    }


def _entropy(probability: float) -> float:
    return -sum(p * math.log(p) for p in (probability, 1.0 - probability) if p > 0.0)


def _half_step(value: float) -> float:
    return 0.5 if value == 0.0 else float(value > 0.0)


def _mean(values: list[Any]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _share(values: list[str], name: str) -> float:
    return values.count(name) / len(values) if values else 0.0
