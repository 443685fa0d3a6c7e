"""One of two processes of a small run, started by hand as a launcher would, so that one of them can be killed.

As a script:   python two_ranks.py --serve      a run per line of standard input (resume_run.serve); its "preset" is RANK:PORT
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

STEPS = 8


def align(folder: Path, place: str, seconds_per_step: float) -> None:
    """Resume the run of `folder`, or start it; the first process keeps the weights at its end."""
    import torch
    from tiny import make_pairs, make_trainer, weights_of
    from transformers import TrainerCallback

    rank, port = place.split(":")
    os.environ.update(
        RANK=rank,
        LOCAL_RANK=rank,
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        LOCAL_WORLD_SIZE="2",
    )
    torch.set_num_threads(1)

    class Slow(TrainerCallback):
        """Long steps, so that a kill comes within one."""

        def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            time.sleep(seconds_per_step)

    trainer = make_trainer(
        folder,
        rows=make_pairs(24),
        preset="sail-mix",
        max_steps=STEPS,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=2,
        trainer_options={"callbacks": [Slow()]},
    )
    trainer.train(resume_from_checkpoint=True)
    if rank == "0":
        torch.save(weights_of(trainer.model), folder / "end.pt")
    torch.distributed.barrier()
    # Together: a process that leaves with its group open may abort.
    with contextlib.suppress(RuntimeError):
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    from resume_run import serve

    serve(align)
