"""Benchmark questions of two turns, answered in conversation and scored from 1 to 10 by a judge. MT-Bench's file format.

One JSON object per line: question_id, category, turns (two texts), and perhaps reference (a text per turn).

A judge is a callable `score(conversations)` or `score(conversations, references)`, named as path.py:score. A conversation is a
list of messages that ends with the answer to be scored; the judge returns a score in [1, 10] for each, or None to abstain.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sail.data.encode import encode_prompt
from sail.errors import DataError, OracleError
from sail.evaluation.journal import Journal
from sail.evaluation.responses import Speaker, in_chunks, sample
from sail.evaluation.stats import Interval, rate_interval
from sail.generation import SamplingSettings, SeedKey
from sail.oracles.base import number_or_none
from sail.types import Message

TURNS = 2
LOWEST, HIGHEST = 1.0, 10.0
BREAK = "\n\n"
"""Between the turns of a conversation for a model without a chat template."""

Score = Callable[..., Any]


@dataclass(frozen=True)
class Question:
    """A benchmark question; `reference` has a text per turn, or is None."""

    id: str
    category: str
    turns: tuple[str, str]
    reference: tuple[str, ...] | None = None


def load_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file. Raises DataError naming the line, the field and the cause."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The question file {path} cannot be read: {error}.") from None
    found = [_question(line, f"{path} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    ids = [question.id for question in found]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if not found or twice is not None:
        cause = "holds no question" if not found else f"has the question_id {twice} twice"
        raise DataError(f'{path} {cause}. Write one {{"question_id", "category", "turns"}} per line.')
    return found


def _question(line: str, origin: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{origin}: broken JSON ({error}). Write one whole object per line.") from None
    if not isinstance(row, dict) or "question_id" not in row:
        raise DataError(f"{origin}: field 'question_id' is missing. Give every question its own.")
    turns = row.get("turns")
    if not isinstance(turns, list) or len(turns) != TURNS or not all(_is_text(turn) for turn in turns):
        raise DataError(f"{origin}: field 'turns' must hold two texts; it is {turns!r}.")
    reference = row.get("reference")
    if reference is not None and not (isinstance(reference, list) and all(map(_is_text, reference))):
        raise DataError(f"{origin}: field 'reference' must be a list of texts; it is {reference!r}.")
    return Question(
        str(row["question_id"]),
        str(row.get("category") or "general"),
        (turns[0], turns[1]),
        None if reference is None else tuple(reference),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def conversation_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """What the next answer is generated from: the chat template's text, or, for a tokenizer without one, the turns as they are
    with an empty line between them. The first turn then is the plain prompt that such a model was trained on."""
    if tokenizer.chat_template is not None:
        return encode_prompt(tokenizer, messages)
    return encode_prompt(tokenizer, BREAK.join(message["content"] for message in messages))


def converse(
    speaker: Speaker,
    tokenizer: Any,
    questions: Sequence[Question],
    settings: SamplingSettings,
    journal: Journal,
    *,
    seed: int,
    batch_size: int,
    whose: str = "policy",
) -> tuple[list[list[Message]], list[str]]:
    """The whole conversation of each question, four messages, and notes on what had to be shortened. `whose`: as in `sample`,
    the model's part in the evaluation."""
    talks: list[list[Message]] = [[] for _ in questions]
    notes = []
    for turn in range(TURNS):
        for talk, question in zip(talks, questions, strict=True):
            talk.append({"role": "user", "content": question.turns[turn]})
        ids = [conversation_ids(tokenizer, talk) for talk in talks]
        room = _room(speaker, settings.max_new_tokens)
        cut = sum(len(one) > room for one in ids)
        if cut:
            notes.append(
                f"The beginning of {cut} of {len(ids)} benchmark conversations was cut off in turn {turn + 1}: with "
                f"{settings.max_new_tokens} tokens for the answer they do not fit into the model's context."
            )
        ids = [one[-room:] for one in ids]
        keys: list[SeedKey] = [(seed, "question", question.id, turn) for question in questions]
        answers = sample(
            speaker,
            tokenizer,
            ids,
            keys,
            settings,
            journal,
            batch_size=batch_size,
            what=f"{whose} questions {turn + 1}",
        )
        for talk, answer in zip(talks, answers, strict=True):
            talk.append({"role": "assistant", "content": answer.text})
    return talks, notes


