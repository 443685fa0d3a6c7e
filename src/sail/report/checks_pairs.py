"""Health checks on prompts and on-policy responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sail.report.health import Check, Outcome, absent, judged, unmeasured
from sail.report.measure import (
    ENOUGH,
    LINES,
    amount,
    answers,
    ends,
    error_of,
    expected_rows,
    identical,
    least_texts,
    lengths,
    marked,
    percent,
    rate_of_counts,
    repeated,
)
from sail.report.pairs_file import Brief
from sail.report.record import Row, RunRecord, interval, number
from sail.report.words import show

DRAWN = 0.5  # of what drawing would give
FEW, VARIED = (
    0.05,
    100,
)  # texts of what rows drawing would give; prompts of a training file from which on it has enough
ONE_PROMPT, MOST_OF = 0.05, 0.5
REPEATED, IDENTICAL, EMPTY, CUT = 0.5, 0.2, 0.05, 0.2
LENGTH = 1.5  # times longer or shorter
ENTROPY, CERTAIN = 0.25, 0.02  # of its start; nats per token
FIT = 1 / 3  # of the other kind's fit


def _few(record: RunRecord) -> Outcome | None:
    """Why the pairs cannot be judged, or None."""
    if not record.facts.total:
        return unmeasured("no pairs.jsonl.gz") if answers(record) else absent("no on-policy responses")
    if record.facts.total < 3 * ENOUGH:
        return unmeasured(f"only {record.facts.total} pairs, {3 * ENOUGH} are needed")
    return None


def prompts(record: RunRecord) -> Outcome:
    """Different prompts among the on-policy pairs, against what drawing from the training rows would give."""
    few, expected = _few(record), expected_rows(record)
    if few:
        return few
    if expected is None:
        return unmeasured("the log does not say how many rows were drawn")
    facts, least = record.facts, least_texts(record)
    rows = facts.prompts if facts.rows is None else facts.rows
    texts = "1 different prompt" if facts.prompts == 1 else f"{show(facts.prompts)} different prompts"
    said = f"{texts} of {show(rows)} rows; drawing gives about {expected:,.0f} rows"
    said += "" if least is None else f" with at least {least:,.0f} prompts"
    poor = (number(record.results.get("train_prompts")) or 0.0) < VARIED  # or not known
    too_few = max(DRAWN * (least or 0.0), FEW * expected if poor else 0.0)
    # lines without an index have texts only, which may fairly come again
    starved = facts.prompts < too_few or (facts.rows is not None and rows < DRAWN * expected)
    return judged(starved, said, facts.prompts / (expected if least is None else least))


def one_prompt(record: RunRecord) -> Outcome:
    """The share of the most common prompt."""
    few, expected = _few(record), expected_rows(record)
    if few:
        return few
    rate = rate_of_counts(record.facts.top_prompt, record.facts.total)
    fair = 1 / max(1.0, number(record.results.get("train_prompts")) or expected or 1.0)
    limit = min(MOST_OF, max(ONE_PROMPT, 3 * fair if expected else 0.0))
    said = f"the most common one is in {percent(rate)} of pairs"
    return judged(rate["low"] > limit, said, rate["mean"])


def duplicates(record: RunRecord) -> Outcome:
    """Responses that were given to different prompts."""
    few = _few(record)
    if few:
        return few
    early, late = repeated(record.facts.early), repeated(record.facts.late)
    said = f"{percent(late)} of the latest responses; {percent(early)} at the start"
    return judged(_above(late, REPEATED), said, late["mean"])


def same_twice(record: RunRecord) -> Outcome:
    """Pairs that hold the same response twice."""
    few = _few(record)
    if few:
        return few
    late = identical(record.facts.late)
    if not late["n"]:
        return absent("one response of each pair is the dataset's")
    over_all = record.facts.identical / record.facts.total
    said = f"{percent(late)} of the latest pairs; {over_all:.1%} over the run"
    return judged(_above(late, IDENTICAL), said, late["mean"])


def _marks(name: str, key: str, limit: float, words: str) -> Callable[[RunRecord], Outcome]:
    """A check on a mark of the latest responses; from the log where there are too few pairs."""

    def look(record: RunRecord) -> Outcome:
        if _few(record) is None:
            late = marked(record.facts.late, name)
            return judged(
                _above(late, limit), f"{percent(late)} of the latest responses {words}", late["mean"]
            )
        values = record.column(key)[1]
        if not values:
            return _few(record) or unmeasured("neither in the pairs nor in the log")
        tail = values[-max(1, len(values) // 5) :]
        mean = sum(tail) / len(tail)
        return judged(mean > limit, f"{mean:.1%} of the latest logged responses {words}", mean)

    return look


def length(record: RunRecord) -> Outcome:
    """The length of responses at the end against the start: the reference's on the same prompts, or the first pairs'."""
    held_out = (record.metric("length_reference"), record.metric("length"))
    few = _few(record)
    compared: list[tuple[str, Row, Row]] = []
    if held_out[0] and held_out[1]:
        compared.append(("held-out", held_out[0], held_out[1]))
    if few is None:
        windows: list[list[Brief]] = [record.facts.early, record.facts.late]
        start, end = (lengths(window) for window in windows)
        if start["mean"] and end["mean"] is not None:
            compared.append(("trained pairs", start, end))
    if not compared:
        return few or unmeasured("no lengths were recorded")
    said = "; ".join(f"{name}: {amount(a)} → {amount(b)} tokens" for name, a, b in compared)
    worst = max((b["mean"] / a["mean"] for _, a, b in compared if a["mean"]), key=_fold, default=None)
    return judged(any(_drifted(a, b) for _, a, b in compared), said, worst)


def _fold(ratio: float) -> float:
    return max(ratio, 1 / ratio if ratio else float("inf"))


def _drifted(start: Row, end: Row) -> bool:
    """Whether the 95% interval of end - k start lies beyond 0 for k = LENGTH upwards or 1 / LENGTH downwards."""
    errors = [error_of(start) or 0.0, error_of(end) or 0.0]

    def beyond(k: float) -> float:
        return 1.96 * float((errors[1] ** 2 + (k * errors[0]) ** 2) ** 0.5)

    up = end["mean"] - LENGTH * start["mean"] > beyond(LENGTH)
    down = end["mean"] - start["mean"] / LENGTH < -beyond(1 / LENGTH)
    return bool(up or down)


def entropy(record: RunRecord) -> Outcome:
    """The policy's entropy per token: at the end, against its start."""
    found = ends(record, "response/entropy")
    if found is None:
        logged = len(record.column("response/entropy")[1])
        if logged:
            return unmeasured(f"only {logged} log lines, {LINES} are needed")
        return unmeasured("not logged") if answers(record) else absent("no on-policy responses")
    start, end = found
    limit = max(ENTROPY * start["mean"], CERTAIN)
    said = f"{show(start['mean'])} → {amount(end)} nats per token"
    return judged(end["high"] is not None and end["high"] < limit, said, end["mean"])


