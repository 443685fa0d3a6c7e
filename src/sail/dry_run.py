"""`sail train --dry-run`: what a run would do and need, from its settings, data, tokenizer and the model's configuration.

No weights are read, so that a run of a large model can be planned on a machine that could not hold it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sail.build import make_arguments, make_datasets, make_peft, make_tokenizer, require_model
from sail.build_oracle import ask_once, ledger_path, make_eval_oracle, make_ledger, make_oracle
from sail.config import RunConfig, chosen_yaml
from sail.data.encode import EncodedDataset, eos_ids
from sail.errors import OracleError
from sail.estimate import Memory, Work, bytes_of, estimate, load_shape, over, parameters, with_adapter
from sail.evaluation.files import read_json
from sail.fitting import check_fit
from sail.mixture import Mixture
from sail.oracle_config import RewardModelOracle, members_of
from sail.oracles import ScoringOracle
from sail.subject import generation_config
from sail.training.arguments import SAILConfig
from sail.training.checks import checked_mixture
from sail.training.cost import expected_cost
from sail.types import Pair, Preference, Prompt

GIB = 2**30
MANY = 8
"""Devices of the line that says what splitting the run would need."""


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of a run, the rows of each over all devices, and those of one pass over the data."""

    steps: int
    rows: int
    per_pass: int


def dry_run(config: RunConfig) -> str:
    """Everything that `sail train --dry-run` prints. The oracle is asked about the first pairs; nothing is written.

    Raises SailError for everything that would stop the run before its first step, but for weights that cannot be read.
    """
    arguments = make_arguments(config)
    trust = config.trust_remote_code
    tokenizer = make_tokenizer(config.tokenizer or config.model, trust_remote_code=trust)
    require_model(config.model)
    train, held_out, remarks = make_datasets(
        config, tokenizer, eos_ids(tokenizer, generation_config(config.model, trust=trust))
    )
    remarks += check_fit(config, train, held_out)
    # Answers that the trial has to pay for are kept where the user has named a ledger; a run folder is not made for them.
    ledger = make_ledger(config) if ledger_path(config) else None
    unmade = _unmade_oracle(config)
    oracle = _Unmade() if unmade else make_oracle(config, ledger)
    make_eval_oracle(config, ledger)
    mixture, _ = checked_mixture(arguments, train, config.ref_model, oracle)
    asked_once = [unmade] if unmade else ask_once(oracle, train, config)
    lines = [
        chosen_yaml(config).rstrip(),
        "",
        *remarks,
        *_about_weights(config),
        *asked_once,
        *_needs(config, arguments, mixture),
        *_work(arguments, mixture, train),
        "Nothing was trained or written.",
    ]
    return "\n".join(lines)


class _Unmade(ScoringOracle):
    """Stands for the reward model that an earlier stage will make: it scores, and cannot be asked yet."""

    name = "reward_model"
    may_abstain = False

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        raise OracleError("The reward model is not made yet. Run sail train-reward first.")

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        raise OracleError("The reward model is not made yet. Run sail train-reward first.")


def _unmade_oracle(config: RunConfig) -> str:
    """Says so if the oracle is what the section reward makes, and that is not there yet; else empty."""
    oracle = config.oracle
    if config.reward is None or not isinstance(oracle, RewardModelOracle):
        return ""
    made = os.path.abspath(config.reward.output_dir)
    if os.path.abspath(oracle.model) != made or (Path(made) / "config.json").exists():
        return ""
    return f"oracle reward_model: {made} is not made yet (sail train-reward), so it was not asked."


def oracle_bytes(config: RunConfig) -> int:
    """Weights of the reward models that label beside the policy; one that is not made yet counts as the model it starts from,
    in float32, as it will be stored."""
    found = 0
    for one in [] if config.oracle is None else members_of(config.oracle):
        if not isinstance(one, RewardModelOracle) or one.offload:
            continue
        unmade = bool(_unmade_oracle(config)) and config.reward is not None
        name = (config.reward.model or config.model) if unmade and config.reward else one.model
        stored = torch.float32 if unmade else None
        shape = load_shape(name, stored if one.dtype == "auto" else getattr(torch, one.dtype))
        found += bytes_of(shape.parameters())
    return found


# ---- how much work


