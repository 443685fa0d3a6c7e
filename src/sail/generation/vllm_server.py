"""vLLM behind its HTTP server. Not yet run with vLLM itself (docs/scale.md).

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank R --logprobs-mode processed_logprobs \\
        --host 127.0.0.1 --generation-config vllm

The server's documented interface loads LoRA adapters by path while it runs, but takes no full weights.
"""

from __future__ import annotations

import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from sail.errors import ConfigError, GenerationError
from sail.generation.adapter import has_adapter, rank_of, save_adapter
from sail.generation.vllm import Drawn, Engine
from sail.generation.vllm_colocated import FOLDER, place

SECONDS = 600.0
"""Longest wait for one response."""
AT_ONCE = 128
"""Requests of one process under way; the server batches them."""
KEY = "VLLM_API_KEY"


class ServedEngine(Engine):
    """Each process asks for its own rows, one request per row, because a request has one seed. The first process writes the
    adapter and has the server load it, while the others wait."""

    def __init__(self, url: str | None, model: Any, folder: Path) -> None:
        if not url:
            raise ConfigError(
                "vllm_mode: server needs vllm_server_base_url, such as http://127.0.0.1:8000. Set it, or use vllm_mode: "
                "colocate."
            )
        if not has_adapter(model):
            raise ConfigError(
                "vllm_mode: server pushes LoRA adapters only, because vLLM's documented HTTP interface takes no full weights. "
                "Add peft, or use vllm_mode: colocate."
            )
        rank_of(model)
        self.url = url.rstrip("/")
        self.adapters = folder.absolute() / FOLDER / "server"
        self.together = place()[1] > 1
        self.pushes = 0
        self.name: str | None = None

    def push(self, model: Any) -> None:
        """Write the adapter, have it loaded under a new name and the old one unloaded.

        A server refuses a name that it has loaded already, and what an earlier process or another run of a folder of the same
        name has loaded is still there: part of the name is random.
        """
        self.pushes += 1
        rank, processes = place()
        told: list[str | None] = [None, None]
        failure: Exception | None = None
        if rank == 0:
            name = f"sail-{self.adapters.parent.parent.name}-{self.pushes}-{secrets.token_hex(6)}"
            told[0] = name
            try:
                self._load(model, name)
            except Exception as error:  # Of any kind: the other processes wait for the broadcast.
                failure = error
                told[1] = str(error) or type(error).__name__
        if processes > 1:
            torch.distributed.broadcast_object_list(told, src=0)
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise GenerationError(f"The first process could not push the adapter: {told[1]}")
        self.name = told[0]

    def _load(self, model: Any, name: str) -> None:
        path = save_adapter(model, self.adapters, self.pushes)
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        if self.name is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": self.name})

    def draw(self, prompts: Sequence[Sequence[int]], options: Sequence[dict[str, Any]]) -> list[Drawn]:
        """One request per row, many at once."""
        if not prompts:
            return []
        with ThreadPoolExecutor(min(AT_ONCE, len(prompts))) as pool:
            return list(pool.map(self._draw, prompts, options))

    def _draw(self, prompt: Sequence[int], options: dict[str, Any]) -> Drawn:
        asked = {"model": self.name, "prompt": list(prompt), **options, "return_token_ids": True}
        answer = self._post("/v1/completions", asked)
        try:
            choice = answer["choices"][0]
            ids = tuple(int(one) for one in choice["token_ids"])
            log_probs = tuple(float(one) for one in choice["logprobs"]["token_logprobs"])
            seen = choice.get("prompt_token_ids")
            found = Drawn(ids, log_probs, choice["finish_reason"], choice.get("stop_reason"))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise GenerationError(
                f"{self.url} answered without token_ids and logprobs ({type(error).__name__}: {error}). It must be vLLM "
                "0.10.2 or newer."
            ) from error
        if seen is not None and list(seen) != list(prompt):
            raise GenerationError(
                f"{self.url} changed the prompt's tokens before it answered. Serve the model that is being trained, with its own "
                "tokenizer."
            )
        return found

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        """The answer to a request, parsed where it is JSON; GenerationError with the way out."""
        heads = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            heads["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), heads, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise GenerationError(f"{self.url}{path} answered {error.code}: {said} {hint(path)}") from error
        except (OSError, HTTPException) as error:
            raise GenerationError(
                f"vLLM's server {self.url} does not answer ({error}). Start it (docs/scale.md), then continue with --resume."
            ) from error
        try:
            return json.loads(text)
        except ValueError:
            return text


def hint(path: str) -> str:
    """What is usually wrong when a request is refused."""
    if "lora" in path:
        return (
            "The server must be started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, with a --max-lora-rank of "
            "at least peft.r, and read the run folder."
        )
    return "Look at the server's log."
