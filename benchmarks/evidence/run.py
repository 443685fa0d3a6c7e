"""The study: what each composition buys over DPO. Restartable: finished runs are kept, a stopped one is run again.

    python benchmarks/evidence/run.py                       everything that is missing, in the order of plan.py
    python benchmarks/evidence/run.py --only methods --seeds 0 1 --minutes 60

Each finished run is one line of results/evidence/PART.jsonl.gz. One thread; the whole plan is kept below 6 core-hours.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
RESULTS = HERE.parent / "results" / "evidence"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts of the plan")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="these runs of them")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="these seeds")
    parser.add_argument("--minutes", type=float, default=360.0, help="begin no run after so many minutes")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/evidence"), help="starting models and pairs are kept here"
    )
    parser.add_argument("--list", action="store_true", help="show the plan and what is done, and stop")
    options = parser.parse_args()
    from plan import plan

    wanted = [
        spec
        for spec in plan()
        if (not options.only or spec.part in options.only)
        and (not options.names or spec.name in options.names)
        and (not options.seeds or spec.seed in options.seeds)
    ]
    done = {(row["part"], row["name"], row["seed"]) for row in results()}
    missing = [spec for spec in wanted if spec.key not in done]
    if options.list:
        for spec in wanted:
            print("done   " if spec.key in done else "missing", *spec.key, spec.options)
    print(f"{len(wanted)} runs in the plan, {len(missing)} missing", flush=True)
    if options.list:
        return
    from one_run import run
    from start import start_of

    began = time.monotonic()
    for spec in missing:
        if time.monotonic() - began > 60 * options.minutes:
            break
        record = run(spec, start_of(spec.seed, options.work))
        append(record)
        last = record["checkpoints"][-1]
        mean = [sum(last[key]) / len(last[key]) for key in ("reward", "kl")]
        print(
            f"{(time.monotonic() - began) / 60:6.1f} min  {spec.part:<10} {spec.name:<28} seed {spec.seed}  "
            f"reward {mean[0]:.2f}  kl {mean[1]:.2f}  calls {last['calls']}  {record['seconds']:.0f} s",
            flush=True,
        )


def results(folder: Path = RESULTS) -> list[dict]:
    """All finished runs, in the order of their files; of a run that is there twice, the later one."""
    found = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                found[(row["part"], row["name"], row["seed"])] = row
    return list(found.values())


def append(record: dict) -> None:
    """One gzip member per run: a kill leaves the earlier ones whole."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, separators=(",", ":")) + "\n"
    path = RESULTS / f"{record['part']}.jsonl.gz"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(
        (path.read_bytes() if path.exists() else b"") + gzip.compress(line.encode(), mtime=0)
    )
    unfinished.replace(path)


if __name__ == "__main__":
    main()
