"""Sharded weights made whole for a while: sampling, scoring without gradient and measuring then need no other process.

Under FSDP2 and ZeRO-3 a forward pass gathers each layer from all processes, so all of them must make the same number of
passes. They do not: a process samples its own rows, as long as they take. So the weights are gathered once per optimiser step,
before it is prepared, and given back before its training forward; in between a process makes as many passes as it likes. It
costs one whole copy of the policy in the parameters' type per device, for that time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import nn

from sail.errors import ConfigError, TrainingError


class WholeWeights:
    """`with whole:` the model of the moment has all its weights in this process. Every process enters and leaves it equally
    often; entering it again within it does nothing. engine: DeepSpeed's, where it trains. reshard: whether layers are given
    back after each forward pass, as `fsdp_reshard_after_forward` says.
    """

    def __init__(
        self, model: Callable[[], Any], engine: Callable[[], Any] = lambda: None, *, reshard: bool = True
    ) -> None:
        self.model = model
        self.engine = engine
        self.reshard = reshard
        self.depth = 0
        self.held = ExitStack()

    def __enter__(self) -> WholeWeights:
        """Gather."""
        self.depth += 1
        if self.depth == 1:
            for part in sharded_parts(self.model()):
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            offload = getattr(getattr(self.engine(), "optimizer", None), "parameter_offload", None)
            if offload is not None:
                self._hold(offload)
        return self

    def _hold(self, offload: Any) -> None:
        """DeepSpeed's way: all parameters gathered, and the hooks off that would part them again."""
        import deepspeed

        self.held.enter_context(deepspeed.zero.GatheredParameters(list(self.model().parameters())))
        for hook in [*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]:
            hook.remove()
        offload.forward_hooks.clear()
        offload.backward_hooks.clear()
        self.held.callback(offload.setup_zero_stage3_hooks)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back."""
        self.depth -= 1
        if self.depth == 0:
            model = self.model()
            for part in sharded_parts(model):
                part.reshard()
                # The outermost part is needed first in the backward pass, so it always stays.
                part.set_reshard_after_forward(self.reshard and part is not model, recurse=False)
            self.held.close()


def sharded_parts(model: Any) -> list[Any]:
    """The modules that FSDP2 shards, from the outside in; none for any other model."""
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def check_engine(accelerator: Any) -> None:
    """ConfigError for an engine whose shards cannot be made whole."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise ConfigError(
            "FSDP 1 is not supported: responses are sampled with weights that only FSDP2 can make whole for a while. Set "
            "fsdp_version: 2 in the accelerate config (recipes/accelerate/fsdp2.yaml)."
        )


def full_state(trainer: Any) -> dict[str, Any]:
    """All weights by name on the CPU; of a sharded model every process must call it, and the first one gets them."""
    if not sharded_parts(trainer.model):
        # DeepSpeed gives the others nothing.
        return dict(trainer.accelerator.get_state_dict(trainer.model_wrapped) or {})
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return dict(
        get_model_state_dict(trainer.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    )


def settle(trainer: Any) -> None:
    """After training: on the first process the sharded model is replaced by an ordinary one with the same weights, so that what
    follows (saving, measuring) can go on there alone. Every process must call it; an unsharded model stays as it is."""
    if not sharded_parts(trainer.model) and not zero3(trainer):
        return
    weights = full_state(trainer)
    if trainer.is_world_process_zero():
        trainer.model = ordinary(trainer.model, weights).to(trainer.args.device)
        trainer.model_wrapped = trainer.model


def zero3(trainer: Any) -> bool:
    """Whether DeepSpeed shards the weights."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def ordinary(model: Any, weights: dict[str, Any]) -> nn.Module:
    """An unsharded model of the same kind with these weights, its adapter included."""
    from torch.distributed.fsdp import FSDPModule

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # FSDP2 makes a class of its own from the model's. Not by from_config: with ZeRO-3 that shards, waiting for all processes.
    kind: Any = next(one for one in type(inner).__mro__ if not issubclass(one, FSDPModule))
    made: Any = kind(inner.config)
    made.generation_config = inner.generation_config
    if hasattr(model, "peft_config"):
        from peft import get_peft_model

        made = get_peft_model(made, model.peft_config["default"])
    kinds = {name: value.dtype for name, value in weights.items()}
    for name, value in [*made.named_parameters(), *made.named_buffers()]:
        if name in kinds and value.is_floating_point():
            value.data = value.data.to(kinds[name])
    missing, unknown = made.load_state_dict(weights, strict=False)
    tied = set(getattr(inner, "_tied_weights_keys", None) or ())
    lost = [name for name in missing if not any(name.endswith(one) for one in tied)]
    if lost or unknown:
        raise TrainingError(
            f"The sharded weights do not fit an ordinary model (missing: {lost[:3]}, unknown: {unknown[:3]}). The last "
            "checkpoint holds them; accelerate merge-weights makes one file of it."
        )
    return made.eval()