def steps_of(arguments: SAILConfig, rows: int) -> Steps:
    """Optimiser steps as transformers.Trainer counts them: micro-batches of all devices per pass, rounded up (or down with
    dataloader_drop_last), in groups of gradient_accumulation_steps; max_steps counts if it is set."""
    batch, devices = arguments.train_batch_size, arguments.world_size
    rounded = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = rounded(rounded(rows / batch) / devices)
    per_pass = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    steps = (
        arguments.max_steps if arguments.max_steps >= 0 else math.ceil(arguments.num_train_epochs * per_pass)
    )
    return Steps(steps, batch * arguments.gradient_accumulation_steps * devices, per_pass)


def _work(arguments: SAILConfig, mixture: Mixture, train: EncodedDataset) -> list[str]:
    """Steps, responses, oracle calls and tokens."""
    plan = steps_of(arguments, len(train))
    seen = plan.rows * plan.steps
    responses, calls = expected_cost(mixture, arguments, seen)
    lines = [f"optimiser steps: {plan.steps} of {plan.rows} rows"]
    if arguments.refresh == "round":
        length = arguments.round_steps or plan.per_pass
        update = (
            "; the reference is replaced at each but the first" if arguments.ref_update == "round" else ""
        )
        lines.append(f"rounds: {-(-plan.steps // length)} of {length} steps{update}")
    lines += few_points(arguments, plan.steps)
    trained, sampled = 2 * seen * arguments.max_length, round(responses) * arguments.max_new_tokens
    return [
        *lines,
        f"responses sampled: {_about(responses, plan.steps)}",
        f"oracle calls (pairs): {_about(calls, plan.steps)}",
        f"tokens at most: {trained:,} trained on (both responses with their prompts)"
        + (f", {sampled:,} sampled" if sampled else ""),
    ]


def few_points(arguments: SAILConfig, steps: int) -> list[str]:
    """Said where a run is too short for how rarely it logs and evaluates: its curves would be a point or two."""
    every = {
        "logging_steps": arguments.logging_steps if arguments.logging_strategy == "steps" else 0,
        "eval_steps": arguments.eval_steps if arguments.eval_strategy == "steps" else 0,
    }
    rare = [
        f"{name} {value:g}" for name, value in every.items() if value and value >= 1 and value > steps / 3
    ]
    if not rare:
        return []
    return [
        f"few points for curves: {' and '.join(rare)} in {steps} steps; set to at most {max(steps // 5, 1)}"
    ]


def _about(number: float, steps: int) -> str:
    return f"about {round(number):,} in all, {number / max(steps, 1):,.1f} per step" if number else "none"


# ---- how much memory


def work_of(arguments: SAILConfig, mixture: Mixture, compute: torch.dtype) -> Work:
    """What one device does at once: the responses of a whole step, or of a generate call of generation_batch_size."""
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps
    sampled = math.ceil(expected_cost(mixture, arguments, rows)[0])
    return Work(
        rows=arguments.train_batch_size,
        length=arguments.max_length,
        sampled=min(sampled, arguments.generation_batch_size or sampled),
        prompt=arguments.max_prompt_length,
        new_tokens=arguments.max_new_tokens,
        tempered=arguments.temperature != 1.0 and bool(mixture.corrected),
        checkpointing=checkpointing_of(arguments),
        compute=compute,
        chunk=arguments.logprob_chunk,
    )


def checkpointing_of(arguments: Any) -> bool:
    """Whether activations are made again in the backward pass, under the option's new name or its old one."""
    return bool(getattr(arguments, "activation_checkpointing", False) or arguments.gradient_checkpointing)


def split_of(arguments: Any) -> str:
    """How the run's state is split over devices: none, zero1 to zero3, or fsdp; from the settings, or from the launcher."""
    if arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp"
    if arguments.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        given = arguments.deepspeed
        given = read_json(Path(given)) if isinstance(given, str) else given or {}
        stage = given.get("zero_optimization", {}).get("stage") or os.environ.get(
            "ACCELERATE_DEEPSPEED_ZERO_STAGE", 2
        )
        return f"zero{stage}" if str(stage) in "123" else "none"
    return "none"


