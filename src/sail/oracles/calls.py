"""An oracle of single paid calls: ledger, budget, retries and concurrency in one place, so that a kind of oracle only sends.

find in the ledger -> the budget admits it -> intent committed -> send -> answer committed -> Preference
"""

from __future__ import annotations

import random
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sail.errors import OracleError
from sail.oracles.base import Oracle
from sail.oracles.ledger import Answer, Call, Ledger, Spent
from sail.types import Pair, Preference


class Retry(Exception):
    """Raised by `send`: this attempt failed, another may succeed. `after`: seconds the other side asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Patience:
    """How often an oracle is asked again, and how long is waited: `first_wait` doubled each time, with jitter, up to `longest_wait`
    seconds; a wait that the other side asks for is honoured unless it is above `longest_wait` (then the row abstains)."""

    attempts: int = 4
    first_wait: float = 1.0
    longest_wait: float = 60.0
    failures_in_a_row: int = 20
    """Rows lost one after the other until the run is stopped: the oracle is not there."""


@dataclass(frozen=True)
class Caps:
    """What a run may spend, over all its processes and resumes; None is no limit. Every attempt counts as a call.

    Calls are held to exactly. Tokens and money are known only afterwards: no call is sent that, at the dearest so far, would pass
    the cap; with nothing known yet, calls are sent one at a time.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    at_cap: str = "abstain"


class CapReached(Exception):
    """No more may be asked."""


