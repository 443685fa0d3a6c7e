"""vLLM in the training processes, on the training's GPUs. Not yet run with vLLM itself (docs/scale.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sail.errors import ConfigError, MissingExtraError
from sail.generation.adapter import has_adapter, rank_of, save_adapter
from sail.generation.scoring import unwrapped
from sail.generation.vllm import Drawn, Engine
from sail.rules_scale import QUANTIZED

FOLDER = "vllm-adapters"


def need_vllm() -> Any:
    """The module vllm; MissingExtraError with the way out."""
    try:
        import vllm
    except ImportError as error:
        raise MissingExtraError(
            "use_vllm needs vLLM, which runs on Linux with GPUs. Install it in an environment of its own, because it pins torch: "
            'pip install "sail-align[vllm]"; or set use_vllm: false to sample with transformers.'
        ) from error
    return vllm


def place() -> tuple[int, int]:
    """(rank, number of processes)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class ColocatedEngine(Engine):
    """One vLLM per `vllm_tensor_parallel_size` processes. A full policy's weights are loaded into it; a LoRA adapter is written
    to the run folder and requested with every row."""

    def __init__(self, options: Any, model: Any) -> None:
        self.vllm = need_vllm()
        refuse_quantized(model)
        rank, processes = place()
        size = options.vllm_tensor_parallel_size
        if processes % size:
            raise ConfigError(
                f"vllm_tensor_parallel_size: {size} does not divide the {processes} processes of the run. Set a divisor."
            )
        self.size, self.together = size, size > 1
        self.group = groups_of(size, processes)
        self.sleeps = options.vllm_enable_sleep_mode
        self.asleep = False
        self.adapters = Path(options.output_dir) / FOLDER / f"rank-{rank}"
        self.pushes = 0
        self.request: Any = None
        lora = {"enable_lora": True, "max_lora_rank": rank_of(model)} if has_adapter(model) else {}
        # The external launcher reads RANK, MASTER_ADDR and the like, which a process started by hand does not have.
        launched = {"distributed_executor_backend": "external_launcher"} if processes > 1 else {}
        name = model.config._name_or_path if not hasattr(model, "name_or_path") else model.name_or_path
        if not name:
            raise ConfigError(
                "use_vllm: colocate loads the model by the name or folder that it came from, and this one has none. Save it with "
                "save_pretrained and load it from there."
            )
        self.llm = self.vllm.LLM(
            model=name,
            tensor_parallel_size=size,
            gpu_memory_utilization=options.vllm_gpu_memory_utilization,
            max_model_len=options.max_prompt_length + options.max_new_tokens,
            enable_sleep_mode=self.sleeps,
            # The processes of one engine must draw alike; rows have seeds of their own.
            seed=rank // size,
            dtype="bfloat16" if options.bf16 else "float16" if options.fp16 else "float32",
            # Log-probs after temperature: of the distribution that was drawn from.
            logprobs_mode="processed_logprobs",
            # No defaults of the model's own generation settings.
            generation_config="vllm",
            trust_remote_code=False,
            **launched,
            **lora,
        )
        self.rest()

    def push(self, model: Any) -> None:
        """Load the weights of this moment, or write the adapter and name it in the requests to come."""
        self._wake()
        self.pushes += 1
        if has_adapter(model):
            folder = save_adapter(model, self.adapters, self.pushes)
            from vllm.lora.request import LoRARequest

            # A new number each time: vLLM keeps what it has loaded under a number.
            self.request = LoRARequest(f"sail-{self.pushes}", self.pushes, str(folder))
        else:
            tensors = [
                (clean_name(name), value.detach()) for name, value in unwrapped(model).named_parameters()
            ]
            self.llm.apply_model(lambda inside: inside.load_weights(iter(tensors)))
        # What was computed with the old weights must not be taken up again.
        self.llm.reset_prefix_cache()

    def draw(self, prompts: Sequence[Sequence[int]], options: Sequence[dict[str, Any]]) -> list[Drawn]:
        """One generate call; with tensor parallelism for the rows of all its processes, each of which keeps its own."""
        self._wake()
        rows = list(zip([list(prompt) for prompt in prompts], options, strict=True))
        start, count = 0, len(rows)
        if self.group is not None:
            parts: list[Any] = [None] * self.size
            torch.distributed.all_gather_object(parts, rows, group=self.group)
            start = sum(len(part) for part in parts[: torch.distributed.get_rank(group=self.group)])
            rows = [row for part in parts for row in part]
        if not rows:
            return []
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in rows],
            sampling_params=[self.vllm.SamplingParams(**one) for _, one in rows],
            use_tqdm=False,
            lora_request=self.request,
        )
        return [drawn_of(output.outputs[0]) for output in outputs[start : start + count]]

    def rest(self) -> None:
        """Weights go to main memory, the cache is dropped."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def _wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False


def refuse_quantized(model: Any) -> None:
    """ConfigError for weights that bitsandbytes made small: the engine would load the model of that name in full precision."""
    inner = unwrapped(model)
    if getattr(inner, "is_loaded_in_4bit", False) or getattr(inner, "is_loaded_in_8bit", False):
        raise ConfigError(QUANTIZED)


def groups_of(size: int, processes: int) -> Any:
    """The group of processes that share this one's engine; None where each has its own."""
    if size == 1:
        return None
    group, _ = torch.distributed.new_subgroups_by_enumeration(
        [list(range(first, first + size)) for first in range(0, processes, size)]
    )
    return group


def clean_name(name: str) -> str:
    """A parameter's name in the model's own files."""
    return name.replace("_checkpoint_wrapped_module.", "")


def drawn_of(output: Any) -> Drawn:
    """From vLLM's CompletionOutput."""
    ids = tuple(output.token_ids)
    steps = output.logprobs or []
    log_probs = tuple(float(step[token].logprob) for token, step in zip(ids, steps, strict=False))
    return Drawn(ids, log_probs, output.finish_reason, output.stop_reason)
