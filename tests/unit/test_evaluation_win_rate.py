"""Win rates: both orders, ties, abstentions, position bias, and length taken out; truths by construction or by scipy."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from sail.evaluation.length_control import RIDGE, _Clustered, length_controlled
from sail.evaluation.stats import mean_interval, rate_interval
from sail.evaluation.win_rate import Verdict, from_scores, judge, position, summary
from sail.oracles import as_oracle
from sail.types import Pair


def _benchmark():
    """benchmarks/coverage.py, under another name than the measuring of code coverage has."""
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


coverage = _benchmark()
PAIRS = [Pair("p", "long answer", "short"), Pair("q", "a", "bb"), Pair("r", "same", "same")]


def prefers(rule):
    """An oracle of the pairwise form, and the pairs it was asked about."""
    asked = []

    def judge_all(prompts, first, second):
        asked.extend(zip(prompts, first, second, strict=True))
        return [rule(a, b) for a, b in zip(first, second, strict=True)]

    return as_oracle(judge_all), asked


def test_an_oracle_that_likes_whatever_comes_first_sees_no_difference() -> None:
    oracle, asked = prefers(lambda a, b: 0.9)
    verdicts, calls = judge(oracle, PAIRS)
    assert [one.outcome for one in verdicts] == [0.5, 0.5, 0.5]
    assert [one.flips for one in verdicts] == [True, True, False]
    assert (calls, len(asked)) == (4, 4)  # both orders of two pairs; identical responses are not asked about
    bias = position(verdicts, ["p", "q", "r"])
    assert bias["first_wins"]["mean"] == pytest.approx(0.9)
    assert bias["bias"]["mean"] == pytest.approx(0.4)
    assert bias["disagreement"]["mean"] == 1.0
    assert bias["disagreement"]["n"] == 2


def test_an_oracle_that_judges_the_answers_has_no_bias() -> None:
    oracle, _ = prefers(lambda a, b: 0.8 if len(a) > len(b) else 0.2)
    verdicts, _ = judge(oracle, PAIRS)
    assert [one.outcome for one in verdicts] == [1.0, 0.0, 0.5]
    assert verdicts[0].p == pytest.approx(0.8)
    bias = position(verdicts, ["p", "q", "r"])
    assert bias["bias"]["mean"] == pytest.approx(0.0)
    assert bias["disagreement"]["mean"] == 0.0


def test_the_mean_over_both_orders_decides() -> None:
    """.9 for ours when shown first, .6 for the other one when it is shown first: (.9 + .4) / 2 = .65 for ours."""
    oracle, _ = prefers(lambda a, b: 0.9 if a == "ours" else 0.6)
    verdict = judge(oracle, [Pair("p", "ours", "theirs")])[0][0]
    assert verdict.p == pytest.approx(0.65)
    assert verdict.flips


def test_an_abstention_in_one_order_is_an_abstention() -> None:
    oracle, _ = prefers(lambda a, b: None if a == "theirs" else 1.0)
    verdicts, _ = judge(oracle, [Pair("p", "ours", "theirs"), Pair("q", "ours", "other")])
    assert [one.outcome for one in verdicts] == [None, 0.5]
    assert verdicts[0].reason
    found = summary(verdicts, ["p", "q"], [1.0, 2.0], symmetric=False)
    assert (found["win_rate"]["abstained"], found["win_rate"]["ties"], found["win_rate"]["n"]) == (1, 1, 1)


def test_a_scoring_oracle_is_asked_once_and_has_no_order() -> None:
    oracle = as_oracle(lambda prompts, responses: [float(len(one)) for one in responses])
    verdicts, calls = judge(oracle, PAIRS)
    assert calls == 2
    scores = [
        [float(len(one)) for one in side] for side in zip(*[(p.first, p.second) for p in PAIRS], strict=True)
    ]
    assert (
        [one.outcome for one in verdicts] == [one.outcome for one in from_scores(*scores)] == [1.0, 0.0, 0.5]
    )
    assert summary(verdicts, list("pqr"), [1, 2, 3], symmetric=True)["position"] == {"kind": "symmetric"}


def test_verdicts_survive_being_written() -> None:
    assert Verdict(**vars(Verdict(0.65, 0.9, 0.6, None))).outcome == 1.0


# ---- at equal length


def simulated(rng, n: int, *, own: float, per_token: float):
    """Outcomes by the rule P(win) = sigmoid(own + per_token * difference), of a model that says about 5 tokens more."""
    longer = rng.normal(5, 10, n)
    return (rng.random(n) < 1 / (1 + np.exp(-(own + per_token * longer)))).astype(float), longer


def test_where_length_alone_decides_nothing_is_left() -> None:
    wins, longer = simulated(np.random.default_rng(0), 2000, own=0.0, per_token=0.3)
    assert rate_interval(wins).low > 0.6  # the plain rate takes length for quality
    found = length_controlled(wins, longer)
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.12


def test_where_the_longer_one_always_wins_it_stays_finite() -> None:
    longer = np.random.default_rng(1).normal(3, 10, 400)
    found = length_controlled((longer > 0).astype(float), longer)
    assert found.low <= 0.5 <= found.high
    assert found.mean == pytest.approx(0.5, abs=0.1)


def test_where_length_does_not_matter_it_is_the_plain_rate() -> None:
    wins, longer = simulated(np.random.default_rng(2), 2000, own=0.85, per_token=0.0)
    plain, found = rate_interval(wins), length_controlled(wins, longer)
    assert found.mean == pytest.approx(plain.mean, abs=0.01)
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.4)


def test_the_fit_is_the_optimum_that_scipy_finds() -> None:
    wins, longer = simulated(np.random.default_rng(3), 200, own=0.5, per_token=0.1)
    wins[:20] = 0.5
    z = longer / np.sqrt(np.mean(longer**2))

    def loss(beta):
        logits = beta[0] + beta[1] * z
        return (np.logaddexp(0, logits) - wins * logits).sum() + RIDGE / 2 * (beta**2).sum()

    best = scipy.optimize.minimize(loss, np.zeros(2), method="BFGS").x
    assert length_controlled(wins, longer, resamples=50).mean == pytest.approx(
        1 / (1 + np.exp(-best[0])), abs=1e-5
    )


def test_the_sign_of_the_difference_is_ours_less_theirs() -> None:
    """Ours is longer and longer wins: at equal length less is left than the plain rate, not more."""
    wins, longer = simulated(np.random.default_rng(4), 1000, own=0.3, per_token=0.1)
    assert length_controlled(wins, longer).mean < rate_interval(wins).mean - 0.05


def fitted(wins, longer, keys, weights):
    """Intercept and its error for rows of weights per cluster; keys must come in order."""
    z = longer / np.sqrt(np.mean(longer**2))
    return _Clustered(z, wins, np.asarray(keys)).fit(weights)


def test_the_standard_error_is_the_spread_over_repetitions() -> None:
    """300 evaluations of 100 prompts, three equal outcomes each: the mean error is the standard deviation of the estimates."""
    rng, keys = np.random.default_rng(7), np.repeat(np.arange(100), 3)
    found = []
    for _ in range(300):
        wins, longer = simulated(rng, 100, own=0.5, per_token=0.1)
        found.append(
            [one[0] for one in fitted(np.repeat(wins, 3), np.repeat(longer, 3), keys, np.ones((1, 100)))]
        )
    estimates, errors = np.transpose(found)
    assert errors.mean() == pytest.approx(estimates.std(), rel=0.12)


def test_the_limits_are_the_definition_of_the_studentised_bootstrap() -> None:
    """Lower limit: the estimate less the *upper* quantile of (a* - a) / error* times the error; and the other way round."""
    rng = np.random.default_rng(8)
    wins, longer = simulated(rng, 80, own=2.0, per_token=0.1)
    drawn = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=400).astype(float)
    estimate, error = (one[0] for one in fitted(wins, longer, range(80), np.ones((1, 80))))
    again, errors = fitted(wins, longer, range(80), drawn)
    low, high = np.quantile((again - estimate) / errors, [0.025, 0.975])
    assert abs(high + low) > 0.1  # skewed, so that the sides can be told apart
    expected = [1 / (1 + np.exp(-(estimate - side * error))) for side in (high, low)]
    found = length_controlled(wins, longer, resamples=400)
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-9)


def test_copies_of_a_prompt_do_not_narrow_it() -> None:
    wins, longer = simulated(np.random.default_rng(5), 150, own=0.5, per_token=0.1)
    once = length_controlled(wins, longer, list(range(150)))
    four = length_controlled(np.repeat(wins, 4), np.repeat(longer, 4), np.repeat(np.arange(150), 4).tolist())
    assert (four.low, four.high) == pytest.approx((once.low, once.high), abs=0.01)
    assert (four.n, four.clusters) == (600, 150)


@pytest.mark.parametrize(("outcomes", "longer"), [([1.0] * 20, range(20)), ([1.0, 0.0] * 10, [0.0] * 20)])
def test_nothing_to_control_for_gives_the_plain_rate(outcomes, longer) -> None:
    assert length_controlled(outcomes, list(longer)) == rate_interval(outcomes)


# ---- intervals cover


def test_the_bootstrap_is_the_closed_form_where_there_is_one() -> None:
    """Clusters of equal size with normal means: the interval of the clusters' means is Student's t, here from scipy."""
    rng = np.random.default_rng(6)
    values = (rng.normal(size=200)[:, None] + rng.normal(size=(200, 3))).reshape(-1)
    found = mean_interval(values, np.repeat(np.arange(200), 3).tolist())
    means = values.reshape(200, 3).mean(axis=1)
    low, high = scipy.stats.t.interval(0.95, 199, means.mean(), scipy.stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))


@pytest.mark.parametrize("name", ["win rate 0.5", "win rate 0.9", "mean of skewed values"])
def test_intervals_cover_what_they_say(name: str) -> None:
    """A small version of benchmarks/coverage.py: 300 repetitions, so within 4 of its standard errors (1.3% each) of 95%."""
    simulate, _ = coverage.cases(300)[name]
    found = coverage.coverage(simulate, 300, seed=99)
    assert abs(found["coverage"] - 0.95) < 0.05


def test_the_committed_coverage_is_right() -> None:
    """What `python benchmarks/coverage.py` wrote: every kind within 93 to 97%, the main ones over 2,000 repetitions."""
    found = json.loads(coverage.RESULTS.read_text())
    assert found["settings"]["clusters"] >= 100
    assert set(found["coverage"]) == set(coverage.cases(1))
    for name, one in found["coverage"].items():
        assert 0.93 <= one["coverage"] <= 0.97, name
        assert one["repetitions"] >= (1000 if "equal length" in name else 2000)
