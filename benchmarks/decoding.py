"""The decoding loop against `generate`, both with our sampler: equal texts, and the ratio of their times.

    python benchmarks/decoding.py            1M and 10M on this CPU; writes benchmarks/results/decoding.json

8 prompts with two responses of 48 tokens each, calls by turns, one thread; the ratio is a median with a bootstrap interval.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "speed"))

from world import SHAPES, make_model, make_tokenizer  # noqa: E402

from sail.evaluation.stats import ratio_interval  # noqa: E402
from sail.generation import SamplingSettings, TransformersGenerator  # noqa: E402

ROUNDS = {"1M": 40, "10M": 20}


def measure(size: str, rounds: int) -> dict[str, object]:
    """Both drivers by turns."""
    shape, chance = SHAPES[size], random.Random(0)
    model, tokenizer = make_model(shape), make_tokenizer(shape)
    settings = SamplingSettings(shape.response, eos_ids=(1,), pad_id=0)
    loop, generate = (TransformersGenerator(lambda: model, tokenizer, settings) for _ in range(2))
    generate._plain = False  # what a model that is not plain gets
    prompts = [
        [chance.randrange(2, shape.words) for _ in range(chance.randint(*shape.prompt))] for _ in range(8)
    ]
    prompts = [prompt for prompt in prompts for _ in range(2)]
    seconds: dict[str, list[float]] = {"loop": [], "generate": []}
    equal = True
    for number in range(rounds + 2):
        keys = [(0, "decoding", number, row) for row in range(len(prompts))]
        said = {}
        for name, one in chance.sample([("loop", loop), ("generate", generate)], 2):
            began = time.perf_counter()
            said[name] = [row.ids for row in one.sample(prompts, keys)]
            if number > 1:
                seconds[name].append(time.perf_counter() - began)
        equal = equal and said["loop"] == said["generate"]
    if not loop._plain:
        raise SystemExit("The loop was not used.")
    found = ratio_interval(seconds["loop"], seconds["generate"])
    return {"ratio": found.mean, "low": found.low, "high": found.high, "n": found.n, "texts_equal": equal}


if __name__ == "__main__":
    results = {size: measure(size, rounds) for size, rounds in ROUNDS.items()}
    for size, row in results.items():
        print(size, row)
    text = json.dumps(results, indent=1) + "\n"
    (HERE / "results" / "decoding.json").write_text(text, encoding="utf-8")
