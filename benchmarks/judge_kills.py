"""Kill runs that are labelled by a judge over HTTP with SIGKILL, resume them until they finish, compare with a calm one.

    python benchmarks/judge_kills.py [--kills 100]       prints a line per run, writes benchmarks/results/judge_kills.json

The judge misbehaves: half of the questions meet errors, limits, cut or unreadable replies first. Each run is killed at most four
times: twice while calls are on their way, once while it writes a checkpoint, once at a random moment. What must hold of every
run: labels, weights and optimizer of the uninterrupted one; every question answered exactly once in the ledger; whatever the
judge answered again was in flight at a kill and is listed as possibly paid.
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

from fake_judge import FakeJudge  # noqa: E402
from judged_run import CONCURRENCY, SCRIPT, audit, kill_during_calls, labels  # noqa: E402
from resume_run import STEPS, Server, fingerprints, kill_and_resume, server  # noqa: E402
from test_judged_run import faulty  # noqa: E402

KILLS_DURING_CALLS = 2
OTHER_KILLS = 2
LATENCY = 0.03


def one_run(one: Server, folder: Path, chance: random.Random) -> dict[str, object]:
    """Kill and resume a run until it is finished; what became of it."""
    with FakeJudge(faulty, latency=LATENCY) as judge:
        hit = kill_during_calls(one, folder, judge, chance, kills=KILLS_DURING_CALLS)
        told = kill_and_resume(one, folder, judge.url, chance, kills=OTHER_KILLS)
    kills, again = hit + told.kills, sum(judge.paid.values()) - len(judge.paid)
    try:
        counts, sound = audit(folder, kills), True
    except AssertionError as error:
        counts, sound = {"calls": 0, "answers": 0, "possibly_paid": 0}, False
        print(f"  the ledger is not sound: {error}")
    return {
        "kills": kills,
        "killed_during_calls": hit,
        "killed_while_saving": told.while_saving,
        **counts,
        "requests": sum(judge.asked.values()),
        "paid_again": again,
        "sound": sound and again <= counts["possibly_paid"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="kills that hit a run")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "judge_kills.json")
    options = parser.parse_args()
    start, chance, runs = time.time(), random.Random("judge kills"), []
    with server(SCRIPT) as one, tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        with FakeJudge() as judge:
            one.start(whole, judge.url)
            if one.wait() != 0:
                raise SystemExit(whole.with_suffix(".txt").read_text())
        expected, expected_labels = fingerprints(whole), labels(whole)
        while sum(run["kills"] for run in runs) < options.kills:
            folder = Path(place) / str(len(runs))
            run = one_run(one, folder, chance)
            run["identical"] = fingerprints(folder) == expected and labels(folder) == expected_labels
            runs.append(run)
            print(len(runs), run, flush=True)
    write(options.output, runs, len(expected_labels), time.time() - start)
    if not all(run["identical"] and run["sound"] for run in runs):
        raise SystemExit(
            "Not every killed run ended with the labels of the uninterrupted one and a sound ledger."
        )


def write(output: Path, runs: list[dict[str, object]], labels_per_run: int, seconds: float) -> None:
    """Sums of all runs, and the runs."""
    import torch
    import transformers

    sums = (
        "kills",
        "killed_during_calls",
        "killed_while_saving",
        "calls",
        "answers",
        "possibly_paid",
        "requests",
        "paid_again",
    )
    sums += ("identical", "sound")
    result = {
        "runs": len(runs),
        **{name: sum(int(run[name]) for run in runs) for name in sums},
        "steps_per_run": STEPS,
        "labels_per_run": labels_per_run,
        "concurrency": CONCURRENCY,
        "latency": LATENCY,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "each": runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
