"""`sail pipeline` on a tiny model: what runs and why, what is skipped, what a kill costs. Stages are real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_model, make_pairs, make_tokenizer

from sail import cli
from sail.commands import pipeline as module
from sail.commands.stage_file import STAGE, Prints, begin, finish, judge
from sail.commands.stages import stages_of
from sail.errors import ConfigError, SailError

SMALL = {"use_cpu": True, "disable_tqdm": True}
RUN: dict[str, Any] = {
    "model": "base",
    "peft": {"r": 4},
    "data": {"train": "pairs.jsonl", "eval": "held.jsonl"},
    "sft": {"num_train_epochs": 1, "max_length": 40, "output_dir": "out/sft", **SMALL},
    "reward": {"max_length": 40, "output_dir": "out/reward", "num_train_epochs": 1, **SMALL},
    "oracle": {"kind": "reward_model"},
    "train": {
        "output_dir": "out/run",
        "preset": "sail-dpr",
        "max_steps": 3,
        "max_length": 40,
        "max_prompt_length": 16,
        "max_new_tokens": 6,
        "save_steps": 1,
        **SMALL,
    },
    "eval": {"prompts": 4},
    "merge": {},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base model and pairs, and run.yaml with all five stages."""
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    for name, count in (("pairs", 24), ("held", 8)):
        text = "".join(json.dumps(row) + "\n" for row in make_pairs(count, seed=count))
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    write(tmp_path, RUN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, run: dict[str, Any]) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")


def said(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[str]:
    """What the pipeline itself printed, its stages' own lines left out."""
    found = cli.main(["pipeline", "run.yaml", *words])
    out, err = capfd.readouterr()
    assert found == code, out + err
    return [line for line in out.splitlines() if line.startswith("[")] + ([err] if code else [])


# ---- which stages there are, and what starts from what


def test_what_starts_from_what(home: Path) -> None:
    stages = {stage.name: stage for stage in stages_of("run.yaml", [])}
    assert list(stages) == ["sft", "train-reward", "train", "eval", "merge"]
    sft, reward = str(home / "out" / "sft"), str(home / "out" / "reward")
    assert stages["sft"].inputs["model"] == str(home / "base")
    assert stages["train-reward"].inputs["model"] == sft
    assert stages["train"].inputs["model"] == sft
    assert stages["train"].inputs["oracle reward"] == reward
    assert stages["train"].words == ["train", "run.yaml", f'model="{sft}"']
    assert stages["sft"].words == ["sft", "run.yaml"]
    assert stages["eval"].words == ["eval", "out/run", "--prompts", "4"]
    assert stages["merge"].inputs == {"adapter": str(home / "out" / "run" / "adapter"), "model": sft}


def test_a_section_that_is_absent_is_no_stage(home: Path) -> None:
    function = {"kind": "function", "path": "reward.py:reward"}
    (home / "reward.py").write_text("def reward(prompts, responses):\n    return [0.0 for _ in responses]\n")
    write(home, {key: RUN[key] for key in ("model", "data", "train")} | {"oracle": function})
    (stage,) = stages_of("run.yaml", [])
    assert stage.name == "train"
    assert stage.inputs["model"] == str(home / "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "out/sft"}, "sft would start from what it makes"),
        ({"sft": {**RUN["sft"], "model": "base"}}, "not from what sft makes"),
        ({"peft": None}, "merge is for adapters"),
        ({"train": None, "oracle": None}, "eval is about the run of the section train"),
        ({"reward": None}, r"oracle.model"),
    ],
)
def test_what_is_refused_before_anything_runs(home: Path, changes: dict[str, Any], message: str) -> None:
    write(home, RUN | changes)
    with pytest.raises(ConfigError, match=message):
        stages_of("run.yaml", [])


