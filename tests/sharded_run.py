"""A small run under FSDP2 in two gloo processes on the CPU, as accelerate's FSDP2 configuration makes it on GPUs.

accelerate offers FSDP for accelerators only: here the kind of its distributed state is set to that of several GPUs before the
trainer is built, and nothing else. Prepare, sharding, gathering, checkpoints and resume are accelerate's and Trainer's own.

As a script, under torchrun:   python sharded_run.py FOLDER [STEPS]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
RUNS: dict[str, dict[str, Any]] = {
    "mix": {"preset": "sail-mix", "kl_policy_ref": 0.05},
    "rounds": {"preset": "sail-dpr", "refresh": "round", "round_steps": 3},
    "lora": {"preset": "sail-dpr"},
}


def sharded_trainer(folder: Path, name: str, *, steps: int, sharded: bool, **options: Any) -> Any:
    """The trainer of a run, in float64, under FSDP2 or not. 16 rows with few of them on-policy: processes differ."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from tiny import make_config, make_model, make_pairs, make_tokenizer, reward

    from sail.trainer import SAILTrainer

    folder.mkdir(parents=True, exist_ok=True)
    adapter = None
    if name == "lora":
        from peft import LoraConfig

        adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=True)
    arguments = make_config(
        folder,
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1 if sharded else 2,
        learning_rate=3e-3,
        max_grad_norm=0.05,
        **RUNS[name],
        **options,
    )
    if sharded:
        _ = arguments.device
        assert PartialState().distributed_type == DistributedType.MULTI_CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = SAILTrainer(
        make_model(torch.float64, scale=0.1),
        args=arguments,
        train_dataset=make_pairs(48),
        eval_dataset=make_pairs(6, seed=5),
        processing_class=make_tokenizer(),
        oracle=reward,
        peft_config=adapter,
    )
    if sharded:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    return trainer


def finished(trainer: Any, folder: Path) -> dict[str, Any]:
    """Weights at the end, as an ordinary model's, and the logged numbers; on the first process."""
    from tiny import weights_of

    from sail.training.whole import settle

    settle(trainer)
    return {"weights": weights_of(trainer.model), "log": trainer.state.log_history}


def run_here(folder: Path, steps: int) -> None:
    """What each of the two processes does: every run whole, and one stopped after half its steps and resumed."""
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    from sail.training.whole import sharded_parts

    for name in RUNS:
        trainer = sharded_trainer(
            folder / name, name, steps=steps, sharded=True, save_strategy="steps", save_steps=2,
            eval_strategy="steps", eval_steps=4, eval_samples=5,
        )  # fmt: skip
        trainer.train()
        parts = len(sharded_parts(trainer.model))
        found = finished(trainer, folder / name)
        again = sharded_trainer(
            folder / name, name, steps=steps, sharded=True, save_strategy="steps", save_steps=2,
            eval_strategy="steps", eval_steps=4, eval_samples=5,
        )  # fmt: skip
        again.train(resume_from_checkpoint=str(folder / name / "checkpoint-2"))
        resumed = finished(again, folder / name)
        if int(os.environ["RANK"]) == 0:
            torch.save({**found, "resumed": resumed["weights"], "parts": parts}, folder / name / "result.pt")
            (folder / name / "log.json").write_text(json.dumps(found["log"]))
        torch.distributed.barrier()


def count_calls() -> list[list[int]]:
    """Calls of a generator that needs all processes (`together`), where they have 5 and 0 rows: sampled at once, and in parts of
    2 rows. Each process's [in parts, at once]; a process that calls less often would leave the other one waiting for ever."""
    from sail.generation import Generator, Sampled
    from sail.mixture import ROUTES, Share
    from sail.online import Example, respond
    from sail.training.rounds import InParts
    from sail.training.step import gather

    class Together(Generator):
        together = True
        calls = 0

        def sample(self, prompts: Any, keys: Any) -> list[Sampled]:
            self.calls += 1
            torch.distributed.barrier()
            return [Sampled((1,), "", 0.0, False, 0.0) for _ in prompts]

    generator, share = Together(), Share(ROUTES["dpr"], 1.0)
    rows = range(5 if int(os.environ["RANK"]) == 0 else 0)
    counts = []
    for wrapped in (InParts(generator, 2, None), generator):
        examples = [Example({"index": row, "prompt_ids": [3]}, share, 0.0) for row in rows]
        generator.calls = 0
        respond(examples, wrapped, 0)
        assert all(len(one.samples) == 2 for one in examples)
        counts.append(generator.calls)
    return gather([counts])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run_here(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
    calls = count_calls()
    if int(os.environ["RANK"]) == 0:
        (Path(sys.argv[1]) / "calls.json").write_text(json.dumps(calls))
    from tiny import leave_together

    leave_together()
