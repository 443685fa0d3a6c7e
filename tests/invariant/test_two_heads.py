"""Two gloo processes train a head that shares no weights with the embeddings, as one process does (tests/two_heads.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from tiny import largest_difference, make_model
from two_heads import KINDS, steps_of

SCRIPT = Path(__file__).parent.parent / "two_heads.py"


def test_two_processes_train_a_head_as_one_does(tmp_path: Path) -> None:
    """The log-probs leave the forward by the side; DistributedDataParallel, with and without its search for unused parameters,
    must still wait for the head's gradient and average it. Expected: one process that accumulates."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    start = make_model(torch.float64, scale=0.1, tie_word_embeddings=False).lm_head.weight
    for number, kind in enumerate(KINDS):
        here = steps_of(tmp_path / "one" / str(number), kind, (2, 2))
        there = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert largest_difference(here, there) <= 1e-10, kind
        frozen = "base_layer", "original_module", "lora_A"
        heads = [there[name] for name in there if "lm_head" in name and not any(map(name.count, frozen))]
        assert heads, kind
        assert not any(torch.equal(one, start) or not one.any() for one in heads), kind
