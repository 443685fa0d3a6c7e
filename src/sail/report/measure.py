"""The measurements that health checks and the labels' table share: rates and means with their intervals, and windows of a log."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict

from sail.errors import ConfigError
from sail.evaluation.stats import Interval, mean_interval, rate_interval
from sail.mixture import ROUTES, mixture_of
from sail.report.pairs_file import Brief, Verdict
from sail.report.record import Row, RunRecord, number
from sail.report.words import show, show_range

ENOUGH = 20  # pairs, prompts or log lines from which on something is judged at all
LINES = 6  # log lines from which on start and end of a run are compared


def mean_of(values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Row:
    """`mean_interval` as a dict."""
    return asdict(mean_interval(values, clusters, level=level))


def rate_of(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Row:
    """`rate_interval` as a dict."""
    return asdict(rate_interval(values, clusters))


def rate_of_counts(some: float, total: float) -> Row:
    """The rate some / total of independent draws, as a dict; Wilson's interval, normal quantile.

    >>> rate_of_counts(0, 4)["mean"]
    0.0
    """
    if total <= 0:
        return asdict(Interval(None, None, None, 0, 0))
    z2, rate = 1.96**2, some / total
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * rate * (1 - rate) / total + (z2 / (2 * total)) ** 2) / (1 + z2 / total)
    low, high = max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))
    return asdict(Interval(rate, low, high, round(total), round(total)))


def percent(interval: Row | None) -> str:
    """`12.3% (10.1% to 14.9%)`; a dash for nothing."""
    if interval is None or interval["mean"] is None:
        return "—"
    if interval["low"] is None or interval["high"] is None:
        return _percent(interval["mean"])
    return f"{_percent(interval['mean'])} ({_percent(interval['low'])} to {_percent(interval['high'])})"


def amount(interval: Row | None, *, sign: bool = False) -> str:
    """`1.23 (1.10 to 1.36)`; a dash for nothing."""
    if interval is None or interval["mean"] is None:
        return "—"
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return show(interval["mean"], sign=sign)
    return f"{show(interval['mean'], sign=sign, digits=2)} ({show_range(low, high)})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def marked(window: list[Brief], name: str) -> Row:
    """The share of a window's responses with a mark (`cut` or `empty`), clustered by prompt."""
    flags = [flag for brief in window for flag in getattr(brief, name)]
    return rate_of([float(flag) for flag in flags], [b.prompt for b in window for _ in b.responses])


def lengths(window: list[Brief]) -> Row:
    """Mean length in tokens of a window's responses, clustered by prompt; mean None where no length was written."""
    known = [(length, brief.prompt) for brief in window for length in brief.lengths if length is not None]
    return mean_of([length for length, _ in known], [prompt for _, prompt in known])


def repeated(window: list[Brief]) -> Row:
    """The share of a window's responses that it gives to another prompt, too, clustered by prompt."""
    prompts: dict[int, set[int]] = {}
    for brief in window:
        for response in brief.responses:
            prompts.setdefault(response, set()).add(brief.prompt)
    flags = [len(prompts[response]) > 1 for brief in window for response in brief.responses]
    return rate_of([float(flag) for flag in flags], [b.prompt for b in window for _ in b.responses])


def identical(window: list[Brief]) -> Row:
    """The share of a window's pairs whose responses, both the policy's, are the same text, clustered by prompt."""
    both = [brief for brief in window if len(brief.responses) == 2]
    return rate_of([float(b.responses[0] == b.responses[1]) for b in both], [b.prompt for b in both])


def position(verdicts: list[Verdict], level: float = 0.95) -> Row:
    """Mean probability of "first wins", clustered by prompt; 1/2 if both responses are drawn alike and order does not matter."""
    return mean_of([v.probability for v in verdicts], [v.prompt for v in verdicts], level)


def decisiveness(verdicts: list[Verdict]) -> Row:
    """Mean probability of the likelier response, 1/2 + |p - 1/2|: 1/2 says nothing, 1 is certain. Clustered by prompt."""
    return mean_of([0.5 + abs(v.probability - 0.5) for v in verdicts], [v.prompt for v in verdicts])


def agreement(verdicts: list[Verdict]) -> Row | None:
    """How often the policy's own verdict takes the oracle's side (ties of either one half); None in files without it."""
    told = [(v, v.policy) for v in verdicts if v.policy is not None]
    if not told:
        return None
    same = [_side(v.probability, own) for v, own in told]
    return rate_of(same, [v.prompt for v, _ in told])