class Budget:
    """Admits calls until a cap is reached. Knows what earlier processes of the run have spent from the ledger."""

    def __init__(self, caps: Caps, spent: Spent = Spent()) -> None:
        self.caps, self.spent = caps, spent
        self.reached: str | None = None
        self._in_flight = 0
        self._dearest = Spent(1, 0, 0.0)
        self._known = spent.calls > 0 and (spent.tokens > 0 or spent.cost > 0)
        if self._known:
            # Of earlier calls only the sum is known here: their mean is the first guess.
            self._dearest = Spent(1, -(-spent.tokens // spent.calls), spent.cost / spent.calls)
        self._changed = threading.Condition()

    def admit(self) -> None:
        """Reserve one call, waiting for those in flight where their cost decides; CapReached when nothing more may be sent."""
        with self._changed:
            while True:
                if self.caps.calls is not None and self.spent.calls >= self.caps.calls:
                    self._reach(f"{self.caps.calls} calls")
                measured = self.caps.tokens is not None or self.caps.cost is not None
                if not measured or self._fits():
                    break
                if self._in_flight == 0:
                    self._reach(
                        f"{self.caps.tokens} tokens" if self._over_tokens() else f"{self.caps.cost} of money"
                    )
                self._changed.wait()
            self.spent = Spent(self.spent.calls + 1, self.spent.tokens, self.spent.cost)
            self._in_flight += 1

    def settle(self, answer: Answer) -> None:
        """What an admitted call has cost in the end."""
        with self._changed:
            tokens = answer.tokens_in + answer.tokens_out
            self.spent = Spent(self.spent.calls, self.spent.tokens + tokens, self.spent.cost + answer.cost)
            self._dearest = Spent(1, max(self._dearest.tokens, tokens), max(self._dearest.cost, answer.cost))
            self._known = self._known or tokens > 0 or answer.cost > 0
            self._in_flight -= 1
            self._changed.notify_all()

    def _fits(self) -> bool:
        if not self._known:
            return self._in_flight == 0
        return not self._over_tokens() and not self._over_cost()

    def _over_tokens(self) -> bool:
        open_tokens = self.spent.tokens + (self._in_flight + 1) * self._dearest.tokens
        return self.caps.tokens is not None and open_tokens > self.caps.tokens

    def _over_cost(self) -> bool:
        open_cost = self.spent.cost + (self._in_flight + 1) * self._dearest.cost
        return self.caps.cost is not None and open_cost > self.caps.cost

    def _reach(self, what: str) -> None:
        self.reached = what
        raise CapReached(f"the budget of {what} is spent")


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
        self.caps = caps or Caps()
        self.patience = patience or Patience()
        self.concurrency = concurrency
        self.budget = Budget(self.caps, self.ledger.spent())
        self._lost_in_a_row = 0
        self._lock = threading.Lock()
        self._oracle_id: int | None = None

    @abstractmethod
    def send(self, call: Call) -> Answer:
        """Ask once and return the answer (an unreadable reply is one, with probability None and its reason). Raises Retry for what may
        pass, OracleError for what no repetition mends (a refused key, a wrong address): that stops the run."""

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Every pair in this order, as many at once as `concurrency`; answers come back in the order of the pairs."""
        if self._oracle_id is None:
            self._oracle_id = self.ledger.oracle(self.name, self.settings())
        calls = [Call(pair.prompt, pair.first, pair.second) for pair in pairs]
        # The same question twice in a batch is asked once.
        different = list({call.key: call for call in calls}.values())
        if self.concurrency == 1 or len(different) == 1:
            answers = [self._answer(call) for call in different]
        else:
            with ThreadPoolExecutor(
                min(self.concurrency, len(different)), thread_name_prefix="sail-oracle"
            ) as pool:
                answers = list(pool.map(self._answer, different))
        by_key = {call.key: answer for call, answer in zip(different, answers, strict=True)}
        if self.budget.reached and self.caps.at_cap == "stop":
            raise OracleError(
                f"Oracle {self.name}: the budget of {self.budget.reached} is spent, and at_cap is stop. Every answer is in the ledger "
                f"({self.ledger.path}); raise the cap and resume."
            )
        return [Preference(by_key[call.key].probability, by_key[call.key].reason) for call in calls]

    def _answer(self, call: Call) -> Answer:
        assert self._oracle_id is not None
        found = self.ledger.find(self._oracle_id, call)
        if found is not None:
            return found
        reason = "no attempt was made"
        for attempt in range(self.patience.attempts):
            try:
                self.budget.admit()
            except CapReached as reached:
                return Answer(None, str(reached))
            try:
                return self._attempt(call)
            except Retry as again:
                reason = str(again)
                wait = self._wait(attempt, again.after)
                if wait is None or attempt + 1 == self.patience.attempts:
                    break
                time.sleep(wait)
        self._count_lost(reason)
        return Answer(None, f"no answer: {reason}")

    def _attempt(self, call: Call) -> Answer:
        """One admitted attempt, in the ledger whatever comes of it."""
        assert self._oracle_id is not None
        call_id = self.ledger.intend(self._oracle_id, call)
        began, answer, failed = time.perf_counter(), Answer(None, "interrupted"), True
        try:
            answer = self.send(call)
            failed = False
        except Exception as error:
            answer = Answer(None, str(error) or type(error).__name__)
            raise
        finally:
            if not answer.seconds:
                answer = Answer(**{**answer.__dict__, "seconds": time.perf_counter() - began})
            self.ledger.settle(call_id, answer, failed=failed)
            self.budget.settle(answer)
        with self._lock:
            self._lost_in_a_row = 0
        return answer

    def _wait(self, attempt: int, after: float | None) -> float | None:
        """Seconds until the next attempt; None if it would be too long."""
        if after is not None:
            return after if after <= self.patience.longest_wait else None
        # Not the run's random numbers: when a call is repeated must not change what is sampled.
        jitter = random.SystemRandom().uniform(0.5, 1.0)
        return float(min(self.patience.first_wait * 2**attempt, self.patience.longest_wait) * jitter)

    def _count_lost(self, reason: str) -> None:
        with self._lock:
            self._lost_in_a_row += 1
            lost = self._lost_in_a_row
        if lost >= self.patience.failures_in_a_row:
            raise OracleError(
                f"Oracle {self.name} has not answered {lost} rows in a row (the last reason: {reason}). Every answer so far is in the "
                f"ledger ({self.ledger.path}). See that it can be reached, then resume."
            )

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, JSON-able and without secrets: the key of its answers in a ledger."""
        return {"name": self.name}
