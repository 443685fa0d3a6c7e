"""Oracles around an oracle, one concern each. They compose: [both_orders, {noise: 0.1}] is Noise(BothOrders(oracle))."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sail import seeds
from sail.errors import OracleError
from sail.oracles.base import Oracle, ScoringOracle, check_count
from sail.oracles.ledger import Answer, Call, Ledger, hash_of
from sail.types import Pair, Preference

_log = logging.getLogger(__name__)


class Wrapper(Oracle):
    """An oracle around `inner`: its name, and whether it abstains and is symmetric, unless a kind of wrapper changes that."""

    def __init__(self, inner: Oracle) -> None:
        self.inner = inner
        self.name = inner.name
        self.may_abstain = inner.may_abstain
        self.symmetric = inner.symmetric
        self.asks_people = inner.asks_people

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


class BothOrders(Wrapper):
    """Asks in both orders: p = (p(first, second) + 1 - p(second, first)) / 2; abstains if either verdict does.

    Symmetric by construction. Counts how often the same place wins whatever stands there: the inner oracle's position bias.
    """

    def __init__(self, inner: Oracle) -> None:
        super().__init__(inner)
        self.symmetric = True
        self.counts = dict.fromkeys(
            ("asked", "answered", "first_place_wins_both", "second_place_wins_both"), 0
        )

    def settings(self) -> dict[str, Any]:
        """Says that both orders are asked, and of whom."""
        return {"both_orders": self.inner.settings()}

    def report(self) -> dict[str, Any]:
        """both_orders: pairs asked, answered in both orders, and won by the same place in both."""
        return {**self.inner.report(), "both_orders": dict(self.counts)}

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """All pairs in both orders at once."""
        given = self._ask([*pairs, *(pair.swap() for pair in pairs)])
        return [self._together(*both) for both in zip(given[: len(pairs)], given[len(pairs) :], strict=True)]

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


class OneOrder(Wrapper):
    """Asks in one order only, which a hash of the texts decides: symmetric at half the price of BothOrders.

    A position bias is not removed, but falls on either response with equal chance.
    """

    def __init__(self, inner: Oracle) -> None:
        super().__init__(inner)
        self.symmetric = True

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

    @property
    def oracle_id(self) -> int:
        """Its id in the ledger; its answers are its own, also where the inner oracle keeps a ledger of calls."""
        if self._id is None:
            self._id = self.ledger.oracle(self.name, {"remembered": self.inner.settings()})
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

    At the cap further pairs abstain, or (at_cap = stop) OracleError is raised. Exact for one process; processes that ask at the
    same moment do not see each other's batch.
    """

    inner: Remember

    def __init__(self, inner: Remember, calls: int, *, at_cap: str = "abstain") -> None:
        super().__init__(inner)
        self.calls, self.at_cap = calls, at_cap
        self.may_abstain = True
        self._told = False

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """The inner verdicts as far as the budget goes, in the order of the rows."""
        left = self.calls - self.inner.ledger.spent(self.inner.oracle_id).remembered
        admitted: set[str] = set()
        rows = []
        for row, (pair, known) in enumerate(zip(pairs, self.inner.known(pairs), strict=True)):
            key = _call(pair).key
            if known is None and key not in admitted:
                if len(admitted) >= left:
                    continue
                admitted.add(key)
            rows.append(row)
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


# ---- several


class Committee(Oracle):
    """The mean of several oracles' probabilities, over the members that answered.

    The disagreement of a pair is the largest of their probabilities minus the smallest. Abstains where it is above
    `abstain_above`, and where every member does. The members' verdicts stand in the reason.
    """

    def __init__(
        self, members: Sequence[Oracle], *, abstain_above: float | None = None, name: str = "committee"
    ) -> None:
        if not members:
            raise OracleError("A committee has no members. Give it at least one oracle.")
        self.members, self.abstain_above, self.name = tuple(members), abstain_above, name
        self.may_abstain = abstain_above is not None or all(member.may_abstain for member in members)
        self.symmetric = all(member.symmetric for member in members)
        self.asks_people = any(member.asks_people for member in members)
        self.counts: Counter[str] = Counter()
        self.disagreement = 0.0

    def settings(self) -> dict[str, Any]:
        """The members' settings and the threshold."""
        members = [member.settings() for member in self.members]
        return {"committee": members, "abstain_above": self.abstain_above}

    def report(self) -> dict[str, Any]:
        """committee: pairs asked, split (members on either side of 1/2), abstained for disagreement, the mean disagreement over
        the `compared` pairs that at least two members answered; and each member's own."""
        compared = self.counts["compared"]
        counts = {
            name: self.counts[name] for name in ("asked", "compared", "split", "abstained_for_disagreement")
        }
        mean = self.disagreement / compared if compared else None
        members = [{"name": member.name, **member.report()} for member in self.members]
        return {"committee": {**counts, "mean_disagreement": mean, "members": members}}

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Every member about all pairs, one member after the other."""
        given = []
        for member in self.members:
            given.append(member.compare(pairs))
            check_count(member.name, pairs, given[-1])
        return [self._verdict(row) for row in zip(*given, strict=True)]

    def _verdict(self, verdicts: Sequence[Preference]) -> Preference:
        self.counts["asked"] += 1
        told = "; ".join(map(_told, self.members, verdicts))
        passing = any(one.passing for one in verdicts)
        numbers = [one.first_wins for one in verdicts if one.first_wins is not None]
        if not numbers:
            return Preference(None, told, passing)
        spread = max(numbers) - min(numbers)
        if len(numbers) > 1:
            self.counts["compared"] += 1
            self.counts["split"] += max(numbers) > 0.5 > min(numbers)
            self.disagreement += spread
        if self.abstain_above is not None and spread > self.abstain_above:
            self.counts["abstained_for_disagreement"] += 1
            return Preference(None, f"the members disagree by {spread:.2f}: {told}", passing)
        # A mean without a member that may answer later is no verdict to keep.
        return Preference(sum(numbers) / len(numbers), told, passing)


def _told(member: Oracle, verdict: Preference) -> str:
    said = "abstained" if verdict.first_wins is None else f"{verdict.first_wins:.2f}"
    return f"{member.name}: {said}" + (f" ({verdict.reason})" if verdict.reason else "")


def _orders(forward: str | None, backward: str | None) -> str | None:
    told = [
        f"{order}: {reason}" for order, reason in (("as given", forward), ("swapped", backward)) if reason
    ]
    return "; ".join(told) or None


def _call(pair: Pair) -> Call:
    return Call(pair.prompt, pair.first, pair.second)
