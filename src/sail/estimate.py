"""What a run needs of a device's memory, from the model's configuration alone: no weights are read or made.

Parameters, weights, gradients, optimiser state and reference are counted on a model without storage (torch's meta device).
Activations are what autograd keeps in a forward pass of the real architecture on tensors without data, with one and with two
layers, extended to all. Logits and the sampling cache are formulas. Bytes everywhere; docs/real_runs.md has the formulas.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from sail.errors import ConfigError, MissingExtraError
from sail.generation.scoring import unwrapped
from sail.objective import chunk_rows

LOGIT_BYTES = 12
"""Peak bytes per logit of the pair loss: in bfloat16 the logits, their selected copy (2 each), the float32 copy and its
log-softmax (4 each), in float32 three tensors of 4."""
PICKED_LOGIT_BYTES = 8
"""The same in float32 where the head is applied to response positions only: the logits, and the log-softmax that becomes their
gradient."""
TEMPERED_LOGIT_BYTES = 8
"""More for a second log-softmax, at the sampling temperature: kept for the backward pass beside its input."""
SAMPLING_LOGIT_BYTES = 36
"""Per logit of a sampling step: float32 scores, their first copy, log-softmax at two temperatures, the result, and two
float64 tensors of the cumulated probabilities."""
BLOCK_64, BLOCK_256 = 64, 256
"""Values that share a scale: 64 in a 4-bit weight, 256 in an 8-bit optimiser state."""


@dataclass(frozen=True)
class Work:
    """What one device does in a step: `rows` pairs in a micro-batch, `length` tokens of prompt and response, `sampled`
    responses of `new_tokens` tokens to prompts of at most `prompt` tokens in one generate call."""

    rows: int
    length: int
    sampled: int = 0
    prompt: int = 0
    new_tokens: int = 0
    tempered: bool = False
    checkpointing: bool = False
    compute: torch.dtype = torch.float32
    chunk: int | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `activations` and `logits` are there while training, `cache` and `sampling` while sampling.

    own_logits: of the model's own logits, which ZeRO-3 takes. gathered: the whole copy of split weights while a step is prepared.
    """

    weights: int
    reference: int
    gradients: int
    optimiser: int
    buckets: int
    activations: int
    logits: int
    cache: int
    sampling: int
    oracle: int = 0
    own_logits: int = 0
    gathered: int = 0

    @property
    def kept(self) -> int:
        """What is there all the time after the first step."""
        return self.weights + self.reference + self.optimiser + self.oracle

    @property
    def while_training(self) -> int:
        """The peak of forward and backward pass."""
        return self.kept + self.gradients + self.buckets + self.activations + self.logits

    @property
    def while_sampling(self) -> int:
        """The peak of preparing a step, generate calls above all; gradients are freed by then, buckets of data parallel not."""
        return self.kept + self.buckets + self.gathered + self.cache + self.sampling

    @property
    def total(self) -> int:
        """The larger of both peaks."""
        return max(self.while_training, self.while_sampling)


# ---- the model, without weights


def load_shape(name: str, dtype: torch.dtype | None = None, *, trust: bool = False) -> Any:
    """The model of a folder or hub name on the meta device, in its stored type unless `dtype` is given. Only config.json is read.

    Raises ConfigError where there is none, or transformers has no causal language model of that kind.
    """
    try:
        return shape_of(AutoConfig.from_pretrained(name, trust_remote_code=trust), dtype, trust=trust)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"The model {name!r} could not be loaded: {first} Give a folder that save_pretrained wrote, or a hub name that this "
            "machine can reach."
        ) from error


def shape_of(config: Any, dtype: torch.dtype | None = None, *, trust: bool = False) -> Any:
    """The same from a configuration."""
    stored = dtype or getattr(config, "dtype", None) or torch.float32
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=stored, trust_remote_code=trust)


def with_adapter(model: Any, peft_config: Any) -> Any:
    """The model without weights, with its adapter: what is trained is then known exactly."""
    if peft_config is None:
        return model
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise MissingExtraError('peft: needs PEFT. Install it: pip install "sail-align[lora]"') from error
    with torch.device("meta"):
        return get_peft_model(model, copy.deepcopy(peft_config), low_cpu_mem_usage=True)


# ---- counting


def parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) values."""
    sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' values."""
    return sum(one.numel() * one.element_size() for one in tensors)


