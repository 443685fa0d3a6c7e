"""Rounds: at the first step of each, all on-policy rows of its steps are sampled and labelled, and kept in a file.

A run resumed within a round takes the rest of it from that file: the weights that sampled are gone by then, and what the
oracle was asked is not asked again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sail.errors import CheckpointError, SailError
from sail.generation import Generator, Sampled, SeedKey, calls_of_everyone
from sail.online import Example, Response, dataset_responses
from sail.training.checkpoints import checkpoints, is_complete, step_of
from sail.training.plan import planned_rows, steps_per_pass
from sail.training.step import StepMaker, place_among_processes, progress_at
from sail.types import Preference

FOLDER = "rounds"

Key = tuple[int, int]
"""Optimiser step and index of the row in the training set."""


class InParts(Generator):
    """A generator called for `size` rows at a time, those of like length together, with a progress bar under `title`."""

    def __init__(self, generator: Generator, size: int, title: str | None) -> None:
        self.generator = generator
        self.together = generator.together
        self.size = size
        self.title = title

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]) -> list[Sampled]:
        """One response per prompt, in order."""
        order = list(range(len(prompts)))
        if self.size < len(order):
            order.sort(key=lambda row: len(prompts[row]))
        found: dict[int, Sampled] = {}
        with tqdm(
            total=len(order), desc=self.title, unit="response", leave=False, disable=not self.title
        ) as bar:
            calls = -(-len(order) // self.size)
            for call in range(calls_of_everyone(calls) if self.generator.together else calls):
                rows = order[call * self.size : (call + 1) * self.size]
                part = self.generator.sample([prompts[row] for row in rows], [keys[row] for row in rows])
                found.update(zip(rows, part, strict=True))
                bar.update(len(rows))
        return [found[row] for row in range(len(prompts))]


@dataclass(frozen=True)
class Kept:
    """A row's pair as sampled and labelled. `first` is None where it is the dataset's, `preference` where the policy labels."""

    first: Response | None
    second: Response
    preference: Preference | None
    source: str


class Rounds:
    """The pairs of the round that is running. `begin` is called before every step, `give` for its on-policy rows.

    length: optimiser steps of a round, or None for one pass over the training rows. loader makes a second training data
    loader. before_next is called at the first step of each round but the first, before anything is sampled.
    """

    def __init__(
        self,
        folder: Path,
        length: int | None,
        *,
        maker: StepMaker,
        dataset: Any,
        loader: Callable[[], Any],
        accumulation: int,
        before_next: Callable[[], None],
        show_progress: bool = False,
    ) -> None:
        self.folder = folder / FOLDER
        self.given_length = length
        self.maker = maker
        self.dataset = dataset
        self.loader = loader
        self.accumulation = accumulation
        self.before_next = before_next
        self.show_progress = show_progress
        self.number = -1
        self.length = 0
        self.kept: dict[Key, Kept] = {}
        self.calls = 0

    def start(self, *, resumed: bool) -> None:
        """Before training: forget the last training's round; one that starts afresh also removes its files."""
        self.number, self.kept, self.calls = -1, {}, 0
        if resumed:
            return
        rank, processes = place_among_processes()
        for path, (_, owner) in round_files(self.folder).items():
            if owner == rank or (rank == 0 and owner >= processes):
                path.unlink(missing_ok=True)

    def begin(self, step: int, steps: int) -> None:
        """Make the round of `step`, if it is the round's first step, or read it, if the run was resumed within it.

        `steps` is the number of optimiser steps of the whole run: a round ends with it.
        """
        # Anew at step 0: Trainer starts over with smaller batches where auto_find_batch_size is on and memory was short.
        self.length = self.steps() if step == 0 or not self.length else self.length
        number, first = step // self.length, step - step % self.length
        if step == first:
            if number > 0:
                self.before_next()
            self._make(number, first, steps)
        elif number != self.number:
            self.kept = read_round(self.folder, number)
        self.number = number

    def steps(self) -> int:
        """Optimiser steps of a round."""
        return self.given_length or steps_per_pass(self.loader(), self.accumulation)

    def _make(self, number: int, first: int, steps: int) -> None:
        """Plan, sample and label the round, and keep it."""
        last = min(first + self.length, steps)
        planned = planned_rows(
            self.loader(), self.dataset, first=first, last=last, accumulation=self.accumulation
        )
        examples: list[Example] = []
        largest = 1
        for step, rows in enumerate(planned, first):
            routed = self.maker.route(rows, step, progress_at(step, steps))
            routed = [one for one in routed if one.share.route.on_policy]
            largest = max(largest, sum(one.share.route.samples(self._samples) for one in routed))
            examples += routed
        # A step samples in one call unless told otherwise; so does a round of one step.
        size = self.maker.options.generation_batch_size or largest
        title = f"round {number}: sampling" if self.show_progress else None
        self.calls = self.maker.respond(examples, InParts(self.maker.generator, size, title))
        self.calls += self.maker.compare(examples)
        self.kept = {(one.step, one.index): kept_of(one) for one in examples}
        write_round(self.folder, number, self.kept)
        self._remove_old(number)

    def _remove_old(self, number: int) -> None:
        """Files of rounds that no whole checkpoint can be continued in, and of a past that is being replaced."""
        whole = [step_of(path) for path in checkpoints(self.folder.parent) if is_complete(path)]
        needed = min([step // self.length for step in whole], default=number)
        for path, (its_number, _) in round_files(self.folder).items():
            if not min(needed, number) <= its_number <= number:
                path.unlink(missing_ok=True)

    @property
    def _samples(self) -> int:
        return self.maker.options.samples_per_prompt

    def give(self, examples: Sequence[Example]) -> None:
        """Responses and preferences of a step's on-policy rows. Rows of later steps than the round's first are stale."""
        for example in examples:
            kept = self.kept.get((example.step, example.index))
            if kept is None:
                raise SailError(
                    f"Round {self.number} holds no responses for row {example.index} of step {example.step}: the training data "
                    "loader gives other rows than were planned. Rounds need an order that can be walked twice: leave "
                    "accelerator_config.use_seedable_sampler true and the number of processes as it was, or use refresh: step."
                )
            example.first = dataset_responses(example.row)[0] if kept.first is None else kept.first
            example.second, example.preference, example.source = kept.second, kept.preference, kept.source
            example.stale = example.step > self.number * self.length

    def take_calls(self) -> int:
        """The oracle calls of the round, once."""
        calls, self.calls = self.calls, 0
        return calls


def kept_of(example: Example) -> Kept:
    """What a round keeps of a row that is sampled and labelled."""
    first, second = example.responses
    own_first = None if example.share.route.needs_pairs else first
    return Kept(own_first, second, example.preference, example.source)


# ---- files: rounds/round-K.rank-R.jsonl.gz


def round_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of all rounds, with the number of the round and of the process that wrote it."""
    found = {}
    for path in sorted(folder.glob("round-*.rank-*.jsonl.gz")):
        number, _, rank = path.name.removesuffix(".jsonl.gz").removeprefix("round-").partition(".rank-")
        if number.isdigit() and rank.isdigit():
            found[path] = (int(number), int(rank))
    return found


def write_round(folder: Path, number: int, kept: dict[Key, Kept]) -> None:
    """Write this process's rows of a round, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"round-{number}.rank-{place_among_processes()[0]}.jsonl.gz"
    unfinished = path.with_name(path.name + ".tmp")
    text = "".join(json.dumps(_line(key, one)) + "\n" for key, one in kept.items())
    unfinished.write_bytes(gzip.compress(text.encode(), compresslevel=5, mtime=0))
    unfinished.replace(path)


def read_round(folder: Path, number: int) -> dict[Key, Kept]:
    """The rows of a round, of all processes; CheckpointError with the way out if they are not there."""
    files = [path for path, (its_number, _) in round_files(folder).items() if its_number == number]
    try:
        if not files:
            raise FileNotFoundError(f"no round-{number}.rank-*.jsonl.gz")
        lines = [
            json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()
        ]
        return dict(map(_from_line, lines))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The checkpoint was saved within round {number}, whose responses are kept in {folder}, and they cannot be read "
            f"({error}). Put the folder {FOLDER} of that run back, resume from a checkpoint at the first step of a round, or "
            "start anew."
        ) from error


def _line(key: Key, one: Kept) -> dict[str, Any]:
    return {
        "step": key[0],
        "index": key[1],
        "first": None if one.first is None else vars(one.first),
        "second": vars(one.second),
        "preference": None if one.preference is None else vars(one.preference),
        "source": one.source,
    }


def _from_line(line: dict[str, Any]) -> tuple[Key, Kept]:
    first, told = line["first"], line["preference"]
    kept = Kept(
        None if first is None else _response(first),
        _response(line["second"]),
        None if told is None else Preference(**told),
        line["source"],
    )
    return (line["step"], line["index"]), kept


def _response(values: dict[str, Any]) -> Response:
    return Response(**{**values, "ids": tuple(values["ids"])})
