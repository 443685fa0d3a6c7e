"""DeepSpeed ZeRO-2 and ZeRO-3 in two processes train what one process trains, and resume; only where deepspeed is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import largest_difference, weights_of
from zero_run import zero_trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
SCRIPT = Path(__file__).parent.parent / "zero_run.py"


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_equal_one(tmp_path: Path, stage: int) -> None:
    """In float32, because DeepSpeed has no float64 path; the run resumed from its middle is equal to the bit."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path / "two"), str(stage)],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    there = torch.load(tmp_path / "two" / "end.pt", weights_only=True)
    assert (there["shares"] == [(0,)]) is (stage == 3)
    assert there["resumed_apart"] == 0.0
    one = zero_trainer(tmp_path / "one", sharded=False)
    one.train()
    assert largest_difference(weights_of(one.model), there["weights"]) < 1e-5
    assert there["losses"] == pytest.approx(
        [line["loss"] for line in one.state.log_history if "loss" in line], abs=1e-6
    )
