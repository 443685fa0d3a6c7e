"""`sail compare`: pairing, normalising, equal KL by hand; and that what forbids a comparison is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_runs import write_run
from scipy import stats

from sail.compare import compare, normalised, paired, read_runs
from sail.errors import DataError
from sail.evaluation.comparability import FACTS, differences, sentences
from sail.evaluation.frontier import Cells, as_curve, at_equal_kl, at_equal_kl_by_prompt, read_at

# ---- reading at equal KL


def test_reads_are_on_the_line_between_two_points() -> None:
    curve = as_curve([(2.0, 3.0), (0.0, 1.0), (1.0, 2.5), (None, 9.0), (1.5, None)])
    assert curve == [(0.0, 1.0), (1.0, 2.5), (2.0, 3.0)]
    assert [read_at(curve, kl) for kl in (0.0, 0.5, 1.0, 1.5, 2.0)] == pytest.approx(
        [1.0, 1.75, 2.5, 2.75, 3.0]
    )
    assert read_at(curve, -0.01) is None
    assert read_at(curve, 2.01) is None
    assert read_at([], 1.0) is None


def test_points_at_the_same_kl_are_one() -> None:
    assert as_curve([(1.0, 2.0), (1.0, 4.0)]) == [(1.0, 3.0)]


def test_equal_kl_by_hand() -> None:
    """One rises by 1 per nat from 0, the other by 2 from -1; both were seen between 1 and 2: differences 0 to -1, read from a
    quarter of the way on, mean -(.25 + .5 + .75 + 1) / 4."""
    one, other = as_curve([(0, 0), (2, 2)]), as_curve([(1, 1), (3, 5)])
    found = at_equal_kl(one, other)
    assert (found["low"], found["high"]) == (1.25, 2)
    assert [row["kl"] for row in found["reads"]] == pytest.approx([1.25, 1.5, 1.75, 2])
    assert [row["difference"] for row in found["reads"]] == pytest.approx([-0.25, -0.5, -0.75, -1])
    assert found["mean_difference"] == pytest.approx(-0.625)
    assert at_equal_kl(other, one)["mean_difference"] == pytest.approx(0.625)


def test_the_common_start_does_not_dilute_the_difference() -> None:
    """From the same start one run is 1 above the other from a tenth of the range on: so is the mean."""
    one, other = as_curve([(0, 0), (0.2, 2), (2, 2)]), as_curve([(0, 0), (0.2, 1), (2, 1)])
    assert at_equal_kl(one, other)["mean_difference"] == pytest.approx(1.0)


def test_nothing_is_said_outside_of_what_both_have_seen() -> None:
    assert at_equal_kl(as_curve([(0, 0), (1, 1)]), as_curve([(2, 0), (3, 1)])) is None
    assert at_equal_kl(as_curve([(0, 0)]), as_curve([(0, 0), (3, 1)])) is None


def cells(gain: float, prompts: int, *, noise: float = 0.0, spread: float = 0.0, seed: int = 0) -> Cells:
    """Points at KL 0, 1, 2 for every prompt, rewards 0, then `gain`; a prompt's offset of size `spread` is the same in all
    runs, its noise of size `noise` is the run's own."""
    offset, own = np.random.default_rng(9).normal(size=prompts), np.random.default_rng(seed)
    found = {}
    for k, here in enumerate(offset * spread):
        late = gain + here + noise * own.normal()
        found[f"p{k}"] = [(0.0, here), (1.0, late), (2.0, late)]
    return found


def test_the_interval_at_equal_kl_is_students() -> None:
    """The reads are at KL .5, 1, 1.5 and 2; at .5 half of the later difference d is read, so the mean is 3.5 d / 4: the
    limits are .875 of Student's interval (scipy) of d over the prompts, within the bootstrap's own error."""
    one, other = cells(1.5, 300, noise=1.0, seed=1), cells(1.0, 300, noise=1.0, seed=2)
    gaps = np.array([one[key][2][1] - other[key][2][1] for key in one])
    expected = stats.t.interval(0.95, 299, gaps.mean(), stats.sem(gaps))
    found = at_equal_kl_by_prompt(one, other)["interval"]
    assert found.mean == pytest.approx(0.875 * gaps.mean())
    assert (found.low, found.high) == pytest.approx(0.875 * np.array(expected), abs=0.02)
    assert (found.n, found.clusters) == (300, 300)
    turned = at_equal_kl_by_prompt(other, one)["interval"]
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_what_the_prompts_share_widens_no_interval() -> None:
    """The same offset in both runs cancels where resamples are paired; 1.5 less 1 at .875 is left, with no error."""
    found = at_equal_kl_by_prompt(cells(1.5, 60, spread=5.0), cells(1.0, 60, spread=5.0))["interval"]
    assert (found.low, found.mean, found.high) == pytest.approx((0.4375,) * 3)