def prompt_fit(record: RunRecord) -> Outcome:
    """How much likelier responses are after their own prompt than after another row's."""
    given = record.audit.get("prompt_fit")
    fits = (
        {name: interval(given.get(name)) for name in ("data", "sampled")} if isinstance(given, dict) else {}
    )
    known: dict[str, Any] = {name: fit for name, fit in fits.items() if fit and fit["low"] is not None}
    if not known:
        return unmeasured("no audit.json" if not record.audit else "the audit could not measure it")
    names = {"data": "dataset", "sampled": "policy"}
    said = "; ".join(f"{names[name]}: {amount(fit, sign=True)} nats" for name, fit in known.items())
    lost = [name for name, fit in known.items() if fit["low"] <= 0]
    if len(known) == 2:
        one, two = known["data"], known["sampled"]
        lost += ["data"] * (one["high"] < FIT * two["low"]) + ["sampled"] * (two["high"] < FIT * one["low"])
    return judged(bool(lost), said, min(fit["mean"] for fit in known.values()))


def _above(rate: Row, limit: float) -> bool:
    """Whether the whole interval lies above `limit`; the rate itself where there is none (a single prompt)."""
    low = rate["mean"] if rate["low"] is None else rate["low"]
    return low is not None and low > limit


CHECKS = [
    Check(
        "prompts",
        "Are enough different prompts answered?",
        "different rows, and different prompts, at least 50% of what drawing would give; in files of fewer than 100 prompts at "
        "least 5 prompts per 100 rows",
        "Few different prompts were answered: prompt starvation.",
        "The same prompts come again and again: look for a pool or buffer that feeds itself, or a training file that repeats "
        "its prompts.",
        ("common", "chart-prompts"),
        prompts,
    ),
    Check(
        "prompt-share",
        "Is no prompt everywhere?",
        "95% interval not above 5% of pairs (three times its fair share in small sets, at most half)",
        "One prompt fills a large part of the on-policy pairs.",
        "The run learns what to say to that prompt. Look at how prompts reach the sampler.",
        ("common",),
        one_prompt,
    ),
    Check(
        "duplicates",
        "Do different prompts get different responses?",
        "95% interval not above 50% of the latest responses",
        "Most responses are given to several prompts: duplicated samples or collapse.",
        "Read the common responses. If they differ from the start of the run, the policy has collapsed: lower the learning "
        "rate or raise beta; if not, look for a cache or for one seed shared by all prompts.",
        ("common", "pairs"),
        duplicates,
    ),
    Check(
        "identical",
        "Do the two responses of a pair differ?",
        "95% interval not above 20% of the latest pairs",
        "Many pairs hold the same response twice and teach nothing.",
        "The policy hardly varies. Sample at temperature 1, and stop earlier or tie it closer to the reference (beta).",
        ("pairs",),
        same_twice,
    ),
    Check(
        "empty",
        "Are responses not empty?",
        "95% interval not above 5% of the latest responses",
        "The policy answers with nothing.",
        "Ending at once is rewarded, or the prompt's format makes the model stop: read such pairs.",
        ("chart-empty", "pairs"),
        _marks("empty", "response/empty", EMPTY, "are empty"),
    ),
    Check(
        "cut",
        "Do responses end by themselves?",
        "95% interval not above 20% of the latest responses",
        "Many responses are cut by the token limit.",
        "The oracle judges halves. Raise max_new_tokens, or find out why the model does not end.",
        ("chart-cut", "pairs"),
        _marks("cut", "response/cut", CUT, "reach the token limit"),
    ),
    Check(
        "length",
        "Do responses keep their length?",
        "95% interval within a factor of 1.5 up and down",
        "Responses have become much longer or shorter.",
        "Length may be what is rewarded: look at how often the longer response wins, and read answers before and after.",
        ("chart-length", "chart-eval-length", "results"),
        length,
    ),
    Check(
        "entropy",
        "Does the policy still vary?",
        "95% interval not below a quarter of its start, nor below 0.02 nats per token",
        "The policy's entropy has collapsed: it says the same thing whatever is drawn.",
        "Lower the learning rate, raise beta or add kl_policy_ref; an earlier checkpoint may be the better model.",
        ("chart-response-entropy", "pairs"),
        entropy,
    ),
    Check(
        "prompt-fit",
        "Do responses belong to their prompts?",
        "likelier after their own prompt than after another's (95% interval above 0); neither kind below a third of the other",
        "Responses do not fit their prompts.",
        "Prompts and responses were probably put together wrongly (one list shuffled, the other not). Nothing the run learned "
        "can be trusted before that is mended.",
        ("pairs",),
        prompt_fit,
    ),
]
