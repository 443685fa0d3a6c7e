"""Health checks on the training itself and on its outcome."""

from __future__ import annotations

import math

from sail.report.answer import gain, verdict
from sail.report.falling import FEWEST, fallen
from sail.report.frontier import Point, measured
from sail.report.health import Check, Outcome, absent, fine, judged, unmeasured, warning
from sail.report.measure import (
    ENOUGH,
    LINES,
    amount,
    answers,
    ends,
    error_of,
    percent,
    rate_of_counts,
    realised_routes,
    rows_seen,
    wanted_routes,
)
from sail.report.record import Row, RunRecord, number
from sail.report.words import show

KL, KL_PER_TOKEN = 25.0, 0.25  # nats per response, nats per token: the larger limit holds
SIGMAS = 4.0
CLIPPED, MAX_GRAD_NORM = 0.8, 1.0  # the latter is transformers' default
GAP = 0.15
WEIGHT = 0.1  # effective sample size, share of the stale rows


def reward_kept(record: RunRecord) -> Outcome:
    """Whether the reward is at or above the reference's."""
    gained = gain(record)
    if gained is None:
        return unmeasured("no reward on held-out prompts")
    worse = verdict(record, gained) == "worse"
    return judged(worse, f"{amount(gained, sign=True)} over {gained['over']}", gained["mean"])


def kl_level(record: RunRecord) -> Outcome:
    """KL to the reference at the end, in nats per response, against a limit that grows with the response."""
    found = _last_kl(record)
    if found is None:
        return unmeasured("no KL was recorded")
    low = found["mean"] if found["low"] is None else found["low"]
    length, said = _last_length(record), f"{amount(found)} nats per response"
    if length is None and low > KL:
        return unmeasured(f"{said}, and no response length to judge it by")
    if length:
        said += f", {show(found['mean'] / length)} per token of {show(length, digits=0)}"
    return judged(low > max(KL, KL_PER_TOKEN * (length or 0.0)), said, found["mean"])


def _last_length(record: RunRecord) -> float | None:
    """Tokens per response at the end: held-out ones, else the latest on-policy ones; None where they were not recorded."""
    stated, late = record.metric("length"), ends(record, "response/length")
    length = stated["mean"] if stated else record.last("eval_length")
    return late[1]["mean"] if length is None and late else length


def _last_kl(record: RunRecord) -> Row | None:
    """The best evidence of the last KL: results.json, the last evaluation, the last log lines."""
    stated = record.metric("kl")
    if stated:
        return stated
    values, error = record.column("eval_kl")[1], record.last("eval_kl_se") or 0.0
    if values:
        return {
            "mean": values[-1],
            "low": values[-1] - 1.96 * error,
            "high": values[-1] + 1.96 * error,
            "n": None,
        }
    found = ends(record, "kl/policy_ref")
    return found[1] if found else None


def still_rising(record: RunRecord) -> Outcome:
    """Whether the reward has fallen again while the KL went on growing."""
    points, _ = measured(record)
    if len(points) < FEWEST:
        return unmeasured(f"{len(points)} evaluations with reward and KL, {FEWEST} are needed")
    widths = [
        p.reward_high - p.reward_low for p in points if p.reward_high is not None and p.reward_low is not None
    ]
    error = math.sqrt(math.fsum(width**2 for width in widths) / max(1, len(widths))) / (2 * 1.96)
    fall = fallen([point.reward for point in points], error)
    best, after = points[fall.peak : fall.peak + fall.width], points[-fall.width :]
    reward, later = _mean_of("reward", best), _mean_of("reward", after)
    kl, later_kl = _mean_of("kl", best), _mean_of("kl", after)
    said = (
        f"reward {show(reward)} around step {show(best[0].step)}, {show(later)} at the end "
        f"({fall.width} evaluations each); KL {show(kl)} → {show(later_kl)} nats"
    )
    if not widths:
        return unmeasured(f"{said}, without intervals")
    return judged(fall.certain and later_kl - kl > _kl_error(best + after, fall.width), said, later - reward)


