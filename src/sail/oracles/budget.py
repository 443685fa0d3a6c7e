"""What a run may spend with an oracle, held to in the same transaction that commits the intent of a call."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from sail.oracles.ledger import Answer, Call, Ledger, Spent

WAKE_SECONDS = 0.5
"""How often a call that waits for others looks whether the batch has been stopped."""


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

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.reached: str | None = None
        """The cap that has refused a call, in words."""
        self._limited = (caps.calls, caps.tokens, caps.cost) != (None, None, None)
        self._in_flight = 0
        self._changed = threading.Condition()

    def intend(self, ledger: Ledger, oracle: int, call: Call, stop: threading.Event) -> int:
        """Commit the intent of one call, waiting for those in flight where their cost decides; returns its id, to be settled.

        Raises CapReached when nothing more may be sent, Stopped once `stop` is set.
        """
        with self._changed:
            while not stop.is_set():
                try:
                    call_id = ledger.intend(oracle, call, self._admit if self._limited else None)
                except _NotNow as cap:
                    if self._in_flight == 0:
                        self._reach(str(cap))
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
        measured = caps.tokens is not None or caps.cost is not None
        if measured and self._in_flight and spent.calls == spent.open + spent.failed:
            raise _NotNow  # no call has told its cost yet: one at a time until one has
        if caps.tokens is not None and spent.tokens + (spent.open + 1) * spent.dearest_tokens > caps.tokens:
            raise _NotNow(f"{caps.tokens} tokens")
        if caps.cost is not None and spent.cost + (spent.open + 1) * spent.dearest_cost > caps.cost:
            raise _NotNow(f"{caps.cost:g} of money")

    def _reach(self, what: str) -> None:
        self.reached = what
        raise CapReached(f"the budget of {what} is spent")
