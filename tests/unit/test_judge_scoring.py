"""A single-score judge as an oracle that scores: for held-out answers, as eval_oracle, for the best and the worst of several."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fake_judge import FakeJudge, pieces, verdict
from test_judge import QUICK, judge, total
from test_oracles_best_worst import examples

from sail.errors import ConfigError, OracleError
from sail.evaluation.metrics import gain_number, score_number, unscored_note
from sail.evaluation.win_rate import from_scores
from sail.online import choose, compare
from sail.oracles import PreferenceFunction, RewardFunction, for_measuring, must_score
from sail.oracles.best_worst import best_and_worst
from sail.oracles.judge import Judge, ScoreJudge
from sail.oracles.ledger import Ledger
from sail.oracles.wrappers import BothOrders, Committee, Noise, OneOrder, Remember
from sail.training.arguments import SAILConfig
from sail.training.checks import checked_mixture, oracle_advice
from sail.types import Pair


def mostly(message: str) -> str:
    """1 + the number of w3, and nothing readable about what holds w9."""
    return "no" if "w9" in pieces(message)["response"] else verdict(message)


def test_scores_of_single_responses_with_none_for_an_abstention(caplog: pytest.LogCaptureFixture) -> None:
    with FakeJudge(judge=mostly) as server, caplog.at_level(logging.WARNING):
        scorer = must_score(judge(server, ScoreJudge, score_temperature=2.0)).own_scores()
        assert scorer is not None
        assert scorer.score(["p", "p", "q"], ["w3 w3", "w9", "w1"]) == [3.0, None, 1.0]
        assert "gave no score to 1 of 3 responses, the first because: no score in the reply" in caplog.text
        # by hand: sigmoid((3 - 1) / 2), the same as when the pair is asked about, and nothing is asked again
        assert scorer.preference(3.0, 1.0).first_wins == pytest.approx(0.7310585786300049)
        assert scorer.compare([Pair("p", "w3 w3", "w1")])[0].first_wins == pytest.approx(0.7310585786300049)
        assert total(server) == 4  # ("p", "w1") is the only new one


def test_what_is_kept_for_good_is_no_failed_call() -> None:
    with FakeJudge(lambda question, attempt: "400:too long") as server:
        scorer = for_measuring(judge(server, ScoreJudge))
        assert scorer is not None
        own = scorer.own_scores()
        assert own is not None
        assert own.score(["p"], ["w1"]) == [None]
        with pytest.raises(OracleError, match=r"no answer to 1 of 1 responses.*too long"):
            own.score_to_keep(["p"], ["w1"])
    with FakeJudge(judge=lambda message: "no") as server:
        own = judge(server, ScoreJudge).own_scores()
        assert own.score_to_keep(["p"], ["w1"]) == [None]


def test_only_a_single_score_judge_scores() -> None:
    pairwise = Judge("http://127.0.0.1:1/v1", "m")
    with pytest.raises(ConfigError, match="mode: single"):
        must_score(BothOrders(pairwise))
    single = ScoreJudge("http://127.0.0.1:1/v1", "m")
    assert must_score(single) is single
    assert for_measuring(Noise(single, 0.1)) is not None


def test_a_wrapper_around_an_evaluation_oracle_is_refused() -> None:
    """It would be taken off: noise and budgets are on verdicts about pairs."""
    with pytest.raises(ConfigError, match=r"Remove eval_oracle\.wrap"):
        must_score(Noise(RewardFunction(lambda prompts, responses: [0.0] * len(responses)), 0.1))
    with pytest.raises(ConfigError, match=r"Remove eval_oracle\.wrap"):
        must_score(OneOrder(ScoreJudge("http://127.0.0.1:1/v1", "m")))


# ---- the best and the worst


def test_the_best_and_the_worst_of_what_has_a_score() -> None:
    texts = [["w3", "w9", "w3 w3", "w1"], ["w9 w1", "w9", "w3"], ["w9", "w9 w2", "w9 w4"]]
    with FakeJudge(judge=mostly) as server:
        some, one, none = best_and_worst(judge(server, ScoreJudge).own_scores(), ["p", "q", "r"], texts)[0]
    assert (some.best, some.worst) == (2, 3)
    # by hand: sigmoid(3 - 1)
    assert some.preference.first_wins == pytest.approx(0.8807970779778823)
    assert some.preference.reason == "1 of 4 responses have no score"
    for choice, reason in ((one, "2 of 3 responses have no score"), (none, "3 of 3 responses have no score")):
        assert choice.preference.first_wins is None
        assert choice.preference.reason == reason
        assert choice.best != choice.worst


def test_equal_scores_are_a_tie_of_the_first_two_that_have_one() -> None:
    with FakeJudge(judge=mostly) as server:
        (choice,), _ = best_and_worst(
            judge(server, ScoreJudge).own_scores(), ["p"], [["w9", "w3", "w3 w1", "w9 w1"]]
        )
    assert (choice.best, choice.worst, choice.preference.first_wins) == (1, 2, 0.5)


def test_a_single_score_judge_chooses_the_pairs_of_a_step() -> None:
    made = examples(4, ["w1", "w3", "w9"])
    with FakeJudge(judge=mostly) as server:
        oracle = judge(server, ScoreJudge)
        assert choose(made, oracle, seed=1) + compare(made, oracle) == 6
    for one in made:
        assert {response.text for response in one.responses} == {"w1", "w3"}


# ---- what is made of missing scores


def test_missing_scores_are_left_out_and_counted() -> None:
    ours, theirs, keys = [4.0, None, 6.0, 8.0], [1.0, 2.0, None, 3.0], ["a", "b", "c", "d"]
    number, gain = score_number(ours, keys), gain_number(ours, theirs, keys)
    assert (number["mean"], number["n"], number["abstained"]) == (6.0, 3, 1)
    # by hand: (4 - 1 + 8 - 3) / 2
    assert (gain["mean"], gain["n"], gain["abstained"]) == (4.0, 2, 2)
    assert "abstained" not in score_number(theirs[:2], keys[:2])
    assert [one.outcome for one in from_scores(ours, theirs)] == [1.0, None, None, 1.0]
    assert unscored_note("gold", ours, theirs) == [
        "gold gave no score to 2 of 8 held-out answers. They are left out: n counts the others."
    ]
    assert unscored_note("gold", [1.0]) == []


# ---- what a run file sets and Python does not


def test_one_order_and_a_ledger_in_memory_are_said(tmp_path: Path) -> None:
    def served(ledger: Ledger | None = None) -> Judge:
        return Judge("http://127.0.0.1:1/v1", "m", ledger=ledger, patience=QUICK)

    both = oracle_advice(served())
    assert len(both) == 2
    assert "judge m is asked in one order only" in both[0]
    assert "in memory only" in both[1]
    # One that is given is meant, as that of a dry run is.
    assert oracle_advice(BothOrders(served(Ledger(":memory:")))) == []
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert oracle_advice(BothOrders(served(ledger))) == []
        assert oracle_advice(Noise(OneOrder(served(ledger)), 0.1)) == []
        assert oracle_advice(ScoreJudge("http://127.0.0.1:1/v1", "m", ledger=ledger)) == []
        assert "one order" in oracle_advice(Remember(served(ledger), ledger))[0]
        mixed = Committee([BothOrders(served(ledger)), served(ledger)])
        assert len(oracle_advice(mixed)) == 1
    assert (
        oracle_advice(PreferenceFunction(lambda prompts, first, second: [1.0])) == oracle_advice(None) == []
    )


def test_the_trainer_says_it_once(tmp_path: Path) -> None:
    args = SAILConfig(output_dir=str(tmp_path), preset="sail-dpr", use_cpu=True)
    with pytest.warns(UserWarning, match="asked in one order only") as told:
        checked_mixture(args, None, None, Judge("http://127.0.0.1:1/v1", "m"))
    assert sum("judge m" in str(one.message) for one in told) == 2
