"""A small run that is labelled by a judge over HTTP, as a process of its own, to be killed; see resume_run.py.

The preset's place in a request holds the address of the judge. Every row of the run asks it: route dpr alone, corrected.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__)
CONCURRENCY = 3


def make_judge(url: str, ledger: Path, *, run: str = "") -> Any:
    """The judge of the run, patient with short waits."""
    from sail.oracles.calls import Patience
    from sail.oracles.judge import Judge
    from sail.oracles.ledger import Ledger

    return Judge(
        url,
        "fake",
        ledger=Ledger(ledger, run=run),
        patience=Patience(attempts=6, first_wait=0.01, longest_wait=1.0),
        concurrency=CONCURRENCY,
        timeout=20.0,
    )


def align(folder: Path, url: str, seconds_per_step: float) -> None:
    """Resume the run of `folder`, or start it; the finished model goes to folder/model, by a rename."""
    import torch
    from resume_run import ALIGNED, SAVE_STEPS, STEPS
    from tiny import make_pairs, make_trainer
    from transformers import TrainerCallback

    torch.set_num_threads(1)

    class Slow(TrainerCallback):
        """Real steps are long, so that a signal does not always arrive within a call."""

        def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            time.sleep(seconds_per_step)

    trainer = make_trainer(
        folder,
        rows=make_pairs(18),
        oracle=make_judge(url, folder / "ledger.sqlite"),
        routes={"dpr": {"weight": 1.0, "coefficient": 0.3}},
        max_steps=STEPS,
        per_device_train_batch_size=2,
        max_new_tokens=6,
        lr_scheduler_type="linear",
        logging_steps=3,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        trainer_options={"callbacks": [Slow()]},
    )
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(folder / "unfinished-model"))
    (folder / "unfinished-model").rename(folder / ALIGNED)


# ---- killing it


def kill_during_calls(one: Any, folder: Path, judge: Any, chance: random.Random, *, kills: int) -> int:
    """Kill the run `kills` times while calls are on their way: at a request drawn by chance, somewhere between its sending
    and the settling of its answer. How many kills hit; the run may be unfinished then."""
    hit = 0
    for _ in range(kills):
        process = one.start(folder, judge.url)
        due = sum(judge.asked.values()) + chance.randint(1, 20)
        while sum(judge.asked.values()) < due and Path(f"/proc/{process}/exe").exists():
            time.sleep(0.0005)
        time.sleep(chance.uniform(0.0, 1.2 * judge.latency))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        hit += one.wait() == -signal.SIGKILL
    return hit


# ---- what must hold afterwards


def labels(folder: Path) -> list[tuple[Any, ...]]:
    """Every on-policy pair of the run with its label, in order."""
    lines = gzip.decompress((folder / "pairs.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    return [tuple(sorted((name, json.dumps(value)) for name, value in row.items())) for row in rows]


def calls_of(folder: Path) -> list[tuple[str, str]]:
    """(question, state) of every call in the ledger; read without sail, so that a fault of its reader cannot hide one."""
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        return db.execute(
            "SELECT comparisons.hash, state FROM calls JOIN comparisons ON comparisons.id = comparison"
        ).fetchall()


def audit(folder: Path, kills: int) -> dict[str, int]:
    """Counts of the ledger; asserts that every question has exactly one answer and that each kill left no more open intents than
    there were calls at once."""
    calls = calls_of(folder)
    answered = Counter(question for question, state in calls if state == "answered")
    left_open = sum(state == "sent" for _, state in calls)
    assert set(answered.values()) <= {1}, answered
    assert {question for question, _ in calls} == set(answered), "a question without an answer"
    assert left_open <= CONCURRENCY * kills
    return {"calls": len(calls), "answers": len(answered), "possibly_paid": left_open}


if __name__ == "__main__":
    sys.path[:0] = [str(SCRIPT.parent.parent), str(SCRIPT.parent)]
    from resume_run import serve

    serve(align)
