"""Which fields a user may add to a judge's request: none that is a secret, none that sail fills itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

OURS = {
    "model": "set oracle.model",
    "messages": "they are made of the rubric",
    "stream": "replies are read whole",
    "n": "one reply is read per call",
}
"""Fields of the request that `extra` must not change, and what to do instead."""

_SECRET = re.compile(
    r"(?:^|_)(?:key|keys|apikey|token|secret|secrets|password|passwd|passphrase|pwd|authorization|auth|bearer|credentials?|cookies?"
    r"|signature|sig)$"
)
_NO_SECRET = re.compile(r"^(?:prompt_cache_key|(?:bos|eos|pad|unk|sep|cls|mask|stop|start|end)_token)$")
_LOOKS_SECRET = re.compile(r"^(?:Bearer\s+\S{8,}|(?:sk|pk|hf|gsk|xai|key)[-_][\w.-]{16,})$", re.IGNORECASE)


def refused_field(extra: Mapping[str, Any]) -> str | None:
    """Why a field of `extra` cannot be sent, in words that do not hold its value; None if all can.

    Fields named or written like a secret are refused at any depth, because `extra` is written into the run folder and the ledger.

    >>> refused_field({"seed": 1, "max_completion_tokens": 9}) is None
    True
    >>> refused_field({"n": 4})
    'must not hold n: one reply is read per call'
    """
    for name, way_out in OURS.items():
        if name in extra:
            return f"must not hold {name}: {way_out}"
    for name, value in _fields(extra):
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).strip("_").lower()
        named = isinstance(value, str) and _SECRET.search(plain) and not _NO_SECRET.match(plain)
        if named or (isinstance(value, str) and _LOOKS_SECRET.match(value.strip())):
            return (
                f"must hold no secret, and {name} looks like one: what stands here is written into the run folder. "
                "Name the key's environment variable in api_key_env"
            )
    return None


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value at any depth with the name of the field that holds it."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _fields(inside, str(key))
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _fields(inside, name)
    else:
        yield name, value
