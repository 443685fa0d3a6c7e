"""Sampling with vLLM: in the training processes (colocate) or behind its HTTP server (server).

Written against vLLM's documented interface (LLM, SamplingParams, LoRARequest; POST /v1/completions and /v1/load_lora_adapter)
and tested by contract with stand-ins for both; not yet run with vLLM itself (docs/scale.md).

vLLM draws tokens with its own kernels and its own random numbers, so its log-probs are not quite the training's, and a response
depends on its key only as far as vLLM's `seed` goes. The contract's two log-probs are kept apart: `sampling_log_prob` is what
vLLM says of the distribution that it sampled from, `log_prob` comes from a forward of the model being trained.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sail import seeds
from sail.errors import GenerationError
from sail.generation.base import Generator, Sampled, SamplingSettings, SeedKey
from sail.generation.scoring import score_sequences
from sail.objective import effective_sample_size


@dataclass(frozen=True)
class Drawn:
    """What an engine returns of one response.

    ids: sampled ids, a final EOS included. log_probs: of each id under the distribution that it was drawn from, nats.
    reason: stop or length. stop: the id or the string that ended it; None for a cut response.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    reason: str
    stop: int | str | None


class Engine(ABC):
    """A running vLLM. `together`: `draw` talks to other processes, so all of them call it equally often."""

    together = False

    @abstractmethod
    def push(self, model: Any) -> None:
        """The policy's weights of this moment are those that sample from now on; every process calls it."""

    @abstractmethod
    def draw(self, prompts: Sequence[Sequence[int]], options: Sequence[dict[str, Any]]) -> list[Drawn]:
        """One response per prompt of ids; `options` are the names and values of vLLM's SamplingParams, one mapping per row."""

    def rest(self) -> None:  # noqa: B027
        """Nothing is drawn before the next push: memory may be given back."""


class VLLMGenerator(Generator):
    """The generation contract over an engine. Weights are pushed before the first sampling of each optimiser step.

    precision: the trainer's autocast; score_batch: rows of the forward that gives log_prob; chunk: option logprob_chunk; step:
    the optimiser step.
    """

    def __init__(
        self,
        engine: Engine,
        model: Callable[[], Any],
        tokenizer: Any,
        settings: SamplingSettings,
        *,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        score_batch: int = 8,
        chunk: int | None = None,
        step: Callable[[], int] = lambda: 0,
    ) -> None:
        self.engine = engine
        self.together = engine.together
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.precision = precision
        self.score_batch = score_batch
        self.chunk = chunk
        self.step = step
        self.pushed: int | None = None
        self.gaps: list[float] = []
        self.tokens = 0

    def begin(self) -> None:
        """The weights of an earlier training are no more."""
        self.pushed = None
        self.gaps, self.tokens = [], 0

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]) -> list[Sampled]:
        """One response per prompt; see Generator."""
        if self.pushed != self.step():
            self.engine.push(self.model())
            self.pushed = self.step()
        if not prompts and not self.together:
            return []
        drawn = self.engine.draw(prompts, [sampling_options(self.settings, key) for key in keys])
        self.engine.rest()
        for one in drawn:
            check_drawn(one, self.settings)
        texts = self.tokenizer.batch_decode([list(one.ids) for one in drawn], skip_special_tokens=True)
        plain = self._log_probs(prompts, drawn)
        tempered = (
            plain if self.settings.temperature == 1.0 else self._log_probs(prompts, drawn, tempered=True)
        )
        found = []
        for one, text, own, mine in zip(drawn, texts, plain, tempered, strict=True):
            theirs = math.fsum(one.log_probs)
            self.gaps.append(mine - theirs)
            self.tokens += len(one.ids)
            found.append(Sampled(one.ids, text, own, is_cut(one, self.settings), theirs))
        return found

    def _log_probs(
        self, prompts: Sequence[Sequence[int]], drawn: Sequence[Drawn], *, tempered: bool = False
    ) -> list[float]:
        """log pi (log mu with `tempered`) of the model being trained, nats."""
        if not drawn:
            return []
        sequences = [(list(prompt), list(one.ids)) for prompt, one in zip(prompts, drawn, strict=True)]
        with self.precision():
            return score_sequences(
                self.model(),
                sequences,
                pad_id=self.settings.pad_id,
                batch_size=self.score_batch,
                temperature=self.settings.temperature if tempered else 1.0,
                chunk=self.chunk,
            )

    def numbers(self) -> dict[str, float | None]:
        """How far vLLM's numbers are from the training's, over this process's responses since the last log line: mean absolute
        difference of log mu in nats per token, and the effective sample size of the ratios that would correct it, in (0, 1]."""
        gaps, tokens = self.gaps, self.tokens
        self.gaps, self.tokens = [], 0
        if not gaps or not tokens:
            return {"vllm/gap": None, "vllm/ess": None}
        ratios = torch.tensor(gaps, dtype=torch.float64).clamp(-30.0, 30.0).exp()
        return {
            "vllm/gap": math.fsum(abs(gap) for gap in gaps) / tokens,
            "vllm/ess": effective_sample_size(ratios),
        }


