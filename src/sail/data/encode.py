"""From rows to token ids: prompt and responses of a row are tokenised apart, and stay apart.

A training sequence is prompt ids + response ids, exactly what generation sees: the prompt's ids are the
same whether or not a response follows. Splitting the ids of prompt + response where they stop agreeing with
those of the prompt would drop the prompt's tail whenever a token merges across the boundary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch.utils.data
from jinja2 import TemplateError

from sail.data.bad_rows import BadRows
from sail.data.formats import Row
from sail.data.sources import RowSet
from sail.errors import DataError
from sail.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LINE_BREAK = "\n"


class EncodedRow(TypedDict):
    """One row as tokens. `*_cut`: the response was cut at max_length, and so does not end with an EOS.

    `identical` compares the ids: texts that differ only behind the cut are identical to the model.
    """

    index: int
    prompt_ids: list[int]
    chosen_ids: list[int] | None
    rejected_ids: list[int] | None
    prompt: Prompt
    chosen: str | None
    rejected: str | None
    chosen_cut: bool
    rejected_cut: bool
    identical: bool


class EncodedDataset(torch.utils.data.Dataset[EncodedRow]):
    """Encoded rows by position, and what happened to the rest.

    skipped: messages of the rows left out. cut: number of responses cut at max_length. prompt_only: number
    of rows without responses. identical: number of pairs whose ids are equal.
    """

    def __init__(self, rows: Sequence[EncodedRow], skipped: Sequence[str] = ()) -> None:
        self.rows = list(rows)
        self.skipped = list(skipped)
        self.cut = sum(row["chosen_cut"] + row["rejected_cut"] for row in self.rows)
        self.prompt_only = sum(row["chosen_ids"] is None for row in self.rows)
        self.identical = sum(row["identical"] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> EncodedRow:
        return self.rows[position]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over all token ids in order: the same on every machine, whatever the indices."""
        digest = hashlib.sha256()
        for row in self.rows:
            for ids in (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]):
                # The length goes first, so that an id cannot move from one field to the next unnoticed.
                numbers = [-1] if ids is None else [len(ids), *ids]
                digest.update(np.asarray(numbers, dtype="<i8").tobytes())
        return digest.hexdigest()


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer without a pad token its EOS as one; no EOS is hidden, as masks come from lengths.

    Raises DataError if the tokenizer has neither.
    """
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has neither a pad nor an EOS token. Set tokenizer.eos_token, and save it."
        )
    tokenizer.pad_token = tokenizer.eos_token


def eos_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any | None = None) -> tuple[int, ...]:
    """All ids that end a response, sorted: the tokenizer's EOS and those of the model's generation config.

    Raises DataError if there is none, since then no response could ever be finished.
    """
    listed = None if generation_config is None else generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])} - {None}
    if not found:
        raise DataError(
            "Neither the tokenizer nor the model's generation config has an EOS id: no response could end. "
            "Set tokenizer.eos_token."
        )
    return tuple(sorted(int(i) for i in found))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The ids that a response is generated from, without a trailing EOS.

    Text gets the tokenizer's own special tokens (BOS). Messages go through the chat template, which writes
    all special tokens itself, up to and including its opening of the assistant's turn. Raises DataError if
    there is no template, if it refuses the messages, or if no token is left.
    """
    if isinstance(prompt, str):
        ids = _with_special_tokens(tokenizer, prompt)
    else:
        ids = _ids(tokenizer, render(tokenizer, prompt, open_turn=True))
    if not ids:
        raise DataError("the tokenizer makes no token of the prompt. Reword it, or use another tokenizer.")
    return ids


