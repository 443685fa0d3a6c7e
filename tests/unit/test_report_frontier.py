"""The frontier of reward against KL: which points are drawn, where they come from, and the drawing."""

from __future__ import annotations

import re

import pytest

from sail.report import RunRecord, build_report
from sail.report.charts import draw
from sail.report.frontier import EVALUATED, LOGGED, chart, evaluated, final, logged, measured
from sail.report.page import render


def log(steps=(25, 50, 75), *, error=0.1) -> list[dict]:
    return [
        {
            "step": step,
            "eval_kl": step / 50,
            "eval_kl_se": error,
            "eval_reward": step / 100,
            "eval_reward_low": step / 100 - 0.2,
            "eval_reward_high": step / 100 + 0.3,
        }
        for step in steps
    ]


def interval(mean, half=0.5):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 512}


RESULTS = {
    "steps": 75,
    "metrics": {"kl": interval(1.6), "reward": interval(0.8), "reward_reference": interval(0.1)},
}


def test_points_of_the_log_with_their_limits():
    first, *_, last = logged(RunRecord("r", metrics=log()))
    assert (first.step, first.kl, first.reward) == (25, 0.5, 0.25)
    assert (last.kl_low, last.kl_high) == pytest.approx(
        (1.5 - 0.196, 1.5 + 0.196)
    )  # 1.96 standard errors of .1
    assert (last.reward_low, last.reward_high) == pytest.approx((0.55, 1.05))
    bare = logged(
        RunRecord("r", metrics=[{"step": 1, "eval_kl": 0.1, "eval_reward": 0.2}, {"step": 2, "eval_kl": 3}])
    )
    assert [(p.step, p.kl_low, p.reward_high) for p in bare] == [(1, None, None)]


def test_measured_checkpoints_take_the_place_of_the_log():
    rows = [
        {"step": 50, "kl": interval(1.1), "reward": interval(0.6)},
        {"step": 25, "kl": interval(0.4), "reward": interval(0.3)},
    ]
    both = RunRecord(
        "r", metrics=log(), frontier=[*rows, {"step": 75, "kl": None, "reward": interval(1)}, {"step": "x"}]
    )
    assert [p.step for p in evaluated(both)] == [25, 50]
    assert measured(both)[1] == EVALUATED
    assert measured(RunRecord("r", metrics=log(), frontier=rows[:1]))[1] == LOGGED  # one point is no line


def test_the_chart_as_data():
    records = [
        RunRecord("whole", metrics=log(), results=RESULTS),
        RunRecord("nothing", metrics=[{"step": 1, "loss": 0.7}]),
        RunRecord("ended", results=RESULTS),
    ]
    made = chart(records)
    assert [s["run"] for s in made["series"]] == [0, 2]
    assert made["missing"] == [1]
    assert [p["step"] for p in made["series"][0]["points"]] == [25, 50, 75]
    assert made["series"][0]["final"]["kl_high"] == pytest.approx(2.1)
    assert made["series"][0]["start"]["mean"] == 0.1
    assert made["series"][1]["points"] == []
    assert "Ringed" in made["about"]
    assert "Ringed" not in chart([RunRecord("r", metrics=log())])["about"]
    assert final(records[1]) is None


def test_where_there_is_nothing_it_is_said():
    report = build_report([RunRecord("r", metrics=[{"step": 1, "loss": 0.7}])], title="t")
    page = render(report)
    assert report["frontier"]["series"] == []
    assert 'id="frontier"' not in page
    assert "There is no frontier of reward against KL: no evaluation measured both." in page
    one_of_two = build_report([RunRecord("has", metrics=log()), RunRecord("has-not")], title="t")
    assert "as no evaluation has both a reward and a KL: has-not." in " ".join(render(one_of_two).split())


@pytest.mark.parametrize("wide", [False, True])
def test_the_drawing(wide):
    records = [RunRecord(name, metrics=log(), results=RESULTS) for name in ("one $x$", "two")]
    records[1].metrics[0]["eval_kl"] = 0.9
    svg = draw(chart(records), [r.name for r in records], wide=wide)
    assert svg.startswith(f'<svg viewBox="0 0 {640 if wide else 400} ')
    text = re.sub(r"<[^>]+>", "|", svg)
    assert "one $x$" in text  # a name is no formula
    assert "two" in text
    assert text.count("step 25") + text.count("step 75") >= 2
    assert {'class="run-0"', 'class="run-1"'} <= set(re.findall(r'class="run-\d"', svg))
    assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_a_run_alone_needs_no_name():
    text = re.sub(r"<[^>]+>", "|", draw(chart([RunRecord("alone", metrics=log())]), ["alone"]))
    assert "alone" not in text
    assert "step 25" in text
    assert "step 75" in text


def test_tick_labels_keep_their_digits():
    series = [{"run": 0, "x": [1, 2, 3], "y": [0.01, 0.012, 0.015]}]
    lines = {"id": "c", "kind": "lines", "unit": "share", "x_unit": "step", "rule": None, "series": series}
    ticks = re.findall(r">(0\.\d+)<", draw(lines, ["a"]))
    assert len(set(ticks)) == len(ticks) > 3  # .010 and .012 were once both written .01
