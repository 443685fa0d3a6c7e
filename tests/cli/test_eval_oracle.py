"""A second oracle that only measures: gold beside the proxy that labels."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from eval_runs import train
from fake_judge import FakeJudge, pieces, verdict

from sail.config import config_from_dict
from sail.errors import ConfigError, SailError
from sail.report.page import write_report
from sail.report.record import RunRecord

GOLD = """
def brevity(prompts, responses):
    return [-0.5 * len(one) for one in responses]


def shorter(prompts, first, second):
    return [float(len(a) < len(b)) for a, b in zip(first, second)]


def broken(prompts, responses):
    raise ConnectionError("gold is out of reach")
"""


@pytest.fixture(scope="module")
def measured(home: Path) -> Path:
    """A finished run labelled by reward.py:reward and measured by gold.py:brevity too."""
    (home / "gold.py").write_text(GOLD, encoding="utf-8")
    gold = {"kind": "function", "path": "gold.py:brevity"}
    return train(home, "measured", eval_oracle=gold, train={"eval_steps": 4, "eval_on_start": True})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_gold_is_what_the_second_oracle_says_of_the_same_answers(measured: Path) -> None:
    results = json.loads((measured / "results.json").read_text(encoding="utf-8"))
    said = [row["gold"] for row in results["samples"]]
    assert said == [-0.5 * len(row["response"]) for row in results["samples"]]
    before = [-0.5 * len(row["reference"]) for row in results["samples"]]
    assert results["metrics"]["gold"]["mean"] == pytest.approx(statistics.fmean(said))
    gain = results["metrics"]["gold_gain"]
    assert gain["mean"] == pytest.approx(statistics.fmean(said) - statistics.fmean(before))
    assert results["metrics"]["reward"]["mean"] != gain["mean"]


def test_every_evaluation_has_both(measured: Path) -> None:
    found = [line for line in lines(measured) if line.get("eval_kl") is not None]
    assert [line["step"] for line in found] == [0, 4, 8]
    for line in found:
        assert line["eval_gold_low"] <= line["eval_gold"] <= line["eval_gold_high"]
        assert line["eval_reward"] != line["eval_gold"]


def test_gold_labels_nothing_and_counts_no_calls(measured: Path, home: Path) -> None:
    alone = train(home, "alone", train={"eval_steps": 4, "eval_on_start": True})
    ours, theirs = (
        json.loads((one / "results.json").read_text(encoding="utf-8")) for one in (measured, alone)
    )
    for key in ("oracle_calls", "oracle_calls_in_evaluation"):
        assert ours[key] == theirs[key]
    assert [row["response"] for row in ours["samples"]] == [row["response"] for row in theirs["samples"]]


def test_the_report_draws_both_against_kl_in_units_of_the_start(measured: Path, tmp_path: Path) -> None:
    page = write_report([measured], tmp_path / "report.html", title="both")
    report = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    (chart,) = [one for one in report["charts"] if one["id"] == "proxy-gold"]
    assert [(one["part"], one["dash"]) for one in chart["series"]] == [("proxy", "--"), ("gold", "-")]
    found = [line for line in lines(measured) if line.get("eval_kl") is not None]
    results = json.loads((measured / "results.json").read_text(encoding="utf-8"))
    for series, key in zip(chart["series"], ("reward", "gold"), strict=True):
        spread = statistics.stdev(row[f"{key}_reference"] for row in results["samples"])
        gains = [(line[f"eval_{key}"] - found[0][f"eval_{key}"]) / spread for line in found]
        assert series["x"] == pytest.approx([line["eval_kl"] for line in found], rel=1e-5, abs=1e-9)
        assert series["y"] == pytest.approx(gains, rel=1e-5)
    assert "Proxy and gold reward against KL" in page.read_text(encoding="utf-8")


def test_a_run_that_gold_labelled_stands_beside_it(measured: Path) -> None:
    from sail.report import proxy
    from sail.report.record import read_run

    ours = read_run(measured)
    gold = {**ours.config, "oracle": ours.config["eval_oracle"], "eval_oracle": None}
    theirs = RunRecord(**{**vars(ours), "config": gold})
    chart = proxy.chart([ours, theirs])
    assert chart is not None
    assert [(one["run"], one["part"]) for one in chart["series"]] == [(0, "proxy"), (0, "gold"), (1, "gold")]
    assert proxy.chart([theirs]) is None
    # Labelled by a judge: it gives no scores, and gold's line alone says how far the policy has come.
    lines_of_gold = [
        {k: v for k, v in line.items() if not k.startswith("eval_reward")} for line in ours.metrics
    ]
    judged = RunRecord(**{**vars(ours), "name": "judged", "metrics": lines_of_gold})
    alone = proxy.chart([judged])
    assert alone is not None
    assert [one["part"] for one in alone["series"]] == ["gold"]
    assert "judged: the oracle that labels gives no scores" in alone["about"]


def test_an_oracle_that_only_compares_is_refused(home: Path) -> None:
    (home / "gold.py").write_text(GOLD, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"eval_oracle scores single answers, and gold\.py:shorter cannot"):
        train(home, "compares", eval_oracle={"kind": "function", "path": "gold.py:shorter"})


def unsure(message: str) -> str:
    """The fake judge's score, and nothing readable about every answer whose length is a multiple of three."""
    return "no" if len(pieces(message)["response"]) % 3 == 0 else verdict(message)


