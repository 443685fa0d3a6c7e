"""Health checks on made-up records: each alarms beyond its threshold, is silent within it, and never takes silence for health."""

from __future__ import annotations

import random

import pytest
from fake_runs import RUNS, write_run
from health_records import CHECKS, DPR, brief, fair, lines, said, state, verdicts, windows

from sail.report import RunRecord, build_report, read_run
from sail.report.checks import examine
from sail.report.measure import agreement, expected_rows, longer_wins
from sail.report.pairs_file import PairFacts, Verdict

# ---- silence


def test_a_run_of_which_nothing_is_known_has_no_fine_check():
    (outcomes,) = ([c["runs"][0] for c in examine([RunRecord("r")])],)
    assert len(outcomes) == len(CHECKS) == 25
    assert {o["state"] for o in outcomes} == {"not measured"}
    (wrong,) = (t for t in build_report([RunRecord("r")], title="t")["answers"] if t["id"] == "wrong")
    assert (wrong["answer"], wrong["tone"]) == ("Not measured", "plain")


def test_what_does_not_apply_is_told_from_what_was_not_measured():
    dpo = RunRecord("r", config={"train": {"preset": "dpo"}}, metrics=[{"step": 1, "loss": 0.7}])
    dpr = RunRecord("r", config=DPR, metrics=[{"step": 1, "loss": 0.7}])
    by_id = {c["id"]: c["runs"] for c in examine([dpo, dpr])}
    for id in ("prompts", "cut", "entropy", "chance", "position", "abstained", "swapped", "inverted"):
        assert [run["applies"] for run in by_id[id]] == [False, True], id
        assert {run["state"] for run in by_id[id]} == {"not measured"}
    assert [run["measured"] for run in by_id["inverted"]] == ["no oracle in the run file", "no audit.json"]


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("seed", range(2))
def test_healthy_made_up_runs_raise_no_alarm(tmp_path, method, seed):
    record = read_run(write_run(tmp_path / method, method, lines=120, seed=seed))
    alarms = [c["id"] for c in examine([record]) if c["runs"][0]["state"] == "warning"]
    assert alarms == []


def test_ids_are_unique_and_every_warning_says_what_to_do():
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    assert all(c.question.endswith("?") and c.alarm.endswith(".") and c.advice and c.limit for c in CHECKS)


# ---- prompts and responses


def starved(prompts: int, rows: int, *, total=1000, top=1) -> RunRecord:
    facts = PairFacts(total=total, prompts=prompts, rows=rows, top_prompt=top, by_route={"dpr": total})
    metrics = [{"step": 100, "epoch": 1.0, "route/dpr": 1.0}]
    return RunRecord("r", config=DPR, facts=facts, metrics=metrics, results={"train_rows": 1000})


@pytest.mark.parametrize(
    ("prompts", "rows", "expected"),
    [
        (1000, 1000, "fine"),
        (60, 1000, "fine"),  # a file with 16 pairs per prompt, which older folders do not tell
        (13, 1000, "warning"),  # many rows, one pool of texts
        (13, 13, "warning"),
        (490, 490, "warning"),  # rows have no reason to come again
        (510, 510, "fine"),
    ],
)
def test_prompt_starvation(prompts, rows, expected):
    assert state(starved(prompts, rows), "prompts") == expected


def several(prompts: int, rows: int, texts: int, *, total: int, train_rows=6000, top=1) -> RunRecord:
    facts = PairFacts(total=total, prompts=prompts, rows=rows, top_prompt=top, by_route={"dpr": total})
    metrics = [{"step": 100, "epoch": 1.0, "route/dpr": total / train_rows}]
    return RunRecord(
        "r",
        config=DPR,
        facts=facts,
        metrics=metrics,
        results={"train_rows": train_rows, "train_prompts": texts},
    )


@pytest.mark.parametrize("per_text", ["even", "skewed"])
@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_several_pairs_per_prompt_are_no_starvation(per_text, share):
    """6,000 rows with 1,000 texts: six of each, or 900 once and 100 with 51 each; drawn row by row."""
    texts = (
        [i % 1000 for i in range(6000)]
        if per_text == "even"
        else [*range(900), *(900 + i % 100 for i in range(5100))]
    )
    chance = random.Random(1)
    taken = [text for text in texts if chance.random() < share]
    drawn = several(len(set(taken)), len(taken), 1000, total=len(taken))
    assert state(drawn, "prompts") == "fine"
    assert state(several(13, len(taken), 1000, total=len(taken)), "prompts") == "warning"
    assert state(several(13, 13, 1000, total=len(taken)), "prompts") == "warning"


@pytest.mark.parametrize(
    ("texts", "expected"), [(1, "warning"), (13, "warning"), (99, "warning"), (150, "fine")]
)
def test_a_training_file_of_few_prompts_is_a_pool(texts, expected):
    """All 6,000 rows are met, but the file itself has few prompts: 150 with 40 pairs each is another design, 13 is a fault."""
    assert state(several(texts, 6000, texts, total=6000), "prompts") == expected


