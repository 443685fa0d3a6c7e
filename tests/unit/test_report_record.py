"""Reading a run folder: what a whole one says, and that damage is told and survived."""

from __future__ import annotations

import gzip
import itertools
import json
import math

import pytest
from fake_runs import MIXTURE, write_run

from sail.errors import DataError
from sail.report import reading
from sail.report.checks import examine
from sail.report.measure import lengths, marked, repeated
from sail.report.record import Problem, RunRecord, number, read_run, read_runs


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "sail-dpr", "sail-dpr", lines=60)


def texts(record):
    return [(p.file, p.text) for p in record.problems]


def test_a_whole_folder(folder):
    record = read_run(folder)
    assert record.name == "sail-dpr"
    assert record.problems == []
    assert record.not_finite == {}
    assert record.config["train"]["beta"] == 0.1
    assert record.metric("win_rate") == {"mean": 0.8, "low": 0.76, "high": 0.83, "n": 512}
    assert record.metric("absent") is None
    steps, loss = record.column("loss")
    assert steps == list(range(1, 61))
    assert len(loss) == 60
    assert record.column("eval_reward")[0] == [1, 20, 40, 60]
    assert record.last("oracle/calls") == 16 * 60
    assert record.column("something/new") == ([], [])
    assert record.facts.total == 240
    assert record.facts.by_route == {"dpr": 240}
    assert len(record.pairs) == 240
    assert record.audit["oracle_calls"] == 256
    answered = [row for row in record.pairs if row["reference"] is not None]
    assert {row["index"] for row in answered} == set(range(4, 240, 16))  # the fake run's audit answered these
    assert all(row["reference"] == f"The reference on {row['index']}." for row in answered)


def test_pairs_are_spread_over_the_run_and_every_route_is_seen(folder):
    with gzip.open(folder / "pairs.jsonl.gz", "at") as file:
        file.write(json.dumps({"step": 60, "route": "rare", "first": "same", "second": "same"}) + "\n")
    (folder / "audit.json").unlink()
    record = read_run(folder, max_pairs=24)
    assert record.facts.total == 241
    assert record.facts.by_route == {"dpr": 240, "rare": 1}
    assert 20 <= len(record.pairs) <= 25
    steps = [row["step"] for row in record.pairs]
    assert steps[0] == 1
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 4
    assert {row["route"] for row in record.pairs} == {"dpr", "rare"}
    assert record.facts.identical >= 1


def test_a_half_written_last_metrics_line_is_left_out(folder):
    path = folder / "metrics.jsonl"
    whole = read_run(folder).metrics
    path.write_bytes(path.read_bytes()[:-25])
    record = read_run(folder)
    assert record.metrics == whole[:-1]
    assert texts(record) == [("metrics.jsonl", "the last line is half written and was left out")]


