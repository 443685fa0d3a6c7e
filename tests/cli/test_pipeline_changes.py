"""What `sail pipeline` runs again after a change and after an early kill. The stages' processes are stand-ins that write what the
real ones write, in their order; no model is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sail.commands import pipeline as module
from sail.commands.stage_file import Stage, begin, finish, judge
from sail.commands.stages import stages_of
from sail.config import load_config, resolved_yaml
from sail.errors import ConfigError, SailError
from sail.run_folder import RESOLVED, check_folder

RUN: dict[str, Any] = {
    "model": "base",
    "data": {
        "train": {"name": "pku-saferlhf", "limit": 100},
        "eval": {"name": "pku-saferlhf", "limit": 50},
    },
    "sft": {"train": {"name": "hh-rlhf", "limit": 100}, "output_dir": "out/sft"},
    "reward": {
        "train": {"name": "pku-saferlhf", "label": "helpful"},
        "eval": {"name": "pku-saferlhf", "limit": 10},
        "output_dir": "out/reward",
    },
    "oracle": {"kind": "reward_model"},
    "train": {"output_dir": "out/run", "preset": "sail-dpr", "max_steps": 3},
    "eval": {"against": ["dataset", "runs/dpo"]},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run file; its models are files of a few bytes."""
    for place in ("base", "runs/dpo/model"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text("{}")
    (tmp_path / "runs" / "dpo" / "config.resolved.yaml").write_text("model: base\n")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(*overrides: str) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages_of("run.yaml", overrides)}


@pytest.fixture
def done(home: Path) -> Path:
    """As if all stages had run."""
    for stage in made().values():
        begin(stage)
        for place in map(Path, stage.outputs.values()):
            file = place if place.suffix == ".json" else place / "model.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("made")
        finish(stage)
    assert stale() == []
    return home


def stale(*overrides: str) -> list[str]:
    """The stages that are not up to date."""
    return [name for name, stage in made(*overrides).items() if judge(stage).action != "skip"]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("reward.train.label=safe", ["train-reward"]),
        ("reward.eval.limit=11", ["train-reward"]),
        ("sft.train.limit=101", ["sft"]),
        ("sft.train.seed=7", ["sft"]),
        ("data.train.limit=101", ["train"]),
        ("data.eval.limit=51", ["train", "eval"]),  # both measure on it
        ("train.temperature=0.9", ["train", "eval"]),  # which sail eval takes from the run
        ("data.bad_rows=skip", ["sft", "train-reward", "train", "eval"]),
        ("train.learning_rate=0.5", ["train"]),
        ("train.logging_steps=7", []),
        ("train.save_steps=7", []),
        ("train.save_total_limit=2", []),
        ("train.max_skipped_steps=9", []),
        ("sft.logging_steps=7", []),
        ("reward.save_steps=7", []),
        ("eval.prompts=7", ["eval"]),
    ],
)
def test_which_stages_a_setting_concerns(done: Path, override: str, stages: list[str]) -> None:
    """By hand: a stage depends on the rows that it reads and on what it computes, not on when it logs or saves."""
    assert stale(override) == stages


def test_without_rows_of_its_own_a_stage_depends_on_those_of_the_run(home: Path) -> None:
    (home / "run.yaml").write_text(yaml.safe_dump(RUN | {"sft": {}, "reward": {}}), encoding="utf-8")
    stages = made()
    assert stages["sft"].settings["data.train.limit"] == 100
    assert "data.eval.limit" not in stages["sft"].settings
    assert stages["train-reward"].settings["data.eval.limit"] == 50


def test_a_rival_that_changed_is_judged_against_again(done: Path) -> None:
    model = done / "runs" / "dpo" / "model" / "config.json"
    model.write_text('{"retrained": 1}')
    verdict = judge(made()["eval"])
    assert verdict.why == "changed: eval.against runs/dpo has another content (model)"


# ---- a kill between the beginning of a stage and the moment at which its process removes the old content


