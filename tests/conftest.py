"""One thread and no waiting threads: the same bits on every machine, and no slowdown where cores are shared.

The environment must be set before torch is imported, hence here and before the import. Helpers that tests share lie
beside this file and are imported by their plain name: `from tiny import make_model`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Not at import: tests of the command line and of pure Python need no torch.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
