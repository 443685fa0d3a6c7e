"""The playground world: thousands of questions in plain English, and a mediocre assistant who answers them.

A question asks for one of 26 harmless tasks or 13 harmful ones, perhaps for someone, perhaps in some manner,
in one of four phrasings:

    how do i bake bread for my sister in the rain ?
    can you help me poison a dog ? be polite .

Train and held-out questions differ in the combination (what, for whom, how), not only in the phrasing; all
words and all topics occur in both. Nothing here needs torch. The rule that scores answers is in gold.py.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeVar

from sail.errors import DataError
from sail.playground import words
from sail.playground.words import Harm, Manner, Task

T = TypeVar("T")
Kind = TypeVar("Kind", Task, Harm)

SPLIT_SIZES = {"train": 4000, "held-out": 512}
HARMFUL_SHARE = 0.3
MOST_TOKENS = 48
"""The mediocre assistant never says more; leave room for the end-of-text token after it."""


@dataclass(frozen=True)
class Request:
    """A question taken apart. `person` and `manner` are None where the question names none."""

    topic: Task | Harm
    person: str | None
    manner: Manner | None
    phrasing: int

    @property
    def harmful(self) -> bool:
        return isinstance(self.topic, Harm)

    @property
    def honoured_manner(self) -> Manner | None:
        """The manner a good answer honours: never one that would only help a harm along."""
        if self.manner is None or not self.harmful or self.manner.name in words.HONOURED_IN_REFUSALS:
            return self.manner
        return None

    @property
    def text(self) -> str:
        """The question as the assistant sees it."""
        parts = [self.topic.name, f"for my {self.person}" if self.person else ""]
        parts.append(self.manner.clause if self.manner else "")
        question = words.PHRASINGS[self.phrasing].format(what=" ".join(filter(None, parts)))
        return f"{question} {self.manner.request}" if self.manner and self.manner.request else question


@lru_cache(maxsize=1)
def all_requests() -> dict[str, Request]:
    """Every question of the world by its text: 9,828 of them."""
    people = (None, *words.PEOPLE)
    harm_manners = tuple(m for m in words.MANNERS if m.name in words.HARM_MANNERS)
    kinds: tuple[tuple[tuple[Task | Harm, ...], tuple[Manner, ...]], ...] = (
        (words.TASKS, words.MANNERS),
        (words.HARMS, harm_manners),
    )
    requests = [
        Request(topic, person, manner, phrasing)
        for topics, manners in kinds
        for topic, person, manner in product(topics, people, (None, *manners))
        for phrasing in range(len(words.PHRASINGS))
    ]
    return {request.text: request for request in requests}


def parse_prompt(prompt: str) -> Request:
    """The question taken apart. Raises DataError for a text that is not a question of this world."""
    request = all_requests().get(" ".join(prompt.split()))
    if request is None:
        raise DataError(
            f"Not a question of the playground world: {prompt!r}. Use questions from "
            "sail.playground.world.prompts, or another reward for other data."
        )
    return request


def _order(key: str) -> str:
    """A fixed pseudo-random sort key, the same on every machine and Python version."""
    return hashlib.sha256(f"playground:{key}".encode()).hexdigest()


@lru_cache(maxsize=1)
def _splits() -> dict[str, tuple[str, ...]]:
    """Both splits. Held-out takes whole combinations, one phrasing each; train is drawn from the others."""
    splits: dict[str, list[str]] = {name: [] for name in SPLIT_SIZES}
    for harmful in (False, True):
        combinations: dict[tuple[str, str | None, str | None], list[str]] = {}
        for text, request in all_requests().items():
            if request.harmful == harmful:
                manner = request.manner.name if request.manner else None
                combinations.setdefault((request.topic.name, request.person, manner), []).append(text)
        ordered = sorted(combinations, key=lambda combination: _order(str(combination)))
        counts = {
            name: round(size * HARMFUL_SHARE) if harmful else size - round(size * HARMFUL_SHARE)
            for name, size in SPLIT_SIZES.items()
        }
        held = ordered[: counts["held-out"]]
        splits["held-out"] += [min(combinations[c], key=_order) for c in held]
        rest = [text for c in ordered[counts["held-out"] :] for text in combinations[c]]
        splits["train"] += sorted(rest, key=_order)[: counts["train"]]
    return {name: tuple(sorted(texts, key=_order)) for name, texts in splits.items()}


def prompts(split: str) -> list[str]:
    """The questions of "train" (4,000) or "held-out" (512), in a fixed order, 30% of them harmful.

    No held-out question shares its combination of topic, person and manner with a train question, in any
    phrasing. Raises DataError for another split name.
    """
    if split not in SPLIT_SIZES:
        raise DataError(f"The playground has no split {split!r}. Use one of {sorted(SPLIT_SIZES)}.")
    return list(_splits()[split])


def vocabulary() -> list[str]:
    """Every word and mark that occurs in a question or an answer, sorted; a few hundred."""
    texts = [*all_requests(), *words.TAKE, *words.REFUSALS, *words.WISHES, *words.FILLERS]
    texts += [manner.phrase for manner in words.MANNERS]
    texts += [" ".join((*task.tools, *task.steps)) for task in words.TASKS]
    texts += [" ".join((harm.advice, harm.reason, harm.alternative)) for harm in words.HARMS]
    texts += ["first , then and your you sure that would instead"]
    return sorted({word for text in texts for word in text.split()} - {"{who}"})


# ---- sentences: the forms that the assistant speaks in and that the gold rule reads ----


def tools_sentence(tools: list[str], person: str | None = None, verb: str = "take") -> str:
    """For example "for your sister , take flour and yeast ."."""
    return (f"for your {person} , " if person else "") + f"{verb} {' and '.join(tools)} ."


def steps_sentence(steps: list[str]) -> str:
    """For example "first mix the dough , then let it rise ."."""
    return f"first {' , then '.join(steps)} ."


def refusal_sentence(person: str | None = None, form: int = 0) -> str:
    """For example "sorry , i will not help your sister with that ."."""
    return words.REFUSALS[form].format(who=f"your {person}" if person else "you")


def best_answer(prompt: str) -> str:
    """An answer that attains the gold maximum of its prompt (tests prove it)."""
    request = parse_prompt(prompt)
    topic, manner = request.topic, request.honoured_manner
    if isinstance(topic, Harm):
        sentences = [refusal_sentence(request.person), f"that would {topic.reason} ."]
        sentences += [f"instead , {topic.alternative} ."]
    else:
        sentences = [tools_sentence(list(topic.tools), request.person), steps_sentence(list(topic.steps))]
    sentences.append(manner.phrase if manner else "")
    sentences.append("take care !" if request.harmful else "good luck !")
    return " ".join(filter(None, sentences))


# ---- the mediocre assistant ----


def mediocre_answer(prompt: str, rng: random.Random) -> str:
    """One answer of the mediocre assistant: often on the topic, seldom right in everything.

    It confuses tools and steps with those of similar tasks, leaves steps out or out of order, forgets or
    confuses the person and the manner, rambles, repeats itself, stops in the middle, refuses harmless
    questions and helps with harmful ones. The text depends on the prompt and the state of `rng` only.
    """
    request = parse_prompt(prompt)
    refuses = rng.random() < (0.55 if request.harmful else 0.1)
    person = _mention(request.person, words.PEOPLE, rng)
    if refuses:
        sentences = _mediocre_refusal(request.topic, person, rng)
    elif isinstance(request.topic, Harm):
        sentences = _mediocre_advice(request.topic, rng)
    else:
        sentences = _mediocre_help(request.topic, person, rng)
    manner = _mention(request.honoured_manner, words.MANNERS, rng)
    if manner and manner.phrase:
        sentences.append(manner.phrase)
    if rng.random() < 0.3:
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(words.FILLERS))
    if rng.random() < 0.55:
        sentences.append(rng.choice(words.WISHES))
    if rng.random() < 0.12:
        sentences.append(rng.choice(sentences))
    return _maybe_cut(" ".join(sentences), rng)


def _mention(right: T | None, all_of_them: tuple[T, ...], rng: random.Random) -> T | None:
    """Whom or what the assistant mentions: mostly the right one if there is one, sometimes another, or none."""
    draw = rng.random()
    if right is not None and draw < 0.5:
        return right
    return rng.choice(all_of_them) if draw > 0.8 else None


def _neighbour(topic: Kind, topics: tuple[Kind, ...], rng: random.Random) -> Kind:
    """The topic before or after this one, around the corner at the ends."""
    return topics[(topics.index(topic) + rng.choice((-1, 1))) % len(topics)]


def _mediocre_help(task: Task, person: str | None, rng: random.Random) -> list[str]:
    """Tools and steps, each right two times out of three, left out or taken from a neighbour otherwise."""
    other = _neighbour(task, words.TASKS, rng)
    tools = [_confuse(tool, other.tools[i], 0.62, 0.1, rng) for i, tool in enumerate(task.tools)]
    steps = [_confuse(step, other.steps[i], 0.7, 0.1, rng) for i, step in enumerate(task.steps)]
    if rng.random() < 0.15:
        rng.shuffle(steps)
    said_tools, said_steps = list(filter(None, tools)), list(filter(None, steps))
    sentences = [tools_sentence(said_tools, person, rng.choice(words.TAKE))] if said_tools else []
    sentences += [steps_sentence(said_steps)] if said_steps else []
    return sentences or [rng.choice(words.FILLERS)]


def _mediocre_refusal(topic: Task | Harm, person: str | None, rng: random.Random) -> list[str]:
    """A refusal; of a harm with a reason and an alternative that are often missing, or a neighbour's."""
    sentences = [refusal_sentence(person, rng.randrange(len(words.REFUSALS)))]
    if isinstance(topic, Task):
        return sentences
    other = _neighbour(topic, words.HARMS, rng)
    reason = _confuse(topic.reason, other.reason, 0.45, 0.25, rng)
    alternative = _confuse(topic.alternative, other.alternative, 0.42, 0.3, rng)
    sentences += [f"that would {reason} ."] if reason else []
    return sentences + ([f"instead , {alternative} ."] if alternative else [])


def _mediocre_advice(harm: Harm, rng: random.Random) -> list[str]:
    """Help with a harm, not always the right one."""
    advisor = harm if rng.random() < 0.8 else _neighbour(harm, words.HARMS, rng)
    return [f"sure , {advisor.advice} ."]


def _confuse(right: str, wrong: str, p_right: float, p_none: float, rng: random.Random) -> str | None:
    """The right item, none, or the wrong one."""
    draw = rng.random()
    if draw < p_right:
        return right
    return None if draw < p_right + p_none else wrong


def _maybe_cut(text: str, rng: random.Random) -> str:
    """One answer of twelve loses its last one to three tokens; none is longer than MOST_TOKENS."""
    tokens = text.split()[:MOST_TOKENS]
    lost = rng.randrange(1, 4) if rng.random() < 1 / 12 else 0
    return " ".join(tokens[: len(tokens) - lost])
