"""What a judge's reply says, or that it says nothing. The last well-formed verdict wins; what cannot be read is an abstention.

Three tiers, and a lower one is only looked at where a higher one found nothing:
    1. double brackets                 [[A]]   [[8]]
    2. a named verdict                 **Winner: A**   {"winner": "A"}   Final answer: B   Score: 8/10
       a line that holds nothing else  Answer: B   答案：B   and, as the last one, A   **B**   Response A is better.   8
    3. the first line, if it holds nothing else
A line with two different verdicts decides nothing, nor does a verdict that is denied or blamed ("not [[A]]", "Winner: A is
worse"), nor single scores that differ (style 9/10, truth 3/10), nor a reply that was cut before its end unless the verdict is
its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sail.oracles.judge import patterns

SHOWN = 60
LOOKED_BACK = 120
"""Characters before a verdict that are searched for a "not", or for what a score is of."""

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
    text = patterns.plain_form(_without_thought(reply))
    if not text.strip():
        return Reading(
            None, "the reply holds its thoughts only" + (": it was cut at max_tokens" if cut else "")
        )
    text = patterns.DEFUSED.sub(_blank, text)
    for tier in tiers:
        matches = sorted(tier(text), key=lambda one: one[1])
        if not matches:
            continue
        value, start, end = matches[-1]
        begin, finish = text.rfind("\n", 0, start), text.find("\n", start)
        rivals = {one for one, at, _ in matches if begin < at and (finish < 0 or at < finish)}
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
    return _CLOSING_THOUGHT.sub(_blank, _AFTER_THOUGHT.sub(_blank, reply))


def _blank(found: re.Match[str]) -> str:
    return " " * len(found.group())


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at)


def _shown(reply: str) -> str:
    words = " ".join(reply.split())
    return repr(words if len(words) <= SHOWN else words[: SHOWN - 1] + "…")


def _lines(text: str) -> list[tuple[str, int]]:
    """The lines that hold more than markup, without it, each with its place."""
    found = []
    for line in re.finditer(r"[^\n]+", text):
        inside = line.group().strip(_MARKUP).removeprefix("- ").strip(_MARKUP)
        if inside:
            found.append((inside, line.start() + line.group().index(inside)))
    return found


def _whole(pattern: re.Pattern[str], line: tuple[str, int]) -> Iterator[re.Match[str]]:
    """The pattern where it is all of a line, none or one."""
    found = pattern.fullmatch(line[0])
    return iter([] if found is None else [found])


# ---- verdicts


def _worth(word: str) -> float:
    return patterns.WORDS[" ".join(word.lower().split())]


def _bracketed_verdicts(text: str) -> Iterator[Match]:
    """[[A]] is a verdict, [[A/B]], "not [[A]]" and "[[A]] is worse" are unreadable ones; [[A]] if ... repeats the question."""
    for found in patterns.UNDECIDED.finditer(text):
        yield None, found.start(), found.end()
    for found in patterns.BRACKETED.finditer(text):
        if patterns.IF.match(text, found.end()):
            continue
        before = _before(text, found.start())
        denied = patterns.DENIED.search(before) or patterns.BLAMED.match(text, found.end())
        yield None if denied else _worth(found.group(1)), found.start(1), found.end(1)


def _named_verdicts(text: str) -> Iterator[Match]:
    """Named ones, and a last line that says nothing else: it comes after whatever was said on the way to it."""
    for found in patterns.LABELLED.finditer(text):
        group = 1 if found.group(1) is not None else 2
        word, start, end = found.group(group), found.start(group), found.end(group)
        if patterns.BLAMED.match(text, end):
            yield None, start, end
        elif group == 2 or patterns.ENDS.match(text, found.end()):
            yield _worth(word), start, end
    for found in patterns.BOXED.finditer(text):
        yield _worth(found.group(1)), found.start(1), found.end(1)
    lines = _lines(text)
    for line in lines:
        yield from _of_line(patterns.LABELLED_LINE, line)
    for pattern in (patterns.LABELLED_LAST_LINE, patterns.ALONE):
        for line in lines[-1:]:
            yield from _of_line(pattern, line)


def _of_line(pattern: re.Pattern[str], line: tuple[str, int]) -> Iterator[Match]:
    for found in _whole(pattern, line):
        yield _worth(found.group(1)), line[1] + found.start(1), line[1] + found.end(1)


def _lone_verdicts(text: str) -> Iterator[Match]:
    for line in _lines(text)[:1]:
        yield from _of_line(patterns.ALONE, line)


_VERDICTS: tuple[Finder, ...] = (_bracketed_verdicts, _named_verdicts, _lone_verdicts)


# ---- scores


def _score(found: re.Match[str], text: str, at: int = 0) -> Match:
    """A range (8-9), another scale (80/100) and thousands (1,000) are unreadable ones. at: where `found` begins to count."""
    place, number = at + found.start(1), found.group(1)
    other_scale = found.re.groups > 1 and found.group(2) is not None and int(found.group(2)) != 10
    if other_scale or patterns.RANGE.match(text, at + found.end(1)) or patterns.THOUSANDS.search(number):
        return None, place, at + found.end(1)
    return float(number.replace(",", ".").replace("−", "-")), place, at + found.end()


def _bracketed_scores(text: str) -> Iterator[Match]:
    for found in patterns.SCORE_BRACKETED.finditer(text):
        yield _score(found, text)


def _named_scores(text: str) -> Iterator[Match]:
    """Score: 8, and 8/10 wherever it stands (what is both counts once), and a last line of its own.

    What is called a score, overall or final goes before scores of single qualities; where those differ they are unreadable.
    """
    by_place = {}
    for pattern in (patterns.SCORE_OF_TEN, patterns.SCORE_LABELLED):
        by_place.update({(match := _score(found, text))[1]: match for found in pattern.finditer(text)})
    parts = list(by_place.values())
    of_all = [match for match in parts if patterns.OF_ALL.match(_before(text, match[1]))]
    lines = _lines(text)
    own = [(patterns.SCORE_LINE, line) for line in lines] + [
        (patterns.SCORE_ALONE, line) for line in lines[-1:]
    ]
    of_all += [_score(found, text, line[1]) for pattern, line in own for found in _whole(pattern, line)]
    if of_all:
        yield from of_all
    elif len({_line(text, start) for _, start, _ in parts}) > 1 and len({match[0] for match in parts}) > 1:
        yield from ((None, start, end) for _, start, end in parts)
    else:
        yield from parts


def _before(text: str, at: int) -> str:
    """The line of the place, up to it: its last LOOKED_BACK characters."""
    return text[max(text.rfind("\n", 0, at) + 1, at - LOOKED_BACK) : at]


def _lone_scores(text: str) -> Iterator[Match]:
    for line in _lines(text)[:1]:
        for found in _whole(patterns.SCORE_ALONE, line):
            yield _score(found, text, line[1])


_SCORES: tuple[Finder, ...] = (_bracketed_scores, _named_scores, _lone_scores)
