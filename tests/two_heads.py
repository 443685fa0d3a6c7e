"""Two steps with a trained head of its own in two gloo processes, for each kind of head.

As a script, under torchrun:   python two_heads.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

KINDS = ("untied", "untied, found at once", "with bias", "lora on the head", "head saved whole", "in chunks")
"""Trainer has DistributedDataParallel look for unused parameters by itself, except where it is said not to."""
OPTIONS: dict[str, dict[str, Any]] = {
    "untied, found at once": {"ddp_find_unused_parameters": False},
    "in chunks": {"logprob_chunk": 3, "gradient_checkpointing": True, "ddp_find_unused_parameters": True},
}


def adapter_of(kind: str) -> Any:
    """The LoRA of a kind, or None."""
    if "lora" not in kind and "saved" not in kind:
        return None
    from peft import LoraConfig

    if "saved" in kind:
        return LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    return LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=True
    )


def steps_of(folder: Path, kind: str, rows: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The weights after two steps of a batch of 4, `rows` per device and accumulated."""
    from tiny import make_model, make_pairs, make_trainer, weights_of

    model = make_model(torch.float64, scale=0.1, tie_word_embeddings=False)
    if kind == "with bias":
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-0.1, 0.1, model.config.vocab_size).double())
    trainer = make_trainer(
        folder,
        model=model,
        rows=make_pairs(16),
        preset="sail-ddp",
        oracle=None,
        max_steps=2,
        learning_rate=3e-3,
        per_device_train_batch_size=rows[0],
        gradient_accumulation_steps=rows[1],
        trainer_options={"peft_config": adapter_of(kind)},
        **OPTIONS.get(kind, {}),
    )
    trainer.train()
    return weights_of(trainer.model)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    for number, kind in enumerate(KINDS):
        weights = steps_of(place / str(number), kind, (2, 1))
        if int(os.environ["RANK"]) == 0:
            torch.save(weights, place / f"{number}.pt")
    from tiny import leave_together

    leave_together()