def weight_bytes(model: nn.Module, bits: int | None = None) -> int:
    """Bytes of all weights. `bits` 4 or 8: those of frozen linear layers but the head, in bitsandbytes' form with its scales
    (4 bits: a float32 scale per 64 values; 8 bits: one per row)."""
    found = bytes_of(model.parameters())
    if bits is None:
        return found
    head = unwrapped(model).get_output_embeddings()
    own = None if head is None else getattr(head, "base_layer", head).weight
    # An adapter's layer and the layer in it are the same weight: by its number each counts once.
    linear = {id(base): base for base in (getattr(one, "base_layer", one) for one in model.modules())}
    for base in linear.values():
        if not isinstance(base, nn.Linear) or base.weight is own or base.weight.requires_grad:
            continue
        values = base.weight.numel()
        packed = -(-values // 2) + 4 * -(-values // BLOCK_64) if bits == 4 else values + 4 * base.out_features
        found -= values * base.weight.element_size() - packed
    return found


def optimiser_bytes(name: str, tensors: Iterable[Tensor]) -> int:
    """Bytes of the state of a Trainer optimiser over these trainable tensors, after its first step; names that are not
    listed count as AdamW's. torch's own keep a float32 step count per tensor."""
    trained = list(tensors)
    states = _STATES.get(name, _STATES["adamw_torch"])
    return sum(states(one) for one in trained)


def _like(copies: int, extra: int = 4) -> Callable[[Tensor], int]:
    return lambda one: copies * one.numel() * one.element_size() + extra


def _blocks(copies: int, width: int) -> Callable[[Tensor], int]:
    def size(one: Tensor) -> int:
        if width == 4 or one.numel() < 4096:  # bitsandbytes leaves small tensors alone
            return copies * 4 * one.numel()
        return copies * (one.numel() + 4 * -(-one.numel() // BLOCK_256))

    return size


def _factored(one: Tensor) -> int:
    if one.dim() < 2:
        return 4 * one.numel()
    return 4 * (one.numel() // one.shape[-1] + one.numel() // one.shape[-2])


_STATES: dict[str, Callable[[Tensor], int]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused"), _like(2)),
    **dict.fromkeys(("rmsprop", "adagrad"), _like(1)),
    "sgd": _like(0, 0),
    "adafactor": _factored,
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), _blocks(2, 1)),
    **dict.fromkeys(("rmsprop_bnb_8bit", "lion_8bit", "paged_lion_8bit"), _blocks(1, 1)),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_32bit", "lion_32bit", "paged_lion_32bit"), _blocks(1, 4)),
    "paged_adamw_32bit": _blocks(2, 4),
}


# ---- activations


def activation_bytes(model: Any, work: Work, peft_config: Any = None) -> int:
    """Bytes that the backward pass needs of a forward pass over both responses of `work.rows` pairs, without the logits.

    Without checkpointing S(1) + (n - 1) (S(2) - S(1)), S(k) being what autograd keeps with k layers. With it, the inputs of all
    n layers, and the larger of one layer's own S(2) - S(1), which is made again when its turn comes, and autocast's copies of
    the trained weights, which are gone by then.
    """
    config = unwrapped(model).config.get_text_config()
    layers = config.num_hidden_layers
    one, two = (_kept_by_autograd(_fewer(model, count, peft_config), work) for count in (1, 2))
    if not work.checkpointing:
        return one + (layers - 1) * (two - one)
    embedding = unwrapped(model).get_input_embeddings().weight
    inputs = 2 * work.rows * work.length * config.hidden_size * embedding.element_size()
    casts = 0
    if work.compute != torch.float32:
        casts = 2 * sum(
            weight.numel()
            for weight in model.parameters()
            if weight.requires_grad and weight.element_size() == 4
        )
    return layers * inputs + max(two - one, casts)


def _fewer(model: Any, layers: int, peft_config: Any) -> Any:
    """The same architecture with so many layers, without weights, in the same types."""
    config = copy.deepcopy(unwrapped(model).config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return with_adapter(shape_of(config, unwrapped(model).dtype), peft_config)


def _kept_by_autograd(model: Any, work: Work) -> int:
    """Bytes of the storages that autograd keeps in one forward pass of the layers, the weights themselves aside."""
    # Tensors that know their shape and device, and have no data: torch's own tool for exactly this question.
    from torch._subclasses.fake_tensor import FakeTensorMode

    model.train()
    body = unwrapped(model).base_model
    found: dict[int, int] = {}
    alive: list[Any] = []  # so that no storage's number is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = int(storage.nbytes())
        alive.append(tensor)
        return tensor

    with FakeTensorMode():
        state = {
            name: torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
            for name, value in [*body.named_parameters(), *body.named_buffers()]
        }
        weights = {value.untyped_storage()._cdata for value in state.values()}
        ids = torch.zeros(2 * work.rows, work.length, dtype=torch.long)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        autocast = torch.autocast("cpu", work.compute, enabled=work.compute != torch.float32)
        with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            alive.append(torch.func.functional_call(body, state, (), given))
    return sum(found.values())


def logit_bytes(model: Any, work: Work) -> int:
    """Peak bytes of logits and their log-softmax over both responses, as if no position could be left out; of one chunk where
    they are made in chunks (option logprob_chunk), for models whose head can be reached."""
    vocabulary = unwrapped(model).config.get_text_config().vocab_size
    plain = work.chunk == 0 or work.compute != torch.float32
    each = (LOGIT_BYTES if plain else PICKED_LOGIT_BYTES) + TEMPERED_LOGIT_BYTES * work.tempered
    positions = 2 * work.rows * work.length
    at_once = None if work.chunk == 0 else chunk_rows(positions, vocabulary, work.chunk)
    if at_once is None or at_once >= positions:
        return positions * vocabulary * each
    # A trained head gets a gradient from every chunk: the sum so far, the next one, and the embedding's.
    head = unwrapped(model).get_output_embeddings().weight
    if head.requires_grad:
        return max(at_once * vocabulary * each + 2 * bytes_of([head]), 3 * bytes_of([head]))
    # A frozen one is kept in half precision too, where that is what it is multiplied in.
    return at_once * vocabulary * each + head.numel() * work.compute.itemsize * (work.compute != head.dtype)


# ---- sampling


def cache_bytes(model: Any, work: Work) -> int:
    """Keys and values of a generate call: 2 x layers x key-value heads x head size x tokens of all responses and prompts."""
    config = unwrapped(model).config.get_text_config()
    heads = config.num_attention_heads
    kept_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    tokens = work.sampled * (work.prompt + work.new_tokens)
    return 2 * config.num_hidden_layers * kept_heads * size * tokens * _width(model, work)


def sampling_bytes(model: Any, work: Work) -> int:
    """The larger of the prompts' pass through one layer (three tensors of its widest size) and one step's scores."""
    config = unwrapped(model).config.get_text_config()
    widest = max(getattr(config, "intermediate_size", None) or 4 * config.hidden_size, config.hidden_size)
    prompts = 3 * work.sampled * work.prompt * widest * _width(model, work)
    return max(prompts, work.sampled * config.vocab_size * SAMPLING_LOGIT_BYTES)


def _width(model: Any, work: Work) -> int:
    """Bytes of a value that a layer puts out while sampling."""
    stored = unwrapped(model).get_input_embeddings().weight.element_size()
    return 2 if work.compute != torch.float32 else int(stored)


# ---- a device


def estimate(
    model: Any,
    work: Work,
    *,
    optimiser: str,
    peft_config: Any = None,
    reference: Any = None,
    bits: int | None = None,
    oracle: int = 0,
) -> Memory:
    """Bytes of the run on a single device.

    `model` has no weights and carries its adapter; `reference` is a given reference model, None for the frozen copy that full
    fine-tuning makes (with an adapter there is none); `oracle` are the bytes of a model that labels.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    weights = weight_bytes(model, bits)
    kept = 0
    if reference is not None:
        kept = bytes_of(reference.parameters())
    elif peft_config is None:
        kept = weights
    return Memory(
        weights=weights,
        reference=kept,
        gradients=bytes_of(trained),
        optimiser=optimiser_bytes(optimiser, trained),
        buckets=0,
        activations=activation_bytes(model, work, peft_config),
        logits=logit_bytes(model, work),
        cache=cache_bytes(model, work),
        sampling=sampling_bytes(model, work) if work.sampled else 0,
        oracle=oracle,
        own_logits=logit_bytes(model, replace(work, chunk=0)),
    )


def over(memory: Memory, split: str, devices: int) -> Memory:
    """The same on each of several devices that do the same work. `split`: none (data parallel, whose buckets are a copy of the
    gradients), zero1 (optimiser state is split), zero2 (gradients too), zero3 or fsdp (weights too).

    A reference is a whole copy on each device under all of them. Split weights are gathered while a step is prepared (a share
    and a whole copy), and under ZeRO-3 the head's lie elsewhere, so that log-probs come from the model's own logits.
    """
    level = {"none": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}[split]

    def share(size: int, least: int) -> int:
        return -(-size // devices) if level >= least else size

    return replace(
        memory,
        weights=share(memory.weights, 3),
        gradients=share(memory.gradients, 2),
        optimiser=share(memory.optimiser, 1),
        buckets=memory.gradients if devices > 1 and level == 0 else 0,
        logits=memory.own_logits if split in ("zero3", "fsdp") else memory.logits,
        gathered=memory.weights if level == 3 else 0,
    )
