"""What is wrong with a key or a value of a run file, in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Sections = Mapping[str, type[BaseModel]]
"""The class behind each section, by its path; the whole run is at the empty path."""

_WORDS = {
    "int": "must be a whole number",
    "finite_number": "must be a finite number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string_too_short": "must not be empty",
    "string": "must be text",
    "list": "must be a list",
    "tuple": "must be a list",
    "dict": "must be a section of keys and values",
    "model": "must be a section of keys and values",
    "invalid_key": "must be text as a key",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
    "too_short": "needs at least {min_length} entries",
}


def shown(value: Any) -> str:
    """A value as a message shows it: spelled as in YAML, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def did_you_mean(given: object, known: Sequence[str]) -> str:
    """A sentence with the nearest known name, or nothing."""
    close = difflib.get_close_matches(str(given), known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def no_such_key(where: str, key: str, known: Sequence[str], sections: Sections | None = None) -> str:
    """What to say of a key that nothing knows; `where` is its section, empty at the top level.

    `sections` are searched for one that does know the key.
    """
    advice = did_you_mean(key, known) or f" The keys are {', '.join(known)}."
    for name, kind in (sections or {}).items():
        if name and key in kind.model_fields:
            advice = f" It belongs in the section {name}: write {name}.{key}."
            break
    return f"{where}{'.' if where else ''}{key}: there is no such key.{advice}"


def problem(item: ErrorDetails, sections: Sections) -> str:
    """One of pydantic's errors, in plain words."""
    kind, context, path = item["type"], item.get("ctx", {}), [str(part) for part in item["loc"]]
    where, key = ".".join(path[:-1]), ".".join(path)
    if kind == "extra_forbidden":
        return no_such_key(where, path[-1], list(sections[where].model_fields), None if where else sections)
    if kind == "missing":
        return f"{key} is missing. {sections[where].model_fields[path[-1]].description}"
    given = shown(item["input"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        if len(choices) == 1:
            return f"{key} can only be {choices[0]} yet; it is {given}."
        return f"{key} is one of {', '.join(choices)}; it is {given}.{did_you_mean(item['input'], choices)}"
    if kind == "refused":
        said = item["msg"].rstrip(".")
        return f"{key}: {said}" if said.endswith("?") else f"{key}: {said}."
    if kind == "secret":
        return f"{key} {item['msg']}."
    words = next((text for name, text in _WORDS.items() if kind.startswith(name)), None)
    return f"{key} {item['msg'] if words is None else words.format(**context)}; it is {given}."