def test_a_stage_that_is_not_there(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "has no section" in said(capfd, "--only", "sft", "sft=null", code=2)[-1]
    assert "is no stage" in said(capfd, "--from", "cooking", code=2)[-1]
    assert "there is no model" in said(capfd, "--from", "train", code=2)[-1]


# ---- up to date, or not, and why: without running anything


def made(home: Path, *overrides: str) -> Any:
    return {stage.name: stage for stage in stages_of("run.yaml", overrides)}


@pytest.fixture
def done(home: Path) -> Path:
    """As if the first stage had run."""
    stage = made(home)["sft"]
    stage.folder.mkdir(parents=True)
    begin(stage)
    assert judge(stage).action == "resume"
    make_model(seed=5).save_pretrained(stage.folder)
    finish(stage)
    assert judge(made(home)["sft"]).action == "skip"
    return home


def why(home: Path, *overrides: str) -> str:
    verdict = judge(made(home, *overrides)["sft"])
    return f"{verdict.action}: {verdict.why}"


def test_a_changed_setting_is_named(done: Path) -> None:
    assert why(done, "sft.learning_rate=1e-3") == "run: changed: sft.learning_rate 2e-05 -> 0.001"
    assert why(done, "peft.r=8", "sft.seed=3") == "run: changed: peft.r 4 -> 8; sft.seed null -> 3"
    assert why(done, "train.beta=0.2") == "skip: up to date"  # concerns another stage
    assert why(done, "sft.output_dir=out/sft") == "skip: up to date"


def test_a_changed_file_is_named_and_a_touched_one_is_not_changed(done: Path) -> None:
    pairs = done / "pairs.jsonl"
    os.utime(pairs, (1, 1))
    assert why(done) == "skip: up to date"
    pairs.write_text(pairs.read_text().replace("w3", "w4"))  # the same size
    assert why(done) == "run: changed: data.train has another content (pairs.jsonl)"


def test_another_model_is_noticed(done: Path) -> None:
    make_model(seed=9).save_pretrained(done / "base")
    assert why(done) == "run: changed: model has another content (base)"


def test_outputs_that_are_gone_or_were_made_otherwise(done: Path) -> None:
    weights = done / "out" / "sft" / "model.safetensors"
    make_model(seed=6).save_pretrained(done / "out" / "sft")
    assert "is not what the stage left there" in why(done)
    for path in weights.parent.iterdir():
        if path.name != STAGE:
            path.unlink()
    assert why(done).endswith("is gone")


def test_a_copy_of_a_public_set_is_read_by_content(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train.jsonl"
    file.write_text("one")
    before = Prints().of(str(tmp_path))
    file.write_text("two")
    assert Prints().of(str(tmp_path)) != before


def test_files_are_read_once(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 16 GB is not hashed again for every call."""
    record = json.loads((done / "out" / "sft" / STAGE).read_text())
    prints = Prints(record["files"])
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert prints.of(str(done / "pairs.jsonl")) == record["inputs"]["data.train"]


# ---- nothing of anybody's is lost


def test_what_the_pipeline_has_not_made_stays(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(seed=8).save_pretrained(home / "out" / "sft")
    before = (home / "out" / "sft" / "model.safetensors").read_bytes()
    monkeypatch.setattr(module, "_in_own_process", lambda *_: pytest.fail("it ran"))
    assert "has not made" in said(capfd, code=2)[-1]
    assert (home / "out" / "sft" / "model.safetensors").read_bytes() == before


def test_paid_answers_are_not_removed(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = made(done)["train"]
    stage.folder.mkdir(parents=True)
    (stage.folder / "metrics.jsonl").write_text("{}\n")
    (stage.folder / "ledger.sqlite").write_text("answers")
    finish(stage)
    monkeypatch.setattr(module, "_in_own_process", lambda *_: pytest.fail("it ran"))
    changed = made(done, "train.beta=0.2")["train"]
    with pytest.raises(SailError, match=r"paid answers.*oracle\.ledger"):
        module._run(changed, judge(changed), None, False, "")


def test_the_flags_of_each_way(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted is resumed, one that begins anew replaces its own, the launcher stands before train only."""
    ran: list[tuple[list[str], str]] = []
    monkeypatch.setattr(
        module, "_in_own_process", lambda words, lock, launcher: ran.append((words, launcher)) or 0
    )
    stage = made(done)["train"]
    module._run(stage, judge(stage), None, False, "torchrun")
    assert ran[-1] == (stage.words, "torchrun")
    begin(stage)
    module._run(stage, judge(stage), None, False, "")
    assert ran[-1][0] == [*stage.words, "--resume"]
    (stage.folder / "metrics.jsonl").write_text("{}\n")
    changed = made(done, "train.beta=0.2")["train"]
    module._run(changed, judge(changed), None, False, "")
    assert ran[-1][0] == [*changed.words, "--overwrite"]
    sft = made(done)["sft"]
    module._run(sft, judge(sft), None, True, "torchrun")
    assert ran[-1] == (["sft", "run.yaml", "--overwrite"][:2], "")


# ---- the real thing


@pytest.mark.slow
def test_all_five_stages_then_none_then_those_after_a_change(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = said(capfd, "--dry-run")
    assert [line.split("]")[0][1:] for line in plan] == ["sft", "train-reward", "train", "eval", "merge"]
    assert all("would run" in line for line in plan)
    assert not (home / "out").exists()

    first = said(capfd)
    assert sum("runs: it has not run yet" in line for line in first) == 5
    for path in ("sft/config.json", "reward/results.json", "run/results.json", "run/eval/results.json"):
        assert (home / "out" / path).is_file()
    assert (home / "out" / "run" / "merged" / "model.safetensors").is_file()
    resolved = yaml.safe_load((home / "out" / "run" / "config.resolved.yaml").read_text())
    assert resolved["model"] == str(home / "out" / "sft")
    assert resolved["oracle"]["model"] == str(home / "out" / "reward")

    assert all(line.endswith("skipped: up to date") for line in said(capfd))

    again = said(capfd, "train.beta=0.2")
    ran = [line for line in again if "] runs" in line]
    assert ran[0] == "[train] runs: changed: train.beta 0.1 -> 0.2"
    assert [line.split("]")[0][1:] for line in ran] == ["train", "eval", "merge"]
    assert "it has not run yet" in ran[1]  # sail train --overwrite has removed the old run's evaluation
    assert "adapter has another content" in ran[2]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["stage", "pipeline"])
def test_a_kill_while_training_then_the_same_command(home: Path, who: str) -> None:
    """SIGKILL of the stage, or of the pipeline alone; the next call goes on from a checkpoint and ends."""
    (home / "reward.py").write_text(
        "def reward(prompts, responses):\n    return [float(len(one)) for one in responses]\n"
    )
    function = {"kind": "function", "path": "reward.py:reward"}
    run = {key: RUN[key] for key in ("model", "peft", "data", "train")} | {"oracle": function}
    write(home, run | {"train": {**RUN["train"], "max_steps": 60, "save_total_limit": 1, "report_to": []}})
    words = [sys.executable, "-m", "sail.cli", "pipeline", "run.yaml"]
    begun = subprocess.Popen(
        words, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    folder = home / "out" / "run"
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        assert begun.poll() is None
        time.sleep(0.02)
    if who == "stage":
        children = Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert b"was killed by signal 9" in begun.communicate(timeout=60)[0]
        assert begun.returncode == 2
    else:
        begun.kill()
        begun.wait(timeout=60)
    assert json.loads((folder / STAGE).read_text())["status"] == "running"
    assert not (folder / "results.json").exists()
    # When something is logged concerns no step.
    again = [*words, "train.logging_steps=3", "train.report_to=none"]
    second = subprocess.run(again, cwd=home, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "[train] continues: it was interrupted" in second.stdout
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert json.loads((folder / "results.json").read_text())["steps"] == 60
    assert len({line["step"] for line in lines if "loss" in line}) == len(
        [line for line in lines if "loss" in line]
    )
    begun.stdout.close()
