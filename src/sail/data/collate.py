"""From encoded rows to tensors. Masks come from lengths, never from pad ids: pad may be the EOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sail.data.encode import EncodedRow


@dataclass(frozen=True)
class Unsearched:
    """B rows, and neither a list nor a sequence: in those accelerate and the loader look for tensors, token id by token id."""

    rows: list[EncodedRow]


class RowCollator:
    """A micro-batch of whole rows. Nothing is padded: the routes decide which responses a row will have."""

    def __call__(self, rows: list[EncodedRow]) -> dict[str, Any]:
        """{"index": (B,) long, the rows' positions in the dataset; "rows": the B rows as they are, Unsearched}."""
        return {
            "index": torch.tensor([row["index"] for row in rows], dtype=torch.long),
            "rows": Unsearched(rows),
        }


def pad_pairs(sequences: Sequence[tuple[list[int], list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Joins N (prompt ids, response ids) and pads them on the right to the longest, L tokens.

    Returns input_ids (N, L) long; attention_mask (N, L) long, 1 on the N sequences; response_mask (N, L)
    bool, true on response tokens, the EOS included. No sequences give shapes (0, 0).

    >>> pad_pairs([([5], [6, 2]), ([5, 7], [2])], pad_id=2)["response_mask"].tolist()
    [[False, True, True], [False, False, True]]
    """
    starts = torch.tensor([len(prompt) for prompt, _ in sequences], dtype=torch.long)
    ends = torch.tensor([len(prompt) + len(response) for prompt, response in sequences], dtype=torch.long)
    length = int(ends.max()) if len(sequences) else 0
    input_ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    for line, (prompt, response) in zip(input_ids, sequences, strict=True):
        line[: len(prompt) + len(response)] = torch.tensor([*prompt, *response], dtype=torch.long)
    position = torch.arange(length)
    attended = position < ends[:, None]
    return {
        "input_ids": input_ids,
        "attention_mask": attended.long(),
        "response_mask": attended & (position >= starts[:, None]),
    }


def response_positions(response_mask: Tensor) -> Tensor:
    """Where in the flat (N, L) the next token is one of a response, (M,) long, in order; response_mask (N, L)."""
    ahead = torch.zeros_like(response_mask, dtype=torch.bool)
    ahead[:, :-1] = response_mask[:, 1:].bool()
    return ahead.flatten().nonzero().squeeze(1)


def prompt_columns(
    prompts: list[list[int]], lengths: list[int], device: torch.device | None = None
) -> dict[str, Any]:
    """prompt_lengths: (B,). joined_length: J, tokens of the longest pair as one sequence. even: all 2B separate sequences are
    equally long. lengths: of the 2B responses."""
    own = [len(prompt) for prompt in prompts]
    both = zip(own, lengths[: len(own)], lengths[len(own) :], strict=True)
    whole = {prompt + response for prompt, response in zip(own * 2, lengths, strict=True)}
    return {
        "prompt_lengths": torch.tensor(own, dtype=torch.long, device=device),
        "joined_length": max(map(sum, both), default=0),
        "even": len(whole) == 1,
    }
