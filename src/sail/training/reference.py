"""Reference log-probs: the starting weights (or a given model), or, with ref_update, the policy at the start of the round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sail.errors import CheckpointError, ConfigError
from sail.generation import response_scores
from sail.generation.head import find_head
from sail.generation.joined import joins
from sail.generation.unwrap import unwrapped
from sail.online import Example, collate
from sail.training.models import has_adapter


class Reference:
    """log pi_ref(y|x) of a batch's sequences. LoRA: the policy with its adapter disabled; full fine-tuning: a frozen copy.

    `remember` holds the log-probs of dataset rows that were computed once, before training: index -> (first, second).

    `become_policy` replaces it by the policy of the moment. LoRA: the trained tensors are kept, and put in their place wherever
    the reference speaks; full fine-tuning: the frozen copy gets the weights, and its own are kept in main memory, so that
    `start` can still be asked. `kept` are the policy's tensors at the last such moment, which a checkpoint carries.
    """

    def __init__(
        self,
        policy: Callable[[], Any],
        frozen: Any | None,
        pad_id: int,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        chunk: int | None = None,
    ) -> None:
        self.policy = policy
        self.frozen = frozen
        self.pad_id = pad_id
        self.precision = precision
        self.chunk = chunk
        self.remember: dict[int, tuple[float, float]] = {}
        self.kept: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        for model in (policy(), frozen) if chunk != 0 else ():
            if model is not None and find_head(model) is not None:
                joins(unwrapped(model))

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
            return self.forward(batch, device)
        result = torch.zeros(2 * len(examples), dtype=torch.float64)
        for row, example in enumerate(examples):
            if self._known(example):
                result[row], result[len(examples) + row] = self.remember[example.index]
        if open_rows:
            part = self.forward(collate([examples[row] for row in open_rows], self.pad_id), device)
            places = open_rows + [len(examples) + row for row in open_rows]
            result[torch.tensor(places)] = part.cpu().double()
        return result

    def _known(self, example: Example) -> bool:
        return example.share.route.from_dataset and example.index in self.remember

    def forward(self, batch: dict[str, Any], device: torch.device) -> Tensor:
        """(N,) nats of a batch's sequences, without gradient, whatever is remembered."""
        moved = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()
        }
        model, its_weights = self.model()
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), its_weights, self.precision():
                return response_scores(model, moved, chunk=self.chunk)[0]
        finally:
            model.train(was_training)

    def model(self) -> tuple[Any, AbstractContextManager[Any]]:
        """The model that speaks for the reference of the moment, and the context in which it does."""
        if self.kept and has_adapter(self.policy()):
            return self.policy(), holding(self.policy(), self.kept)
        return self._given()

    def start(self) -> tuple[Any, AbstractContextManager[Any]]:
        """The same for the reference that the run began with: what a finished run is compared with."""
        model, its_weights = self._given()
        return (model, holding(model, self.first)) if self.first else (model, its_weights)

    def _given(self) -> tuple[Any, AbstractContextManager[Any]]:
        if self.frozen is not None:
            return self.frozen, nullcontext()
        policy = self.policy()
        return policy, policy.disable_adapter()

    # ---- ref_update: round

    def check_can_become_policy(self) -> None:
        """ConfigError if the policy's weights do not fit into a given reference."""
        if has_adapter(self.policy()):
            return
        shapes = [
            {name: value.shape for name, value in _parameters(one)} for one in (self.policy(), self.frozen)
        ]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                "ref_update: round puts the policy's weights into the reference, but ref_model has another shape than the model. "
                "Leave ref_model out, give one of the same architecture, or set ref_update: never."
            )

    def become_policy(self) -> None:
        """From now on the reference is the policy of this moment; what was remembered of the old one is forgotten."""
        policy = self.policy()
        self._take(
            {
                name: value.detach().clone()
                for name, value in _parameters(policy)
                if value.requires_grad or not has_adapter(policy)
            }
        )

    def _take(self, tensors: dict[str, Tensor]) -> None:
        self.kept = tensors
        self.remember = {}
        if has_adapter(self.policy()):
            return
        own = dict(_parameters(self.frozen))
        if not self.first:
            self.first = {name: value.data.cpu() for name, value in own.items()}
        for name, value in own.items():
            value.data = tensors[name].to(value.device)
        self.kept = {name: value.data for name, value in own.items()}

    def save(self, file: Path) -> bool:
        """Keep the policy's tensors of the last update in a safetensors file, if there was one; returns whether."""
        if self.kept:
            from safetensors.torch import save_file

            save_file({name: value.contiguous() for name, value in self.kept.items()}, file)
        return bool(self.kept)

    def restore(self, file: Path | None) -> None:
        """The reference of a checkpoint, or None for the one that the run began with."""
        if file is None:
            if self.kept:
                first, self.kept, self.remember = self.first, {}, {}
                for name, value in _parameters(self.frozen) if first else ():
                    value.data = first[name].to(value.device)
                self.first = {}
            return
        from safetensors.torch import load_file

        tensors = load_file(file)
        owner = self.policy() if has_adapter(self.policy()) else self.frozen
        here = dict(_parameters(owner))
        if tensors.keys() - here.keys():
            raise CheckpointError(
                f"{file} is not of this model. Resume with the model that the run began with."
            )
        self._take({name: value.to(here[name].device) for name, value in tensors.items()})


def _parameters(model: Any) -> list[tuple[str, Tensor]]:
    """Names and parameters, without data parallelism's wrapper; a tensor that is used twice is there once."""
    return list(getattr(model, "module", model).named_parameters())


@contextmanager
def holding(model: Any, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The model with these tensors in place of its own; only pointers are exchanged. Never between a forward and its backward."""
    own = {name: value for name, value in _parameters(model) if name in tensors}
    before = {name: value.data for name, value in own.items()}
    # Autocast remembers the cast of a parameter by its identity, which stays the same.
    torch.clear_autocast_cache()
    try:
        for name, value in own.items():
            value.data = tensors[name].to(value.device)
        yield
    finally:
        for name, value in own.items():
            value.data = before[name]
        torch.clear_autocast_cache()
