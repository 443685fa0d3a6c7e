"""What a judge's reply says, or that it says nothing. The last well-formed verdict wins; what cannot be read is an abstention.

Three tiers, and a lower one is only looked at where a higher one found nothing:
    1. double brackets                 [[A]]   [[8]]
    2. a named verdict                 Answer: B   **Winner: A**   {"winner": "A"}   Score: 8/10   答案：B
    3. a line of its own, last or first   A   **B**   Response A is better.   8   7 out of 10
A line with two different verdicts decides nothing, nor does a reply that was cut before its end unless the verdict is its end.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sail.oracles.judge import patterns

SHOWN = 60

_AFTER_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_CLOSING_THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_MARKUP = "*_`~#>\"'“”„‘’«»()[]{}|$ \t.。!:,"


@dataclass(frozen=True)
class Reading:
    """`value`: 1 (the first wins), 0 (the second), .5 (a tie), or a score; None is an abstention and `reason` says why.

    `start`, `end`: where the deciding word stands in the reply, for its token's probability.
    """

    value: float | None
    reason: str | None = None
    start: int = -1
    end: int = -1


def read_verdict(reply: str | None, *, cut: bool = False) -> Reading:
    """Which response won: 1.0, 0.0, .5 for a stated tie, or None with the reason. `cut`: the reply stopped at the token limit.

    >>> read_verdict("I first thought [[A]]. But no.\\n\\n[[B]]").value
    0.0
    >>> read_verdict("Both have merits.").value is None
    True
    """
    return _read(reply, _VERDICTS, "verdict", cut)


def read_score(reply: str | None, *, cut: bool = False) -> Reading:
    """The score from 1 to 10, or None with the reason; a score outside of the scale is none.

    >>> read_score("**Score:** 10").value, read_score("[[8.5]]").value, read_score("11/10").value
    (10.0, 8.5, None)
    """
    found = _read(reply, _SCORES, "score", cut)
    if found.value is not None and not 1.0 <= found.value <= 10.0:
        return Reading(None, f"the score {found.value:g} is not between 1 and 10")
    return found


# ---- both kinds


Match = tuple[float | None, int, int]
Finder = Callable[[str], Iterator[Match]]


def _read(reply: str | None, tiers: tuple[Finder, ...], what: str, cut: bool) -> Reading:
    if not reply or not reply.strip():
        return Reading(None, f"an empty reply{', cut at max_tokens' if cut else ''}")
    text = _same_length_form(_without_thought(reply))
    if not text.strip():
        return Reading(
            None, "the reply holds its thoughts only" + (": it was cut at max_tokens" if cut else "")
        )
    for tier in tiers:
        matches = sorted(tier(text), key=lambda one: one[1])
        if not matches:
            continue
        value, start, end = matches[-1]
        rivals = {one for one, at, _ in matches if _line(text, at) == _line(text, start)}
        if len(rivals) > 1:
            return Reading(None, f"several {what}s in one line: {_shown(reply)}")
        if value is None:
            return Reading(None, f"no readable {what}: {_shown(reply)}")
        if cut and text[end:].strip(_MARKUP + "\n"):
            return Reading(None, f"the reply was cut at max_tokens after a passing {what}")
        return Reading(value, None, start, end)
    why = f"the reply was cut at max_tokens before a {what}" if cut else f"no {what} in the reply"
    return Reading(None, f"{why}: {_shown(reply)}")


def _without_thought(reply: str) -> str:
    """Thoughts between think tags blanked out, places kept."""

    def blank(found: re.Match[str]) -> str:
        return " " * len(found.group())

    return _CLOSING_THOUGHT.sub(blank, _AFTER_THOUGHT.sub(blank, reply))


def _same_length_form(text: str) -> str:
    """Full-width letters, digits, brackets and colons as plain ones, character by character, so that places stay."""
    plain = "".join(form if len(form := unicodedata.normalize("NFKC", one)) == 1 else one for one in text)
    return plain.translate(_LOOKALIKES).replace("\r", "\n")


_LOOKALIKES = str.maketrans("【】〚〛⟦⟧「」『』：＝→АаＡ", "[][][][][]:=:AaA")


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at)


def _shown(reply: str) -> str:
    words = " ".join(reply.split())
    return repr(words if len(words) <= SHOWN else words[: SHOWN - 1] + "…")


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """The last line and the first one that hold more than markup, without it, each with its place."""
    found = [one for one in re.finditer(r"[^\n]+", text) if one.group().strip(_MARKUP)]
    for line in [found[-1], found[0]] if found else []:
        inside = line.group().strip(_MARKUP).removeprefix("- ").strip(_MARKUP)
        yield inside, line.start() + line.group().index(inside)


# ---- verdicts


def _worth(word: str) -> float:
    return patterns.WORDS[" ".join(word.lower().split())]


def _bracketed_verdicts(text: str) -> Iterator[Match]:
    """[[A]] is a verdict, [[A/B]] is an unreadable one, and [[A]] if ... repeats the question."""
    for found in patterns.UNDECIDED.finditer(text):
        yield None, found.start(), found.end()
    for found in patterns.BRACKETED.finditer(text):
        if not patterns.IF.match(text, found.end()):
            yield _worth(found.group(1)), found.start(1), found.end(1)


def _named_verdicts(text: str) -> Iterator[Match]:
    for pattern in (patterns.LABELLED, patterns.BOXED):
        for found in pattern.finditer(text):
            yield _worth(found.group(1)), found.start(1), found.end(1)


def _lone_verdicts(text: str) -> Iterator[Match]:
    for line, at in _lines(text):
        found = patterns.ALONE.fullmatch(line)
        if found is not None:
            yield _worth(found.group(1)), at + found.start(1), at + found.end(1)
            return


_VERDICTS: tuple[Finder, ...] = (_bracketed_verdicts, _named_verdicts, _lone_verdicts)


# ---- scores


def _scores(text: str, pattern: re.Pattern[str]) -> Iterator[Match]:
    """A range (8-9) and another scale (80/100) are unreadable ones."""
    for found in pattern.finditer(text):
        other_scale = found.group(2) is not None and int(found.group(2)) != 10
        if other_scale or patterns.RANGE.match(text, found.end(1)):
            yield None, found.start(1), found.end(1)
        else:
            yield _number(found.group(1)), found.start(1), found.end()


def _number(text: str) -> float:
    return float(text.replace(",", ".").replace("−", "-"))


def _bracketed_scores(text: str) -> Iterator[Match]:
    yield from _scores(text, patterns.SCORE_BRACKETED)


def _named_scores(text: str) -> Iterator[Match]:
    """Score: 8, and 8/10 wherever it stands; what is both counts once."""
    by_place = {match[1]: match for match in _scores(text, patterns.SCORE_OF_TEN)}
    yield from (by_place | {match[1]: match for match in _scores(text, patterns.SCORE_LABELLED)}).values()


def _lone_scores(text: str) -> Iterator[Match]:
    for line, at in _lines(text):
        found = patterns.SCORE_ALONE.fullmatch(line)
        if found is not None:
            yield _number(found.group(1)), at + found.start(1), at + found.end(1)
            return


_SCORES: tuple[Finder, ...] = (_bracketed_scores, _named_scores, _lone_scores)