def compute_type(config: RunConfig, arguments: SAILConfig) -> tuple[torch.dtype, str]:
    """The type that layers compute in, in words too. Where the run leaves it open and this machine has no GPU, one with
    bfloat16 is assumed: that is what such a run is planned for."""
    if arguments.bf16:
        return torch.bfloat16, "bfloat16"
    if arguments.fp16:
        return torch.float16, "float16"
    given = config.trainer_kwargs
    if given.get("bf16") is None and not arguments.use_cpu and not torch.cuda.is_available():
        return torch.bfloat16, "bfloat16, as on a GPU that supports it (there is none here)"
    return torch.float32, "float32"


def _needs(config: RunConfig, arguments: SAILConfig, mixture: Mixture) -> list[str]:
    """Parameters, and the memory of a device."""
    peft_config = make_peft(config)
    compute, words = compute_type(config, arguments)
    trust = config.trust_remote_code
    whole = torch.float32 if peft_config is None else None  # half-precision weights are trained in float32
    model = with_adapter(load_shape(config.model, whole, trust=trust), peft_config)
    reference = None if config.ref_model is None else load_shape(config.ref_model, trust=trust)
    work = work_of(arguments, mixture, compute)
    bits = None if config.quantization is None else config.quantization.bits
    every, trained = parameters(model)
    split, devices, labels = split_of(arguments), arguments.world_size, oracle_bytes(config)
    optimiser = str(getattr(arguments.optim, "value", arguments.optim))

    whole_run = estimate(
        model,
        work,
        optimiser=optimiser,
        peft_config=peft_config,
        reference=reference,
        bits=bits,
        oracle=labels,
    )
    here = over(whole_run, split, devices)
    ways = {
        "none": "each with data parallel",
        "zero2": "with ZeRO-2",
        "zero3": "with ZeRO-3",
        "fsdp": "with FSDP",
    }
    each = ", ".join(f"{_gib(over(whole_run, way, MANY).total)} {how}" for way, how in ways.items())
    return [
        f"trainable parameters: {trained:,} of {every:,}",
        f"memory per device, an estimate, computing in {words}:",
        *memory_lines(here, work, optimiser, peft_config is not None, bits),
        *([f"  over {MANY} devices: {each}"] if whole_run.total > GIB else []),
    ]


def memory_lines(memory: Memory, work: Work, optimiser: str, adapter: bool, bits: int | None) -> list[str]:
    """The parts of an estimate, one a line, in GiB."""
    texts = f"{2 * work.rows} texts of {work.length} tokens"
    saved = (
        "made again in the backward pass"
        if work.checkpointing
        else "all kept; activation_checkpointing saves most"
    )
    reference = "none: the policy with its adapter off" if adapter and not memory.reference else ""
    parts = [
        ("weights", memory.weights, f"{bits} bits, the adapter aside" if bits else ""),
        ("reference", memory.reference, reference),
        ("the oracle's model", memory.oracle, ""),
        ("optimiser state", memory.optimiser, optimiser),
        ("gradients", memory.gradients, ""),
        ("buckets of data parallel", memory.buckets, ""),
        ("activations", memory.activations, f"{texts}, {saved}"),
        ("logits", memory.logits, f"{texts}, as if all were response"),
        (
            "sampling cache",
            memory.cache,
            f"{work.sampled} responses at once; generation_batch_size makes it fewer",
        ),
        ("sampling, the rest", memory.sampling, ""),
        ("weights gathered", memory.gathered, "all of them, while a step is prepared"),
    ]
    lines = [
        f"  {name:<26}{_gib(size):>10}" + (f"   {note}" if note else "")
        for name, size, note in parts
        if size or (name == "reference" and note)
    ]
    preparing = "while sampling" if work.sampled else "while a step is prepared"
    sampling = f", {_gib(memory.while_sampling)} {preparing}" if work.sampled or memory.gathered else ""
    return [*lines, f"  {'peak':<26}{_gib(memory.while_training):>10}   while training{sampling}"]


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:,.2f} MiB"


def _about_weights(config: RunConfig) -> list[str]:
    """What the run will do to stored weights, or that there are none yet."""
    remarks = []
    folder = Path(config.model)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        remarks.append(f"{folder} holds a configuration and no weights; the run needs them.")
    stored = load_shape(config.model, trust=config.trust_remote_code).dtype
    if config.peft is None and stored in (torch.bfloat16, torch.float16):
        remarks.append(
            f"The model is stored in {stored}; all its weights are trained, in float32, and saved so."
        )
    return remarks