def encode_response(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, eos: Sequence[int] | None = None
) -> list[int]:
    """The ids that follow `encode_prompt(tokenizer, prompt)`, and end with an EOS id.

    After a text prompt: the response and the tokenizer's EOS. After messages: what the chat template writes
    after its opening of the assistant's turn, up to its end of turn where that is one of `eos` (by default
    the tokenizer's EOS alone), else with EOS appended. A template that renders an answered prompt otherwise
    than an open one has no such text; the plain response is used then. Raises DataError if the response is
    empty as tokens, or goes on after an EOS: the policy could not have written it.
    """
    if eos is None:
        eos = eos_ids(tokenizer)
    text = response if isinstance(prompt, str) else _answer_text(tokenizer, prompt, response)
    ids = continuation_ids(tokenizer, text)
    end = next((i for i, token in enumerate(ids) if token in eos), len(ids))
    rest = [token for token in ids[end:] if token not in eos]
    # A template may write more after its end of turn; only what the row itself says there is a fault.
    own_eos = rest and tokenizer.decode(rest).strip() and set(_ids(tokenizer, response)) & set(eos)
    if own_eos:
        raise DataError(
            f"the response goes on after the end-of-text token {tokenizer.decode([ids[end]])!r}. "
            "Remove that token from the text."
        )
    if end == 0:
        raise DataError("the tokenizer makes no token of the response. Reword it, or use another tokenizer.")
    last = ids[end] if end < len(ids) else tokenizer.eos_token_id
    return [*ids[:end], eos[0] if last is None else last]


def encode_rows(
    rows: RowSet | Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    max_prompt_length: int | None,
    bad_rows: str = "error",
    first_index: int = 0,
    eos: Sequence[int] | None = None,
) -> EncodedDataset:
    """Tokenises rows; their indices count from `first_index` in the order of the usable ones.

    Lengths are in tokens, None is no limit. A prompt above max_prompt_length is a bad row (cutting it
    changes the question); a response that does not fit into max_length after its prompt is cut at the end,
    without an EOS, and counted; a prompt that leaves no room for a response is a bad row. `bad_rows` as in
    `load_rows`; messages of rows skipped earlier are carried over. `eos` as in `encode_response`. Raises
    DataError for conversational rows if the tokenizer has no chat template, whatever `bad_rows` says: no
    row of that kind could be used.
    """
    given, skipped = (rows.rows, rows.skipped) if isinstance(rows, RowSet) else (rows, [])
    bad = BadRows(bad_rows)
    eos = eos_ids(tokenizer) if eos is None else eos
    encoded: list[EncodedRow] = []
    for row in given:
        if row.conversational:
            _require_template(tokenizer, f"{row.origin}: ")
        try:
            item = _encode_row(row, tokenizer, eos, max_length, max_prompt_length)
        except DataError as error:
            bad.add(DataError(f"{row.origin}: {error}"))
            continue
        item["index"] = first_index + len(encoded)
        encoded.append(item)
    skipped_here = bad.finish(len(encoded), "tokenising the data")
    return EncodedDataset(encoded, [*skipped, *skipped_here])


def concatenate(first: EncodedDataset, second: EncodedDataset) -> EncodedDataset:
    """Both datasets in one, e.g. pairs and then prompts; indices count on from those of `first`."""
    start = first[0]["index"] if len(first) else 0
    rows: list[EncodedRow] = []
    for index, row in enumerate([*first.rows, *second.rows], start=start):
        rows.append({**row, "index": index})
    return EncodedDataset(rows, [*first.skipped, *second.skipped])


def _encode_row(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    eos: Sequence[int],
    max_length: int | None,
    max_prompt_length: int | None,
) -> EncodedRow:
    """One row, with index 0. Raises DataError that names the field and the cause, not the row."""
    try:
        prompt_ids = encode_prompt(tokenizer, row.prompt)
    except DataError as error:
        raise DataError(f"field 'prompt': {error}") from None
    room = _room(len(prompt_ids), max_length, max_prompt_length)
    chosen_ids, chosen_cut = _fitted(tokenizer, row.prompt, row.chosen, "chosen", eos, room)
    rejected_ids, rejected_cut = _fitted(tokenizer, row.prompt, row.rejected, "rejected", eos, room)
    return EncodedRow(
        index=0,
        prompt_ids=prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        prompt=row.prompt,
        chosen=row.chosen,
        rejected=row.rejected,
        chosen_cut=chosen_cut,
        rejected_cut=rejected_cut,
        identical=chosen_ids is not None and chosen_ids == rejected_ids,
    )