def test_where_there_is_no_interval() -> None:
    """Too few shared prompts, no common range, nothing kept."""
    many = cells(1.0, 60)
    assert at_equal_kl_by_prompt(many, cells(1.0, 9)) is None
    assert at_equal_kl_by_prompt(many, {key: [(3.0, 1.0), (4.0, 1.0)] for key in many}) is None
    assert at_equal_kl_by_prompt({}, {}) is None


# ---- what may be compared

SAME: dict[str, Any] = {fact.key: "x" for fact in FACTS}


def test_the_same_in_everything_is_comparable() -> None:
    found = differences(SAME, dict(SAME))
    assert found == {"comparable": True, "reasons": [], "unknown": []}
    assert "are comparable" in sentences("a", "b", found)[0]


@pytest.mark.parametrize("key", [fact.key for fact in FACTS])
def test_each_difference_is_named_with_what_is_left(key: str) -> None:
    found = differences(SAME, {**SAME, key: "y"})
    assert not found["comparable"]
    assert [reason["still"] for reason in found["reasons"]] == [f.still for f in FACTS if f.key == key]
    said = "\n".join(sentences("a", "b", found))
    assert "a and b are NOT comparable" in said
    assert "Still comparable: " in said


def test_what_is_not_known_is_said_and_forbids_nothing() -> None:
    found = differences({**SAME, "steps": None}, SAME)
    assert found["comparable"]
    assert found["unknown"] == ["number of optimiser steps"]
    assert "Not proven: number of optimiser steps" in sentences("a", "b", found)[-1]


def test_equal_paths_prove_nothing() -> None:
    by_path = {**SAME, "train_rows": "path pairs.jsonl"}
    assert differences(by_path, by_path)["unknown"] == ["training data (the paths are the same)"]
    assert differences(by_path, SAME)["unknown"] == ["training data"]
    assert not differences(by_path, {**SAME, "train_rows": "path other.jsonl"})["comparable"]


# ---- run folders


