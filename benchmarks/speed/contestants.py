"""Who is timed: TRL's trainers, ours with each composition, and the floor of each; all given the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from floor import Floor
from peft import get_peft_model
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from turns import Turn
from world import Shape, adapter, make_model, make_tokenizer, reward

from sail.generation import Generator, Sampled, SeedKey
from sail.trainer import SAILConfig, SAILTrainer
from sail.training.plan import planned_rows

TRL, TRL_ONLINE, FLOOR = "trl", "trl-online", "floor "
MIXTURES: dict[str, dict[str, Any]] = {
    "data": {"data": {"weight": 1.0}},
    "ddp": {"data": {"weight": 0.6}, "ddp": {"weight": 0.4, "coefficient": 0.2}},
    "dpp": {"data": {"weight": 0.7}, "dpp": {"weight": 0.3, "coefficient": 0.2}},
    "dpr": {"data": {"weight": 0.7}, "dpr": {"weight": 0.3, "coefficient": 0.3}},
    "online": {"dpr": {"weight": 1.0, "coefficient": 0.0}},
}
"""The paper's weights and coefficients; `online` is pure online DPO: every pair fresh, no correction, argmax labels."""
GROUPS: tuple[tuple[str, ...], ...] = (
    (TRL, "data", "ddp"),
    ("dpp", FLOOR + "dpp", "dpr", FLOOR + "dpr", "data"),
    (TRL_ONLINE, "online"),
)
"""Those who alternate: what is compared is in one group. A group is given back to the device before the next begins."""
COMPARED = (
    ("data", TRL, 0.90),
    ("ddp", "data", None),
    ("dpp", "data", None),
    ("dpr", "data", None),
    ("dpp", FLOOR + "dpp", 1.10),
    ("dpr", FLOOR + "dpr", 1.10),
    ("online", TRL_ONLINE, 0.80),
)
"""Above, below, and the target for their ratio with full fine-tuning; with LoRA data / trl may be 1."""


@dataclass(frozen=True)
class Settings:
    """What a measurement was asked for."""

    size: str = "1M"
    device: str = "cpu"
    steps: int = 100
    warm_up: int = 5
    rows: int = 8
    lora_r: int = 16
    checkpointing: bool = False
    precompute: bool = False
    accumulation: int = 1
    tunings: tuple[str, ...] = ("full", "lora")


@dataclass
class Contestant:
    """One of them: how it is trained, on whose turns, and the tokens that it has worked on."""

    make_turn: Callable[[], Turn]
    count: Count
    models: list[Any]
    trainer: Any = None
    turn: Turn | None = None


@dataclass
class Count:
    """Tokens so far: policy (forward and backward), reference (forward), generated. Padding included in the first two, because
    it is computed too. asked: tokens of the sequences that ours was to score, padded, each with its own prompt."""

    tokens: dict[str, int] = field(default_factory=lambda: {"policy": 0, "reference": 0, "generated": 0})
    generating: bool = False
    asked: dict[str, int] = field(default_factory=lambda: {"policy": 0, "reference": 0, "generated": 0})

    def watch(self, *watched: Any) -> None:
        """Count what these models are given from now on."""
        for model in watched:
            model.register_forward_pre_hook(self._seen, with_kwargs=True)

    def watch_scores(self, trainer: Any) -> None:
        """Count what our trainer is to score: its models read a pair's prompt once."""
        losses, reference = trainer.row_losses, trainer.reference.forward

        def counted(model: Any, batch: dict[str, Any]) -> Any:
            self.asked["policy"] += batch["input_ids"].numel()
            return losses(model, batch)

        def counted_there(batch: dict[str, Any], device: Any) -> Any:
            self.asked["reference"] += batch["input_ids"].numel()
            return reference(batch, device)

        trainer.row_losses, trainer.reference.forward = counted, counted_there

    def watch_generate(self, model: Any) -> None:
        """Count what this model generates: new positions up to each row's EOS."""
        real = model.generate

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.generating = True
            try:
                output = real(*args, **kwargs)
            finally:
                self.generating = False
            new = output[:, kwargs["input_ids"].shape[1] :]
            self.tokens["generated"] += int((new != 0).sum())
            return output

        model.generate = counted

    def _seen(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not self.generating:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self.tokens["policy" if torch.is_grad_enabled() else "reference"] += ids.numel()


class Counting(Generator):
    """Our generator, with its forwards kept out of the reference's count."""

    def __init__(self, generator: Generator, count: Count) -> None:
        self.generator, self.count = generator, count

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]) -> list[Sampled]:
        """The generator's own, counted."""
        self.count.generating = True
        sampled = self.generator.sample(prompts, keys)
        self.count.generating = False
        self.count.tokens["generated"] += sum(len(one.ids) for one in sampled)
        return sampled


