"""Small runs in rounds, and what they leave behind: helpers of test_rounds*.py."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tiny import make_pairs, make_trainer

ROWS = 18
STEPS = 8
TIMES = ("time", "seconds/", "train_runtime", "_per_second")


def trainer(folder: Path, **options: Any) -> Any:
    """18 rows in steps of 2 x 2: an epoch is 5 steps, the last of them short; rounds span its end."""
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "max_new_tokens": 6,
        "rows": make_pairs(ROWS),
    }
    return make_trainer(folder, **{**defaults, **options})


def run(folder: Path, **options: Any) -> Any:
    one = trainer(folder, **options)
    one.train()
    return one


def pairs(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in gzip.decompress((folder / "pairs.jsonl.gz").read_bytes()).splitlines()
    ]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that belong to steps, without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not any(part in key for part in TIMES)}
        for line in found
        if "loss" in line
    ]


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