def change(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    load, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    path.write_text(dump({**load(path.read_text()), **changes}))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two made-up runs that differ in nothing but their samples."""
    folders = [write_run(tmp_path / name, "dpo", lines=60, seed=i) for i, name in enumerate(("one", "two"))]
    for i, folder in enumerate(folders):
        samples = [
            {"prompt": f"p{k}", "response": "r", "reward": k + 0.5 * i + 0.1 * k * i, "reward_reference": 1.0}
            for k in range(12)
        ]
        gain = {"mean": 2.0, "low": 1.0, "high": 3.0, "n": 12, "clusters": 12}
        change(
            folder, "results.json", steps=50, oracle_calls=0, samples=samples, metrics={"reward_gain": gain}
        )
    return folders


def run_compare(folders: list[Path], tmp_path: Path, **settings: Any) -> dict[str, Any]:
    found = compare(folders, out=tmp_path / "compare.json", **settings)
    assert json.loads((tmp_path / "compare.json").read_text()) == found
    return found


def test_differences_are_paired_and_have_the_right_sign(two, tmp_path, capsys) -> None:
    """two less one: .5 + .1 k over k = 0..11, mean 1.05; pairing takes the spread of the prompts out."""
    found = run_compare(two, tmp_path)
    gap = found["differences"]["two"]["reward"]
    assert gap["mean"] == pytest.approx(1.05)
    assert gap["n"] == 12
    assert gap["low"] > 0.7
    assert run_compare(two, tmp_path, to="two")["differences"]["one"]["reward"]["mean"] == pytest.approx(
        -1.05
    )
    said = capsys.readouterr().out
    assert "minus one, paired by prompt" in said
    assert "compare.json" in said


def test_only_shared_prompts_are_paired_and_copies_count_once(two, tmp_path) -> None:
    samples = json.loads((two[1] / "results.json").read_text())["samples"]
    change(two[1], "results.json", samples=[*samples[:6], samples[0], {**samples[0], "prompt": "new"}])
    one, other = read_runs(two)
    gap = paired(other, one)
    assert gap["prompts"] == gap["reward"]["n"] == 6
    assert gap["reward"]["mean"] == pytest.approx(0.5 + 0.1 * 2.5)


def test_gain_per_cost_by_hand(two) -> None:
    """A gain of 2 in 50 steps of 0.4 s: 40 per 1,000 steps, 360 per hour; 400 calls make 5 per 1,000 calls."""
    change(two[0], "results.json", seconds_per_step=0.4, oracle_calls=400)
    found = normalised(read_runs(two)[0])
    assert found["per_1000_steps"]["mean"] == pytest.approx(40)
    assert found["per_hour"]["low"] == pytest.approx(180)
    assert found["per_1000_oracle_calls"]["high"] == pytest.approx(7.5)
    assert normalised(read_runs(two)[1])["per_1000_oracle_calls"] is None


def test_other_costs_are_said(two, tmp_path, capsys) -> None:
    change(two[1], "results.json", steps=80, oracle_calls=640, fingerprints={"train_rows": "b" * 64})
    change(two[0], "results.json", fingerprints={"train_rows": "a" * 64})
    found = run_compare(two, tmp_path)["comparable"]["two"]
    what = [reason["what"] for reason in found["reasons"]]
    assert what == ["training data", "number of optimiser steps", "oracle labels spent"]
    said = " ".join(capsys.readouterr().out.split())
    assert "two and one are NOT comparable as they stand" in said
    assert "other oracle labels spent (640 and 0)" in said
    assert "other training data (bbbbbbbb and aaaaaaaa)" in said


def write_frontier(two: list[Path], *, by_prompt: bool) -> None:
    """Points at KL 0, 1, 2; the start is the same, later the second run is 1 above the first (12 prompts, all alike)."""
    for i, folder in enumerate(two):
        (folder / "eval").mkdir(exist_ok=True)
        results = json.loads((folder / "results.json").read_text())
        points = [(s, float(s), float(s + i * (s > 0))) for s in (0, 1, 2)]
        results["frontier"] = [
            {"step": s, "kl": {"mean": kl}, "reward": {"mean": reward}} for s, kl, reward in points
        ]
        results["frontier_samples"] = [
            {"step": s, "log_ratio": [kl] * 12, "reward": [reward] * 12} for s, kl, reward in points
        ]
        if not by_prompt:
            del results["frontier_samples"]
        (folder / "eval" / "results.json").write_text(json.dumps(results))


def test_a_frontier_goes_before_the_course_of_training(two, tmp_path, capsys) -> None:
    """Read at KL .5, 1, 1.5, 2: differences .5, 1, 1, 1."""
    course = run_compare(two, tmp_path)["equal_kl"]["two"]
    assert (course["curves"], course["interval"]) == ("metrics.jsonl", None)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "no interval: evaluations while training keep no answers by prompt; sail eval --checkpoints" in said
    )
    write_frontier(two, by_prompt=False)
    found = run_compare(two, tmp_path)
    assert found["equal_kl"]["two"]["curves"] == "frontier"
    assert found["equal_kl"]["two"]["mean_difference"] == pytest.approx(0.875)
    assert found["runs"]["one"]["source"].endswith("eval/results.json")
    said = " ".join(capsys.readouterr().out.split())
    assert "no interval: it needs the answers to at least 10 prompts that both were asked" in said


def test_a_frontier_with_its_answers_has_an_interval(two, tmp_path, capsys) -> None:
    write_frontier(two, by_prompt=True)
    found = run_compare(two, tmp_path)["equal_kl"]["two"]
    assert found["interval"] == {
        "mean": pytest.approx(0.875),
        "low": pytest.approx(0.875),
        "high": pytest.approx(0.875),
        "n": 12,
        "clusters": 12,
    }
    assert found["mean_difference"] == found["interval"]["mean"]
    assert "95% interval over 12 prompts; one run each" in " ".join(capsys.readouterr().out.split())


def test_what_is_missing_is_named(two, tmp_path) -> None:
    with pytest.raises(DataError, match="at least two"):
        compare(two[:1], out=tmp_path / "c.json")
    with pytest.raises(DataError, match="There is no run three"):
        compare(two, to="three", out=tmp_path / "c.json")
    with pytest.raises(DataError, match="is not a run folder"):
        compare([two[0], tmp_path], out=tmp_path / "c.json")
    with pytest.raises(DataError, match="Two of the folders are called"):
        compare([two[0], two[0]], out=tmp_path / "c.json")
    (two[1] / "results.json").unlink()
    with pytest.raises(DataError, match="has no results yet"):
        compare(two, out=tmp_path / "c.json")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.resolved.yaml", "train: {preset: [", r"config\.resolved\.yaml cannot be read as YAML"),
        ("config.resolved.yaml", "train: {seed: 1}\n\tdata: x", "cannot be read as YAML"),
        ("config.resolved.yaml", "- a\n- b", r'it must hold names and values; it is \["a", "b"\]'),
        ("config.resolved.yaml", "data: pairs.jsonl", "data must hold names and values"),
        ("config.resolved.yaml", "train: [1]", "train must hold names and values"),
        (
            "config.resolved.yaml",
            "train: {per_device_train_batch_size: eight}",
            "train.per_device_train_batch_size must be a number",
        ),
        ("results.json", "{", "cannot be read as JSON"),
        ("results.json", "[]", "it must hold names and values"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(two, tmp_path, file: str, text: str, said: str) -> None:
    (two[1] / file).write_text(text)
    with pytest.raises(DataError, match=rf"two/.*{said}.*put a copy back"):
        compare(two, out=tmp_path / "c.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": "fifty"}, 'steps must be a number; it is "fifty"'),
        ({"steps": True}, "steps must be a number; it is true"),
        ({"seconds_per_step": "0.4"}, 'seconds_per_step must be a number; it is "0.4"'),
        ({"seconds_per_step": float("nan")}, "seconds_per_step must be a number; it is NaN"),
        ({"oracle_calls": []}, "oracle_calls must be a number"),
        ({"samples": "none"}, 'samples must be a list of objects; it is "none"'),
        ({"samples": ["a", "b"]}, r'samples\[0\] must hold names and values; it is "a"'),
        ({"samples": [{"reward": 1.0}]}, r"samples\[0\] must have a prompt"),
        ({"samples": [{"prompt": "p", "reward": "good"}]}, r"samples\[0\].reward must be a number"),
        ({"metrics": [1]}, "metrics must hold names and values"),
        ({"metrics": {"reward": 1.0}}, "metrics.reward must hold names and values"),
        ({"metrics": {"reward": {"mean": "1"}}}, "metrics.reward.mean must be a number"),
        ({"fingerprints": {"reference": 7}}, "fingerprints.reference must be a text"),
        ({"settings": "none"}, "settings must hold names and values"),
        ({"frontier": {"step": 0}}, "frontier must be a list of objects"),
        ({"frontier": [{"kl": {"mean": "0"}}]}, r"frontier\[0\].kl.mean must be a number"),
        (
            {"frontier_samples": [{"reward": [1.0], "log_ratio": [1.0]}]},
            r"frontier_samples\[0\].reward must be a list of 12",
        ),
    ],
)
def test_an_entry_that_is_something_else_is_named(two, tmp_path, changes: dict[str, Any], said: str) -> None:
    change(two[1], "results.json", **changes)
    with pytest.raises(DataError, match=rf"two/results\.json: {said}.*leave the run out"):
        compare(two, out=tmp_path / "c.json")


def test_half_an_interval_and_torn_log_lines_are_no_hindrance(two, tmp_path) -> None:
    change(two[1], "results.json", metrics={"reward": {"mean": 1.0}, "kl": {"mean": 1.0, "low": 0.5}})
    with (two[1] / "metrics.jsonl").open("ab") as file:
        file.write(b'{"eval_kl": "far", "eval_reward": 1}\n{"eval_kl": NaN, "eval_reward": 1}\n\xff{"eval')
    found = run_compare(two, tmp_path)
    assert found["runs"]["two"]["metrics"]["kl"] == {"mean": 1.0, "low": None, "high": None}
    assert found["equal_kl"]["two"] is not None


def test_an_output_that_cannot_be_written_is_said(two, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file" / "compare.json"):
        with pytest.raises(DataError, match=r"cannot be written.*--out"):
            compare(two, out=out)
    assert (tmp_path / "file").read_text() == "mine"
    assert not tmp_path.with_name(tmp_path.name + ".tmp").exists()


def test_no_torch_is_loaded() -> None:
    code = "import sys, sail.compare, sail.evaluation.show; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