def arguments(settings: Settings, shape: Shape, folder: Path) -> dict[str, Any]:
    """What all trainers are given."""
    return {
        "output_dir": str(folder),
        # One more than there are turns: the last step must not end the training.
        "max_steps": settings.warm_up + settings.steps + 1,
        "per_device_train_batch_size": settings.rows // settings.accumulation,
        "gradient_accumulation_steps": settings.accumulation,
        "beta": 0.1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "gradient_checkpointing": settings.checkpointing,
        "bf16": settings.device != "cpu",
        "max_length": shape.longest,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": settings.device == "cpu",
        "disable_tqdm": True,
        "dataloader_pin_memory": settings.device != "cpu",
        "seed": 0,
    }


def build(
    name: str, settings: Settings, shape: Shape, tuning: str, rows: list[dict[str, str]], folder: Path
) -> Contestant:
    """The contestant of that name."""
    if name.startswith(FLOOR):
        return _floor(name.removeprefix(FLOOR), settings, shape, tuning, rows, folder)
    made = {TRL: _trl, TRL_ONLINE: _trl_online}.get(name)
    trainer = (
        made(settings, shape, tuning, rows, folder)
        if made
        else _sail(name, settings, shape, tuning, rows, folder)
    )
    count = Count()
    if made is None:
        trainer.maker.generator = Counting(trainer.generator, count)
        count.watch_scores(trainer)
        frozen = trainer.reference.frozen
    else:
        frozen = trainer.ref_model
        count.watch_generate(trainer.accelerator.unwrap_model(trainer.model))
    watched = [trainer.model] if frozen is None else [trainer.model, frozen]
    count.watch(*watched)
    trainer.remove_callback(PrinterCallback)

    def turn() -> Turn:
        begun = Turn(trainer.train, settle=settle_of(settings.device))
        trainer.add_callback(begun)
        return begun

    return Contestant(turn, count, watched, trainer)


def settle_of(device: str) -> Callable[[], None] | None:
    """What a step must wait for before its time is taken."""
    return torch.cuda.synchronize if device == "cuda" else None


def _trl(settings: Settings, shape: Shape, tuning: str, rows: list[dict[str, str]], folder: Path) -> Any:
    """DPOTrainer, as its documentation says."""
    peft, model = adapter(settings.lora_r, tuning), make_model(shape, settings.device)
    return DPOTrainer(
        model,
        ref_model=copy.deepcopy(model) if peft is None else None,
        args=DPOConfig(**arguments(settings, shape, folder), precompute_ref_log_probs=settings.precompute),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(shape),
        peft_config=peft,
    )


def _trl_online(
    settings: Settings, shape: Shape, tuning: str, rows: list[dict[str, str]], folder: Path
) -> Any:
    """The experimental OnlineDPOTrainer: two fresh responses per prompt, the better one by the reward function is chosen."""
    peft, model = adapter(settings.lora_r, tuning), make_model(shape, settings.device)

    def scores(prompts: list[str], completions: list[str], **unused: Any) -> list[float]:
        return reward(prompts, completions)

    return OnlineDPOTrainer(
        model,
        ref_model=copy.deepcopy(model) if peft is None else None,
        reward_funcs=scores,
        args=OnlineDPOConfig(
            **arguments(settings, shape, folder), max_new_tokens=shape.response, temperature=1.0, top_k=0
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=make_tokenizer(shape),
        peft_config=peft,
    )


def _sail(
    name: str, settings: Settings, shape: Shape, tuning: str, rows: list[dict[str, str]], folder: Path
) -> Any:
    mixture = MIXTURES[name]
    options = SAILConfig(
        **arguments(settings, shape, folder),
        routes=mixture,
        oracle_label="argmax" if name == "online" else "soft",
        precompute_ref_log_probs=settings.precompute,
        max_prompt_length=shape.prompt[1],
        max_new_tokens=shape.response,
    )
    return SAILTrainer(
        make_model(shape, settings.device),
        args=options,
        train_dataset=rows,
        processing_class=make_tokenizer(shape),
        oracle=reward if "dpr" in mixture else None,
        peft_config=adapter(settings.lora_r, tuning),
    )


def _floor(
    name: str, settings: Settings, shape: Shape, tuning: str, rows: list[dict[str, str]], folder: Path
) -> Contestant:
    model: Any = make_model(shape, settings.device)
    peft = adapter(settings.lora_r, tuning)
    if settings.checkpointing:
        model.gradient_checkpointing_enable()
    if peft is not None:
        model = get_peft_model(model, peft)
    # The very rows, in the very order, that the run beside it sees: as many are sampled in each round.
    twin = _sail(name, settings, shape, "lora", rows, folder)
    last = settings.warm_up + settings.steps + 1
    steps = planned_rows(twin.get_train_dataloader(), twin.train_dataset, first=0, last=last, accumulation=1)
    del twin
    floor = Floor(model, steps, MIXTURES[name], shape.response)
    count = Count()
    count.watch_generate(floor.model)
    watched = [one for one in (floor.model, floor.reference) if one is not None]
    count.watch(*watched)

    def turn() -> Turn:
        begun = Turn(lambda: floor.train(begun.ended), settle=settle_of(settings.device))
        return begun

    return Contestant(turn, count, watched)