def test_one_prompt_is_all_there_is():
    assert state(several(1, 256, 1, total=256, train_rows=256, top=256), "prompt-share") == "warning"
    assert state(several(2, 256, 2, total=256, train_rows=256, top=130), "prompt-share") == "fine"


def test_a_small_set_of_texts_may_repeat_each():
    # 15 texts, each fairly in 6.7% of the pairs: above 5%, but not three times its share
    assert state(several(15, 6000, 15, total=6000, top=400), "prompt-share") == "fine"
    assert state(several(15, 6000, 15, total=6000, top=2000), "prompt-share") == "warning"


@pytest.mark.parametrize(("top", "expected"), [(50, "fine"), (66, "warning"), (1000, "warning")])
def test_one_prompt_everywhere(top, expected):
    # 5% of 1,000; Wilson's lower limit of 66/1000 is .0522 (by hand), that of 50/1000 is .038
    assert state(starved(500, 1000, top=top), "prompt-share") == expected


def test_what_drawing_would_give_matches_a_simulation():
    rows, share, epochs = 400, 0.3, 2.5
    chance = random.Random(0)
    found, pairs = [], []
    for _ in range(200):
        met, taken = set(), 0
        for epoch in range(3):
            for row in range(rows if epoch < 2 else rows // 2):
                if chance.random() < share:
                    met.add(row)
                    taken += 1
        found.append(len(met))
        pairs.append(taken)
    facts = PairFacts(total=round(sum(pairs) / 200), by_route={"dpr": 1})
    logged = [{"step": 1, "epoch": epochs, "route/data": 0.7, "route/dpr": 0.3}]
    expected = sum(found) / 200
    known = RunRecord("r", facts=facts, metrics=logged, results={"train_rows": rows})
    assert expected_rows(known) == pytest.approx(expected, rel=0.01)
    # Without train_rows they are counted back from the pairs and the realised share.
    assert expected_rows(RunRecord("r", facts=facts, metrics=logged)) == pytest.approx(expected, rel=0.01)


def test_the_same_response_to_other_prompts():
    assert state(windows([brief(i) for i in range(100)]), "duplicates") == "fine"
    refusals = [brief(i, first=7 if i % 5 == 0 else None) for i in range(100)]
    assert state(windows(refusals), "duplicates") == "fine"
    assert state(windows([brief(i, first=7, second=8) for i in range(100)]), "duplicates") == "warning"
    # One prompt with one response is no duplicate: other checks see that.
    assert state(windows([brief(0, prompt=1, first=7, second=8)] * 100), "duplicates") == "fine"


@pytest.mark.parametrize(
    ("id", "mark"),
    [("identical", {"first": 1, "second": 1}), ("cut", {"cut": True}), ("empty", {"empty": True})],
)
def test_marks_of_the_latest_responses(id, mark):
    def some(count):
        return windows([brief(i, **(mark if i < count else {})) for i in range(200)])

    limit = {"identical": 0.2, "cut": 0.2, "empty": 0.05}[id]
    assert state(some(0), id) == "fine"
    assert state(some(int(200 * limit) + 4), id) == "fine"  # above the limit, but its interval reaches below
    assert state(some(int(200 * limit) + 16), id) == "warning"


def test_shares_from_the_log_where_no_pairs_were_kept():
    healthy = {"response__cut": 0.1, "response__empty": 0.0, "online__prompts": 5}
    assert {state(lines(**healthy), id) for id in ("cut", "empty")} == {"fine"}
    assert state(lines(**{**healthy, "response__cut": 0.5}), "cut") == "warning"
    assert state(lines(**{**healthy, "response__empty": 0.2}), "empty") == "warning"
    few = RunRecord("r", config=DPR, facts=PairFacts(total=59))
    assert said(few, "identical") == "only 59 pairs, 60 are needed"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(20, 26, "fine"), (20, 40, "warning"), (20, 15, "fine"), (20, 9, "warning")],
)
def test_length_drift_both_ways(before, after, expected):
    def spread(mean):
        return [brief(i, length=mean + (i % 5) - 2.0) for i in range(100)]

    assert state(windows(spread(after), spread(before)), "length") == expected

    def interval(mean):
        return {"mean": mean, "low": mean - 0.5, "high": mean + 0.5, "n": 100}

    held_out = RunRecord(
        "r", results={"metrics": {"length": interval(after), "length_reference": interval(before)}}
    )
    assert state(held_out, "length") == expected


def test_length_drift_needs_the_interval():
    wide = {"metrics": {"length": {"mean": 32, "low": 20, "high": 44}, "length_reference": {"mean": 20}}}
    assert state(RunRecord("r", results=wide), "length") == "fine"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(1.0, 0.5, "fine"), (1.0, 0.15, "warning"), (0.06, 0.05, "fine"), (0.03, 0.015, "warning")],
)
def test_entropy_collapse(start, end, expected):
    falling = [start + (end - start) * min(1, i / 20) for i in range(30)]
    assert state(lines(response__entropy=falling), "entropy") == expected
    assert said(lines(response__entropy=falling[:5]), "entropy") == "only 5 log lines, 6 are needed"


