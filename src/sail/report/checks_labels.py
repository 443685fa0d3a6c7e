"""Health checks on the labels and on who gave them."""

from __future__ import annotations

from collections import Counter

from sail.report import orders
from sail.report.health import Check, Outcome, absent, fine, judged, unmeasured
from sail.report.measure import ENOUGH, LINES, asks, decisiveness, ends, percent, position, rate_of_counts
from sail.report.record import Row, RunRecord, interval
from sail.report.words import show

CHANCE = 0.55  # mean probability of the likelier response
CONSTANT = 0.95
BIAS, BIAS_LEVEL = 0.03, 0.99
SWAPPED = 0.25
ABSTAINED = 0.1


def _few(record: RunRecord) -> Outcome | None:
    """Why the oracle's verdicts cannot be judged, or None."""
    verdicts = record.facts.verdicts
    if not verdicts:
        return (
            unmeasured("no verdicts in pairs.jsonl.gz")
            if asks(record)
            else absent("no oracle in the mixture")
        )
    return (
        unmeasured(f"only {len(verdicts)} verdicts, {ENOUGH} are needed") if len(verdicts) < ENOUGH else None
    )


def chance(record: RunRecord) -> Outcome:
    """Whether the oracle's probabilities say anything."""
    few = _few(record)
    if few:
        return few
    mean = decisiveness(record.facts.verdicts)
    high = mean["mean"] if mean["high"] is None else mean["high"]
    return judged(high < CHANCE, f"the likelier response gets {percent(mean)}", mean["mean"])


def constant(record: RunRecord) -> Outcome:
    """Whether the oracle's verdict depends on what it is shown."""
    few, verdicts = _few(record), record.facts.verdicts
    if few:
        return few
    value, times = Counter(round(v.probability, 9) for v in verdicts).most_common(1)[0]
    share = times / len(verdicts)
    said = f"the most common verdict is {value:.2f}, in {share:.1%} of {show(len(verdicts))}"
    return judged(share >= CONSTANT, said, share)


def first_wins(record: RunRecord) -> Outcome:
    """Whether the first response wins more often than the second, although both are drawn alike."""
    if record.setting("pairing") == "best_worst":
        return absent("with best_worst the two responses of a pair are not drawn alike")
    few = _few(record)
    if few:
        return few
    shown, strict = position(record.facts.verdicts), position(record.facts.verdicts, BIAS_LEVEL)
    if strict["low"] is None or strict["high"] is None:
        return unmeasured("all verdicts are on one prompt")
    beyond = strict["low"] > 0.5 + BIAS or strict["high"] < 0.5 - BIAS
    return judged(beyond, f"first wins with {percent(shown)}", shown["mean"])


def swapped(record: RunRecord) -> Outcome:
    """Whether an oracle contradicts itself when the order is turned round. Asked in one order only, that cannot be seen, but a
    place that wins with 1/2 + b turns at least 2 b of the verdicts over."""
    measured = orders.found(record)
    if measured:
        beyond = [row for row in measured if _turns(row) > SWAPPED]
        worst = max(beyond or measured, key=_turns_by)
        said = "; ".join(orders.words(row) for row in (beyond or measured))
        return judged(bool(beyond), said, _turns_by(worst))
    if (why := orders.without_place(record)) is not None:
        return fine(why, 0.0)
    if orders.kind(record) in ("both_orders", "one_order"):
        return unmeasured("no pair has answers by which the order could be judged")
    return _no_audit(record)


def _turns(row: Row) -> float:
    """The least share of verdicts that turn with the order, by the interval."""
    if row["disagreement"]:
        return _low(row["disagreement"])
    first = row["first_wins"]
    low, high = (first["mean"] if first[end] is None else first[end] for end in ("low", "high"))
    return float(2 * max(low - 0.5, 0.5 - high, 0.0))


def _turns_by(row: Row) -> float:
    """The same by the mean."""
    return float(
        row["disagreement"]["mean"] if row["disagreement"] else 2 * abs(row["first_wins"]["mean"] - 0.5)
    )


def inverted(record: RunRecord) -> Outcome:
    """Whether the oracle and the dataset's labels point the same way."""
    agreed = interval(record.audit.get("oracle_agreement"))
    if agreed is None:
        return _no_audit(record)
    n = f" of {show(agreed['n'])} pairs" if agreed["n"] else ""
    high = agreed["mean"] if agreed["high"] is None else agreed["high"]
    return judged(high < 0.5, f"it prefers the chosen response in {percent(agreed)}{n}", agreed["mean"])


