"""What only a run's models and its oracle can tell of it, asked at its end: audit.json and reference_answers.jsonl.

Each question is cheap (128 rows, 64 pairs, 200 answers) and alone: one that fails leaves null and a note, never a lost run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from sail.data.encode import EncodedRow, encode_prompt, encode_response
from sail.errors import DataError
from sail.evaluation import win_rate
from sail.evaluation.files import write_json, write_lines
from sail.evaluation.responses import prompt_key
from sail.evaluation.stats import Interval, mean_interval
from sail.evaluation.stats import win_rate as win_rate_of
from sail.generation import SamplingSettings, TransformersGenerator
from sail.generation.scoring import score_sequences, unwrapped
from sail.oracles import Oracle
from sail.types import Pair

AUDIT, ANSWERS = "audit.json", "reference_answers.jsonl"
FIT_ROWS = 128
SCORED_PAIRS = 128
SWAPPED_PAIRS = 64
ANSWERED_PROMPTS = 200

T = TypeVar("T")
Row = dict[str, Any]
Spoken = tuple[str, list[int], list[int]]
"""A prompt's key, its ids, and the ids of a response to it."""


@dataclass(frozen=True)
class Audit:
    """A finished run as its audit sees it.

    reference: a context that gives the reference model. data: rows with chosen and rejected, held-out ones or else training
    ones. trained: training rows. sampled: lines of pairs.jsonl.gz, whole prompts and responses.
    """

    reference: Callable[[], AbstractContextManager[Any]]
    tokenizer: Any
    settings: SamplingSettings
    oracle: Oracle | None
    trained: Sequence[EncodedRow]
    data: Sequence[EncodedRow]
    sampled: Sequence[Row]
    max_length: int
    seed: int
    batch_size: int = 64

    def write(self, folder: Path) -> Row:
        """Answer everything and write both files; returns what audit.json holds (docs/design.md, Evidence)."""
        notes: list[str] = []
        found: Row = {"prompt_fit": self._try("prompt_fit", self._prompt_fit, notes)}
        asked = self._try("oracle_agreement", self._ask, notes) if self.oracle is not None else None
        found["oracle_agreement"], found["oracle_swap"], found["oracle_calls"] = asked or (None, None, 0)
        answers = self._try("reference_answers", self._answers, notes) or []
        if answers:
            write_lines(folder / ANSWERS, answers)
        found["reference_answers"] = ANSWERS if answers else None
        found["notes"] = notes
        write_json(folder / AUDIT, found)
        return found

    def _try(self, name: str, question: Callable[[], T], notes: list[str]) -> T | None:
        try:
            return question()
        except Exception as error:
            notes.append(f"{name} could not be measured: {type(error).__name__}: {error}")
            return None

    def _prompt_fit(self) -> dict[str, Row | None]:
        paired = [row for row in self.trained if row["chosen_ids"] is not None]
        of_data = [
            (prompt_key(row["prompt"]), row["prompt_ids"], list(row["chosen_ids"] or []))
            for row in evenly(paired, FIT_ROWS)
        ]
        of_policy = [one for row in evenly(self.sampled, FIT_ROWS) if (one := self._spoken(row)) is not None]
        with self.reference() as model:
            found = {"data": self._fit(model, of_data), "sampled": self._fit(model, of_policy)}
        return {name: None if fit is None else asdict(fit) for name, fit in found.items()}

    def _spoken(self, row: Row) -> Spoken | None:
        """The first response of an on-policy pair, as tokens again; None for one that has none."""
        prompt, ends = row["prompt"], self.settings.eos_ids
        try:
            ids = encode_response(self.tokenizer, prompt, row["first"], ends)
            prompt_ids = encode_prompt(self.tokenizer, prompt)
        except DataError:
            return None
        if row.get("first_cut") and ids[-1] in ends:
            ids = ids[:-1]
        return (prompt_key(prompt), prompt_ids, ids) if ids else None

    def _fit(self, model: Any, rows: list[Spoken]) -> Interval | None:
        """Mean of log pi_ref(y|x) - log pi_ref(y|x'), nats per response, x' the prompt of the next row with another prompt."""
        others = derangement([key for key, _, _ in rows])
        own, foreign, keys = [], [], []
        for (key, prompt, response), other in zip(rows, others, strict=True):
            if other is None:
                continue
            instead = rows[other][1]
            said = response[: self.max_length - max(len(prompt), len(instead))]
            if said:
                own.append((list(prompt), said))
                foreign.append((list(instead), said))
                keys.append(key)
        if not own:
            return None
        pad, size = self.settings.pad_id, self.batch_size
        scores = score_sequences(model, own + foreign, pad_id=pad, batch_size=size)
        pairs = zip(scores[: len(own)], scores[len(own) :], strict=True)
        return mean_interval([a - b for a, b in pairs], keys)

    def _ask(self) -> tuple[Row | None, Row | None, int]:
        """oracle_agreement, oracle_swap and the calls they cost. An oracle whose answer may depend on the order is asked in
        both: shown first every time, the chosen response would also win by an oracle that likes whatever comes first. So is the
        one inside a wrapper that averages both orders."""
        assert self.oracle is not None
        symmetric = win_rate.is_symmetric(self.oracle)
        usable = [
            row for row in self.data if row["chosen_ids"] is not None and row["chosen"] != row["rejected"]
        ]
        rows = evenly(usable, SCORED_PAIRS if symmetric else SWAPPED_PAIRS)
        pairs = [Pair(row["prompt"], row["chosen"] or "", row["rejected"] or "") for row in rows]
        inner = self.oracle.ordered()
        if not pairs and (inner is not None or not symmetric):
            different = [row for row in self.sampled if row["first"] != row["second"]]
            pairs = [
                Pair(row["prompt"], row["first"], row["second"]) for row in evenly(different, SWAPPED_PAIRS)
            ]
        verdicts, calls = win_rate.judge(self.oracle, pairs)
        keys = [prompt_key(pair.prompt) for pair in pairs]
        agreement = asdict(win_rate_of([one.outcome for one in verdicts], keys)) if rows else None
        if inner is not None and pairs:
            # Averaged over both orders there is nothing to see: the oracle inside is asked. A ledger has its answers already.
            pairs = evenly(pairs, SWAPPED_PAIRS)
            keys = [prompt_key(pair.prompt) for pair in pairs]
            verdicts, more = win_rate.judge(inner, pairs)
            calls += more
        elif symmetric:
            return agreement, {"kind": self.oracle.order}, calls
        both = win_rate.position(verdicts, keys) if pairs else None
        swap = None if both is None else {name: both[name] for name in ("disagreement", "first_wins")}
        return agreement, None if swap is None else {"kind": self.oracle.order, **swap}, calls

    def _answers(self) -> list[Row]:
        """The reference's answers to prompts of the sampled pairs, one seeded sample each."""
        first: dict[str, Row] = {}
        for row in self.sampled:
            first.setdefault(prompt_key(row["prompt"]), row)
        rows = evenly(list(first.values()), ANSWERED_PROMPTS)
        ids = [encode_prompt(self.tokenizer, row["prompt"]) for row in rows]
        keys: list[Any] = [(self.seed, "audit", int(row["index"])) for row in rows]
        said: list[str] = []
        with self.reference() as model:
            generator = TransformersGenerator(lambda: unwrapped(model), self.tokenizer, self.settings)
            for start in range(0, len(rows), self.batch_size):
                part = slice(start, start + self.batch_size)
                said += [one.text for one in generator.sample(ids[part], keys[part])]
        return [
            {"index": row["index"], "prompt": row["prompt"], "response": text}
            for row, text in zip(rows, said, strict=True)
        ]


def evenly(rows: Sequence[T], count: int) -> list[T]:
    """At most `count` rows, evenly spread, the first and the last among them.

    >>> evenly([0, 1, 2, 3, 4], 3)
    [0, 2, 4]
    """
    if len(rows) <= count:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (count - 1))] for place in range(count)]


def derangement(keys: Sequence[str]) -> list[int | None]:
    """For each row the place of the next row (around the end) with another key; None where all keys are the same.

    >>> derangement(["a", "a", "b"])
    [2, 2, 0]
    """
    count = len(keys)
    return [
        next((at for step in range(1, count) if keys[at := (place + step) % count] != keys[place]), None)
        for place in range(count)
    ]
