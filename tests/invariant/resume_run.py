"""A small alignment run as a process of its own, to be killed; and the means to kill and resume it until it is done.

As a script:    python resume_run.py FOLDER PRESET [SECONDS_PER_STEP]       one run, resumed if FOLDER has a checkpoint
                python resume_run.py --serve                                the same, once per line of standard input

A serving process imports once and forks for every run: a run then starts in a fraction of a second instead of several, so
that many kills can be afforded. Nothing but the imports is shared; the parent does no tensor work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 12
SAVE_STEPS = 2
ROUND = {"round_steps": 5}
"""5 steps, so that checkpoints fall within a round, and rounds span epochs."""
VARIANTS: dict[str, dict[str, Any]] = {
    "iterative-dpo": {"preset": "iterative-dpo", **ROUND},
    "spin": {"preset": "spin", **ROUND},
    "replay": {"routes": {"data": 0.2, "dpr": 0.4, "replay": 0.4}},
    "stale dpr": {"preset": "sail-dpr", "refresh": "round", "ratio_clip": 1.5, **ROUND},
    "accumulation": {
        "preset": "sail-mix",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "kl_policy_ref": 0.05,
        "policy_label": "sampled",
    },
    "lora": {"preset": "sail-mix", "lora": True},
    "lora spin": {"preset": "spin", "lora": True, **ROUND},
}
"""Options of what is run under a name that is no preset, or not with a preset's options alone."""
STATE_FILE = "trainer_state.json"
ALIGNED = "model"
SCRIPT = Path(__file__)


def environment() -> dict[str, str]:
    """One thread: the same bits in every process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


# ---- the run


def align(folder: Path, preset: str, seconds_per_step: float) -> None:
    """Resume the run of `folder`, or start it; the finished model goes to folder/model, by a rename."""
    import torch
    from tiny import make_pairs, make_trainer
    from transformers import TrainerCallback

    from sail.training.progress import StopOnSignal

    torch.set_num_threads(1)

    class Slow(TrainerCallback):
        """Real steps are long, so that a signal mostly arrives within one."""

        def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            time.sleep(seconds_per_step)

    stop = StopOnSignal()
    given = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        **VARIANTS.get(preset, {"preset": preset}),
    }
    adapter = None
    if given.pop("lora", False):
        from peft import LoraConfig

        adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = make_trainer(
        folder,
        rows=make_pairs(18),
        max_steps=STEPS,
        max_new_tokens=6,
        lr_scheduler_type="linear",
        logging_steps=3,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        trainer_options={"callbacks": [stop, Slow()], "peft_config": adapter},
        **given,
    )
    trainer.train(resume_from_checkpoint=True)
    if stop.caught:
        return
    trainer.save_model(str(folder / "unfinished-model"))
    (folder / "unfinished-model").rename(folder / ALIGNED)


def serve(run: Callable[[Path, str, float], None] = align) -> None:
    """A run per line of standard input (JSON: folder, preset, seconds); answers with its process id, then its exit code."""
    import tiny  # noqa: F401
    from peft import LoraConfig  # noqa: F401

    for line in sys.stdin:
        folder, preset, seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            output = os.open(Path(folder).with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = 1
            try:
                run(Path(folder), preset, seconds)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


# ---- killing it


class Server:
    """The serving process, seen from outside."""

    def __init__(self, script: Path = SCRIPT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def start(self, folder: Path, preset: str, seconds: float = 0.0) -> int:
        """Start a run; its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), preset, seconds]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the run started last; negative: the signal that ended it."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """No more runs."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def server(script: Path = SCRIPT) -> Iterator[Server]:
    """A serving process for the length of the block; `script` is one that calls `serve`."""
    one = Server(script)
    try:
        yield one
    finally:
        one.close()


@dataclass
class Killed:
    """What became of a run that was killed and resumed until it was finished."""

    kills: int = 0
    while_saving: int = 0
    files_then: list[int] = field(default_factory=list)
    sums: dict[str, str] = field(default_factory=dict)


def saving(folder: Path) -> Path | None:
    """A checkpoint that has begun to be written and is not finished."""
    for path in folder.glob("checkpoint-*"):
        if not (path / STATE_FILE).exists():
            return path
    return None


def kill_and_resume(
    one: Server, folder: Path, preset: str, chance: random.Random, *, kills: int, seconds: float = 0.02
) -> Killed:
    """Kill the run `kills` times, by turns at a random moment and right after a checkpoint has begun to be written; then let
    it finish. A kill that comes too late, the run being over, counts for nothing."""
    told = Killed()
    aim = [turn % 2 == 0 for turn in range(kills)]
    for at_save in aim:
        process = one.start(folder, preset, seconds)
        _wait_for_the_moment(folder, process, chance, at_save)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        if one.wait() == -signal.SIGKILL:
            told.kills += 1
            broken = saving(folder)
            told.while_saving += broken is not None
            if broken is not None:
                told.files_then.append(len(list(broken.iterdir())))
    if not (folder / ALIGNED).exists():
        one.start(folder, preset)
        code = one.wait()
        assert code == 0, folder.with_suffix(".txt").read_text()[-3000:]
    told.sums = fingerprints(folder)
    return told


def _wait_for_the_moment(folder: Path, process: int, chance: random.Random, at_save: bool) -> None:
    """Return when the kill is due, or when the run is over."""
    if not at_save:
        _poll(process, lambda: (folder / "metrics.jsonl").exists(), 30)
        _poll(process, lambda: False, chance.uniform(0.0, 1.0))
        return
    past = chance.randrange(2)
    seen: set[Path] = set()

    def nth_save() -> bool:
        path = saving(folder)
        if path is not None:
            seen.add(path)
        return len(seen) > past

    _poll(process, nth_save, 30)
    # Somewhere within the few milliseconds that saving takes.
    time.sleep(chance.uniform(0.0, 0.006))


def _poll(process: int, due: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and Path(f"/proc/{process}/exe").exists() and not due():
        time.sleep(0.0002)


def fingerprints(folder: Path) -> dict[str, str]:
    """sha256 of the final weights, of the optimizer's numbers, of the pairs and of the logged numbers but times."""
    import gzip

    import torch

    state = torch.load(folder / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)["state"]
    moments = b"".join(
        value.numpy().tobytes() for part in state.values() for value in part.values() if value.ndim
    )
    pairs = folder / "pairs.jsonl.gz"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [
        {
            key: value
            for key, value in line.items()
            if key != "time" and not key.startswith(("seconds/", "train_"))
        }
        for line in lines
    ]
    parts = {
        "weights": next((folder / ALIGNED).glob("*model.safetensors")).read_bytes(),
        "optimizer": moments,
        "pairs": gzip.decompress(pairs.read_bytes()) if pairs.exists() else b"",
        "metrics": json.dumps(logged).encode(),
    }
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


if __name__ == "__main__":
    sys.path.insert(0, str(SCRIPT.parent.parent))
    if sys.argv[1] == "--serve":
        serve()
    else:
        align(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
