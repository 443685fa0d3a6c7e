"""A chat completion as the judge needs it: text, end, tokens, and the probabilities at the token of the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sail.oracles.calls import MOST_TOKENS, Retry
from sail.oracles.judge.verdicts import Reading

BYTES_PER_TOKEN = 3
"""Where a server does not say how many tokens a call took, one per three bytes is counted: rather too many than too few."""
RIVALS = {"a": "b", "b": "a", "first": "second", "second": "first"}
KEPT = 20_000
"""Characters of a reply that are kept."""
SHOWN = 200
"""Characters of an error that are shown."""


@dataclass(frozen=True)
class Token:
    """One token of the reply and the likeliest ones at its place, with log-probabilities in nats."""

    text: str
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """What the server said. `cut`: it stopped at the token limit; `refusal`: why it says nothing, if it says why."""

    text: str
    cut: bool
    refusal: str | None
    tokens: tuple[Token, ...]
    tokens_in: int
    tokens_out: int


def read_reply(found: Mapping[str, Any], message: str, redact: Callable[[str], str] = str) -> Reply:
    """The first choice of a chat completion; Retry if there is none (some gateways put an error into a reply of status 200), with
    the tokens that it says to have taken.

    message: what was asked, for the number of tokens if the server does not give it. redact: takes secrets out of an error.
    """
    usage = found.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        error = found.get("error")
        said = error.get("message") if isinstance(error, Mapping) else error
        told = f": {redact(' '.join(str(said).split()))[:SHOWN]}" if said else ""
        spent = (_count(usage.get(name), "") for name in ("prompt_tokens", "completion_tokens"))
        raise Retry(f"the reply has no choice{told}", tokens=(next(spent), next(spent)))
    choice = choices[0]
    inside = choice.get("message")
    said = inside if isinstance(inside, Mapping) else {}
    text, refusal, end = _text(said.get("content")), said.get("refusal"), choice.get("finish_reason")
    if not refusal and end == "content_filter":
        refusal = "its content filter"
    return Reply(
        text=text[:KEPT],
        cut=end == "length" or len(text) > KEPT,
        refusal=str(refusal) if refusal else None,
        tokens=_tokens(choice.get("logprobs")),
        tokens_in=_count(usage.get("prompt_tokens"), message),
        tokens_out=_count(usage.get("completion_tokens"), text),
    )


def soft_verdict(reply: Reply, reading: Reading) -> float | None:
    """P(A) / (P(A) + P(B)) at the token of the final verdict, or None where the server gave no log-probabilities for it.

    P(A) is summed over the listed tokens that say A, in either case and with or without a space or brackets
    around it. Only for a reading of A or B: a stated tie stays one half.
    """
    if reading.value not in (0.0, 1.0):
        return None
    token, inside = _token_at(reply, reading.start)
    if token is None:
        return None
    word = reply.text[reading.start : reading.end]
    said = token.text[inside : inside + len(word)]
    rival = RIVALS.get(word.lower())
    if rival is None or said.lower() != word.lower():
        return None
    forms = {
        name: _form(token.text[:inside] + name + token.text[inside + len(word) :]) for name in (word, rival)
    }
    mass = dict.fromkeys(forms, 0.0)
    for text, log_prob in token.likeliest:
        for name, form in forms.items():
            if _form(text) == form:
                mass[name] += math.exp(min(log_prob, 0.0))
    if not mass[word] > 0.0:
        return None
    share = mass[word] / (mass[word] + mass[rival])
    return share if reading.value == 1.0 else 1.0 - share


def _form(token: str) -> str:
    return token.strip().strip("*_\"'").lower()


def _token_at(reply: Reply, place: int) -> tuple[Token | None, int]:
    """The token that holds the character at `place` of the text, and where in the token it is."""
    whole = "".join(token.text for token in reply.tokens)
    # Servers strip the text, or list tokens before it (thoughts) that it does not hold.
    before = whole.rfind(reply.text)
    if not reply.text or before < 0:
        return None, -1
    at = before + place
    for token in reply.tokens:
        if at < len(token.text):
            return token, at
        at -= len(token.text)
    return None, -1


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """choices[0].logprobs.content, as far as it is well formed; anything else is no log-probabilities."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list):
        return ()
    found = []
    for one in content:
        if not isinstance(one, Mapping) or not isinstance(one.get("token"), str):
            return ()
        listed = one.get("top_logprobs")
        pairs = dict(_log_probs(listed if isinstance(listed, list) else []))
        pairs |= {} if one["token"] in pairs else dict(_log_probs([one]))
        found.append(Token(one["token"], tuple(pairs.items())))
    return tuple(found)


def _log_probs(listed: Sequence[Any]) -> list[tuple[str, float]]:
    return [
        (one["token"], float(one["logprob"]))
        for one in listed
        if isinstance(one, Mapping)
        and isinstance(one.get("token"), str)
        and isinstance(one.get("logprob"), int | float)
        and not math.isnan(one["logprob"])
    ]


def _text(content: Any) -> str:
    """Plain text, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def _count(number: Any, text: str) -> int:
    if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
        return min(number, MOST_TOKENS)
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
