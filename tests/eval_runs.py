"""A base model, its data and reward, and real runs from it, which the tests of `sail eval` measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from sail.build import run_training
from sail.config import load_config
from sail.evaluate import EvalOptions, evaluate
from sail.evaluation.files import read_json

SAIL = Path(sys.executable).with_name("sail")
"""The command line's script."""
REWARD = '''
import time
from pathlib import Path

SLOW = Path(__file__).with_name("slow")
BROKEN = Path(__file__).with_name("broken")


def reward(prompts, responses):
    """Likes the word w3 and brevity."""
    if BROKEN.exists():
        raise ConnectionError("the reward service is down")
    time.sleep(0.05 * SLOW.exists())
    return [one.split().count("w3") - 0.1 * len(one.split()) for one in responses]


def first(prompts, one, two):
    """Likes what it is shown first, a little."""
    return [0.6 if a.count("w3") == b.count("w3") else 0.9 * (a.count("w3") > b.count("w3")) + 0.1 for a, b in zip(one, two)]


def score(conversations):
    return [None if not talk[-1]["content"] else min(10, 1 + talk[-1]["content"].count("w")) for talk in conversations]
'''
HELD_OUT = 40
RUN: dict[str, Any] = {
    "model": "base",
    "data": {"train": "pairs.jsonl", "eval": "held.jsonl"},
    "oracle": {"kind": "function", "path": "reward.py:reward"},
    "train": {
        "output_dir": "",
        "preset": "sail-dpr",
        "max_length": 24,
        "max_prompt_length": 12,
        "max_new_tokens": 8,
        "learning_rate": 3e-3,
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "logging_steps": 4,
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 8,
        "eval_samples": 10,
        "seed": 5,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(home: Path, name: str, **changes: Any) -> Path:
    """The folder of a real run in home/runs."""
    values = {
        **RUN,
        **changes,
        "train": {**RUN["train"], **changes.get("train", {}), "output_dir": str(home / "runs" / name)},
    }
    (home / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return run_training(
        load_config(home / f"{name}.yaml"),
        resume=False,
        overwrite=True,
        config_path=f"{name}.yaml",
        show_config=False,
    )


def measure(subject: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    """`sail eval`; what it returns is what it wrote."""
    found = evaluate(EvalOptions(str(subject), out=str(out), batch_size=16, **options))
    assert read_json(out / "results.json") == json.loads(json.dumps(found))
    return found
