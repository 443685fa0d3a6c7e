"""Oracles around an oracle, one concern each. They compose: [both_orders, {noise: 0.1}] is Noise(BothOrders(oracle))."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sail import seeds
from sail.errors import OracleError
from sail.oracles.base import Oracle, ScoringOracle, check_count
from sail.oracles.committee import Committee
from sail.oracles.ledger import Answer, Call, Ledger, hash_of
from sail.types import Pair, Preference

__all__ = ["BothOrders", "Budgeted", "Committee", "Noise", "OneOrder", "Remember", "Wrapper"]

_log = logging.getLogger(__name__)


class Wrapper(Oracle):
    """An oracle around `inner`: its name, and whether it abstains and is symmetric, unless a kind of wrapper changes that."""

    def __init__(self, inner: Oracle) -> None:
        self.inner = inner
        self.name = inner.name
        self.may_abstain = inner.may_abstain
        self.symmetric = inner.symmetric
        self.asks_people = inner.asks_people

    @property
    def order(self) -> str:
        """The inner oracle's."""
        return self.inner.order

    def ordered(self) -> Oracle | None:
        """The inner oracle's."""
        return self.inner.ordered()

    def asked_in(self, orders: str) -> None:
        """Passed on."""
        self.inner.asked_in(orders)

    def settings(self) -> dict[str, Any]:
        """The inner oracle's."""
        return self.inner.settings()

    def scorer(self) -> ScoringOracle | None:
        """The inner oracle's: a wrapper changes verdicts on pairs, not scores."""
        return self.inner.scorer()

    def report(self) -> dict[str, Any]:
        """The inner oracle's."""
        return self.inner.report()

    def _ask(self, pairs: Sequence[Pair]) -> list[Preference]:
        given = self.inner.compare(pairs) if pairs else []
        check_count(self.name, pairs, given)
        return given


# ---- the order of the two responses


class _Order(Wrapper):
    """Decides in which orders the inner oracle is asked, and says so to what keeps a ledger inside."""

    kind: str

    def __init__(self, inner: Oracle) -> None:
        super().__init__(inner)
        self.symmetric = True
        if not inner.symmetric:
            inner.asked_in(self.kind)

    @property
    def order(self) -> str:
        """Its own kind, unless the order does not matter to the inner oracle anyway."""
        return self.inner.order if self.inner.symmetric else self.kind

    def asked_in(self, orders: str) -> None:
        """Nothing more: how the inner oracle is asked is decided here."""
        return


class BothOrders(_Order):
    """Asks in both orders: p = (p(first, second) + 1 - p(second, first)) / 2; abstains if either verdict does.

    Symmetric by construction. Counts how often the same place wins whatever stands there: the inner oracle's position bias.
    """

    kind = "both_orders"

    def __init__(self, inner: Oracle) -> None:
        super().__init__(inner)
        self.counts = dict.fromkeys(
            ("asked", "answered", "first_place_wins_both", "second_place_wins_both"), 0
        )

    def settings(self) -> dict[str, Any]:
        """Says that both orders are asked, and of whom."""
        return {"both_orders": self.inner.settings()}

    def report(self) -> dict[str, Any]:
        """both_orders: pairs asked, answered in both orders, and won by the same place in both."""
        return {**self.inner.report(), "both_orders": dict(self.counts)}

    def ordered(self) -> Oracle | None:
        """The inner oracle, where its verdict may depend on the order."""
        return None if self.inner.symmetric else self.inner

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """All pairs in both orders at once, the two of a pair next to each other: a cap that is reached in between then costs
        half a pair, not the half of all."""
        given = self._ask([one for pair in pairs for one in (pair, pair.swap())])
        return [self._together(*both) for both in zip(given[::2], given[1::2], strict=True)]

    def _together(self, forward: Preference, backward: Preference) -> Preference:
        self.counts["asked"] += 1
        p, swapped = forward.first_wins, backward.first_wins
        if p is None or swapped is None:
            silent = [("as given", forward)] * (p is None) + [("swapped", backward)] * (swapped is None)
            reason = "; ".join(f"{order}: {one.reason or 'abstained'}" for order, one in silent)
            return Preference(None, reason, passing=any(one.passing for _, one in silent))
        self.counts["answered"] += 1
        self.counts["first_place_wins_both"] += p > 0.5 and swapped > 0.5
        self.counts["second_place_wins_both"] += p < 0.5 and swapped < 0.5
        return Preference((p + (1.0 - swapped)) / 2.0, _orders(forward.reason, backward.reason))


