"""A small alignment run whose labels come from people, as a function and as a process of its own, to be stopped.

As a script:    python people_run.py FOLDER       the page is not served: labels come over the file
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STEPS = 6


def make_run(folder: Path, **options: Any) -> tuple[Any, Any]:
    """The trainer and its oracle; `options` are those of People."""
    from tiny import make_pairs, make_trainer

    from sail.oracles.people import People

    people = People(folder, **{"port": 0, "poll": 0.01, **options})
    trainer = make_trainer(
        folder,
        rows=make_pairs(18),
        oracle=people,
        routes={"data": {"weight": 0.4}, "dpr": {"weight": 0.6, "coefficient": 0.3}},
        max_steps=STEPS,
        per_device_train_batch_size=2,
        max_new_tokens=6,
        logging_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    return trainer, people


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import torch

    torch.set_num_threads(1)
    made, _ = make_run(Path(sys.argv[1]), serve=False)
    made.train(resume_from_checkpoint=True)