def own_labels(record: RunRecord) -> Outcome:
    """Whether the policy's own labels on dataset pairs agree with the dataset's."""
    found = ends(record, "label/agreement")
    if found is None:
        logged = record.column("label/agreement")[1]
        if logged:
            return unmeasured(f"only {len(logged)} log lines, {LINES} are needed")
        return absent("the policy labels no pairs of the dataset (route ddp)")
    late = {**found[1]}
    if late["low"] is not None and late["high"] is not None:
        late["low"], late["high"] = max(0.0, late["low"]), min(1.0, late["high"])
    below = late["high"] is not None and late["high"] < 0.5
    return judged(below, f"{percent(late)} of the latest agree", late["mean"])


def abstained(record: RunRecord) -> Outcome:
    """The share of calls without a verdict."""
    calls: float | None = record.facts.by_route.get("dpr", 0) - record.facts.unasked
    none: float | None = record.facts.abstained
    if not calls:
        calls, none = record.last("oracle/calls"), record.last("oracle/abstained")
    if not calls or none is None:
        return unmeasured("not logged") if asks(record) else absent("no oracle in the mixture")
    rate = rate_of_counts(min(none, calls), calls)
    return judged(
        rate["low"] > ABSTAINED, f"{percent(rate)} of {show(calls)} verdicts are missing", rate["mean"]
    )


def _low(rate: Row) -> float:
    return float(rate["mean"] if rate["low"] is None else rate["low"])


def _no_audit(record: RunRecord) -> Outcome:
    if record.config and record.config.get("oracle") is None and not asks(record):
        return absent("no oracle in the run file")
    return unmeasured("no audit.json" if not record.audit else "the audit could not measure it")


CHECKS = [
    Check(
        "chance",
        "Do the oracle's labels say something?",
        "the likelier response gets 55% or more on average (95% interval not below)",
        "The oracle's labels are close to a coin.",
        "Rewards may lie too close together for its temperature, or it cannot tell these responses apart. Lower "
        "oracle.temperature, or look at what it is shown.",
        ("labels", "pairs"),
        chance,
    ),
    Check(
        "constant",
        "Do verdicts depend on the responses?",
        "no verdict fills 95% or more of all",
        "The oracle gives the same verdict whatever it is shown.",
        "It is probably broken or cannot read its input: ask it by hand about two plainly different responses.",
        ("labels", "pairs"),
        constant,
    ),
    Check(
        "position",
        "Is the order of a pair without effect?",
        "99% interval of P(first wins) reaches into 0.47 to 0.53",
        "The oracle prefers a position: both responses are drawn alike, so first must win half of the time.",
        "Ask in both orders and average, or draw the order at random.",
        ("labels",),
        first_wins,
    ),
    Check(
        "swapped",
        "Does the oracle stand by its verdict when the order is swapped?",
        "another verdict in at most 25% (95% interval not above)",
        "The oracle contradicts itself when the order is swapped.",
        "Half of its contradictions are wrong labels; averaged over both orders they say nothing. Ask in both orders, or use a "
        "better judge.",
        ("labels",),
        swapped,
    ),
    Check(
        "inverted",
        "Do oracle and dataset point the same way?",
        "the oracle prefers the chosen response in at least half (95% interval not below)",
        "The oracle prefers the rejected responses: one of the two is the wrong way round.",
        "Look at the sign of the reward, and at which column of the file is called chosen. In a mixture the two would pull "
        "against each other.",
        ("labels",),
        inverted,
    ),
    Check(
        "own-labels",
        "Do the policy's own labels agree with the dataset's?",
        "at least half of the latest (95% interval not below)",
        "The policy labels the dataset's pairs the wrong way round.",
        "Its implicit reward has turned against the data: compare with the accuracy curves, and give the data route more weight.",
        ("chart-agreement", "curves"),
        own_labels,
    ),
    Check(
        "abstained",
        "Does the oracle answer?",
        "no verdict in at most 10% of calls (95% interval not above)",
        "The oracle often gives no verdict.",
        "Rows without one are left out. The pairs below tell its reasons.",
        ("labels", "pairs"),
        abstained,
    ),
]
