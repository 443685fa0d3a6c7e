"""People as an oracle: a batch is handed over, the run waits, and labels are taken as they come.

hand over (each pair once, by content) -> wait until every pair has its labels, or the deadline -> fix the verdicts -> Preference
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm.auto import tqdm

from sail.annotate.items import Item
from sail.annotate.server import PORT, PageServer, require_web_server
from sail.annotate.store import ANNOTATIONS, Annotations
from sail.errors import ConfigError, OracleError
from sail.oracles.base import Oracle
from sail.types import Pair, Preference

UNANSWERED_IN_A_ROW = 3
"""Batches without a single label until the run stops: nobody is there."""
LINE_EVERY = 60.0


class People(Oracle):
    """Whoever opens the page. p = (votes for the first + ties / 2) / votes; a pair that everybody skipped abstains.

    Symmetric: a pair is stored in one order by content hash, and each annotator sees it in an order of their own, at random. The
    verdicts of a batch are fixed when it is complete, in one transaction: a run that is killed and resumed gets the same ones, is
    asked nothing twice, and finds what was labelled meanwhile.
    """

    may_abstain = True
    symmetric = True
    asks_people = True

    def __init__(
        self,
        path: Path | str,
        *,
        annotators: int = 1,
        deadline: float | None = None,
        question: str | None = None,
        serve: bool = True,
        host: str = "127.0.0.1",
        port: int = PORT,
        name: str = "people",
        poll: float = 0.2,
    ) -> None:
        """path: the run folder, or the file of labels. annotators: labels wanted per pair. deadline: seconds that a batch is
        waited for, None = until it is done; the clock runs only while the run does. serve: open the page from this process (the
        main one of several); `sail annotate RUN` serves it too."""
        if annotators < 1:
            raise ConfigError(f"annotators must be at least 1; it is {annotators}.")
        if deadline is not None and not (deadline > 0 and math.isfinite(deadline)):
            raise ConfigError(f"deadline must be a number of seconds above 0, or null; it is {deadline}.")
        path = Path(path)
        self.path = path if path.suffix == ".sqlite" else path / ANNOTATIONS
        self.annotators, self.deadline, self.question = annotators, deadline, question
        self.serve = serve and os.environ.get("RANK", "0") == "0"
        if self.serve:
            require_web_server()
        self.host, self.port, self.name, self.poll = host, port, name, poll
        self._labels: Annotations | None = None
        self._server: PageServer | None = None
        self._unanswered = 0

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, JSON-able and without secrets: the key of its answers in a ledger."""
        return {
            "kind": "people",
            "name": self.name,
            "annotators": self.annotators,
            "question": self.question,
        }

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Hand the pairs over and wait. OracleError if nobody labels, batch after batch; KeyboardInterrupt on Ctrl-C, at once."""
        labels = self._opened()
        items = [Item.of(pair.prompt, pair.first, pair.second) for pair in pairs]
        asked = {item.hash: item for item, _ in items}
        labels.ask(list(asked.values()), self.annotators)
        if labels.settle(list(asked)):
            self._wait(labels, list(asked))
        verdicts = labels.verdicts(list(asked))
        if lost := asked.keys() - verdicts.keys():
            raise OracleError(
                f"{len(lost)} of {len(asked)} pairs have vanished from {self.path} while their labels were waited for: something "
                "else has replaced what is asked there. Leave the file to this run, then resume; labels given so far count."
            )
        answers = []
        for item, swapped in items:
            verdict = verdicts[item.hash]
            # Nothing else is to remember what a deadline decided; this run's own file does, so that a resume is exact.
            answer = Preference(verdict.probability, verdict.reason, passing=verdict.expired)
            answers.append(answer.swap() if swapped else answer)
        return answers

    def close(self) -> None:
        """Close page and file; what was committed is in it."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._labels is not None:
            self._labels.close()
            self._labels = None

    def _opened(self) -> Annotations:
        """The file, and the page: both are opened when something is asked, so that a dry run touches neither."""
        if self._labels is None:
            self._labels = Annotations(self.path)
            self._labels.fact("kind", "training")
            self._labels.fact("source", self.path.parent.name)
            if self.question is not None:
                self._labels.fact("question", self.question)
        if self.serve and self._server is None:
            self._server = PageServer(self.path, host=self.host, port=self.port).start()
            _say(f"People label at {self._server.link}")
            if not self._server.is_private:
                _say(
                    "Whoever can reach this machine and has the link can read the pairs and label them; use a network you trust."
                )
        return self._labels

    # ---- waiting

    def _wait(self, labels: Annotations, pairs: list[str]) -> None:
        """Until every pair has its labels, or the deadline."""
        end = None if self.deadline is None else time.monotonic() + self.deadline
        before = labels.last_change()
        with _stopped_at_once(), _Line(self._where()) as line:
            while missing := labels.settle(pairs):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    break
                line.show(missing, len(pairs), left)
                time.sleep(self.poll if left is None else min(self.poll, left))
        if not missing:
            self._unanswered = 0
            return
        labels.settle(pairs, late=f"no label within {self.deadline:g} s")
        self._unanswered = 0 if labels.last_change() != before else self._unanswered + 1
        if self._unanswered >= UNANSWERED_IN_A_ROW:
            raise OracleError(
                f"Nobody has labelled anything in {self._unanswered} batches of {self.deadline:g} s each, so the run would go on "
                "with abstentions only. Ask people to open the page, or raise the deadline, then resume."
            )

    def _where(self) -> str:
        if self._server is not None:
            return self._server.address
        return f"sail annotate {self.path.parent}"


class _Line:
    """One line, rewritten on a terminal; elsewhere a new one at the start, then at most one a minute, of a changed count."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.bar: tqdm | None = None
        self.said: tuple[int, float] | None = None

    def __enter__(self) -> _Line:
        if sys.stderr.isatty():
            self.bar = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, missing: int, total: int, left: float | None) -> None:
        """Say how many of the batch lack labels, and where they can be given."""
        clock = "" if left is None else f", {int(left) // 60}:{int(left) % 60:02d} left"
        text = f"people: {missing} of {total} pairs open{clock}, at {self.where}"
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_description_str(text)
        elif self.said is None or (missing != self.said[0] and now - self.said[1] >= LINE_EVERY):
            _say(text)
            self.said = (missing, now)


@contextlib.contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Ctrl-C (or SIGTERM) ends the waiting at once. Otherwise it means "after this step", and a step may wait for hours. Nothing
    is lost by it: labels are in the file, and the steps since the last checkpoint are repeated with the same ones."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        _say(
            "Stopped while people were asked. Every label is kept; `sail annotate RUN` takes more, and --resume uses them."
        )
        raise KeyboardInterrupt

    before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


def _say(text: str) -> None:
    tqdm.write(f"sail: {text}", file=sys.stderr)