def _mean_of(key: str, points: list[Point]) -> float:
    return math.fsum(getattr(point, key) for point in points) / len(points)


def _kl_error(points: list[Point], width: int) -> float:
    """What the difference of two means of `width` KLs must exceed to be above 0 beyond its error (95%, widest interval)."""
    wide = [p.kl_high - p.kl_low for p in points if p.kl_high is not None and p.kl_low is not None]
    return math.sqrt(2 / width) * max(wide, default=0.0) / 2


def finite(record: RunRecord) -> Outcome:
    """Whether all logged numbers are numbers."""
    counts = dict(record.not_finite)
    for key in ("loss", "grad_norm", "eval_loss"):  # JSON has no NaN: the trainer writes null
        gaps = sum(key in row and row[key] is None for row in record.metrics)
        if gaps:
            counts.setdefault(key, gaps)
    if counts:
        return warning(
            ", ".join(f"{key} ({count} times)" for key, count in counts.items()), sum(counts.values())
        )
    return fine("all are", 0.0) if record.metrics else unmeasured("nothing was logged")


def skipped(record: RunRecord) -> Outcome:
    """Whether updates were left out because their gradient was not finite."""
    count, steps = record.last("step/skipped"), record.metrics[-1].get("step") if record.metrics else None
    if count is None:
        return unmeasured("not logged")
    return judged(
        count > 0, f"{count:,.0f} of {steps:,.0f} updates" if steps else f"{count:,.0f} updates", count
    )


def mixture(record: RunRecord) -> Outcome:
    """Whether rows took the routes that were asked for."""
    wanted, realised, rows = wanted_routes(record), realised_routes(record), rows_seen(record)
    if not wanted or not realised or not rows:
        return unmeasured("the config or the log does not tell")
    far = []
    worst = 0.0
    for route, weight in wanted.items():
        share = realised.get(route, 0.0)
        error = math.sqrt(weight * (1 - weight) / rows)
        worst = max(worst, abs(share - weight))
        if abs(share - weight) > SIGMAS * error + 1e-6:
            far.append(route)
    far += [route for route, share in realised.items() if share > 0 and route not in wanted]
    said = ", ".join(f"{route} {realised.get(route, 0.0):.1%} of {wanted[route]:.0%}" for route in wanted)
    return judged(bool(far), f"{said}, over {rows:,.0f} rows", worst)


def clipping(record: RunRecord) -> Outcome:
    """Whether the gradient is always clipped."""
    norms = record.column("grad_norm")[1]
    stated = record.setting("max_grad_norm")
    limit = MAX_GRAD_NORM if stated is None else number(stated)
    if not limit or limit <= 0:
        return fine("clipping is off", 0.0)
    if len(norms) < ENOUGH:
        return unmeasured(f"{len(norms)} logged norms, {ENOUGH} are needed")
    rate = rate_of_counts(sum(norm > limit for norm in norms), len(norms))
    said = f"{percent(rate)} of the logged norms exceed {show(limit)}; the median is {show(sorted(norms)[len(norms) // 2])}"
    return judged(rate["low"] > CLIPPED, said, rate["mean"])


def gap(record: RunRecord) -> Outcome:
    """Accuracy on the pairs trained on, against held-out ones."""
    trained, held_out = ends(record, "pair/accuracy"), record.last("eval_accuracy")
    shares = realised_routes(record)
    if trained is None or held_out is None:
        return unmeasured("it takes accuracies of training and held-out pairs")
    if shares and shares.get("data", 0.0) < 0.5:
        return absent("most rows are other pairs than the held-out ones")
    late = trained[1]
    pairs = (record.last("eval_samples_per_second") or 0) * (record.last("eval_runtime") or 0)
    noise = held_out * (1 - held_out) / max(pairs, 1.0)
    error = math.sqrt((error_of(late) or 0.0) ** 2 + noise)
    wide = late["mean"] - held_out
    said = f"{late['mean']:.1%} on training pairs, {held_out:.1%} on held-out ones"
    return judged(wide - 1.96 * error > GAP, said, wide)


