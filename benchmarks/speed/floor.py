"""The floor of a step: one bare generate, and the forward and backward passes that the mathematics needs; nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import GenerationConfig

from sail.data.collate import pad_pairs
from sail.generation import response_scores
from sail.mixture import mixture_of
from sail.online import route


class Floor:
    """A bare loop without a trainer: no labels, no oracle, no baseline, no metrics, no log. Its steps have the
    rows of a run with the same seed, which take the routes that they take there.

    Sampling is `generate(do_sample=True)`, scoring is sail's own (the fastest there is), with AdamW and clipping as Trainer
    has them. With LoRA the reference is the disabled adapter, and the adapter is not merged for sampling.
    """

    def __init__(
        self, model: Any, steps: list[list[dict[str, Any]]], routes: dict[str, Any], new: int
    ) -> None:
        self.model = model.train()
        self.lora = hasattr(model, "peft_config")
        self.reference = None if self.lora else copy.deepcopy(model).eval().requires_grad_(False)
        self.steps, self.new = steps, new
        self.mixture = mixture_of(None, routes)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(self.weights, lr=1e-6, weight_decay=0.0)
        self.device = self.weights[0].device
        self.step = 0

    def train(self, end: Callable[[], bool]) -> None:
        """Step until `end`, called after each, says so."""
        while True:
            self.one()
            if end():
                return

    def one(self) -> None:
        """One optimiser step."""
        rows = self.steps[self.step]
        examples = route(rows, self.mixture, 0, self.step, 0.0)
        own = [place for place, example in enumerate(examples) if example.share.route.on_policy]
        pairs = [(one.row["prompt_ids"], one.row["chosen_ids"], one.row["rejected_ids"]) for one in examples]
        if own:
            prompts = [pairs[place][0] for place in own]
            answers = self._sample(prompts + prompts)
            for number, place in enumerate(own):
                pairs[place] = (prompts[number], answers[number], answers[number + len(own)])
        sequences = [(prompt, first) for prompt, first, _ in pairs] + [(p, second) for p, _, second in pairs]
        batch: dict[str, Any] = {key: value.to(self.device) for key, value in pad_pairs(sequences, 0).items()}
        batch["start"] = min(len(prompt) for prompt, _ in sequences)
        with torch.no_grad():
            reference = self._reference_scores(batch)
        ratio = response_scores(self.model, batch)[0] - reference
        loss = -functional.logsigmoid(0.1 * (ratio[: len(rows)] - ratio[len(rows) :])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1

    def _reference_scores(self, batch: dict[str, Any]) -> torch.Tensor:
        if self.reference is not None:
            return response_scores(self.reference, batch)[0]
        with self.model.disable_adapter():
            return response_scores(self.model, batch)[0]

    def _sample(self, prompts: list[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=self.device
        )
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.new,
            eos_token_id=1,
            pad_token_id=0,
            use_cache=True,
        )
        self.model.eval()
        with torch.no_grad():
            output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        self.model.train()
        answers = output[:, width:].tolist()
        return [one[: one.index(1) + 1] if 1 in one else one for one in answers]