class OneOrder(_Order):
    """Asks in one order only, which a hash of the texts decides: symmetric at half the price of BothOrders.

    A position bias is not removed, but falls on either response with equal chance.
    """

    kind = "one_order"

    def settings(self) -> dict[str, Any]:
        """Says that one order is asked, and of whom."""
        return {"one_order": self.inner.settings()}

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Each pair in its one order."""
        turned = [hash_of([pair.prompt, pair.first]) > hash_of([pair.prompt, pair.second]) for pair in pairs]
        given = self._ask([pair.swap() if turn else pair for pair, turn in zip(pairs, turned, strict=True)])
        return [one.swap() if turn else one for one, turn in zip(given, turned, strict=True)]


# ---- noise


class Noise(Wrapper):
    """Flips a verdict with probability `flip`: p becomes 1 - p.

    Whether a pair is flipped is a function of its texts and `seed`: the same pair always meets the same fate, in either order.
    """

    def __init__(self, inner: Oracle, flip: float, *, seed: int = 0) -> None:
        if not 0.0 <= flip <= 1.0:
            raise OracleError(f"The noise of an oracle is a probability of flipping; it is {flip!r}.")
        super().__init__(inner)
        self.flip, self.seed = flip, seed
        self.flipped = self.asked = 0

    def settings(self) -> dict[str, Any]:
        """The probability, the seed, and whose verdicts are flipped."""
        return {"noise": self.flip, "seed": self.seed, "of": self.inner.settings()}

    def report(self) -> dict[str, Any]:
        """noise: pairs asked and flipped."""
        return {**self.inner.report(), "noise": {"asked": self.asked, "flipped": self.flipped}}

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """The inner verdicts, some of them flipped."""
        given = self._ask(pairs)
        flips = [self._flips(pair) for pair in pairs]
        self.asked += len(flips)
        self.flipped += sum(flips)
        return [one.swap() if flip else one for one, flip in zip(given, flips, strict=True)]

    def _flips(self, pair: Pair) -> bool:
        key = hash_of([pair.prompt, *sorted((pair.first, pair.second))])
        return seeds.uniform(self.seed, "noise", key) < self.flip


# ---- the ledger as a cache, and a budget on what is asked


class Remember(Wrapper):
    """Keeps the answers of any oracle in a ledger, and asks it about a pair once. Abstentions that may pass are not kept."""

    def __init__(self, inner: Oracle, ledger: Ledger) -> None:
        super().__init__(inner)
        self.ledger = ledger
        self._id: int | None = None
        self._orders = "symmetric" if inner.symmetric else "as_given"

    def asked_in(self, orders: str) -> None:
        """Entered in the ledger, and passed on."""
        self._orders = orders
        super().asked_in(orders)

    @property
    def oracle_id(self) -> int:
        """Its id in the ledger; its answers are its own, also where the inner oracle keeps a ledger of calls."""
        if self._id is None:
            self._id = self.ledger.oracle(
                self.name, {"remembered": self.inner.settings()}, place=self.place, orders=self._orders
            )
        return self._id

    def known(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        """What the ledger holds, pair by pair."""
        found = [self.ledger.find(self.oracle_id, _call(pair)) for pair in pairs]
        return [None if one is None else Preference(one.probability, one.reason) for one in found]

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """From the ledger where it holds the pair, else from the inner oracle, once per batch; new answers are kept."""
        keys = [_call(pair).key for pair in pairs]
        known = dict(zip(keys, self.known(pairs), strict=True))
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if known[key] is None}
        found = len(known) - len(new)
        if found:
            self.ledger.note_found(self.oracle_id, found)
        given = self._ask(list(new.values()))
        lasting = [
            (_call(pair), Answer(one.first_wins, one.reason))
            for pair, one in zip(new.values(), given, strict=True)
            if not one.passing
        ]
        if lasting:
            self.ledger.remember(self.oracle_id, lasting)
        answers = {**known, **dict(zip(new, given, strict=True))}
        return [answer for answer in (answers[key] for key in keys) if answer is not None]


class Budgeted(Wrapper):
    """Asks about at most `calls` different pairs over all processes and resumes of a run; what is remembered is free.

    A pair is counted, and that committed, before it is asked, whatever comes of it; one that is asked again because its answer
    was not to be kept is not counted again. At the cap further pairs abstain, or (at_cap = stop) OracleError is raised. Exact
    for any number of processes.
    """

    inner: Remember

    def __init__(self, inner: Remember, calls: int, *, at_cap: str = "abstain") -> None:
        super().__init__(inner)
        self.calls, self.at_cap = calls, at_cap
        self.may_abstain = True
        self._told = False

    def ordered(self) -> Oracle | None:
        """None: nobody asks past the budget."""
        return None

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """The inner verdicts as far as the budget goes, in the order of the rows."""
        known = self.inner.known(pairs)
        keys = [_call(pair).key for pair in pairs]
        new = [key for key, one in zip(keys, known, strict=True) if one is None]
        # Without a place in a run's settings the oracle itself is one.
        place = self.place or f"oracle {self.inner.oracle_id}"
        admitted = self.inner.ledger.claim(place, self.inner.oracle_id, new, self.calls) if new else set()
        free = [one is not None or key in admitted for key, one in zip(keys, known, strict=True)]
        rows = [row for row, may in enumerate(free) if may]
        refused = len(pairs) - len(rows)
        given = dict(zip(rows, self._ask([pairs[row] for row in rows]), strict=True))
        if refused:
            self._say()
        over = Preference(None, f"the budget of {self.calls} pairs is spent", passing=True)
        return [given.get(row, over) for row in range(len(pairs))]

    def _say(self) -> None:
        if self.at_cap == "stop":
            raise OracleError(
                f"Oracle {self.name}: the budget of {self.calls} pairs is spent, and at_cap is stop. Every answer is in the "
                f"ledger ({self.inner.ledger.path}). Raise the budget and resume."
            )
        if not self._told:
            self._told = True
            _log.warning(
                "sail: oracle %s: the budget of %d pairs is spent; further pairs abstain.",
                self.name,
                self.calls,
            )


def _orders(forward: str | None, backward: str | None) -> str | None:
    told = [
        f"{order}: {reason}" for order, reason in (("as given", forward), ("swapped", backward)) if reason
    ]
    return "; ".join(told) or None


def _call(pair: Pair) -> Call:
    return Call(pair.prompt, pair.first, pair.second)