def test_broken_lines_in_the_middle_are_counted(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[3:3] = ["{broken", "[1, 2]", ""]
    path.write_text("\n".join(lines) + "\n")
    record = read_run(folder)
    assert len(record.metrics) == len(lines) - 3
    assert texts(record) == [("metrics.jsonl", "2 lines are no JSON objects, left out: 4, 5")]


@pytest.mark.parametrize("cut", [1, 9, 300, 900])
def test_a_truncated_last_gzip_member_is_read_as_far_as_it_goes(folder, cut):
    path = folder / "pairs.jsonl.gz"
    whole = read_run(folder).pairs
    path.write_bytes(path.read_bytes()[:-cut])
    record = read_run(folder)
    assert len(record.pairs) >= 200  # the first member holds the first 50 steps
    assert record.pairs == whole[: len(record.pairs)]
    assert texts(record) == [("pairs.jsonl.gz", "ends in the middle of a compressed block; read up to there")]


def test_garbage_after_a_member_is_told(folder):
    path = folder / "pairs.jsonl.gz"
    path.write_bytes(path.read_bytes() + b"not gzip at all")
    record = read_run(folder)
    assert len(record.pairs) == 240
    assert texts(record) == [("pairs.jsonl.gz", "a part is damaged; read up to there")]


def test_numbers_that_are_not_finite_become_gaps_and_are_counted(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "loss": NaN, "grad_norm": Infinity}\n{"step": 62, "loss": NaN}\n')
    record = read_run(folder)
    assert record.not_finite == {"grad_norm": 1, "loss": 2}
    assert record.column("loss")[0][-1] == 60
    assert all(math.isfinite(v) for row in record.metrics for v in row.values() if isinstance(v, float))


def test_an_empty_folder_says_what_is_missing(tmp_path):
    record = read_run(tmp_path)
    files = ["config.resolved.yaml", "results.json", "metrics.jsonl", "pairs.jsonl.gz"]
    assert record.problems == [Problem(file, "not there", missing=True) for file in files]
    assert record.metrics == record.pairs == []


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "cannot be parsed (half written?), left out"), ("[1]", "does not hold a mapping, left out")],
)
def test_broken_config_and_results_are_left_out(folder, content, text):
    for name in ("config.resolved.yaml", "results.json"):
        (folder / name).write_text(content)
    record = read_run(folder)
    assert record.config == record.results == {}
    assert texts(record) == [("config.resolved.yaml", text), ("results.json", text)]


def test_no_folder_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"is not a folder.*output_dir"):
        read_run(tmp_path / "nowhere")


def test_a_step_logged_twice_counts_once():
    record = RunRecord(
        "r", metrics=[{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    )
    assert record.column("loss") == ([1, 2], [3.0, 2.0])


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / seed / "dpo", "dpo", lines=2) for seed in ("a", "b")]
    assert [r.name for r in read_runs(folders)] == ["a/dpo", "b/dpo"]
    assert [r.name for r in read_runs([folders[0]] * 2)] == ["a/dpo", "a/dpo (2)"]


@pytest.mark.parametrize("value", [None, True, "1", math.nan, math.inf, 10**400, [1]])
def test_what_is_not_a_number(value):
    assert number(value) is None


def test_data_runs_have_no_pairs(tmp_path):
    record = read_run(write_run(tmp_path / "dpo", "dpo", lines=4))
    assert set(MIXTURE["dpo"]) == {"data"}
    assert texts(record) == [("pairs.jsonl.gz", "not there")]


def write_pairs(folder, rows):
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def pair(step, index, prompt, first, second, **more):
    return {
        "step": step,
        "index": index,
        "prompt": prompt,
        "first": first,
        "second": second,
        "route": "dpr",
        **more,
    }


def test_facts_of_all_pairs_counted_by_hand(tmp_path):
    chat = [{"role": "user", "content": "p"}]
    rows = [
        pair(0, 0, "p", "a", "b", source="oracle:g", probability=0.9, label=0.9, policy_probability=0.4),
        pair(
            0, 1, "p", "a", "a", source="oracle:g", probability=0.5, label=0.5
        ),  # same text: nothing was asked
        pair(1, 2, "q", "a", "", source="oracle:g", probability=None, label=None, reason="no verdict"),
        pair(1, 3, "r", "c", "d", source="oracle:g", probability=0.5, label=None),  # a tie under argmax
        pair(2, 3, chat, "e", "f", source="oracle:g", probability=None, label=None, reason="not asked: sure"),
        {**pair(2, 4, "q", "g", "h", source="policy", probability=0.6, label=0.6), "route": "dpp"},
    ]
    write_pairs(tmp_path, rows)
    facts = read_run(tmp_path, max_pairs=2).facts
    assert (facts.total, facts.identical, facts.prompts, facts.rows) == (6, 1, 4, 5)
    assert facts.by_route == {"dpp": 1, "dpr": 5}
    assert facts.by_source == {"oracle:g": 5, "policy": 1}
    assert (facts.abstained, facts.unasked, facts.ties) == (1, 1, 1)
    assert [(v.probability, v.policy) for v in facts.verdicts] == [(0.9, 0.4), (0.5, None)]
    assert facts.common_prompts == [("p", 2), ("q", 2)]
    assert facts.common_responses == [("a", 4)]
    assert facts.top_prompt == 2
    assert [len(facts.early), len(facts.late)] == [2, 2]  # a third of six
    assert facts.late[0].prompt != facts.late[1].prompt