def ratios(record: RunRecord) -> Outcome:
    """Whether enough of the stale rows still carry the gradient."""
    late = ends(record, "ratio/ess")
    if late is not None:
        share = late[1]
        low, high = (
            None if share[key] is None else min(1.0, max(0.0, share[key])) for key in ("low", "high")
        )
        said = f"an effective sample size of {percent({**share, 'low': low, 'high': high})} of the stale rows"
        return judged((share["mean"] if high is None else high) < WEIGHT, said, share["mean"])
    values = record.column("ratio/ess")[1]
    if values:
        return unmeasured(f"only {len(values)} log lines, {LINES} are needed")
    if record.setting("refresh") == "step" or any("ratio/ess" in row for row in record.metrics):
        return absent("no stale rows with corrections")
    return unmeasured("not logged") if answers(record) else absent("no on-policy responses")


OUTCOME = [
    Check(
        "reward",
        "Is the reward at or above the reference's?",
        "95% interval of the gain not below 0",
        "The reward fell below where it started.",
        "Look at the curves for the step where it turned, and take a checkpoint before it.",
        ("chart-eval-reward", "results"),
        reward_kept,
    ),
    Check(
        "kl-level",
        "Is the policy still near the reference?",
        "95% interval not above 25 nats per response, nor, in responses of more than 100 tokens, above 0.25 nats per token",
        "The policy has moved very far from the reference.",
        "Raise beta, lower the learning rate, set kl_limit, or add kl_policy_ref.",
        ("frontier", "chart-eval-kl", "chart-kl"),
        kl_level,
    ),
    Check(
        "late",
        "Does more KL still buy reward?",
        "the last evaluations below the best earlier ones by no more than the best of flat noise is above it, or a KL that has "
        "not grown beyond its error",
        "The reward falls while the KL grows.",
        "The run went past its best point: stop earlier (kl_limit, fewer steps), lower the learning rate, or raise beta.",
        ("frontier", "chart-eval-reward"),
        still_rising,
    ),
]

TRAINING = [
    Check(
        "finite",
        "Are all logged numbers finite?",
        "no exception",
        "Values that are not finite were logged.",
        "Lower the learning rate, or train in a wider type; the model may be unusable.",
        ("chart-loss", "curves"),
        finite,
    ),
    Check(
        "skipped",
        "Was every update made?",
        "no exception",
        "Updates were left out, because their gradient was not finite.",
        "One now and then costs nothing but the step. Several: lower the learning rate, or train in a wider type; a run of "
        "max_skipped_steps of them ends the training.",
        ("chart-loss", "curves"),
        skipped,
    ),
    Check(
        "mixture",
        "Did rows take the routes that were asked for?",
        "each share within 4 standard errors",
        "The realised mixture is not the one that was asked for.",
        "Routes are drawn from the seed, so this is a fault of the library or of a changed config: please report it.",
        ("labels", "chart-routes"),
        mixture,
    ),
    Check(
        "ratios",
        "Do enough stale rows carry the gradient?",
        "effective sample size of the latest log lines not below 10% of the stale rows (95% interval not below)",
        "A few stale rows carry nearly all of the gradient.",
        "The weights have moved too far since the responses were sampled. Shorten the rounds (round_steps), cap the ratios "
        "(ratio_clip; biased), or sample at every step (refresh: step).",
        ("chart-ratio-ess",),
        ratios,
    ),
    Check(
        "clipping",
        "Is the gradient clipped only now and then?",
        "95% interval not above 80% of the logged norms",
        "Nearly every gradient is clipped.",
        "The step size is then set by max_grad_norm, and rows weigh less in steps with large ones. Raise max_grad_norm or "
        "lower beta or the learning rate.",
        ("chart-grad-norm",),
        clipping,
    ),
    Check(
        "gap",
        "Does it learn more than the pairs it saw?",
        "accuracy on training pairs at most 15 points above held-out ones (95% interval not above)",
        "The policy learns its training pairs by heart.",
        "Train for fewer epochs, on more pairs, or with more on-policy rows.",
        ("chart-accuracy", "chart-eval-accuracy"),
        gap,
    ),
]
