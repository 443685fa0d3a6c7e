"""Write the playground world to a folder: prompts, the mediocre assistant's corpus, pairs, the gold rule."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from sail.playground.gold import bradley_terry
from sail.playground.world import mediocre_answer, prompts

REWARD_FILE = '''"""The gold reward of the playground world; its docstring holds the rule."""

from sail.playground.gold import reward

__all__ = ["reward"]
'''


def write_world(folder: Path, *, n_sft: int, seed: int) -> None:
    """Write the world to `folder`, which is made if need be; the files depend on `n_sft` and `seed` only.

    - base/: the untrained model and its tokenizer
    - sft.jsonl: {"prompt", "completion"}, `n_sft` answers of the mediocre assistant, going through the train
      prompts again and again
    - prompts.train.jsonl, prompts.held.jsonl: {"prompt"}
    - reward.py: `reward(prompts, responses)`, the gold rule as a function oracle
    """
    from sail.playground.model import make_model_folder  # the only part that needs torch

    folder.mkdir(parents=True, exist_ok=True)
    make_model_folder(folder / "base", seed)
    _write_jsonl(folder / "sft.jsonl", sft_rows(n_sft, seed))
    _write_jsonl(folder / "prompts.train.jsonl", ({"prompt": prompt} for prompt in prompts("train")))
    _write_jsonl(folder / "prompts.held.jsonl", ({"prompt": prompt} for prompt in prompts("held-out")))
    (folder / "reward.py").write_text(REWARD_FILE, encoding="utf-8")


def sft_rows(n: int, seed: int) -> list[dict[str, str]]:
    """The first `n` rows of the corpus; a longer corpus of the same seed begins with a shorter one."""
    train = prompts("train")
    return [
        {
            "prompt": train[i % len(train)],
            "completion": mediocre_answer(train[i % len(train)], random.Random(f"{seed}:sft:{i}")),
        }
        for i in range(n)
    ]


def pair_rows(
    responses: Sequence[tuple[str, str, str]],
    *,
    seed: int,
    stream: str = "train",
    keep_identical: bool = False,
) -> list[dict[str, str]]:
    """Label (prompt, a, b) triples by drawing from Bradley-Terry on the gold reward.

    The draw of a triple depends on `seed`, `stream` and its index only, whatever the other triples are. Two
    equal responses say nothing about preferences (their loss is log 2 whatever the model): they are left out,
    or kept with `keep_identical=True`. Raises DataError for a prompt that is not of this world.
    """
    rows = []
    for index, (prompt, a, b) in enumerate(responses):
        if a == b and not keep_identical:
            continue
        first_wins = random.Random(f"{seed}:{stream}:{index}").random() < bradley_terry(prompt, a, b)
        chosen, rejected = (a, b) if first_wins else (b, a)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_pairs(
    folder: Path,
    responses: Sequence[tuple[str, str, str]],
    *,
    seed: int,
    held: bool = False,
    keep_identical: bool = False,
) -> int:
    """Write pairs.jsonl (pairs.held.jsonl if `held`): {"prompt", "chosen", "rejected"}; returns how many.

    `responses` holds (prompt, a, b) with two answers sampled from the assistant; see `pair_rows` for the
    labels and for `keep_identical`.
    """
    stream = "held" if held else "train"
    rows = pair_rows(responses, seed=seed, stream=stream, keep_identical=keep_identical)
    folder.mkdir(parents=True, exist_ok=True)
    _write_jsonl(folder / ("pairs.held.jsonl" if held else "pairs.jsonl"), rows)
    return len(rows)


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
