"""Reference log-probs: the starting weights (or a given model), never the policy of the moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sail.generation import response_scores
from sail.online import DATASET, Example, collate


class Reference:
    """log pi_ref(y|x) of a batch's sequences. LoRA: the policy with its adapter disabled; full fine-tuning: a frozen copy.

    `remember` holds the log-probs of dataset rows that were computed once, before training: index -> (first, second).
    """

    def __init__(
        self,
        policy: Callable[[], Any],
        frozen: Any | None,
        pad_id: int,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.policy = policy
        self.frozen = frozen
        self.pad_id = pad_id
        self.precision = precision
        self.remember: dict[int, tuple[float, float]] = {}

    def log_probs(
        self,
        batch: dict[str, Any],
        examples: Sequence[Example],
        device: torch.device,
        *,
        remembered: bool = True,
    ) -> Tensor:
        """(2B,) nats, in the batch's order; only rows that are not remembered cost a forward. What is remembered is of training
        rows: for other rows set `remembered` to False."""
        open_rows = [row for row, example in enumerate(examples) if not (remembered and self._known(example))]
        if len(open_rows) == len(examples):
            return self._forward(batch, device)
        result = torch.zeros(2 * len(examples), dtype=torch.float64)
        for row, example in enumerate(examples):
            if self._known(example):
                result[row], result[len(examples) + row] = self.remember[example.index]
        if open_rows:
            part = self._forward(collate([examples[row] for row in open_rows], self.pad_id), device)
            places = open_rows + [len(examples) + row for row in open_rows]
            result[torch.tensor(places)] = part.cpu().double()
        return result

    def _known(self, example: Example) -> bool:
        route = example.share.route
        return route.needs_pairs and not route.on_policy and example.index in self.remember

    def _forward(self, batch: dict[str, Any], device: torch.device) -> Tensor:
        moved = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()
        }
        model, adapter_off = self.model()
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), adapter_off, self.precision():
                return response_scores(model, moved)[0]
        finally:
            model.train(was_training)

    def model(self) -> tuple[Any, AbstractContextManager[Any]]:
        """The model that speaks for the reference, and the context in which it does."""
        if self.frozen is not None:
            return self.frozen, nullcontext()
        policy = self.policy()
        return policy, policy.disable_adapter()

    def precompute(
        self, rows: Sequence[dict[str, Any]], share: Any, batch_size: int, device: torch.device
    ) -> None:
        """Remember the reference log-probs of all rows with a pair; `share` is any offline route."""
        from sail.online import dataset_responses

        paired = [row for row in rows if row["chosen_ids"] is not None]
        paired.sort(
            key=lambda row: len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        )
        for start in range(0, len(paired), batch_size):
            examples = [
                Example(row, share, 0.0, *dataset_responses(row), source=DATASET)
                for row in paired[start : start + batch_size]
            ]
            values = self._forward(collate(examples, self.pad_id), device).cpu().double().tolist()
            for position, example in enumerate(examples):
                self.remember[example.index] = (values[position], values[len(examples) + position])
