"""FSDP2 in two gloo processes (tests/sharded_run.py) trains what one process trains, and resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_run import RUNS, finished, sharded_trainer
from test_schedule import assert_same_pairs, pairs_of
from tiny import largest_difference, make_model, weights_of

pytestmark = pytest.mark.slow

STEPS = 4
SCRIPT = Path(__file__).parent.parent / "sharded_run.py"


def test_two_sharded_processes_equal_one(tmp_path: Path) -> None:
    """Weights, texts, held-out numbers; and the run resumed after half its steps ends at the same weights. Of the first step's
    four rows a process may sample none: the processes make different numbers of passes while the weights are whole."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path), str(STEPS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # 5 rows of 2 samples in parts of 2, and at once: the process without a row calls as often.
    assert json.loads((tmp_path / "calls.json").read_text()) == [[5, 1], [5, 1]]
    for name in RUNS:
        there = torch.load(tmp_path / name / "result.pt", weights_only=True)
        assert there["parts"] >= 3  # two layers and what is around them
        folder = tmp_path / "one" / name
        trainer = sharded_trainer(
            folder, name, steps=STEPS, sharded=False, eval_strategy="steps", eval_steps=4, eval_samples=5
        )
        trainer.train()
        here = finished(trainer, folder)
        assert largest_difference(here["weights"], there["weights"]) <= 1e-10, name
        assert largest_difference(here["weights"], there["resumed"]) <= 1e-10, name
        assert_same_pairs(pairs_of(folder), pairs_of(tmp_path / name))
        numbers = ("eval_loss", "eval_kl", "eval_length", "eval_reward")
        assert {key: here["log"][STEPS][key] for key in numbers} == pytest.approx(
            {key: there["log"][STEPS][key] for key in numbers}, abs=1e-9
        )
        if name == "mix":
            start = weights_of(make_model(torch.float64, scale=0.1))
            assert largest_difference(start, here["weights"]) > 1e-3