def test_of_spin_only_what_the_policy_wrote_is_counted(tmp_path):
    rows = [
        {
            **pair(0, i, f"p{i}", f"given {i}", "again", source="dataset", probability=1.0, label=1.0),
            "route": "spin",
        }
        for i in range(90)
    ]
    rows[5]["second"] = "given 5"  # the policy says what the dataset says: what spin is for
    for row in rows:
        row.update(first_length=10, second_length=4, first_cut=True, policy_probability=None)
    write_pairs(tmp_path, rows)
    record = read_run(tmp_path)
    late = record.facts.late
    assert (repeated(late)["mean"], lengths(late)["mean"], marked(late, "cut")["mean"]) == (1.0, 4.0, 0.0)
    assert (record.facts.identical, record.facts.verdicts) == (0, [])
    assert record.facts.common_responses == [("again", 89)]
    states = {check["id"]: check["runs"][0] for check in examine([record])}
    assert states["duplicates"]["state"] == "warning"
    assert (states["identical"]["state"], states["identical"]["applies"]) == ("not measured", False)
    shown = reading.pairs([record])["rows"][0]
    assert (shown["authors"], shown["policy_probability"], shown["disagreement"]) == (
        ["dataset", "policy"],
        None,
        None,
    )


def test_verdicts_of_long_runs_are_an_even_selection(tmp_path, monkeypatch):
    monkeypatch.setattr("sail.report.pairs_file.MOST", 100)
    write_pairs(tmp_path, [pair(i, i, f"p{i}", "a", "b", probability=i / 1000) for i in range(1000)])
    told = [v.probability for v in read_run(tmp_path).facts.verdicts]
    assert 50 < len(told) <= 100
    gaps = {round(b - a, 9) for a, b in itertools.pairwise(told)}
    assert len(gaps) == 1
    assert told[0] == 0
    assert told[-1] > 0.95


def test_pairs_that_the_reference_answered_are_shown_rather_than_others(tmp_path):
    write_pairs(tmp_path, [pair(i, i, f"p{i}", f"a{i}", f"b{i}") for i in range(400)])
    answered = [*range(7, 400, 40)]
    with (tmp_path / "reference_answers.jsonl").open("w") as file:
        for i in answered:
            file.write(json.dumps({"index": i, "prompt": f"p{i}", "response": "the reference"}) + "\n")
    (tmp_path / "audit.json").write_text('{"reference_answers": "/elsewhere/reference_answers.jsonl"}')
    pairs = read_run(tmp_path, max_pairs=20).pairs
    assert [row["index"] for row in pairs if row["reference"]] == answered
    assert len(pairs) == 20


def test_an_answer_to_another_prompt_is_not_shown_beside_a_pair(tmp_path):
    write_pairs(tmp_path, [pair(0, 5, "the prompt", "a", "b")])
    (tmp_path / "reference_answers.jsonl").write_text('{"index": 5, "prompt": "another", "response": "x"}\n')
    (tmp_path / "audit.json").write_text('{"reference_answers": "reference_answers.jsonl"}')
    assert read_run(tmp_path).pairs[0]["reference"] is None


def test_checkpoints_that_were_evaluated(folder):
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text('{"frontier": [{"step": 5}, "half"]}')
    assert read_run(folder).frontier == [{"step": 5}]
    (folder / "eval" / "results.json").write_text("{")
    record = read_run(folder)
    assert record.frontier == []
    assert texts(record) == [("eval/results.json", "cannot be parsed (half written?), left out")]


def test_reading_tells_how_far_it_is(folder):
    seen = []
    read_run(folder, watch=seen.append)
    assert sum(seen) == 2 * (folder / "pairs.jsonl.gz").stat().st_size  # counted, then picked out
