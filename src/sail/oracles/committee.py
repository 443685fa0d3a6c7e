"""Several oracles as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sail.errors import OracleError
from sail.oracles.base import Oracle, check_count
from sail.types import Pair, Preference


class Committee(Oracle):
    """The mean of several oracles' probabilities, over the members that answered.

    The disagreement of a pair is the largest of their probabilities minus the smallest. Abstains where it is above
    `abstain_above`, and where fewer than `at_least` members answer. The members' verdicts stand in the reason.
    """

    def __init__(
        self,
        members: Sequence[Oracle],
        *,
        abstain_above: float | None = None,
        at_least: int | None = None,
        name: str = "committee",
    ) -> None:
        """at_least: members that must answer; None = 2 where `abstain_above` is set (one alone cannot disagree), else 1."""
        if not members:
            raise OracleError("A committee has no members. Give it at least one oracle.")
        least = at_least if at_least is not None else 1 if abstain_above is None else min(2, len(members))
        if not 1 <= least <= len(members):
            raise OracleError(
                f"A committee of {len(members)} members cannot wait for {least} of them to answer. Set at_least from 1 to "
                f"{len(members)}."
            )
        self.members, self.abstain_above, self.name = tuple(members), abstain_above, name
        self.at_least = least
        silent = sum(member.may_abstain for member in members)
        self.may_abstain = abstain_above is not None or len(members) - silent < least
        self.symmetric = all(member.symmetric for member in members)
        self.asks_people = any(member.asks_people for member in members)
        self.counts: Counter[str] = Counter()
        self.disagreement = 0.0

    @property
    def order(self) -> str:
        """The members', where it is the same; else that of the member that deals with it worst."""
        kinds = {member.order for member in self.members}
        return next(
            kind for kind in ("as_given", "one_order", "both_orders", "symmetric", "scores") if kind in kinds
        )

    def asked_in(self, orders: str) -> None:
        """Passed on to the members to which the order matters."""
        for member in self.members:
            if not member.symmetric:
                member.asked_in(orders)

    def settings(self) -> dict[str, Any]:
        """The members' settings, the threshold, and how many must answer."""
        members = [member.settings() for member in self.members]
        found = {"committee": members, "abstain_above": self.abstain_above}
        return found if self.at_least == 1 else {**found, "at_least": self.at_least}

    def report(self) -> dict[str, Any]:
        """committee: pairs asked, split (members on either side of 1/2), abstained for disagreement, lone (answered by fewer than
        `at_least`, so abstained), the mean disagreement over the `compared` pairs that at least two members answered; and each
        member's own."""
        compared = self.counts["compared"]
        counts = {
            name: self.counts[name]
            for name in ("asked", "compared", "split", "abstained_for_disagreement", "lone")
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
        if len(numbers) < self.at_least:
            self.counts["lone"] += 1
            return Preference(None, f"{len(numbers)} of {self.at_least} members answered: {told}", passing)
        if self.abstain_above is not None and spread > self.abstain_above:
            self.counts["abstained_for_disagreement"] += 1
            return Preference(None, f"the members disagree by {spread:.2f}: {told}", passing)
        # A mean without a member that may answer later is no verdict to keep.
        return Preference(sum(numbers) / len(numbers), told, passing)


def _told(member: Oracle, verdict: Preference) -> str:
    said = "abstained" if verdict.first_wins is None else f"{verdict.first_wins:.2f}"
    return f"{member.name}: {said}" + (f" ({verdict.reason})" if verdict.reason else "")
