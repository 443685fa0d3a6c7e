"""A small run under DeepSpeed ZeRO-2 or ZeRO-3 in two gloo processes on the CPU, through accelerate and Trainer; needs deepspeed.

accelerate counts one process where there is no accelerator, so it is told that there are two; every weight is shared out, which
DeepSpeed leaves alone below 100,000 numbers.

As a script, under torchrun, with DS_ACCELERATOR=cpu:   python zero_run.py FOLDER STAGE
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

STEPS = 4


def zero_trainer(folder: Path, *, sharded: bool) -> Any:
    """The trainer of the run: 4 rows per step, in one process or two."""
    from accelerate.state import PartialState
    from tiny import make_config, make_model, make_pairs, make_tokenizer, reward

    from sail.trainer import SAILTrainer

    options: dict[str, Any] = {"use_cpu": False, "bf16": False} if sharded else {}
    args = make_config(
        folder,
        preset="sail-mix",
        max_steps=STEPS,
        per_device_train_batch_size=2 if sharded else 4,
        gradient_accumulation_steps=1,
        learning_rate=3e-3,
        max_grad_norm=0.05,
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    if sharded:
        _, rank = args.device, int(os.environ["RANK"])
        PartialState._shared_state.update(
            num_processes=2, process_index=rank, local_process_index=rank, device=torch.device("cpu")
        )
    return SAILTrainer(
        make_model(scale=0.1),
        args=args,
        train_dataset=make_pairs(48),
        processing_class=make_tokenizer(),
        oracle=reward,
    )


def environment(folder: Path, stage: int) -> dict[str, str]:
    """What `accelerate launch` sets for a DeepSpeed configuration."""
    config = {
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untrusted_optimizer": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Each process its own: nobody reads one that is half written.
    file = folder / f"config-{os.environ['RANK']}.json"
    file.write_text(json.dumps(config))
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
        "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file",
        "LOCAL_SIZE": "2",
    }


def run_here(folder: Path, stage: int) -> None:
    """What each process does: the run whole, then resumed from its middle."""
    from tiny import largest_difference, weights_of

    from sail.training.whole import settle

    os.environ.update(environment(folder, stage))
    torch.set_num_threads(1)
    trainer = zero_trainer(folder, sharded=True)
    trainer.train()
    shares = sorted({tuple(one.shape) for one in trainer.model.parameters()})
    settle(trainer)
    torch.distributed.barrier()
    again = zero_trainer(folder, sharded=True)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    settle(again)
    if os.environ["RANK"] == "0":
        weights = weights_of(trainer.model)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        apart = largest_difference(weights, weights_of(again.model))
        torch.save(
            {"weights": weights, "losses": losses, "resumed_apart": apart, "shares": shares},
            folder / "end.pt",
        )
    torch.distributed.barrier()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run_here(Path(sys.argv[1]), int(sys.argv[2]))
    # DeepSpeed's own end waits for a process that has left.
    os._exit(0)