def longer_wins(verdicts: list[Verdict]) -> Row | None:
    """How often the oracle prefers the longer response (ties one half), where lengths differ; None without lengths."""
    told = [(v, v.longer) for v in verdicts if v.longer]
    if not told:
        return None
    return rate_of([_side(v.probability, 0.5 + length) for v, length in told], [v.prompt for v, _ in told])


def _side(one: float, other: float) -> float:
    """1 if both lie on the same side of 1/2, 1/2 if one lies on it, else 0."""
    product = (one - 0.5) * (other - 0.5)
    return 0.5 if product == 0 else float(product > 0)


def ends(record: RunRecord, key: str) -> tuple[Row, Row] | None:
    """Means of the first and the last fifth of a logged key (3 lines at least), with intervals over lines; None if too short."""
    values = record.column(key)[1]
    if len(values) < LINES:
        return None
    size = max(3, len(values) // 5)
    return mean_of(values[:size]), mean_of(values[-size:])


def error_of(interval: Row) -> float | None:
    """The standard error that a 95% interval tells of; None without limits."""
    if interval["low"] is None or interval["high"] is None:
        return None
    return float(interval["high"] - interval["low"]) / (2 * 1.96)


def answers(record: RunRecord) -> bool:
    """Whether the policy answers prompts in this run, as far as is known: a route of it is on-policy."""
    routes = [ROUTES[name] for name in wanted_routes(record) if name in ROUTES]
    unknown = not routes and not record.metrics
    return unknown or any(route.on_policy for route in routes) or bool(record.last("online/prompts"))


def asks(record: RunRecord) -> bool:
    """Whether an oracle gives labels in this run, as far as is known."""
    routes = [ROUTES[name] for name in wanted_routes(record) if name in ROUTES]
    unknown = not routes and not record.metrics
    return unknown or any(route.label == "oracle" for route in routes) or bool(record.last("oracle/calls"))


def wanted_routes(record: RunRecord) -> dict[str, float]:
    """The mixture that the run was asked for, by route, averaged over its steps; {} where the config does not tell."""
    try:
        mixture = mixture_of(record.setting("preset"), record.setting("routes"))
    except (ConfigError, TypeError, AttributeError):
        return {}
    if any(share.final_weight is not None for share in mixture.shares) and not record.results:
        return {}  # weights that change have no known mean before the end
    return {share.route.name: mixture.mean_weight(share) for share in mixture.shares}


def realised_routes(record: RunRecord) -> dict[str, float]:
    """The mean logged share of each route over the run."""
    names = sorted({key for row in record.metrics for key in row if key.startswith("route/")})
    columns = {name[6:]: record.column(name)[1] for name in names}
    return {name: math.fsum(values) / len(values) for name, values in columns.items() if values}


def rows_seen(record: RunRecord) -> float | None:
    """Rows trained on: epochs times training rows; else counted back from the pairs; else steps times one process's batch."""
    rows, epochs = number(record.results.get("train_rows")), record.last("epoch")
    if rows and epochs:
        return rows * epochs
    shares = realised_routes(record)
    online = sum(shares.get(route, 0.0) for route in record.facts.by_route)
    if record.facts.total and online:
        return record.facts.total / online
    batch = number(record.setting("per_device_train_batch_size"))
    steps = max(record.column("loss")[0], default=0.0)
    if batch is None or not steps:
        return None
    return steps * batch * (number(record.setting("gradient_accumulation_steps")) or 1)


def expected_rows(record: RunRecord) -> float | None:
    """How many different rows the on-policy pairs would come from if rows were drawn epoch by epoch; None if unknown.

    Of R rows, an epoch takes each on-policy with probability w, its first part a with w a:
    R (1 - (1 - w)^full epochs (1 - w a)).
    """
    seen, epochs = rows_seen(record), record.last("epoch")
    if not seen or not epochs or not record.facts.total:
        return None
    rows, share = seen / epochs, min(1.0, record.facts.total / seen)
    full = math.floor(epochs)
    return rows * (1 - (1 - share) ** full * (1 - share * (epochs - full)))


def least_texts(record: RunRecord) -> float | None:
    """How many different prompt texts the on-policy pairs would hold at the very least: texts of the training file times the
    share of its rows that drawing gives. Several rows per text only add to it, however unevenly. None in older folders."""
    rows, texts = number(record.results.get("train_rows")), number(record.results.get("train_prompts"))
    drawn = expected_rows(record)
    if not rows or not texts or drawn is None:
        return None
    return texts * min(1.0, drawn / rows)
