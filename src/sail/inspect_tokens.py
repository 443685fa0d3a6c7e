"""Lengths of rows in tokens, exactly as training would count them, and what its limits would do to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, GenerationConfig

from sail.build import make_tokenizer
from sail.data.encode import encode_prompt, encode_response, eos_ids
from sail.data.formats import Row
from sail.errors import DataError

SHOWN_BAD = 5


@dataclass
class Counted:
    """For each row the number of ids of prompt, chosen and rejected (or of the prompt alone); None where it has no ids. tokens,
    unknown: of all rows, and how many of them say that the tokenizer cannot spell the text; 0 where it has no such token."""

    lengths: list[tuple[int, ...] | None] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    tokens: int = 0
    unknown: int = 0

    def add(self, parts: Sequence[Sequence[int]], unknown: int | None) -> None:
        """A row: the ids of its parts."""
        self.lengths.append(tuple(map(len, parts)))
        self.tokens += sum(map(len, parts))
        self.unknown += sum(one == unknown for part in parts for one in part)


def count_tokens(rows: Sequence[Row], name: str) -> Counted:
    """Counts with the tokenizer of a folder or a name, its chat template and its ends of a response.

    Raises ConfigError where it cannot be loaded, and DataError where it has no chat template for rows that are conversations.
    """
    tokenizer = make_tokenizer(name)
    ends = eos_ids(tokenizer, _generation_config(name))
    special = {*ends, tokenizer.pad_token_id, tokenizer.bos_token_id}  # GPT-2's unknown token is its EOS
    unknown = None if tokenizer.unk_token_id in special else tokenizer.unk_token_id
    counted = Counted()
    for row in rows:
        try:
            counted.add(_ids(row, tokenizer, ends), unknown)
        except DataError as error:
            if tokenizer.chat_template is None and row.conversational:
                raise DataError(
                    f"{name} has no chat template, and the rows are conversations. Use the tokenizer of a model that "
                    "has one, or take a public set as text: shape: text in a run file, --shape text here."
                ) from None
            counted.lengths.append(None)
            counted.unreadable.append(f"{row.origin}: {error}")
    return counted


def _ids(row: Row, tokenizer: Any, ends: tuple[int, ...]) -> list[list[int]]:
    answers = [text for text in (row.chosen, row.rejected) if text is not None]
    prompt = encode_prompt(tokenizer, row.prompt)
    return [prompt, *(encode_response(tokenizer, row.prompt, text, ends) for text in answers)]


def _generation_config(name: str) -> Any:
    """What says which further ids end a response; None for a folder with a tokenizer only."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        pass
    try:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(name))
    except (OSError, ValueError):
        return None


def in_limits(counted: Counted, max_length: int | None, max_prompt_length: int | None) -> dict[str, Any]:
    """How many prompts training would refuse, how many answers it would cut, in how many rows; limits in tokens, None is none."""
    known = [lengths for lengths in counted.lengths if lengths is not None]
    fitting = [lengths for lengths in known if not _above(lengths[0], max_length, max_prompt_length)]
    cut = [
        sum(max_length is not None and prompt + answer > max_length for answer in answers)
        for prompt, *answers in fitting
    ]
    above, rows_cut = len(known) - len(fitting), sum(count > 0 for count in cut)
    return {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "rows": len(counted.lengths),
        "prompts_too_long": above,
        "responses_cut": sum(cut),
        "rows_with_a_cut": rows_cut,
        "share_above": (above + rows_cut) / max(1, len(counted.lengths)),
        "unknown_tokens": counted.unknown / max(1, counted.tokens),
        "unreadable": len(counted.unreadable),
        "unreadable_examples": counted.unreadable[:SHOWN_BAD],
    }


def _above(prompt: int, max_length: int | None, max_prompt_length: int | None) -> bool:
    """Whether training would refuse the row: its prompt is above its limit, or leaves no room for an answer."""
    return (max_prompt_length is not None and prompt > max_prompt_length) or (
        max_length is not None and prompt >= max_length
    )
