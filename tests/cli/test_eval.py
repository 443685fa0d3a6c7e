"""`sail eval` and the audit on real runs of the tiny world: full fine-tuning and LoRA, killed and continued, moved, compared."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from eval_runs import HELD_OUT, SAIL, measure, train, write_lines

from sail.cli import main
from sail.compare import compare
from sail.errors import ConfigError, SailError
from sail.evaluate import EvalOptions, evaluate
from sail.evaluation.files import read_json
from sail.subject import find_subject, located

pytestmark = pytest.mark.slow


# ---- what a run leaves


def test_a_run_leaves_its_audit_and_its_metrics(full: Path) -> None:
    audit, results = read_json(full / "audit.json"), read_json(full / "results.json")
    assert audit["prompt_fit"]["data"]["n"] == 80
    assert audit["oracle_swap"] == {"kind": "scores"}
    assert audit["oracle_agreement"]["n"] == HELD_OUT
    answers = (full / audit["reference_answers"]).read_text().splitlines()
    assert set(json.loads(answers[0])) == {"index", "prompt", "response"}
    assert results["oracle_calls_in_evaluation"] == 10 + 2 * HELD_OUT + audit["oracle_calls"]
    for name in (
        "margin",
        "accuracy",
        "self_repetition",
        "duplicates",
        "cut",
        "empty",
        "win_rate_length_controlled",
    ):
        assert results["metrics"][name]["n"] is not None
    assert results["rows_per_step"] == 8
    assert "distinct_1 was left out" in " ".join(results["notes"])


def test_the_margin_is_the_one_that_training_logs(full: Path) -> None:
    """eval_margin and eval_accuracy of the last step, computed by the trainer's own objective."""
    lines = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in reversed(lines) if "eval_margin" in line)
    metrics = read_json(full / "results.json")["metrics"]
    assert metrics["margin"]["mean"] == pytest.approx(logged["eval_margin"], abs=1e-5)
    assert metrics["accuracy"]["mean"] == pytest.approx(logged["eval_accuracy"])


def test_an_oracle_that_fails_at_the_end_does_not_lose_the_run(home: Path) -> None:
    (home / "broken").touch()
    try:
        folder = train(home, "broken", train={"preset": "dpo", "max_steps": 2})
    finally:
        (home / "broken").unlink()
    results = read_json(folder / "results.json")
    assert "the reward service is down" in " ".join(results["notes"])
    assert "kl" in results["metrics"]
    assert "reward" not in results["metrics"]
    assert read_json(folder / "audit.json")["oracle_agreement"] is None
    assert (folder / "model" / "config.json").is_file()


# ---- sail eval


def test_a_run_says_what_its_training_ended_with(full: Path, tmp_path: Path) -> None:
    """The same prompts and seeds, so the same answers, rewards, KL and margin as in results.json."""
    found, before = measure(full, tmp_path, questions=None), read_json(full / "results.json")
    assert [one["response"] for one in found["samples"]] == [one["response"] for one in before["samples"]]
    assert [one["reference"] for one in found["samples"]] == [one["reference"] for one in before["samples"]]
    for name in ("reward", "reward_gain", "win_rate", "length", "accuracy"):
        assert found["metrics"][name]["mean"] == pytest.approx(before["metrics"][name]["mean"]), name
    for name in ("kl", "margin"):
        assert found["metrics"][name]["mean"] == pytest.approx(before["metrics"][name]["mean"], abs=1e-4), (
            name
        )
    for one in [*found["samples"], *before["samples"]]:
        better = one["reward"] - one["reward_reference"]
        assert one["win"] == (0.5 if better == 0 else float(better > 0))
    for one in found["samples"]:
        better = one["reward"] - one["reward_dataset"]
        assert one["win_dataset"] == (0.5 if better == 0 else float(better > 0))
    assert found["metrics"]["win_rate_dataset"]["n"] == HELD_OUT
    assert found["oracle_calls"] == 3 * HELD_OUT


