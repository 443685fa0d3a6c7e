"""The files of rounds, the walk of the data loader, and sampling in parts; test_rounds.py in invariant/ trains with them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_pairs, make_trainer

from sail.errors import CheckpointError
from sail.generation import Generator, Sampled, SeedKey
from sail.online import Response
from sail.training.plan import planned_rows, random_states_kept, steps_per_pass
from sail.training.rounds import InParts, Kept, read_round, round_files, write_round
from sail.types import Preference

PAIR = Kept(
    Response((3, 1), "w0 é\u2028", False, -1.25, -0.1 - 0.2), Response((), "", True, -1e-300, -2.0),
    Preference(None, "abstained"), "oracle:r",
)  # fmt: skip
HALF = Kept(None, Response((5,), "w2", False, -3.0, -3.0), None, "policy")


# ---- files


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    kept = {(7, 3): PAIR, (8, 3): HALF}
    write_round(tmp_path, 2, kept)
    assert read_round(tmp_path, 2) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["round-2.rank-0.jsonl.gz"]


def test_equal_rounds_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_round(tmp_path / name, 0, {(0, 1): PAIR})
    first, second = (next((tmp_path / name).iterdir()).read_bytes() for name in "ab")
    assert first == second


def test_rows_of_all_processes_are_read(tmp_path: Path) -> None:
    """So that a run may go on with another number of them."""
    write_round(tmp_path, 0, {(0, 1): PAIR})
    (tmp_path / "round-0.rank-0.jsonl.gz").rename(tmp_path / "round-0.rank-1.jsonl.gz")
    write_round(tmp_path, 0, {(0, 2): HALF})
    assert read_round(tmp_path, 0) == {(0, 1): PAIR, (0, 2): HALF}
    assert set(round_files(tmp_path).values()) == {(0, 0), (0, 1)}


@pytest.mark.parametrize("harm", ["missing", "cut", "other"])
def test_a_round_that_cannot_be_read(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "round-3.rank-0.jsonl.gz"
    if harm != "missing":
        write_round(tmp_path, 3, {(0, 1): PAIR})
        path.write_bytes(path.read_bytes()[:-12] if harm == "cut" else b"other")
    with pytest.raises(CheckpointError) as refused:
        read_round(tmp_path, 3)
    assert "saved within round 3" in str(refused.value)
    assert (
        "Put the folder rounds of that run back, resume from a checkpoint at the first step of a round"
        in str(refused.value)
    )


# ---- the plan


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_planned_rows_are_the_loaders(tmp_path: Path, drop_last: bool, strategy: str) -> None:
    """Two epochs of 51 rows in micro-batches of 4 x 2, by iterating the training loader itself."""
    trainer = make_trainer(
        tmp_path, rows=make_pairs(51), dataloader_drop_last=drop_last, train_sampling_strategy=strategy
    )
    loader = trainer.get_train_dataloader()
    expected = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = [[row["index"] for row in batch["rows"].rows] for batch in loader]
        expected += [list(chain(*batches[start : start + 2])) for start in range(0, len(batches), 2)]
    per_pass = 6 if drop_last else 7
    assert steps_per_pass(loader, 2) == per_pass
    assert len(expected) == 2 * per_pass
    for first, last in ((0, 3), (2, 2 * per_pass), (per_pass, per_pass + 1)):
        planned = planned_rows(
            trainer.get_train_dataloader(), trainer.train_dataset, first=first, last=last, accumulation=2
        )
        assert [[row["index"] for row in rows] for rows in planned] == expected[first:last]


def test_random_states_are_put_back_after_an_error_too() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    with pytest.raises(ZeroDivisionError), random_states_kept():
        _ = draw()[0] / 0
    assert draw() == expected


# ---- in parts


class Echo(Generator):
    """Answers with its key; remembers the size of each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]) -> list[Sampled]:
        self.calls.append([len(prompt) for prompt in prompts])
        return [Sampled((1,), str(key[0]), -1.0, False, -1.0) for key in keys]


@pytest.mark.parametrize(
    ("size", "calls"), [(3, [[1, 2, 2], [3, 5]]), (5, [[3, 1, 2, 5, 2]]), (9, [[3, 1, 2, 5, 2]])]
)
def test_parts_are_of_like_length_and_in_order_where_one_is_enough(size: int, calls: Any) -> None:
    echo = Echo()
    prompts = [[7] * count for count in (3, 1, 2, 5, 2)]
    found = InParts(echo, size, None).sample(prompts, [(number,) for number in range(5)])
    assert [one.text for one in found] == list("01234")
    assert echo.calls == calls


def test_the_bar_tells_of_all_responses(capsys: pytest.CaptureFixture[str]) -> None:
    InParts(Echo(), 2, "round 4: sampling").sample([[1]] * 6, [(1,)] * 6)
    assert "round 4: sampling" in capsys.readouterr().err
    InParts(Echo(), 2, None).sample([[1]] * 6, [(1,)] * 6)
    assert capsys.readouterr().err == ""
