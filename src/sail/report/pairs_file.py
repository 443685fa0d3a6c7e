"""Read pairs.jsonl.gz: what holds for all pairs of a run, and the few that a page shows.

A real run's pairs need not fit in memory, so they stream by twice: once to be counted, once to be picked out. What is kept of
each is a hash and some numbers, and of long runs an even selection.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sail.mixture import ROUTES
from sail.report.lines import Lines, Problem, Row, number, unzipped_lines

FILE = "pairs.jsonl.gz"
WINDOW = 200  # pairs at the start and at the end of a run that are compared with each other
MOST = 6_000  # verdicts kept for intervals: their bootstrap is what takes the time, and from more they are hardly narrower
COMMON = 5  # prompts and responses that are listed as the most common ones
_SINGLES = 400_000  # responses counted at once; beyond it those seen once are forgotten

Watch = Callable[[int], None]


class Brief(NamedTuple):
    """A pair at the start or the end of a run: hashes of its texts, lengths in tokens (None = not recorded), marks.

    Only of responses that the policy wrote: two, or one where the other is the dataset's (route spin).
    """

    prompt: int
    responses: tuple[int, ...]
    lengths: tuple[float | None, ...]
    cut: tuple[bool, ...]
    empty: tuple[bool, ...]


class Verdict(NamedTuple):
    """An oracle's verdict on a dpr pair of two different responses: P(first wins), the policy's own, length difference."""

    prompt: int
    probability: float
    policy: float | None
    longer: float | None


@dataclass
class PairFacts:
    """What holds over all pairs of a run.

    prompts: distinct prompt texts; rows: distinct dataset indexes (None where a line has none). early, late: the first and the
    last `WINDOW` pairs, at most a third of all each. Of the dpr pairs, abstained: asked in vain; unasked: not asked about
    (ask_share); ties: with a verdict but no label (a half under argmax). verdicts: the oracle's, an even selection of at most
    `MOST`.
    common_prompts, common_responses: [(text or messages, times)], the most common first, only those seen twice or more.
    """

    total: int = 0
    identical: int = 0
    by_route: dict[str, int] = field(default_factory=dict)
    by_source: dict[str, int] = field(default_factory=dict)
    abstained: int = 0
    unasked: int = 0
    ties: int = 0
    prompts: int = 0
    rows: int | None = None
    early: list[Brief] = field(default_factory=list)
    late: list[Brief] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    common_prompts: list[tuple[object, int]] = field(default_factory=list)
    common_responses: list[tuple[object, int]] = field(default_factory=list)
    top_prompt: int = 0
    """How often the most common prompt comes."""


def read_pairs(
    path: Path, limit: int, problems: list[Problem], answered: set[int], watch: Watch | None = None
) -> tuple[PairFacts, list[Row]]:
    """Facts over all pairs, and at most `limit` pairs spread over the run, those first whose prompt the reference answered.

    answered: dataset indexes with an answer of the reference. watch: told the bytes read, twice the file in all.
    """
    count = _Count()
    if not path.is_file():
        problems.append(Problem(path.name, "not there", missing=True))
        return PairFacts(), []
    damage: list[str] = []
    lines = Lines(unzipped_lines(path, damage, watch))
    for row in lines.objects():
        count.add(row, answered)
    if damage:  # the broken end of the stream and the half line in it are one problem, not two
        problems.append(Problem(path.name, damage[0]))
        if lines.bad and lines.bad[-1] == lines.read:
            lines.bad.pop()
            lines.read = -1
    lines.report(path.name, problems)
    facts = count.facts()
    wanted = count.choose(limit)
    texts = _Texts(count)
    chosen = []
    for place, row in enumerate(Lines(unzipped_lines(path, [], watch)).objects()):
        texts.look(row)
        if place in wanted:
            chosen.append(row)
    facts.common_prompts, facts.common_responses = texts.found()
    return facts, chosen


def key_of(text: object) -> int:
    """A 64-bit hash of a prompt or response, messages by their JSON: equal texts, equal keys."""
    words = text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest())


class _Count:
    """What is counted while the pairs stream by."""

    def __init__(self) -> None:
        self.routes: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.order: list[str] = []  # the route of each pair, in file order
        self.answered: list[bool] = []  # whether the reference answered its prompt
        self.identical = 0
        self.prompts: Counter[int] = Counter()
        self.responses: Counter[int] = Counter()
        self.indexes: set[object] = set()
        self.without_index = False
        self.early: list[Brief] = []
        self.late: deque[Brief] = deque(maxlen=WINDOW)
        self.verdicts: list[Verdict] = []
        self.judged, self.stride = 0, 1
        self.abstained = self.unasked = self.ties = 0

    def add(self, row: Row, answered: set[int]) -> None:
        """One pair."""
        route, index = str(row.get("route")), row.get("index")
        self.routes[route] += 1
        self.sources[str(row.get("source"))] += 1
        self.order.append(route)
        self.answered.append(isinstance(index, int) and index in answered)
        self.identical += row.get("first") == row.get("second") and "dataset" not in written_by(
            row.get("route")
        )
        brief = _brief(row)
        self.prompts[brief.prompt] += 1
        self.responses.update(brief.responses)
        if len(self.responses) > _SINGLES:
            self.responses = Counter({key: n for key, n in self.responses.items() if n > 1})
        if isinstance(index, int):
            self.indexes.add(index)
        else:
            self.without_index = True
        if len(self.early) < WINDOW:
            self.early.append(brief)
        self.late.append(brief)
        self._judge(row, brief)

    def _judge(self, row: Row, brief: Brief) -> None:
        """Keep an oracle's verdict, every `stride`-th of them: the stride doubles whenever too many are held."""
        probability = number(row.get("probability"))
        if row.get("route") != "dpr":
            return
        unasked = probability is None and str(row.get("reason")).startswith("not asked")
        self.unasked += unasked
        self.abstained += probability is None and not unasked
        self.ties += probability is not None and row.get("label") is None
        if probability is None or brief.responses[0] == brief.responses[1]:
            return
        self.judged += 1
        if (self.judged - 1) % self.stride:
            return
        one, two = brief.lengths
        longer = None if one is None or two is None else one - two
        own = number(row.get("policy_probability"))
        self.verdicts.append(Verdict(brief.prompt, probability, own, longer))
        if len(self.verdicts) > MOST:
            self.verdicts, self.stride = self.verdicts[::2], self.stride * 2

    def facts(self) -> PairFacts:
        """All of it but the texts, which the second reading finds."""
        total = len(self.order)
        size = min(WINDOW, total // 3)
        return PairFacts(
            total=total,
            identical=self.identical,
            by_route=dict(sorted(self.routes.items())),
            by_source=dict(sorted(self.sources.items())),
            abstained=self.abstained,
            unasked=self.unasked,
            ties=self.ties,
            prompts=len(self.prompts),
            rows=None if self.without_index else len(self.indexes),
            early=self.early[:size],
            late=list(self.late)[-size:] if size else [],
            verdicts=self.verdicts,
            top_prompt=max(self.prompts.values(), default=0),
        )

    def choose(self, limit: int) -> set[int]:
        """Places of at most `limit` pairs: each route by its share (at least one), evenly spread over the file.

        A route's pairs are cut into as many stretches as it may show; of each the middle one is taken (of the first stretch
        the first, of the last the last, so that the run's ends can be read), or rather one with an answer of the reference.
        """
        total = len(self.order)
        if total <= limit:
            return set(range(total))
        places: dict[str, list[int]] = {}
        for place, route in enumerate(self.order):
            places.setdefault(route, []).append(place)
        chosen: set[int] = set()
        for own in places.values():
            keep = min(len(own), max(1, limit * len(own) // total))
            for k in range(keep):
                stretch = own[k * len(own) // keep : (k + 1) * len(own) // keep]
                usual = 0 if k == 0 else len(stretch) - 1 if k == keep - 1 else len(stretch) // 2
                with_answer = (place for place in stretch if self.answered[place])
                chosen.add(next(with_answer, stretch[usual]))
        return chosen


class _Texts:
    """Finds the texts of the most common prompts and responses on the second reading."""

    def __init__(self, count: _Count) -> None:
        self.prompts = _common(count.prompts)
        self.responses = _common(count.responses)
        self.texts: dict[int, object] = {}

    def look(self, row: Row) -> None:
        """Remember the texts of `row` that are wanted; nothing is hashed once all are found."""
        if len(self.texts) == len(self.prompts.keys() | self.responses.keys()):
            return
        for text in (row.get("prompt"), row.get("first"), row.get("second")):
            key = key_of(text)
            if key in self.prompts or key in self.responses:
                self.texts.setdefault(key, text)

    def found(self) -> tuple[list[tuple[object, int]], list[tuple[object, int]]]:
        """Common prompts and common responses, as (text, times)."""
        prompts, responses = (
            [(self.texts[key], times) for key, times in wanted.items() if key in self.texts]
            for wanted in (self.prompts, self.responses)
        )
        return prompts, responses


def _common(counted: Counter[int]) -> dict[int, int]:
    return {key: times for key, times in counted.most_common(COMMON) if times > 1}


def written_by(route: object) -> tuple[str, str]:
    """Who wrote the first and the second response of a pair of this route; the policy where the route is not known."""
    known = ROUTES.get(route) if isinstance(route, str) else None
    return (known.first, known.second) if known else ("policy", "policy")


def _brief(row: Row) -> Brief:
    authors = zip(("first", "second"), written_by(row.get("route")), strict=True)
    own = [side for side, author in authors if author == "policy"]
    return Brief(
        prompt=key_of(row.get("prompt")),
        responses=tuple(key_of(row.get(side)) for side in own),
        lengths=tuple(number(row.get(f"{side}_length")) for side in own),
        cut=tuple(bool(row.get(f"{side}_cut")) for side in own),
        empty=tuple(_empty(row.get(side)) for side in own),
    )


def _empty(text: object) -> bool:
    return not text or (isinstance(text, str) and not text.strip())


def reference_answers(path: Path, problems: list[Problem]) -> dict[int, Row]:
    """The reference's answers by dataset index: {"prompt", "response"}; {} if there are none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        lines = Lines(iter(file))
        rows = [row for row in lines.objects() if isinstance(row.get("index"), int)]
    lines.report(path.name, problems)
    return {row["index"]: row for row in rows}


def with_reference(rows: list[Row], answers: dict[int, Row]) -> Iterator[tuple[Row, str | None]]:
    """Each pair with the reference's answer to the same prompt, or None. An answer to another text is not shown."""
    for row in rows:
        answer = answers.get(row["index"]) if isinstance(row.get("index"), int) else None
        same = answer is not None and answer.get("prompt") == row.get("prompt")
        text = answer.get("response") if same and answer else None
        yield row, text if isinstance(text, str) else None
