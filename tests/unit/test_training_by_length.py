"""Rows of like length share a micro-batch, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import make_model, make_trainer, weights_of

from sail.mixture import ROUTES, Share
from sail.online import Example, Response, by_length
from sail.training import step as step_module


def example(index: int, prompt: int, first: int, second: int) -> Example:
    row = {"index": index, "prompt_ids": [3] * prompt}
    responses = (Response((4,) * first, "", False), Response((5,) * second, "", False))
    return Example(row, Share(ROUTES["data"], 1.0), 0.0, *responses)


def test_the_longest_first_and_every_row_once() -> None:
    rows = [
        example(0, 2, 3, 4),
        example(1, 9, 1, 1),
        example(2, 2, 8, 1),
        example(3, 1, 1, 1),
        example(4, 2, 4, 3),
    ]
    dealt = by_length(rows, [2, 2, 1])
    # Lengths with the longer response: 6, 10, 10, 2, 6; equal ones in their order.
    assert [[one.index for one in part] for part in dealt] == [[1, 2], [0, 4], [3]]


def test_one_micro_batch_stays_as_it_is() -> None:
    rows = [example(0, 1, 1, 1), example(1, 5, 5, 5)]
    assert by_length(rows, [2]) == [rows]


def test_the_same_step_with_less_padding(tmp_path: Path, monkeypatch: Any) -> None:
    """Three steps of four micro-batches, mixed routes with a correction: the weights of rows dealt out in their own order to
    1e-10, and fewer padded positions."""
    weights, padded = [], []
    for name in ("own order", "by length"):
        if name == "own order":
            monkeypatch.setattr(step_module, "by_length", _in_order)
        else:
            monkeypatch.undo()
        routes = {"data": {"weight": 0.5}, "dpr": {"weight": 0.5, "coefficient": 0.3}}
        trainer = make_trainer(
            tmp_path / name,
            model=make_model(torch.float64, scale=0.3),
            routes=routes,
            max_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
        positions: list[int] = []
        real = trainer.maker.make

        def counted(*given: Any, real: Any = real, positions: list[int] = positions) -> Any:
            made = real(*given)
            positions.extend(int((batch["attention_mask"] == 0).sum()) for batch in made.batches)
            return made

        trainer.maker.make = counted
        trainer.train()
        weights.append(weights_of(trainer.model))
        padded.append(sum(positions))
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-10
    assert padded[1] < 0.8 * padded[0]


def _in_order(examples: Any, sizes: Any) -> Any:
    taken = iter(examples)
    return [[next(taken) for _ in range(size)] for size in sizes]