def fit(data, sampled) -> RunRecord:
    def interval(mean_half):
        return mean_half and {
            "mean": mean_half[0], "low": mean_half[0] - mean_half[1], "high": mean_half[0] + mean_half[1], "n": 128
        }  # fmt: skip

    return RunRecord(
        "r", config=DPR, audit={"prompt_fit": {"data": interval(data), "sampled": interval(sampled)}}
    )


@pytest.mark.parametrize(
    ("data", "sampled", "expected"),
    [
        ((6, 1), (5, 1), "fine"),
        ((6, 1), None, "fine"),
        ((0.1, 0.5), (5, 1), "warning"),  # the dataset's lists were shuffled apart
        ((6, 1), (-0.2, 0.5), "warning"),  # what was sampled went to other prompts
        ((0.5, 0.3), (6, 1), "warning"),  # one in twelve still fits
        ((6, 1), (0.5, 0.3), "warning"),
        ((0.5, 0.6), None, "warning"),
        ((2.0, 0.5), (6, 1), "fine"),
        (None, None, "not measured"),
    ],
)
def test_prompt_fit(data, sampled, expected):
    assert state(fit(data, sampled), "prompt-fit") == expected


# ---- labels


def test_labels_near_chance_and_constant_verdicts():
    assert {state(verdicts(fair(100)), id) for id in ("chance", "constant", "position")} == {"fine"}
    assert state(verdicts(fair(100, 0.02)), "chance") == "warning"
    assert state(verdicts([0.5] * 100), "chance") == "warning"
    assert state(verdicts([0.5] * 100), "constant") == "warning"
    assert state(verdicts([1.0] * 100), "constant") == "warning"
    assert state(verdicts([0.0, 1.0] * 50), "constant") == "fine"  # a judge that answers with one of two
    assert said(verdicts([0.5] * 19), "chance") == "only 19 verdicts, 20 are needed"


def test_position_bias_is_bias_beyond_chance():
    shifted = [min(1.0, p + 0.1) for p in fair(400)]
    assert state(verdicts(shifted), "position") == "warning"
    assert state(verdicts([1 - p for p in shifted]), "position") == "warning"
    assert state(verdicts(shifted[:20]), "position") == "fine"  # too few to tell from chance
    assert said(verdicts(shifted, pairing="best_worst"), "position").startswith("with best_worst")


@pytest.mark.parametrize(
    ("swap", "expected"),
    [
        ({"kind": "symmetric"}, "fine"),
        ({"disagreement": {"mean": 0.3, "low": 0.2, "high": 0.42}}, "fine"),
        ({"disagreement": {"mean": 0.4, "low": 0.28, "high": 0.53}}, "warning"),
        (None, "not measured"),
    ],
)
def test_an_oracle_that_contradicts_itself(swap, expected):
    assert state(RunRecord("r", config=DPR, audit={"oracle_swap": swap}), "swapped") == expected


@pytest.mark.parametrize(
    ("low", "mean", "high", "expected"),
    [(0.6, 0.7, 0.8, "fine"), (0.4, 0.48, 0.56, "fine"), (0.1, 0.2, 0.3, "warning")],
)
def test_inverted_labels(low, mean, high, expected):
    agreed = {"oracle_agreement": {"mean": mean, "low": low, "high": high, "n": 128}}
    assert state(RunRecord("r", audit=agreed), "inverted") == expected


def test_own_labels_against_the_datasets():
    assert state(lines(label__agreement=0.7), "own-labels") == "fine"
    assert state(lines(label__agreement=[0.6] * 15 + [0.38, 0.4, 0.42, 0.4, 0.4]), "own-labels") == "warning"


def test_abstentions_are_not_ties_and_not_pairs_that_were_not_asked():
    def record(**counts):
        return RunRecord("r", config=DPR, facts=PairFacts(total=200, by_route={"dpr": 200}, **counts))

    assert state(record(), "abstained") == "fine"
    assert state(record(ties=100, unasked=90), "abstained") == "fine"
    assert state(record(abstained=50), "abstained") == "warning"
    assert state(record(abstained=25, unasked=100), "abstained") == "warning"  # 25 of 100
    assert state(lines(oracle__calls=100, oracle__abstained=30), "abstained") == "warning"


def test_sides_taken_by_hand():
    told = [
        Verdict(0, 0.9, 0.6, 5.0),  # the longer one wins; the policy agrees
        Verdict(1, 0.2, 0.1, -5.0),  # again, both
        Verdict(2, 0.9, 0.4, -5.0),  # the shorter one wins; the policy does not agree
        Verdict(3, 0.5, 0.4, 1.0),  # a tie is one half
        Verdict(4, 0.9, None, 0.0),  # equal lengths and unknown verdicts say nothing
    ]
    assert longer_wins(told)["mean"] == pytest.approx(2.5 / 4)
    assert agreement(told)["mean"] == pytest.approx(2.5 / 4)
    assert agreement(told[4:]) is None
    assert longer_wins(told[4:]) is None