def sampling_options(settings: SamplingSettings, key: SeedKey) -> dict[str, Any]:
    """SamplingParams of one row: the policy's own distribution, nothing cut off, and ends exactly where the contract says.

    EOS: vLLM adds ends of the model's own generation settings, so its own notion is off and ours are given as stop ids.
    seed: 63 bits from the row's key.
    """
    return {
        "n": 1,
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": list(settings.eos_ids),
        "stop": list(settings.stop_strings) or None,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "seed": int(seeds.uniform(*key, "vllm") * 2**63),
    }


def is_cut(one: Drawn, settings: SamplingSettings) -> bool:
    """Whether a response has neither an EOS nor a stop string. A release that calls an EOS in the last place "length" is not
    followed in that."""
    return not (bool(one.ids) and one.ids[-1] in settings.eos_ids) and not isinstance(one.stop, str)


def check_drawn(one: Drawn, settings: SamplingSettings) -> None:
    """GenerationError if a response is not what the contract asks for: it would be trained as something else than was drawn."""
    ends = set(settings.eos_ids)
    if len(one.log_probs) != len(one.ids):
        raise GenerationError(
            f"vLLM returned {len(one.ids)} ids and {len(one.log_probs)} log-probs for a response. It needs a release whose "
            "completions give both (0.10.2 or newer)."
        )
    if not all(value <= 1e-3 for value in one.log_probs):
        raise GenerationError(
            "vLLM returned log-probs above 0 or not finite. Start its server with --logprobs-mode processed_logprobs."
        )
    if any(token in ends for token in one.ids[:-1]):
        raise GenerationError("vLLM went on after an EOS. Use a release that honours stop_token_ids.")
    ended_by_id = bool(one.ids) and one.ids[-1] in ends
    if is_cut(one, settings) and one.reason == "length" and len(one.ids) != settings.max_new_tokens:
        raise GenerationError(
            f"vLLM cut a response after {len(one.ids)} tokens; max_new_tokens is {settings.max_new_tokens}. Is its model length "
            "(max_model_len) shorter than prompt and response?"
        )
    if one.reason == "stop" and not ended_by_id and not isinstance(one.stop, str):
        raise GenerationError(
            f"vLLM ended a response at {one.stop!r}, which is neither an EOS of this tokenizer nor a stop string."
        )
    if one.reason not in ("length", "stop"):
        raise GenerationError(f"vLLM ended a response with {one.reason!r}. Look at the server's log.")


def make_engine(options: Any, model: Any, folder: str | Path) -> Engine:
    """The engine that the options ask for: vllm_mode and its fields of sail.fields."""
    if options.vllm_mode == "server":
        from sail.generation.vllm_server import ServedEngine

        return ServedEngine(options.vllm_server_base_url, model, Path(folder))
    from sail.generation.vllm_colocated import ColocatedEngine

    return ColocatedEngine(options, model)
