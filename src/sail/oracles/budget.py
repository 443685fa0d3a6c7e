"""What a run may spend with an oracle, held to in the same transaction that commits the intent of a call."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from sail.oracles.ledger import Answer, Call, Ledger, Spent

WAKE_SECONDS = 0.5
"""How often a call that waits for others looks whether the batch has been stopped."""
GRACE_SECONDS = 5.0
"""A call that is open for longer than it may take, and this, is of a process that has died."""


@dataclass(frozen=True)
class Caps:
    """What a run may spend, over all its processes and resumes; None is no limit. Every attempt counts as a call.

    Calls are held to exactly. Tokens and money are known only afterwards: no call is sent that, at the dearest so far, would pass
    the cap; with nothing known yet, calls are sent one at a time. A call in flight at a kill counts as the dearest one.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    at_cap: str = "abstain"


class CapReached(Exception):
    """No more may be asked; the message says which cap."""


class Stopped(Exception):
    """Another row of the batch has failed for good, so this one is not asked."""


class _NotNow(Exception):
    """It may fit once the calls in flight are settled."""


class Budget:
    """Admits calls until a cap is reached."""

    def __init__(self, caps: Caps, *, call_seconds: float = 60.0) -> None:
        """call_seconds: how long a call of this oracle may take, in any process of the run."""
        self.caps, self.call_seconds = caps, call_seconds
        self.reached: str | None = None
        """The cap that has refused a call, in words."""
        self._limited = (caps.calls, caps.tokens, caps.cost) != (None, None, None)
        self._in_flight = 0
        self._changed = threading.Condition()

    def intend(
        self, ledger: Ledger, oracle: int, call: Call, stop: threading.Event, *, place: str = ""
    ) -> int:
        """Commit the intent of one call, waiting for those in flight, of any process of the run, where their cost decides;
        returns its id, to be settled.

        Raises CapReached when nothing more may be sent, Stopped once `stop` is set.
        """
        with self._changed:
            while not stop.is_set():
                try:
                    since = time.time() - self.call_seconds - GRACE_SECONDS
                    admit = self._admit if self._limited else None
                    call_id = ledger.intend(oracle, call, admit, place=place, since=since)
                except _NotNow:
                    self._changed.wait(WAKE_SECONDS)
                else:
                    self._in_flight += 1
                    return call_id
            raise Stopped

    def settle(self, ledger: Ledger, call_id: int, answer: Answer, *, failed: bool) -> Answer:
        """Commit what came of an admitted call; returns the answer that stands."""
        try:
            return ledger.settle(call_id, answer, failed=failed)
        finally:
            self.leave()

    def leave(self) -> None:
        """An admitted call is no longer in flight, settled or not."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def _admit(self, spent: Spent) -> None:
        caps = self.caps
        if caps.calls is not None and spent.calls >= caps.calls:
            self._reach(f"{caps.calls} calls")
        # What is in flight may cost less than the dearest call; what a dead process has left open counts as that for good.
        in_flight = max(self._in_flight, spent.in_flight)
        measured = caps.tokens is not None or caps.cost is not None
        if measured and in_flight and spent.calls == spent.open + spent.failed:
            raise _NotNow  # no call has told its cost yet: one at a time until one has
        for cap, used, dearest, what in (
            (caps.tokens, spent.tokens, spent.dearest_tokens, f"{caps.tokens} tokens"),
            (caps.cost, spent.cost, spent.dearest_cost, f"{caps.cost or 0:g} of money"),
        ):
            if cap is not None and used + (spent.open + 1) * dearest > cap:
                if in_flight:
                    raise _NotNow
                self._reach(what)

    def _reach(self, what: str) -> None:
        self.reached = what
        raise CapReached(f"the budget of {what} is spent")
