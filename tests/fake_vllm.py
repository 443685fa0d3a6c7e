"""Stand-ins for vLLM: a module `vllm` and an HTTP server, with the documented names, arguments and answers, and a real tiny
model behind them. What they do not know (an unknown sampling parameter, an adapter that was not loaded) they refuse."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What an external launcher sets for each process."""


@dataclass
class SamplingParams:
    """The fields that are used of vllm.SamplingParams."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False


def draw(model: Any, tokenizer: Any, prompt: list[int], params: SamplingParams, noise: float = 0.0) -> Any:
    """A CompletionOutput: one response, token by token. `noise` stands for the kernels' own rounding."""
    chance = torch.Generator().manual_seed(params.seed if params.seed is not None else 0)
    ids, log_probs, reason, stop = list(prompt), [], "length", None
    ends = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else {tokenizer.eos_token_id})
    for _ in range(params.max_tokens or 0):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        if noise:
            logits = logits + noise * torch.randn(logits.shape, generator=chance, dtype=torch.float64)
        scores = torch.log_softmax(logits / params.temperature, dim=-1)
        token = int(torch.multinomial(scores.exp(), 1, generator=chance))
        ids.append(token)
        log_probs.append({token: SimpleNamespace(logprob=float(scores[token]))})
        text = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=params.skip_special_tokens)
        found = next((one for one in params.stop or () if one in text), None)
        if token in ends:
            reason, stop = "stop", token
            break
        if found is not None:
            reason, stop = "stop", found
            break
    return SimpleNamespace(
        token_ids=ids[len(prompt) :],
        logprobs=log_probs if params.logprobs is not None else None,
        finish_reason=reason,
        stop_reason=stop,
    )


@dataclass
class LoRARequest:
    """vllm.lora.request.LoRARequest."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class Inside:
    """The model in a worker, as apply_model hands it over."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def load_weights(self, weights: Any) -> set[str]:
        own = dict(self.model.named_parameters())
        loaded = set()
        for name, tensor in weights:
            own[name].data.copy_(tensor)
            loaded.add(name)
        return loaded


class LLM:
    """vllm.LLM; `made` holds every one that was built."""

    made: list[LLM] = []  # noqa: RUF012
    noise = 0.0

    def __init__(self, model: str, **options: Any) -> None:
        if options.get("distributed_executor_backend") == "external_launcher":
            missing = [name for name in LAUNCHER if name not in os.environ]
            if missing:
                raise ValueError(f"environment variable {missing[0]} expected, but not set")
        self.options = options
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = make_tokenizer()
        self.calls: list[str] = []
        self.asleep = False
        self.adapters: dict[int, Any] = {}
        LLM.made.append(self)

    def apply_model(self, function: Any) -> list[Any]:
        assert not self.asleep
        self.calls.append("weights")
        return [function(Inside(self.model))]

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return True

    def sleep(self, level: int = 1) -> None:
        assert self.options["enable_sleep_mode"]
        self.asleep = True
        self.calls.append("sleep")

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.asleep = False
        self.calls.append("wake")

    def generate(
        self,
        prompts: list[Any],
        sampling_params: list[SamplingParams],
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[Any]:
        assert not self.asleep
        assert len(prompts) == len(sampling_params)
        self.calls.append("generate")
        model = self.model if lora_request is None else self._adapted(lora_request)
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[draw(model, self.tokenizer, prompt["prompt_token_ids"], params, LLM.noise)],
            )
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _adapted(self, request: LoRARequest) -> Any:
        """vLLM keeps an adapter under its number: a number used twice would speak with the old weights."""
        assert self.options["enable_lora"]
        if request.lora_int_id not in self.adapters:
            self.adapters[request.lora_int_id] = adapted(self.options, request.lora_path, self.model)
        return self.adapters[request.lora_int_id]


def adapted(options: dict[str, Any], path: str, base: Any) -> Any:
    """The base model with an adapter read from its folder."""
    import copy

    from peft import PeftConfig, PeftModel

    assert PeftConfig.from_pretrained(path).r <= options["max_lora_rank"]
    return PeftModel.from_pretrained(copy.deepcopy(base), path).eval()


@contextmanager
def fake_vllm() -> Iterator[type[LLM]]:
    """The module `vllm` for the length of the block."""
    module, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    LLM.made, LLM.noise = [], 0.0
    with pytest.MonkeyPatch.context() as patch:
        for name, one in (("vllm", module), ("vllm.lora", lora), ("vllm.lora.request", request)):
            patch.setitem(sys.modules, name, one)
        yield LLM


# ---- the server


class Handler(BaseHTTPRequestHandler):
    """vllm serve: completions with token ids, adapters loaded and unloaded by path."""

    server: Any

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        """One request."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, content, self.headers.get("Authorization")))
        code, answer = self._answer(content)
        text = (json.dumps(answer) if not isinstance(answer, str) else answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(self, content: dict[str, Any]) -> tuple[int, Any]:
        if self.path == "/v1/load_lora_adapter":
            if not self.server.may_load:
                return 404, {"detail": "Not Found"}
            if content["lora_name"] in self.server.adapters:
                message = f"The lora adapter '{content['lora_name']}' has already been loaded."
                return 400, {"error": {"message": message, "type": "InvalidUserInput", "code": 400}}
            with self.server.lock:
                self.server.adapters[content["lora_name"]] = adapted(
                    {"max_lora_rank": 16}, content["lora_path"], self.server.model
                )
            return 200, f"Success: LoRA adapter '{content['lora_name']}' added successfully."
        if self.path == "/v1/unload_lora_adapter":
            if self.server.adapters.pop(content["lora_name"], None) is None:
                message = f"The lora adapter '{content['lora_name']}' cannot be found."
                return 404, {"error": {"message": message, "type": "NotFoundError", "code": 404}}
            return 200, "Success"
        if self.path == "/v1/completions":
            return self._complete(dict(content))
        return 404, {"detail": "Not Found"}

    def _complete(self, content: dict[str, Any]) -> tuple[int, Any]:
        model = self.server.adapters.get(content.pop("model"))
        if model is None:
            return 404, {"error": {"message": "The model does not exist.", "code": 404}}
        prompt, with_ids = content.pop("prompt"), content.pop("return_token_ids", False)
        with self.server.lock:
            one = draw(model, self.server.tokenizer, prompt, SamplingParams(**content))
        choice = {
            "index": 0,
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            "logprobs": {
                "token_logprobs": [
                    step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)
                ]
            },
        }
        if with_ids and self.server.gives_ids:
            choice |= {"token_ids": one.token_ids, "prompt_token_ids": prompt}
        return 200, {"choices": [choice]}


@contextmanager
def fake_server(model: Any, *, may_load: bool = True, gives_ids: bool = True) -> Iterator[Any]:
    """A server on loopback that serves adapters of `model`; `seen` holds its requests, `url` its address."""
    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.model, one.tokenizer, one.adapters, one.seen = model, make_tokenizer(), {}, []
    one.may_load, one.gives_ids, one.lock = may_load, gives_ids, threading.Lock()
    one.url = f"http://127.0.0.1:{one.server_address[1]}"
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.shutdown()
        one.server_close()
