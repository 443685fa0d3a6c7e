"""The same training on other schedules: 8 rows in one process, 4 x 2 by accumulation, and two processes of 4 rows each.

    python benchmarks/schedule.py [--steps 20]          prints a table, writes benchmarks/results/schedule.json

For each composition, in float64 and in float32, against one process with 8 rows per step: whether the sampled texts are equal,
the largest difference of a weight at the end, and the largest difference of a logged loss. In float32 a text can differ,
because a token is drawn by comparing a number with a sum; its step's loss is then another pair's, so losses are also compared
over the steps before the first such text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "invariant")]

import torch  # noqa: E402
from tiny import largest_difference  # noqa: E402

ROWS = 48
ROUND = {"refresh": "round", "round_steps": 4}
COMPOSITIONS: dict[str, dict[str, Any]] = {
    "data": {"preset": "dpo"},
    "ddp": {"preset": "sail-ddp"},
    "dpp": {"preset": "sail-dpp"},
    "dpr": {"preset": "sail-dpr"},
    "mix": {"preset": "sail-mix"},
    "mix, KL and NLL penalties": {"preset": "sail-mix", "kl_policy_ref": 0.05, "nll": 0.01},
    "replay": {"routes": {"data": 0.2, "dpr": 0.4, "replay": 0.4}},
    "ask_share .6": {"preset": "online-dpo", "ask_share": 0.6},
    "rounds of 4 steps": {"preset": "sail-dpr", **ROUND},
    "rounds, best and worst of 8": {"preset": "iterative-dpo", **ROUND},
    "rounds, spin, new references": {"preset": "spin", **ROUND},
    "mix, untied head": {"preset": "sail-mix", "untied": True},
    "mix, LoRA, head too": {"preset": "sail-mix", "untied": True, "lora": ("q_proj", "v_proj", "lm_head")},
}
KINDS = {"float64": torch.float64, "float32": torch.float32}
ONE, ACCUMULATED, TWO = "1 process, 8 rows", "1 process, 4 rows x 2", "2 processes, 4 rows"
ROW_SHAPES = {ONE: (8, 1), ACCUMULATED: (4, 2), TWO: (4, 1)}


def run_all(place: Path, schedule: str, steps: int) -> None:
    """Every composition on one schedule, in this process; a result file for each from the first process."""
    from test_schedule import run

    torch.set_num_threads(1)
    for number, (name, options) in enumerate(COMPOSITIONS.items()):
        for kind, dtype in KINDS.items():
            folder = place / f"{number}-{kind}"
            weights, pairs, log = run(
                folder, ROW_SHAPES[schedule], dtype=dtype, rows=ROWS, steps=steps, **options
            )
            if int(os.environ.get("RANK", "0")) == 0:
                losses = [line["loss"] for line in log[:steps]]
                torch.save({"name": name, "weights": weights, "losses": losses}, folder / "result.pt")
                (folder / "pairs.json").write_text(json.dumps(pairs))


def compared(first: Path, second: Path, dtype: torch.dtype) -> dict[str, Any]:
    """What two runs of the same composition have in common."""
    one, other = (torch.load(folder / "result.pt", weights_only=True) for folder in (first, second))
    pairs = [json.loads((folder / "pairs.json").read_text()) for folder in (first, second)]
    assert [(pair["step"], pair["index"]) for pair in pairs[0]] == [
        (pair["step"], pair["index"]) for pair in pairs[1]
    ]
    texts = [
        (a["step"], a[side] == b[side]) for a, b in zip(*pairs, strict=True) for side in ("first", "second")
    ]
    gaps = [abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True)]
    until = min((step for step, equal in texts if not equal), default=len(gaps))
    return {
        "texts": len(texts),
        "equal_texts": sum(equal for _, equal in texts),
        "largest_weight_difference": largest_difference(one["weights"], other["weights"]),
        "largest_loss_difference": max(gaps),
        "steps_before_a_text_differs": until,
        "largest_loss_difference_before": max(gaps[:until], default=0.0),
    }


def measure(steps: int) -> list[dict[str, Any]]:
    """A row per composition, precision and schedule."""
    with tempfile.TemporaryDirectory() as place:
        for name, schedule in (("one", ONE), ("accumulated", ACCUMULATED), ("two", TWO)):
            command = [sys.executable]
            if schedule == TWO:
                command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            command += [
                __file__,
                "--steps",
                str(steps),
                "--part",
                schedule,
                "--place",
                str(Path(place) / name),
            ]
            paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
            print(f"{schedule}: done", flush=True)
        rows = []
        for number, composition in enumerate(COMPOSITIONS):
            for kind, dtype in KINDS.items():
                for name, schedule in (("accumulated", ACCUMULATED), ("two", TWO)):
                    one, other = (Path(place) / part / f"{number}-{kind}" for part in ("one", name))
                    found = compared(one, other, dtype)
                    rows.append(
                        {"composition": composition, "precision": kind, "schedule": schedule, **found}
                    )
        return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"{'composition':30} {'precision':9} {'schedule':22} {'texts':>11} {'weights':>8} {'losses':>8}")
    for row in rows:
        texts = f"{row['equal_texts']}/{row['texts']}"
        numbers = f"{row['largest_weight_difference']:8.0e} {row['largest_loss_difference']:8.0e}"
        print(f"{row['composition']:30} {row['precision']:9} {row['schedule']:22} {texts:>11} {numbers}")


def main() -> None:
    """Measure, print, write; a run of one schedule where --part says so."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "schedule.json")
    parser.add_argument("--part", choices=list(ROW_SHAPES), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_all(options.place, options.part, options.steps)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        return
    start = time.time()
    rows = measure(options.steps)
    show(rows)
    import transformers

    result = {
        "steps": options.steps,
        "rows_per_step": 8,
        "against": ONE,
        "rows": rows,
        "seconds": round(time.time() - start, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    exact = [row for row in rows if row["precision"] == "float64"]
    if any(row["largest_weight_difference"] > 1e-10 or row["equal_texts"] < row["texts"] for row in exact):
        raise SystemExit("In float64 a schedule changed the training.")


if __name__ == "__main__":
    main()
