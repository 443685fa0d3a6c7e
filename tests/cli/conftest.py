"""The world and the runs of the tests of `sail eval`, made once per file of tests that asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_runs import HELD_OUT, REWARD, train, write_lines
from tiny import make_model, make_pairs, make_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world: a base model, pairs, held-out pairs, a reward."""
    home = tmp_path_factory.mktemp("eval")
    make_model(scale=0.3).save_pretrained(home / "base")
    make_tokenizer().save_pretrained(home / "base")
    rows = make_pairs(120)
    write_lines(home / "pairs.jsonl", rows[HELD_OUT:])
    write_lines(home / "held.jsonl", rows[:HELD_OUT])
    (home / "reward.py").write_text(REWARD, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def full(home: Path) -> Path:
    return train(home, "full")


@pytest.fixture(scope="module")
def lora(home: Path) -> Path:
    return train(home, "lora", peft={"r": 4, "lora_alpha": 8})
