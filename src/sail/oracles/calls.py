"""An oracle of single paid calls: ledger, budget, retries and concurrency in one place, so that a kind of oracle only sends.

find in the ledger -> the budget admits it and the intent is committed -> send -> answer committed -> Preference
"""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sail.errors import OracleError
from sail.oracles.base import Oracle
from sail.oracles.budget import Budget, CapReached, Caps, Stopped
from sail.oracles.ledger import Answer, Call, Ledger
from sail.types import Pair, Preference

__all__ = ["Answer", "Call", "CallOracle", "Caps", "Patience", "Retry"]

_log = logging.getLogger(__name__)

MOST_TOKENS = 1_000_000_000
"""No call takes more; a larger count is the other side's fault, and SQLite's sums have an end."""


class Retry(Exception):
    """Raised by `send`: this attempt failed, another may succeed. `after`: seconds the other side asks to wait; math.inf gives
    the row up. `tokens` (in, out) and `cost`: what the attempt took all the same, as far as the other side says it."""

    def __init__(
        self, reason: str, after: float | None = None, *, tokens: tuple[int, int] = (0, 0), cost: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.after, self.tokens, self.cost = after, tokens, cost


@dataclass(frozen=True)
class Patience:
    """How often an oracle is asked again, and how long is waited: `first_wait` doubled each time, with jitter, up to
    `longest_wait` seconds. A wait that the other side asks for holds back all calls, makes no wait shorter, and ends at another
    moment for each call; one above `longest_wait` is not waited for: the row abstains."""

    attempts: int = 4
    first_wait: float = 1.0
    longest_wait: float = 60.0
    failures_in_a_row: int = 20
    """Rows lost one after the other until the run is stopped: the oracle is not there."""


@dataclass(frozen=True)
class Lost:
    """A call without an answer; it is asked again when it is met again."""

    reason: str


class CallOracle(Oracle):
    """One external call per ordered pair. A subclass has `send` and `settings`; everything that must not be lost is done here."""

    may_abstain = True

    def __init__(
        self,
        name: str,
        *,
        ledger: Ledger | None = None,
        caps: Caps | None = None,
        patience: Patience | None = None,
        concurrency: int = 8,
    ) -> None:
        if concurrency < 1:
            raise OracleError(f"The concurrency of oracle {name} must be at least 1; it is {concurrency}.")
        self.name = name
        self.ledger = ledger or Ledger(":memory:")
        self.was_given_a_ledger = ledger is not None
        self.caps = caps or Caps()
        self.patience = patience or Patience()
        self.concurrency = concurrency
        self.budget = Budget(self.caps)
        self._lost_in_a_row = 0
        self._not_before = 0.0
        self._told_cap = False
        self._lock = threading.Lock()
        self._oracle_id: int | None = None
        self._orders = "symmetric" if self.symmetric else "as_given"

    def asked_in(self, orders: str) -> None:
        """Entered in the ledger, so that one order alone is told from half a pair."""
        self._orders = orders

    @abstractmethod
    def send(self, call: Call) -> Answer:
        """Ask once and return the answer (an unreadable reply is one, with probability None and its reason).

        Raises Retry for what may pass; OracleError for what no repetition mends (a refused key, a wrong address): that stops the
        run. Anything else it raises costs this row, and is told without its message, which may hold a secret.
        """

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Every pair in this order, as many at once as `concurrency`; answers come back in the order of the pairs."""
        if self._oracle_id is None:
            self._oracle_id = self.ledger.oracle(
                self.name, self.settings(), place=self.place, orders=self._orders
            )
        calls = [Call(pair.prompt, pair.first, pair.second) for pair in pairs]
        # The same question twice in a batch is asked once.
        different = {call.key: call for call in calls}
        known = {key: self.ledger.find(self._oracle_id, call) for key, call in different.items()}
        answers = {key: answer for key, answer in known.items() if answer is not None}
        if answers:
            self.ledger.note_found(self._oracle_id, len(answers))
        asked = [key for key in different if key not in answers]
        given: dict[str, Answer | Lost] = {**answers}
        given.update(zip(asked, self._ask_all([different[key] for key in asked]), strict=True))
        return [_preference(given[call.key]) for call in calls]

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, JSON-able and without secrets: the key of its answers in a ledger."""
        return {"name": self.name}

    def redact(self, text: str) -> str:
        """The text without the oracle's secrets. Everything that `send` says goes through it before it is stored or shown."""
        return text

    # ---- a batch

    def _ask_all(self, calls: Sequence[Call]) -> list[Answer | Lost]:
        """All at once, as far as the concurrency goes. The first error stops the batch: nothing more is sent, calls in flight are
        waited for and settled."""
        stop = threading.Event()

        def one(call: Call) -> Answer | Lost:
            try:
                return self._answer(call, stop)
            except BaseException:
                stop.set()
                raise

        if self.concurrency == 1 or len(calls) <= 1:
            return [one(call) for call in calls]
        with ThreadPoolExecutor(min(self.concurrency, len(calls)), "sail-oracle") as pool:
            futures = [pool.submit(one, call) for call in calls]
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if error is not None and not isinstance(error, Stopped):
                        raise error
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]

    # ---- one call

    def _answer(self, call: Call, stop: threading.Event) -> Answer | Lost:
        """The answer to a call that the ledger does not hold; raises OracleError where the run must stop."""
        reason, wait = "no attempt was made", 0.0
        for attempt in range(self.patience.attempts):
            self._pause(wait, stop)
            try:
                return self._attempt(call, stop)
            except CapReached as reached:
                return self._at_cap(reached)
            except Retry as again:
                reason = self.redact(str(again))
                next_wait = self._wait(attempt, again.after)
                if next_wait is None:
                    break
                wait = next_wait
            except (OracleError, Stopped):
                raise
            except Exception as error:
                reason = _unexpected(error)
                break
        self._count_lost(reason)
        return Lost(f"no answer: {reason}")

    def _attempt(self, call: Call, stop: threading.Event) -> Answer:
        """One admitted attempt, in the ledger whatever comes of it; one that is interrupted stays there as possibly paid."""
        assert self._oracle_id is not None
        call_id = self.budget.intend(self.ledger, self._oracle_id, call, stop, place=self.place)
        began = time.perf_counter()
        try:
            answer = _checked(self.send(call))
        except Exception as error:
            told = str(error) if isinstance(error, Retry | OracleError) else _unexpected(error)
            tokens, cost = (0, 0), 0.0
            if isinstance(error, Retry):
                self._hold(error.after)
                tokens, cost = error.tokens, error.cost
            seconds = time.perf_counter() - began
            self._settle(
                call_id,
                Answer(None, told, tokens_in=tokens[0], tokens_out=tokens[1], cost=cost, seconds=seconds),
                failed=True,
            )
            raise
        except BaseException:
            self.budget.leave()
            raise
        if not answer.seconds:
            answer = replace(answer, seconds=time.perf_counter() - began)
        answer = self._settle(call_id, answer, failed=False)
        with self._lock:
            self._lost_in_a_row = 0
        return answer

    def _settle(self, call_id: int, answer: Answer, *, failed: bool) -> Answer:
        answer = replace(
            answer,
            reason=None if answer.reason is None else self.redact(answer.reason),
            raw=None if answer.raw is None else self.redact(answer.raw),
            tokens_in=_counted(answer.tokens_in),
            tokens_out=_counted(answer.tokens_out),
        )
        return self.budget.settle(self.ledger, call_id, answer, failed=failed)

    def _wait(self, attempt: int, after: float | None) -> float | None:
        """Seconds until the next attempt; None if there is none."""
        if after is not None and after > self.patience.longest_wait:
            return None
        if attempt + 1 >= self.patience.attempts:
            return None
        own = min(self.patience.first_wait * 2**attempt, self.patience.longest_wait)
        own *= _jitter(0.5, 1.0)
        return own if after is None else max(after, own) + _jitter(0.0, own / 2)

    def _hold(self, after: float | None) -> None:
        """No call of this process is sent before the time that the other side has asked for."""
        if after is not None and after <= self.patience.longest_wait:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + after)

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        """Wait, and then until the other side wants to be asked again, not all at the same moment; Stopped if the batch ends
        meanwhile."""
        wanted = time.monotonic() + seconds
        held = self._not_before
        while not stop.is_set() and (left := max(wanted, held) - time.monotonic()) > 0:
            stop.wait(left + (_jitter(0.0, self.patience.first_wait / 2) if held >= wanted else 0.0))
            held = self._not_before
        if stop.is_set():
            raise Stopped

    def _at_cap(self, reached: CapReached) -> Lost:
        told = f"oracle {self.name}: {reached}"
        if self.caps.at_cap == "stop":
            raise OracleError(
                f"{told[0].upper()}{told[1:]}, and at_cap is stop. Every answer is in the ledger ({self.ledger.path}). Raise the "
                "cap and resume."
            )
        with self._lock:
            first, self._told_cap = not self._told_cap, True
        if first:
            _log.warning("sail: %s; further pairs abstain.", told)
        return Lost(str(reached))

    def _count_lost(self, reason: str) -> None:
        with self._lock:
            self._lost_in_a_row += 1
            lost = self._lost_in_a_row
        if lost >= self.patience.failures_in_a_row:
            raise OracleError(
                f"Oracle {self.name} has not answered {lost} rows in a row (the last reason: {reason}). Every answer so far is "
                f"in the ledger ({self.ledger.path}). See that it can be reached, then resume."
            )


def _counted(tokens: int) -> int:
    """A number of tokens that can be added up."""
    return min(max(tokens, 0), MOST_TOKENS)


def _jitter(low: float, high: float) -> float:
    """Not of the run's random numbers: when a call is repeated must not change what is sampled."""
    return random.SystemRandom().uniform(low, high)


def _preference(answer: Answer | Lost) -> Preference:
    if isinstance(answer, Lost):
        return Preference(None, answer.reason, passing=True)
    return Preference(answer.probability, answer.reason)


def _checked(answer: Answer) -> Answer:
    """A number that is no probability is an abstention, never a label."""
    p = answer.probability
    if p is None or 0.0 <= p <= 1.0:
        return answer
    return replace(answer, probability=None, reason=f"the oracle gave {p!r}, which is no probability")


def _unexpected(error: Exception) -> str:
    """An error that nobody foresaw, by its kind and place only: its message may hold a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"unexpected {type(error).__name__}{where}"