def _room(speaker: Speaker, answer: int) -> int:
    """Tokens that a conversation may have before an answer of `answer` tokens."""
    context = getattr(speaker.model.config, "max_position_embeddings", None)
    if context is None:
        return 2**31
    if context <= answer:
        raise DataError(
            f"Answers of {answer} tokens leave no room for a question in the context of {speaker.name}, {context} tokens. Lower "
            "--max-new-tokens."
        )
    return int(context) - answer


def scores(
    judge: Score,
    name: str,
    questions: Sequence[Question],
    talks: Sequence[list[Message]],
    journal: Journal,
    *,
    batch_size: int,
) -> list[list[float | None]]:
    """The judge's scores: per question one of each turn, None where it abstained."""
    parts = [(place, talk[: 2 * turn + 2]) for place, talk in enumerate(talks) for turn in range(TURNS)]

    def chunk(rows: list[int]) -> list[dict[str, Any]]:
        asked = [parts[row][1] for row in rows]
        references = [questions[parts[row][0]].reference for row in rows]
        given = _ask(judge, name, asked, references)
        return [{"row": row, "score": score} for row, score in zip(rows, given, strict=True)]

    flat = [kept["score"] for kept in in_chunks(len(parts), f"{name} scores", chunk, journal, batch_size)]
    return [flat[TURNS * place : TURNS * place + TURNS] for place in range(len(talks))]


def _ask(judge: Score, name: str, talks: list[list[Message]], references: list[Any]) -> list[float | None]:
    wants_references = len(inspect.signature(judge).parameters) > 1
    try:
        given = list(judge(talks, references) if wants_references else judge(talks))
    except Exception as error:
        raise OracleError(
            f"The judge {name} raised {type(error).__name__}: {error} (asked about {len(talks)} conversations). Mend it and run "
            "the same command again: what was scored is kept."
        ) from error
    numbers = [None if value is None else number_or_none(value) for value in given]
    bad = [
        value
        for value, number in zip(given, numbers, strict=True)
        if value is not None and (number is None or not LOWEST <= number <= HIGHEST)
    ]
    if len(given) != len(talks) or bad:
        what = f"returned {bad[0]!r}" if bad else f"gave {len(given)} answers to {len(talks)} conversations"
        raise OracleError(
            f"The judge {name} {what}. It must return one number from 1 to 10 per conversation, or None to abstain."
        )
    return numbers


def table(questions: Sequence[Question], given: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """{"rows": [{"category", "turn", mean, low, high, n, clusters}], "abstained"}: categories in the order of the file, then all
    of them; turn 1, turn 2 and both ("all"). Clustered by question, since its two turns are one conversation. The interval is
    that of a rate on (score - 1) / 9, so that few questions cannot carry it out of the scale."""
    categories = [*dict.fromkeys(question.category for question in questions), "all"]
    rows = []
    for category in categories:
        for turns, shown in (((0,), "1"), ((1,), "2"), ((0, 1), "all")):
            found = [
                (value, question.id)
                for question, scored in zip(questions, given, strict=True)
                for turn in turns
                if category in (question.category, "all") and (value := scored[turn]) is not None
            ]
            interval = _on_scale([value for value, _ in found], [key for _, key in found])
            rows.append({"category": category, "turn": shown, **asdict(interval)})
    return {"rows": rows, "abstained": sum(value is None for scored in given for value in scored)}


def _on_scale(given: list[float], clusters: list[str]) -> Interval:
    width = HIGHEST - LOWEST
    rate = rate_interval([(value - LOWEST) / width for value in given], clusters)
    mean, low, high = (
        None if value is None else LOWEST + width * value for value in (rate.mean, rate.low, rate.high)
    )
    return Interval(mean, low, high, rate.n, rate.clusters)
