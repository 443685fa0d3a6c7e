"""A prompt together with its response as one input of a classifier (a reward model), by the classifier's own tokenizer.

| prompt | tokenizer | input |
|---|---|---|
| messages | has a chat template | the whole conversation as the template writes it, without opening another turn |
| text | of a decoder (no cls and sep token) | prompt ids + response ids + EOS, if it has one: as in `sail sft` |
| text | of an encoder (cls and sep token) | its form for two texts: [CLS] prompt [SEP] response [SEP], with segment ids |

One that is too long loses tokens from the left of the prompt; its opening special token (BOS, CLS) stays. No response is ever cut
at its end, where classifiers of decoders read the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sail.data.encode import continuation_ids, encode_prompt, render, tokenise
from sail.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WholeInput:
    """Token ids, segment ids where the tokenizer gives any, and how many of its last ids are the response with its end."""

    ids: tuple[int, ...]
    segments: tuple[int, ...] | None
    response_length: int


def is_encoders(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer is one of an encoder, which joins two texts by a separator."""
    return tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None


def encode_whole(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> WholeInput:
    """The input for one prompt and its response (which may be empty: a policy may say nothing).

    Raises DataError if the tokenizer has no chat template for messages, or cannot read the text.
    """
    if not isinstance(prompt, str):
        return _conversation(tokenizer, prompt, response)
    if is_encoders(tokenizer):
        return _two_texts(tokenizer, prompt, response)
    start = encode_prompt(tokenizer, prompt)
    answer = continuation_ids(tokenizer, response) if response else []
    if tokenizer.eos_token_id is not None and answer[-1:] != [tokenizer.eos_token_id]:
        answer = [*answer, tokenizer.eos_token_id]
    return WholeInput((*start, *answer), None, len(answer))


def _conversation(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], response: str) -> WholeInput:
    answered = render(tokenizer, [*prompt, {"role": "assistant", "content": response}], open_turn=False)
    ids = tokenise(tokenizer, answered, special=False)
    opened = tokenise(tokenizer, render(tokenizer, prompt, open_turn=True), special=False)
    return WholeInput(tuple(ids), None, max(0, len(ids) - len(opened)))


def _two_texts(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> WholeInput:
    made = tokenizer(prompt, response, verbose=False)
    ids = tuple(made["input_ids"])
    alone = len(tokenise(tokenizer, response, special=False)) + 1
    return WholeInput(ids, tuple(made["token_type_ids"]) if "token_type_ids" in made else None, alone)


def cut_to(
    whole: WholeInput, limit: int | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[WholeInput, bool, bool]:
    """The input within `limit` tokens, whether anything was cut, and whether the response was (no prompt was left to cut)."""
    if limit is None or len(whole.ids) <= limit:
        return whole, False, False
    opening = int(whole.ids[0] in tokenizer.all_special_ids and limit > 1)
    kept = limit - opening
    ids = (*whole.ids[:opening], *whole.ids[len(whole.ids) - kept :])
    segments = whole.segments and (
        *whole.segments[:opening],
        *whole.segments[len(whole.segments) - kept :],
    )
    return WholeInput(ids, segments, min(whole.response_length, kept)), True, whole.response_length > kept


def padded(inputs: Sequence[WholeInput], pad_id: int) -> dict[str, torch.Tensor]:
    """A right-padded batch: input_ids and attention_mask (rows, longest), token_type_ids where every input has segments."""
    longest = max(len(one.ids) for one in inputs)
    columns: dict[str, list[list[int]]] = {
        "input_ids": [[*one.ids, *[pad_id] * (longest - len(one.ids))] for one in inputs],
        "attention_mask": [[1] * len(one.ids) + [0] * (longest - len(one.ids)) for one in inputs],
    }
    segments: list[Any] = [one.segments for one in inputs]
    if all(one is not None for one in segments):
        columns["token_type_ids"] = [[*one, *[0] * (longest - len(one))] for one in segments]
    return {name: torch.tensor(rows, dtype=torch.long) for name, rows in columns.items()}