def test_checkpoints_make_a_frontier(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(full, tmp_path, checkpoints=True)
    assert [point["step"] for point in found["frontier"]] == [0, 4, 8]
    start, middle, end = found["frontier"]
    assert start["reward"] == found["metrics"]["reward_reference"]
    assert start["kl"]["mean"] == 0
    assert end["reward"] == found["metrics"]["reward"]
    assert 0 < middle["kl"]["mean"] < end["kl"]["mean"]
    kept = found["frontier_samples"]
    assert [point["step"] for point in kept] == [0, 4, 8]
    for point, answers in zip(found["frontier"], kept, strict=True):
        for name, column in (("reward", "reward"), ("kl", "log_ratio")):
            mean = sum(answers[column]) / HELD_OUT
            assert mean == pytest.approx(point[name]["mean"]), (point["step"], name)
    assert kept[2]["reward"] == [one["reward"] for one in found["samples"]]
    assert "checkpoints" in capsys.readouterr().out


def test_an_adapter_is_put_on_its_base(lora: Path, tmp_path: Path) -> None:
    """The last checkpoint (base and adapter) answers as the merged model does."""
    merged = measure(lora, tmp_path / "merged")
    apart = measure(lora / "checkpoint-8", tmp_path / "apart")
    same = [a["response"] == b["response"] for a, b in zip(merged["samples"], apart["samples"], strict=True)]
    assert sum(same) >= 0.9 * HELD_OUT
    assert apart["metrics"]["kl"]["mean"] == pytest.approx(merged["metrics"]["kl"]["mean"], abs=0.02)
    assert merged["metrics"]["kl"]["mean"] > 0.01
    assert find_subject(str(lora / "checkpoint-8")).step == 8


def test_judged_in_both_orders_against_another_run(
    full: Path, lora: Path, home: Path, tmp_path: Path
) -> None:
    found = measure(
        full, tmp_path, oracle=f"{home / 'reward.py'}:first", against=("dataset", str(lora)), samples=2
    )
    assert set(found["win_rates"]) == {"dataset", "lora"}
    position = found["win_rates"]["lora"]["position"]
    assert position["bias"]["mean"] > 0.02
    assert found["metrics"]["win_rate_lora"]["n"] == 2 * HELD_OUT
    assert found["metrics"]["win_rate_lora"]["clusters"] == HELD_OUT
    assert "reward" not in found["metrics"]


def test_a_model_against_itself_is_a_tie(full: Path, tmp_path: Path) -> None:
    found = measure(full, tmp_path, against=(str(full / "model"),))
    rate = found["win_rates"]["full/model"]["win_rate"]
    assert (rate["mean"], rate["ties"]) == (0.5, HELD_OUT)


def test_a_bare_model_says_what_it_lacks(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="A bare model brings no prompts: give a file with --data"):
        measure(home / "base", tmp_path)
    found = measure(home / "base", tmp_path, data=str(home / "held.jsonl"), max_new_tokens=8, prompts=10)
    assert set(found["left_out"]) >= {"reward, win_rate", "kl, margin, accuracy, win rate over the reference"}
    said = capsys.readouterr().out
    assert "there is no oracle; give --oracle" in " ".join(said.split())
    assert found["metrics"]["length"]["n"] == 10
    with_reference = measure(
        home / "base",
        tmp_path / "b",
        data=str(home / "held.jsonl"),
        reference=str(home / "base"),
        max_new_tokens=8,
    )
    assert with_reference["metrics"]["kl"]["mean"] == pytest.approx(0, abs=1e-5)


def test_benchmark_questions_are_scored(full: Path, home: Path, tmp_path: Path) -> None:
    rows = [{"question_id": n, "category": "ab"[n % 2], "turns": [f"w{n} w1", f"w{n}"]} for n in range(6)]
    write_lines(tmp_path / "questions.jsonl", rows)
    asked = {"questions": str(tmp_path / "questions.jsonl")}
    found = measure(full, tmp_path / "a", scorer=f"{home / 'reward.py'}:score", prompts=4, **asked)
    table = {(row["category"], row["turn"]): row for row in found["questions"]["rows"]}
    assert table["all", "all"]["n"] + found["questions"]["abstained"] == 12
    assert len(found["conversations"][0]["messages"]) == 4
    unscored = measure(home / "base", tmp_path / "b", max_new_tokens=8, **asked)
    assert unscored["questions"] is None
    assert "there is no judge" in unscored["left_out"]["scores of the benchmark questions"]
    assert unscored["metrics"] == {}


def test_other_settings_are_refused_until_told(full: Path, home: Path, tmp_path: Path) -> None:
    measure(full, tmp_path, prompts=6)
    before = (tmp_path / "answers.jsonl").read_bytes()
    with pytest.raises(SailError, match="prompts: 6 then, 7 now"):
        measure(full, tmp_path, prompts=7)
    with pytest.raises(SailError, match=r"temperature: 1\.0 then, 0\.5 now"):
        measure(full, tmp_path, prompts=6, temperature=0.5)
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    found = measure(full, tmp_path, prompts=7, temperature=0.5, overwrite=True)
    assert "kl" not in found["metrics"]
    assert "another temperature than 1" in found["left_out"]["kl"]


def test_killed_and_continued_is_the_same(full: Path, home: Path, tmp_path: Path) -> None:
    """SIGKILL while answering, and again while the oracle is being asked; the third time it ends."""
    options = ["--samples", "3", "--batch-size", "2", "--prompts", "12"]
    expected = tmp_path / "whole"
    evaluate(EvalOptions(str(full), samples=3, batch_size=2, prompts=12, out=str(expected)))
    killed = tmp_path / "killed"
    argv = [SAIL, "eval", str(full), *options, "--out", str(killed)]
    (home / "slow").touch()
    try:
        for file, lines in (("answers.jsonl", 20), ("judgements.jsonl", 9)):
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            limit = time.monotonic() + 120
            while not (killed / file).exists() or (killed / file).read_bytes().count(b"\n") < lines:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < limit
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert not (killed / "results.json").exists()
    finally:
        (home / "slow").unlink()
    evaluate(EvalOptions(str(full), samples=3, batch_size=2, prompts=12, out=str(killed)))
    for name in ("answers.jsonl", "judgements.jsonl", "results.json"):
        assert (killed / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_moved_run_finds_its_files(home: Path, full: Path, tmp_path: Path) -> None:
    """Moved together with everything it was made from: found, and said."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(home, elsewhere)
    run = elsewhere / "runs" / "full"
    settings = (run / "config.resolved.yaml").read_text()
    (run / "config.resolved.yaml").write_text(settings.replace(str(home), "/gone"))
    found = measure(run, tmp_path / "out", prompts=4)
    assert any("/gone/held.jsonl is not there any more" in note for note in found["notes"])
    assert located("/gone/held.jsonl", run, "/gone/runs/full") == str(elsewhere / "held.jsonl")
    assert located("/gone/held.jsonl", run, "runs/full") == str(elsewhere / "held.jsonl")
    assert located("org/name", run, "runs/full") == "org/name"


# ---- and then


def test_two_real_runs_are_compared(
    full: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same start, data, steps and prompts by their fingerprints, though one has an adapter around its base."""
    found = compare([full, lora], out=tmp_path / "compare.json")
    verdict = found["comparable"]["lora"]
    assert verdict["unknown"] == []
    assert [reason["what"] for reason in verdict["reasons"]] in ([], ["oracle labels spent"])
    assert found["differences"]["lora"]["log_ratio"]["n"] == HELD_OUT
    assert "paired by prompt" in capsys.readouterr().out


def test_the_command_line_explains_a_folder_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "./nowhere"]) == 2
    assert "There is no folder ./nowhere" in capsys.readouterr().err


def test_a_mistyped_run_is_not_looked_for_on_the_hub(full: Path) -> None:
    with pytest.raises(ConfigError, match=rf"There is no run .*ful\. Did you mean {full.name}\?"):
        find_subject(str(full.parent / "ful"))