class Child:
    """Stands in for the processes of stages: each `sail ...` clears where it is told to, then writes what the real one does."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self.flags: list[list[str]] = []
        self.dies = ""
        self.content = "first"

    def __call__(self, words: Sequence[str], *_: Any) -> int:
        self.flags.append([word for word in words if word.startswith("--")])
        if self.dies == "while loading":
            return -9
        if "--overwrite" in words:
            for name in self.names:
                (self.folder / name).unlink(missing_ok=True)
                if self.dies == "while clearing":
                    return -9
        for name in self.names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(self.content)
        return -9 if self.dies == "while training" else 0


CASES = [
    ("train-reward", "reward.learning_rate", ("results.json", "reward_run.json", "model.safetensors")),
    ("train", "train.learning_rate", ("metrics.jsonl", "model/model.safetensors", "results.json")),
    ("eval", "eval.prompts", ("answers.jsonl", "judgements.jsonl", "results.json")),
]
CASES_BY_NAME = [pytest.param(*case, id=case[0]) for case in CASES]


def go(name: str, *overrides: str, force: bool = False) -> None:
    stage = made(*overrides)[name]
    module._run(stage, judge(stage), None, force, "")


@pytest.fixture
def child(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Sequence[str]], Child]:
    def begun(name: str, names: Sequence[str]) -> Child:
        found = Child(made()[name].folder, names)
        monkeypatch.setattr(module, "_in_own_process", found)
        go(name)
        return found

    return begun


@pytest.mark.parametrize(("name", "key", "names"), CASES_BY_NAME)
@pytest.mark.parametrize("dies", ["while loading", "while clearing"])
def test_an_old_result_is_not_taken_for_that_of_new_settings(
    child: Any, name: str, key: str, names: tuple[str, ...], dies: str
) -> None:
    run = child(name, names)
    run.dies, run.content = dies, "second"
    for _ in range(2):
        with pytest.raises(SailError, match="killed by signal 9"):
            go(name, f"{key}=7")
    run.dies = ""
    go(name, f"{key}=7")
    assert ["--overwrite" in flags for flags in run.flags] == [False, True, True, True]
    assert (run.folder / names[1]).read_text() == "second"
    assert judge(made(f"{key}=7")[name]).action == "skip"


@pytest.mark.parametrize(("name", "key", "names"), CASES_BY_NAME)
def test_back_to_the_old_settings_before_anything_was_removed(
    child: Any, name: str, key: str, names: tuple[str, ...]
) -> None:
    """A start with a slip that fails while loading does not cost the finished run its record."""
    run = child(name, names)
    run.dies = "while loading"
    with pytest.raises(SailError):
        go(name, f"{key}=7")
    assert judge(made()[name]).action == "skip"
    assert judge(made(f"{key}=7")[name]).action == "run"


@pytest.mark.parametrize(("name", "key", "names"), CASES_BY_NAME[:2])
def test_once_the_old_content_is_gone_the_new_goes_on(
    child: Any, name: str, key: str, names: tuple[str, ...]
) -> None:
    run = child(name, names)
    run.names, run.dies, run.content = names, "while training", "second"
    with pytest.raises(SailError):
        go(name, f"{key}=7")
    verdict = judge(made(f"{key}=7")[name])
    assert (verdict.action, verdict.why) == ("resume", "it was interrupted")


# ---- a run that has not ended is worth its checkpoints


def test_an_unfinished_run_is_not_removed_because_a_setting_changed(
    child: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = child("train", ("metrics.jsonl",))
    stage = made()["train"]
    begin(stage)
    saved = stage.folder / "checkpoint-40"
    saved.mkdir()
    (saved / "trainer_state.json").write_text(json.dumps({"global_step": 40}))
    run.flags.clear()
    with pytest.raises(ConfigError, match=r"not ended \(checkpoint-40\).*learning_rate.*--force"):
        go("train", "train.learning_rate=7")
    module._tell_plan(made("train.learning_rate=7")["train"], [], [], force=False)
    assert "would be refused" in capfd.readouterr().out
    assert run.flags == []
    go("train", "train.logging_steps=7")
    assert run.flags == [["--resume"]]
    begin(stage)
    go("train", "train.learning_rate=7", force=True)
    assert run.flags[1:] == [["--overwrite"]]


def test_sail_train_goes_on_where_only_logging_and_saving_changed(home: Path) -> None:
    """Else the pipeline would continue what sail train --resume refuses."""
    config, folder = load_config("run.yaml"), home / "out" / "run"
    saved = folder / "checkpoint-1"
    saved.mkdir(parents=True)
    (saved / "trainer_state.json").write_text('{"global_step": 1}')
    (saved / "sail_state.json").write_text('{"weights_only": true}')
    (folder / RESOLVED).write_text(resolved_yaml(config), encoding="utf-8")
    others = ["train.logging_steps=7", "train.save_steps=7", "train.run_name=other"]
    check_folder(folder, load_config("run.yaml", others), resume=True, overwrite=False)
    with pytest.raises(ConfigError, match="learning_rate: None then, 7 now"):
        check_folder(folder, load_config("run.yaml", ["train.learning_rate=7"]), resume=True, overwrite=False)