def expected(text: str) -> float | None:
    return None if len(text) % 3 == 0 else min(10.0, 1.0 + text.split().count("w3"))


def known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def test_a_single_score_judge_measures_and_its_abstentions_are_counted(home: Path) -> None:
    with FakeJudge(judge=unsure) as server:
        section = {"kind": "judge", "url": server.url, "model": "fake", "mode": "single"}
        train_on = {"eval_steps": 4, "max_steps": 4, "final_samples": 20}
        folder = train(home, "judged", eval_oracle=section, train=train_on)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = results["samples"]
    ours, theirs = ([expected(row[name]) for row in rows] for name in ("response", "reference"))
    assert [row["gold"] for row in rows] == ours
    assert 0 < len(known(ours)) < len(rows) == 20
    gold, gain = results["metrics"]["gold"], results["metrics"]["gold_gain"]
    assert gold["mean"] == pytest.approx(statistics.fmean(known(ours)))
    assert (gold["n"], gold["abstained"]) == (len(known(ours)), 20 - len(known(ours)))
    both = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    assert gain["mean"] == pytest.approx(statistics.fmean(both))
    assert (gain["n"], gain["abstained"]) == (len(both), 20 - len(both))
    assert any("gave no score to" in note and "of 40 held-out answers" in note for note in results["notes"])
    found = [line for line in lines(folder) if line.get("eval_gold") is not None]
    assert found
    assert found[-1]["eval_gold_abstained"] > 0
    write_report([folder], home / "judged.html", title="judged")


def test_a_single_score_judge_labels_the_best_and_the_worst_and_is_measured(home: Path) -> None:
    with FakeJudge(judge=unsure) as server:
        section = {"kind": "judge", "url": server.url, "model": "fake", "mode": "single"}
        best = {"pairing": "best_worst", "samples_per_prompt": 4, "max_steps": 3, "final_samples": 10}
        folder = train(home, "best", oracle=section, train={**best, "preset": "online-dpo", "eval_steps": 3})
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rewards = [expected(row["response"]) for row in results["samples"]]
    assert results["metrics"]["reward"]["mean"] == pytest.approx(statistics.fmean(known(rewards)))
    assert results["metrics"]["win_rate"]["n"] <= len(known(rewards))
    assert [line for line in lines(folder) if line.get("eval_reward") is not None]


def test_a_wrapped_evaluation_oracle_is_refused(home: Path) -> None:
    (home / "gold.py").write_text(GOLD, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Remove eval_oracle\.wrap"):
        train(
            home,
            "wrapped",
            eval_oracle={"kind": "function", "path": "gold.py:brevity", "wrap": [{"noise": 0.1}]},
        )


def test_gold_that_fails_costs_its_own_numbers_only(home: Path) -> None:
    (home / "gold.py").write_text(GOLD, encoding="utf-8")
    fewer = {"final_samples": 7, "max_steps": 2}
    folder = train(home, "broken", eval_oracle={"kind": "function", "path": "gold.py:broken"}, train=fewer)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert "gold" not in results["metrics"]
    assert results["metrics"]["reward"]["n"] == len(results["samples"]) == 7
    assert any("gold is out of reach" in note for note in results["notes"])


def test_two_ledgers_are_refused(home: Path, tmp_path: Path) -> None:
    section = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "mode": "single"}
    config = config_from_dict(
        {
            "model": str(home / "base"),
            "data": {"train": str(home / "pairs.jsonl")},
            "oracle": {**section, "ledger": "one.sqlite"},
            "eval_oracle": {**section, "ledger": "two.sqlite"},
            "train": {"preset": "sail-dpr", "output_dir": str(tmp_path / "run")},
        }
    )
    from sail.build_oracle import make_ledger

    with pytest.raises(SailError, match="two files"):
        make_ledger(config)


def test_no_samples_at_the_end_is_said(home: Path) -> None:
    folder = train(home, "brief", train={"final_samples": 0, "max_steps": 1, "eval_strategy": "no"})
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["metrics"] == {}
    assert "final_samples is 0, so nothing was measured when the run ended." in results["notes"]
