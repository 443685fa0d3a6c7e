"""The one place that knows column names and chat shapes: a record of a data file becomes a `Row`.

The formats are TRL's preference formats, standard (text) and conversational (lists of messages):

| format | prompt | chosen, rejected |
|---|---|---|
| standard | text | text that continues it |
| standard, implicit prompt | absent | whole texts; what they share is the prompt (`shared_text_prompt`) |
| conversational | messages | one assistant message each (or plain text) |
| conversational, implicit prompt | absent | whole conversations; all but the last message is the prompt |
| prompt-only | text or messages | absent |

A text prompt beside whole conversations is accepted when it is one of their messages. A supervised row
has `completion` in place of the pair (`parse_sft_row`). Any other column is ignored, except those that would
change what the model reads (`UNSUPPORTED`): these are refused. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sail.errors import DataError
from sail.types import Message, Prompt

UNSUPPORTED = ("tools", "image", "images", "chat_template_kwargs")
"""Columns that TRL feeds to the model and sail does not; ignoring them would train on another prompt."""

MESSAGE_EXAMPLE = '{"role": "user", "content": "..."}'
ANSWER_EXAMPLE = '{"role": "assistant", "content": "..."}'


@dataclass(frozen=True)
class Row:
    """One usable row. A prompt-only row has neither chosen nor rejected; any other has both.

    `origin` says where it was read, e.g. "pairs.jsonl row 17".
    """

    prompt: Prompt
    chosen: str | None
    rejected: str | None
    origin: str

    @property
    def conversational(self) -> bool:
        """Whether the prompt is a list of messages."""
        return not isinstance(self.prompt, str)

    @property
    def prompt_only(self) -> bool:
        """Whether the row has no responses."""
        return self.chosen is None

    @property
    def identical(self) -> bool:
        """Whether both responses are the same text: a row that is kept, and trains with p = 1/2."""
        return self.chosen is not None and self.chosen == self.rejected


def parse_row(record: Any, origin: str) -> Row:
    """The preference or prompt-only row in `record`, a mapping with the columns of the table above.

    Texts are kept letter by letter. Raises DataError that names origin, field, cause and the way out.

    >>> parse_row({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "pairs.jsonl row 1").chosen
    ' 4'
    """
    with _named(origin):
        _check_record(record)
        if "chosen" not in record and "rejected" not in record:
            return Row(_prompt(record), None, None, origin)
        prompt, chosen, rejected = _pair(record)
        return Row(prompt, chosen, rejected, origin)


def parse_sft_row(record: Any, origin: str) -> tuple[Prompt, str]:
    """Prompt and completion of a supervised row; a preference row gives its chosen response.

    Raises DataError as `parse_row` does.

    >>> parse_sft_row({"prompt": "2 + 2 =", "completion": " 4"}, "sft.jsonl row 1")
    ('2 + 2 =', ' 4')
    """
    with _named(origin):
        _check_record(record)
        if "completion" in record:
            return _prompt_and_response(record, "completion")
        if "chosen" in record and "rejected" in record:
            prompt, chosen, _ = _pair(record)
            return prompt, chosen
        raise _BadField("completion", "is missing", "Add it, or give a preference row (its chosen is used)")


def to_record(row: Row) -> dict[str, Any]:
    """The row in TRL's explicit format, such that `parse_row(to_record(row), row.origin) == row`."""
    record: dict[str, Any] = {"prompt": row.prompt}
    for field, response in (("chosen", row.chosen), ("rejected", row.rejected)):
        if response is not None:
            answer = [{"role": "assistant", "content": response}]
            record[field] = answer if row.conversational else response
    return record


def shared_text_prompt(chosen: str, rejected: str) -> int | None:
    """Where the implicit prompt of two whole texts ends (a character position), or None if there is none.

    It is the last place up to which both texts agree, that stands before a space or after a line break, and
    that leaves text on both sides in both. Cutting only there keeps the first word of a response whole when
    the responses start with the same letters. Opening *words* that the responses share still fall to the
    prompt: give `prompt` explicitly where that matters.

    >>> shared_text_prompt("The sky is blue", "The sky is black")   # not after "bl"
    10
    """
    agree = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        agree += 1
    for cut in range(agree, 0, -1):
        before_space = chosen[cut : cut + 1] == rejected[cut : cut + 1] == " "
        after_break = chosen[cut - 1] == "\n"
        if before_space or after_break:
            parts = chosen[:cut], chosen[cut:], rejected[cut:]
            if all(part.strip() for part in parts):
                return cut
    return None


class _BadField(Exception):
    """Field, cause and way out of a bad row, before the row's origin is known."""

    def __init__(self, field: str, cause: str, way_out: str) -> None:
        super().__init__(f"field '{field}' {cause}. {way_out}.")


@contextmanager
def _named(origin: str) -> Iterator[None]:
    """Turns a _BadField into the DataError of the row at `origin`."""
    try:
        yield
    except _BadField as error:
        raise DataError(f"{origin}: {error}") from None


def _check_record(record: Any) -> None:
    if not isinstance(record, Mapping):
        way_out = 'A row is an object such as {"prompt": "...", "chosen": "...", "rejected": "..."}'
        raise _BadField("(whole row)", f"is {_describe(record)}, not an object with fields", way_out)
    for field in UNSUPPORTED:
        if record.get(field):
            way_out = "Remove the column, or render the prompt to text first"
            raise _BadField(field, "would change the prompt and is not supported", way_out)


def _prompt(record: Mapping[str, Any]) -> Prompt:
    """The explicit prompt: text, or messages that the assistant is to answer."""
    if "prompt" not in record:
        found = ", ".join(map(str, record)) or "none"
        way_out = "Add it, or rename the column that holds it"
        raise _BadField("prompt", f"is missing (fields found: {found})", way_out)
    value = record["prompt"]
    if isinstance(value, list):
        return _open_conversation(_messages(value, "prompt"), "prompt")
    return _text(value, "prompt")


def _pair(record: Mapping[str, Any]) -> tuple[Prompt, str, str]:
    """Prompt, chosen and rejected of a record that has at least one of the two responses."""
    for field, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if field not in record:
            way_out = f"Add it, or remove '{other}' to make this a prompt-only row"
            raise _BadField(field, f"is missing while '{other}' is given", way_out)
    if "prompt" not in record and isinstance(record["chosen"], str) and isinstance(record["rejected"], str):
        return _implicit_text_pair(record)
    chosen_prompt, chosen = _prompt_and_response(record, "chosen")
    rejected_prompt, rejected = _prompt_and_response(record, "rejected")
    if chosen_prompt != rejected_prompt:
        cause = f"answers another prompt than 'chosen'{_where(chosen_prompt, rejected_prompt)}"
        way_out = "A pair is two answers to one prompt, each a single assistant message; remove the row"
        raise _BadField("rejected", cause, way_out)
    return chosen_prompt, chosen, rejected


def _where(first: Prompt, second: Prompt) -> str:
    """Which message two prompts first differ in, for an error message; counted from 1."""
    if isinstance(first, str) or isinstance(second, str):
        return ": one is text and the other is messages"
    same = [a == b for a, b in zip(first, second, strict=False)]
    return f": they differ from message {[*same, False].index(False) + 1} on"


def _implicit_text_pair(record: Mapping[str, Any]) -> tuple[str, str, str]:
    chosen, rejected = _text(record["chosen"], "chosen"), _text(record["rejected"], "rejected")
    cut = shared_text_prompt(chosen, rejected)
    if cut is None:
        cause = "is missing, and 'chosen' and 'rejected' show no text that they share and both go on from"
        raise _BadField("prompt", cause, "Add the prompt as a field of its own")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _prompt_and_response(record: Mapping[str, Any], field: str) -> tuple[Prompt, str]:
    """The prompt as seen from one response field, and that response's text."""
    value = record[field]
    if not isinstance(value, list):
        text = _text(value, field)
        return _prompt(record), text
    conversation = _conversation(record, _messages(value, field))
    *before, answer = conversation
    if answer["role"] != "assistant":
        cause = f"ends with a message of role '{answer['role']}', not 'assistant'"
        raise _BadField(field, cause, f"Its last message is the answer: {ANSWER_EXAMPLE}")
    prompt = _open_conversation(before, "prompt" if "prompt" in record else field)
    return prompt, _text(answer["content"], field)


def _conversation(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The whole conversation of one response field; an explicit prompt comes first, once."""
    if "prompt" not in record:
        if len(messages) == 1:
            cause = "is missing, and the responses hold no message before the answer"
            raise _BadField("prompt", cause, f"Add it as a list of messages: [{MESSAGE_EXAMPLE}]")
        return messages
    prompt = record["prompt"]
    if isinstance(prompt, list):
        shown = _messages(prompt, "prompt")
        repeated = len(messages) > len(shown) and messages[: len(shown)] == shown
        return messages if repeated else shown + messages
    text = _text(prompt, "prompt")
    if all(message["content"].strip() != text.strip() for message in messages[:-1]):
        cause = "is text that no message before the answer holds, while the responses are messages"
        raise _BadField("prompt", cause, f"Write it as a list of messages: [{MESSAGE_EXAMPLE}]")
    return messages


def _messages(value: list[Any], field: str) -> list[Message]:
    """A non-empty list of messages, less null and empty keys: `datasets` adds those to fill its schema."""
    if not value:
        way_out = f"Give at least one message: {MESSAGE_EXAMPLE}"
        raise _BadField(field, "is an empty list of messages", way_out)
    messages = []
    form = f"A message is {MESSAGE_EXAMPLE}"
    for i, message in enumerate(value):
        name = f"{field}[{i}]"
        if not isinstance(message, Mapping):
            raise _BadField(name, f"is {_describe(message)}, not a message", form)
        kept = {key: part for key, part in message.items() if part is not None and part != []}
        for key in ("role", "content"):
            if key not in kept:
                found = ", ".join(map(str, kept)) or "none"
                raise _BadField(name, f"has no '{key}' (keys found: {found})", form)
        for key, part in kept.items():
            # Extra keys are not ignored: a template may render them, e.g. tool calls.
            _encodable(part, f"{name}.{key}")
        messages.append(kept)
    return messages


def _open_conversation(messages: list[Message], field: str) -> list[Message]:
    """Messages that the assistant is to answer: the last one is somebody else's and says something."""
    if not messages or messages[-1]["role"] == "assistant":
        cause = "has an assistant message where the answer's turn is due" if messages else "holds no prompt"
        way_out = "The message before the answer is a user's (or a tool's, or the system's)"
        raise _BadField(field, cause, way_out)
    _text(messages[-1]["content"], field)
    return messages


def _text(value: Any, field: str) -> str:
    """Text with something in it."""
    text = _encodable(value, field)
    if not text.strip():
        cause = "holds only whitespace" if text else "is empty"
        raise _BadField(field, cause, "Fill it in or remove the row")
    return text


def _encodable(value: Any, field: str) -> str:
    """Text that a tokenizer can read: a `str` without lone surrogates."""
    if not isinstance(value, str):
        raise _BadField(field, f"is {_describe(value)}, not text", "Write it as a string, or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        cause = f"is not valid Unicode (half a surrogate pair at character {error.start})"
        raise _BadField(field, cause, "Repair the encoding of the row") from None
    return value


def _describe(value: Any) -> str:
    """A value in a few letters, for error messages."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"the {type(value).__name__} {value}"
    return f"of type {type(value).__name__}"
