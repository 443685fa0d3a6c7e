"""Kill runs of many compositions with SIGKILL, resume them until they finish, compare with the uninterrupted run.

    python benchmarks/kills.py [--runs 5]          5 runs of each; prints a table, writes benchmarks/results/kills.json

Each run is killed three times: right after a checkpoint has begun to be written, at a random moment, and while saving again.
Identical means equal sha256 of the final weights, of the optimizer's moments, of the recorded pairs and of the logged numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "invariant")]

from resume_run import STEPS, VARIANTS, Server, fingerprints, kill_and_resume, server  # noqa: E402

PRESETS = ("sail-ddp", "sail-dpp", "sail-dpr", *VARIANTS)
KILLS_PER_RUN = 3


def measure(one: Server, preset: str, runs: int) -> dict[str, object]:
    """The row of one composition."""
    chance = random.Random(preset)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        one.start(whole, preset)
        if one.wait() != 0:
            raise SystemExit(whole.with_suffix(".txt").read_text())
        expected = fingerprints(whole)
        told = [
            kill_and_resume(one, Path(place) / str(run), preset, chance, kills=KILLS_PER_RUN)
            for run in range(runs)
        ]
    return {
        "composition": preset,
        "n": sum(run.kills > 0 for run in told),
        "identical": sum(run.sums == expected for run in told if run.kills > 0),
        "kills": sum(run.kills for run in told),
        "killed_while_saving": sum(run.while_saving for run in told),
        "runs_killed_while_saving": sum(run.while_saving > 0 for run in told),
        "files_in_the_broken_checkpoints": sorted(count for run in told for count in run.files_then),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per composition")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "kills.json")
    options = parser.parse_args()
    start = time.time()
    heads = ("composition", "n", "identical", "kills", "killed_while_saving")
    print("{:13} {:>4} {:>10} {:>6} {:>20}".format(*heads))
    rows = []
    with server() as one:
        for preset in PRESETS:
            rows.append(measure(one, preset, options.runs))
            print("{:13} {:>4} {:>10} {:>6} {:>20}".format(*(rows[-1][head] for head in heads)), flush=True)
    import torch
    import transformers

    result = {
        "steps_per_run": STEPS,
        "kills_aimed_at_per_run": KILLS_PER_RUN,
        "rows": rows,
        "seconds": round(time.time() - start, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    if any(row["identical"] != row["n"] or row["n"] < options.runs for row in rows):
        raise SystemExit("Not every killed run ended identically.")


if __name__ == "__main__":
    main()
