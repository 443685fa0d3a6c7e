"""A pair's prompt read once against twice: the model's body, forward alone, and forward and backward, by turns.

    python benchmarks/joined.py [--rounds 12]         about 5 minutes; prints a table, writes benchmarks/results/joined.json

8 pairs, float32, one thread. `by the rule` is what generation/joined.pays says of such a batch; a ratio is the median over
rounds with a 95% bootstrap interval, joined over apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "speed"))

from world import SHAPES, make_model  # noqa: E402

from sail.data.collate import pad_pairs, prompt_columns, response_positions  # noqa: E402
from sail.evaluation.stats import ratio_interval  # noqa: E402
from sail.generation.joined import joined, pays  # noqa: E402

RESULTS = ROOT / "results" / "joined.json"
PAIRS, WARM_UP = 8, 2
CASES = (
    ("1M", (6, 14), 48),
    ("1M", (40, 60), 48),
    ("1M", (6, 14), 96),
    ("10M", (6, 14), 48),
    ("10M", (40, 60), 48),
    ("10M", (6, 14), 96),
    ("10M", (6, 14), 192),
)
"""Size, tokens of the prompts (from, to), tokens of each response."""


def make_batch(prompt: tuple[int, int], response: int) -> dict[str, Any]:
    """Random pairs, as `online.collate` makes them."""
    chance = random.Random(0)

    def words(number: int) -> list[int]:
        return [chance.randrange(2, 1000) for _ in range(number)]

    prompts = [words(chance.randint(*prompt)) for _ in range(PAIRS)]
    sequences = [(one, words(response)) for one in prompts * 2]
    batch: dict[str, Any] = dict(pad_pairs(sequences, 0))
    lengths = [response] * len(sequences)
    return batch | prompt_columns(prompts, lengths) | {"lengths": torch.tensor(lengths)}


def measured(size: str, prompt: tuple[int, int], response: int, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    model, batch = make_model(SHAPES[size]), make_batch(prompt, response)
    model.config.max_position_embeddings = (
        4096  # rotary positions have no end; the rule is asked about tokens only
    )
    places = response_positions(batch["response_mask"])

    def apart() -> torch.Tensor:
        return body(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def together() -> torch.Tensor:
        return body(model, **joined(model, batch, places).inputs)

    seconds: dict[str, list[float]] = {name: [] for name in ("apart", "joined", "apart +", "joined +")}
    for number in range(rounds + WARM_UP):
        for name in random.Random(number).sample(sorted(seconds), 4):
            taken = timed(apart if "apart" in name else together, backward="+" in name)
            if number >= WARM_UP:
                seconds[name].append(taken)
    read = len(batch["input_ids"]) // 2 * batch["joined_length"] / batch["input_ids"].numel()
    row: dict[str, Any] = {
        "size": size,
        "prompt": list(prompt),
        "response": response,
        "tokens": round(read, 3),
    }
    row["by the rule"] = pays(model, batch)
    for name, end in (("forward", ""), ("forward and backward", " +")):
        found = ratio_interval(seconds["joined" + end], seconds["apart" + end])
        row[name] = {"median": found.mean, "low": found.low, "high": found.high, "n": found.n}
    return row


def body(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    """Hidden states, without the head."""
    hidden: torch.Tensor = model.model(**inputs, use_cache=False).last_hidden_state
    return hidden


def timed(call: Callable[[], torch.Tensor], *, backward: bool) -> float:
    """Seconds of one pass."""
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        hidden = call()
    if backward:
        hidden.sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12, help="of 10M; 1M has three times as many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size, prompt, response in CASES:
        row = measured(size, prompt, response, given.rounds * (3 if size == "1M" else 1))
        rows.append(row)
        ratios = "  ".join(
            f"{name} {row[name]['median']:.2f} [{row[name]['low']:.2f}, {row[name]['high']:.2f}]"
            for name in ("forward", "forward and backward")
        )
        print(
            f"{size:4} prompt {prompt} responses {response:3}  tokens {row['tokens']:.2f}  {ratios}  {row['by the rule']}"
        )
    RESULTS.write_text(
        json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
