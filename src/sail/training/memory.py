"""What the oracle has labelled so far in a run, for route replay: kept in memory.jsonl.gz, so that a resumed run remembers it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sail import seeds
from sail.errors import CheckpointError
from sail.online import Example, Response
from sail.types import Preference

MEMORY = "memory.jsonl.gz"
EMPTY = "nothing had been labelled yet"


class Memory:
    """The labelled on-policy pairs of all processes, in the order in which they were labelled. Every process holds all."""

    def __init__(self) -> None:
        self.pairs: list[dict[str, Any]] = []

    def add(self, pairs: Sequence[dict[str, Any]]) -> None:
        """Remember the pairs of a step, of all processes."""
        self.pairs.extend(pairs)

    def restore(self, file: Path, size: int) -> None:
        """What the first `size` bytes of the run's file hold; whoever truncates the file to it may do so later."""
        self.pairs = []
        if not size:
            return
        try:
            with file.open("rb") as opened:
                text = gzip.decompress(opened.read(size)).decode()
            self.pairs = [json.loads(line) for line in text.splitlines()]
        except (OSError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"Route replay needs the pairs that were labelled before, and {file} cannot be read ({error}). Put the file of "
                "that run back, or start anew."
            ) from error

    def recall(self, examples: Sequence[Example], seed: int, step: int) -> None:
        """Give each replay row a remembered pair, drawn uniformly by the row's own stateless number. While there is none the
        row is inactive: it takes no part in the step."""
        for example in examples:
            if example.share.route.label != "memory":
                continue
            if not self.pairs:
                example.first = example.second = Response((), "", False)
                example.preference, example.asked = Preference(None, EMPTY), False
                continue
            place = int(seeds.uniform(seed, "replay", step, example.index) * len(self.pairs))
            pair = self.pairs[place]
            example.row = {"index": example.index, "prompt": pair["prompt"], "prompt_ids": pair["prompt_ids"]}
            example.first, example.second = (
                Response(tuple(pair[side]["ids"]), pair[side]["text"], pair[side]["cut"])
                for side in ("first", "second")
            )
            example.preference = Preference(pair["probability"])


def labelled_pairs(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The step's pairs that an oracle has given a probability, as records. Identical responses teach nothing and are left out."""
    return [
        {
            "index": example.index,
            "prompt": example.row["prompt"],
            "prompt_ids": list(example.row["prompt_ids"]),
            **{
                side: {"ids": list(response.ids), "text": response.text, "cut": response.cut}
                for side, response in zip(("first", "second"), example.responses, strict=True)
            },
            "probability": example.preference.first_wins,
        }
        for example in examples
        if example.share.route.label == "oracle"
        and example.responses[0].text != example.responses[1].text
        and example.preference is not None
        and example.preference.first_wins is not None
    ]