def _room(prompt_length: int, max_length: int | None, max_prompt_length: int | None) -> int | None:
    """Tokens left for a response, None if unlimited. Raises DataError if the prompt is too long."""
    if max_prompt_length is not None and prompt_length > max_prompt_length:
        raise DataError(
            f"field 'prompt' has {prompt_length} tokens, above max_prompt_length ({max_prompt_length}). "
            "Raise max_prompt_length, or leave such rows out (data.bad_rows: skip)."
        )
    if max_length is not None and prompt_length >= max_length:
        raise DataError(
            f"field 'prompt' has {prompt_length} tokens, no room for an answer in max_length ({max_length}). "
            "Raise max_length, or leave such rows out (data.bad_rows: skip)."
        )
    return None if max_length is None else max_length - prompt_length


def _fitted(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str | None,
    field: str,
    eos: Sequence[int],
    room: int | None,
) -> tuple[list[int] | None, bool]:
    """The ids of one response, cut to `room` tokens, and whether it was cut; None if it is absent."""
    if response is None:
        return None, False
    try:
        ids = encode_response(tokenizer, prompt, response, eos)
    except DataError as error:
        raise DataError(f"field '{field}': {error}") from None
    cut = room is not None and len(ids) > room
    return ids[:room], cut


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of text as it stands, without special tokens around it."""
    return tokenise(tokenizer, text, special=False)


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """The tokenizer's ids. Not verbose: lengths are checked here, against the run's own limits."""
    try:
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    except Exception as error:
        # A bare Exception is how the tokenizers library refuses a text, e.g. for want of an unknown token.
        if type(error) is not Exception:
            raise
        raise DataError(
            f"the tokenizer cannot read the text ({error}). Reword it, or change the tokenizer."
        ) from None


def _with_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Text with the tokenizer's special tokens, less the EOS that some add: the response is still to come."""
    ids = tokenise(tokenizer, text, special=True)
    eos = tokenizer.eos_token_id
    if ids and ids[-1] == eos and _ids(tokenizer, text)[-1:] != [eos]:
        ids.pop()
    return ids


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of text that goes on from other text.

    Some tokenizers (SentencePiece's) write a word start before the first letter of every text, which here
    would be a space that nobody wrote and the policy would not generate. Behind a line break they do not.
    Where the line break is no token of its own, or would melt into the text, the text alone is tokenised.
    """
    try:
        opening = _ids(tokenizer, LINE_BREAK)
    except DataError:
        opening = []
    if opening and tokenizer.unk_token_id not in opening:
        ids = _ids(tokenizer, LINE_BREAK + text)
        if ids[: len(opening)] == opening:
            return ids[len(opening) :]
    return _ids(tokenizer, text)


def _answer_text(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], response: str) -> str:
    """What the template writes after an open assistant turn when the answer is `response`, as text."""
    opened = render(tokenizer, prompt, open_turn=True)
    answered = render(tokenizer, [*prompt, {"role": "assistant", "content": response}], open_turn=False)
    return answered[len(opened) :] if answered.startswith(opened) else response


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, open_turn: bool) -> str:
    """The messages as the tokenizer's chat template writes them."""
    _require_template(tokenizer, "")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
    except TemplateError as error:
        raise DataError(
            f"the tokenizer's chat template refuses the messages ({error}). "
            "Change their roles or order, or the template."
        ) from None
    return str(text)


def _require_template(tokenizer: PreTrainedTokenizerBase, origin: str) -> None:
    if tokenizer.chat_template is None:
        raise DataError(
            f"{origin}the prompt is a list of messages, and the tokenizer has no chat template. "
            "Set tokenizer.chat_template, use a model that has one, or write the prompts as text."
        )
