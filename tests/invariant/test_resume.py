"""Resume is exact: an interrupted run, continued, leaves the bits that the uninterrupted run leaves.

Interrupted in this process here (an exception out of the middle of a step); test_resume_kill.py kills real processes, and
test_resume_checkpoints.py is about checkpoints that are incomplete or belong to another run.
One run is 8 steps over 18 rows in micro-batches of 2 x 2: an epoch is 5 steps, the last of them a single micro-batch.
Lines are logged every 3 steps, so most interruptions fall between two lines.
"""

from __future__ import annotations

import gzip
import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_model, make_pairs, make_trainer, reward
from transformers import EarlyStoppingCallback, TrainerCallback

from sail.oracles import RewardFunction
from sail.training.checkpoints import STATE_FILE, latest_checkpoint
from sail.training.progress import StopOnSignal, train_or_stop
from sail.training.recorder import METRICS, PAIRS

PRESETS = ("sail-ddp", "sail-dpp", "sail-dpr", "sail-mix")
STEPS = 8
EPOCH = 5
TIMES = ("time", "seconds/", "train_runtime", "eval_runtime", "_per_second")


class Interrupted(Exception):
    """Stands for the power cut."""


class Interrupt(TrainerCallback):
    """Raises once a step's rows are made and its pairs are written, before its first forward pass."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interrupted


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])


def trainer(folder: Path, *callbacks: TrainerCallback, adapter: bool = False, **options: Any) -> Any:
    """A fresh trainer, as a fresh process would make it: nothing is shared with an earlier one."""
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "linear",
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 3,
        "max_new_tokens": 6,
        "preset": "sail-mix",
    }
    return make_trainer(
        folder,
        rows=make_pairs(18),
        trainer_options={
            "callbacks": list(callbacks),
            "peft_config": lora() if adapter else None,
            "eval_dataset": make_pairs(6, seed=5) if "eval_strategy" in options else None,
        },
        **{**defaults, **options},
    )


def interrupted_and_resumed(folder: Path, step: int, **options: Any) -> Any:
    """Break off in the middle of the step after `step`, then continue in a new trainer."""
    with pytest.raises(Interrupted):
        trainer(folder, Interrupt(step), **options).train()
    # Another process starts from other global random numbers; they must not matter.
    random.seed(step)
    np.random.seed(step)  # noqa: NPY002
    resumed = trainer(folder, **options)
    torch.manual_seed(1000 + step)
    resumed.train(resume_from_checkpoint=True)
    return resumed


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [without_times(line) for line in lines]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not any(part in key for part in TIMES)}


def pairs(folder: Path) -> bytes:
    path = folder / PAIRS
    return gzip.decompress(path.read_bytes()) if path.exists() else b""


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit, through any nesting of what torch.save keeps."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*both) for both in zip(first, second, strict=True))
    return bool(first == second)


def assert_same_run(expected: Path, folder: Path, last: int = STEPS, *, random_state: bool = True) -> None:
    """Weights, optimizer, schedule and random state of the last checkpoint, and the files of the run folder."""
    for name in ("optimizer.pt", "scheduler.pt", *(["rng_state.pth"] if random_state else [])):
        one, other = (
            torch.load(where / f"checkpoint-{last}" / name, weights_only=False)
            for where in (expected, folder)
        )
        assert same(one, other), f"{name} differs"
    weights = sorted(path.name for path in (expected / f"checkpoint-{last}").glob("*.safetensors"))
    assert weights
    for name in weights:
        one, other = ((where / f"checkpoint-{last}" / name).read_bytes() for where in (expected, folder))
        assert one == other, f"{name} differs"
    assert pairs(folder) == pairs(expected)
    assert metrics(folder) == metrics(expected)


def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Uninterrupted runs by their options, each made once."""
    made: dict[str, Path] = {}

    def run(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            trainer(made[key], **options).train()
        return made[key]

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return uninterrupted(tmp_path_factory)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_any_step(whole: Any, tmp_path: Path, step: int) -> None:
    interrupted_and_resumed(tmp_path, step)
    assert_same_run(whole(), tmp_path)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_in_mid_epoch_and_at_its_end(
    whole: Any, tmp_path: Path, preset: str, adapter: bool
) -> None:
    for step in (2, EPOCH):
        folder = tmp_path / str(step)
        interrupted_and_resumed(folder, step, preset=preset, adapter=adapter)
        assert_same_run(whole(preset=preset, adapter=adapter), folder)


@pytest.mark.parametrize("step", [3, 5, 7])
def test_steps_behind_the_checkpoint_are_done_again(whole: Any, tmp_path: Path, step: int) -> None:
    """Saved every other step: lines and pairs written after the checkpoint are cut back, then written again."""
    interrupted_and_resumed(tmp_path, step, save_steps=2, logging_steps=1)
    assert_same_run(whole(save_steps=2, logging_steps=1), tmp_path)


def test_interrupted_twice(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(2)).train()
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(4)).train(resume_from_checkpoint=True)
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert_same_run(whole(), tmp_path)


def test_one_checkpoint_is_enough(whole: Any, tmp_path: Path) -> None:
    interrupted_and_resumed(tmp_path, 4, save_total_limit=1)
    assert_same_run(whole(), tmp_path)
    assert [path.name for path in tmp_path.glob("*checkpoint-*")] == [f"checkpoint-{STEPS}"]


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "eval_samples": 6,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_reward",
    "greater_is_better": True,
    "save_total_limit": 2,
    "learning_rate": 1e-2,
}


def test_best_checkpoint_by_reward(whole: Any, tmp_path: Path) -> None:
    """The resumed run remembers the best checkpoint, and ends with its weights."""
    expected = whole(**BEST)
    resumed = interrupted_and_resumed(tmp_path, 5, **BEST)
    assert metrics(tmp_path) == metrics(expected)
    assert pairs(tmp_path) == pairs(expected)
    state = json.loads((expected / f"checkpoint-{STEPS}" / STATE_FILE).read_text())
    assert resumed.state.best_metric == state["best_metric"]
    best = Path(state["best_model_checkpoint"])
    assert Path(resumed.state.best_model_checkpoint).name == best.name
    resumed.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        best / "model.safetensors"
    ).read_bytes()


def test_with_dropout(whole: Any, tmp_path: Path) -> None:
    """Dropout draws from the global random state, which sampling in between must leave alone."""
    options = {
        "preset": None,
        "routes": {"data": {"weight": 0.5}, "dpr": {"weight": 0.5}},
        "disable_dropout": False,
        "adapter": True,
    }
    for step in (3, EPOCH):
        interrupted_and_resumed(tmp_path / str(step), step, **options)
        assert_same_run(whole(**options), tmp_path / str(step))


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_lines_once_per_epoch(whole: Any, tmp_path: Path, strategy: str) -> None:
    options = {
        "logging_strategy": "epoch",
        "eval_strategy": "epoch",
        "save_strategy": strategy,
        "max_steps": 10,
    }
    interrupted_and_resumed(tmp_path, EPOCH, **options)
    assert_same_run(whole(**options), tmp_path, last=10)


class CtrlC(TrainerCallback):
    """Presses it in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("step", [2, EPOCH - 1], ids=["within an epoch", "in its last step"])
def test_stopped_by_a_signal(whole: Any, tmp_path: Path, step: int, strategy: str) -> None:
    """The step is finished and saved wherever it stands; no line that the uninterrupted run does not have stays behind."""
    options: dict[str, Any] = {"max_steps": 10, "save_steps": 100, "eval_steps": 4}
    options |= dict.fromkeys(("logging_strategy", "eval_strategy", "save_strategy"), strategy)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopOnSignal()
    first = trainer(tmp_path, stop, CtrlC(step), **options)
    first.train()
    assert stop.caught
    assert first.state.global_step == step + 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{step + 1}"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    trainer(tmp_path, StopOnSignal(), **options).train(resume_from_checkpoint=True)
    assert_same_run(whole(**options), tmp_path, last=10)


def test_a_signal_passed_on_by_a_launcher_is_not_a_second_one(tmp_path: Path) -> None:
    stop = StopOnSignal()
    one = trainer(tmp_path, stop, CtrlC(2), CtrlC(2))
    one.train()
    assert one.state.global_step == 3


def test_a_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sail.training.progress.SAME_STOP_SECONDS", 0.0)
    stop = StopOnSignal()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, stop, CtrlC(2), CtrlC(2)).train()
    stop.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-2"


def test_an_error_gives_the_signals_back(tmp_path: Path) -> None:
    """Else Ctrl-C of whoever goes on in this process would ask a run that is over to stop."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        train_or_stop(trainer(tmp_path, StopOnSignal(), Interrupt(2)), resume=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_patience_of_a_callback_survives(tmp_path: Path) -> None:
    """restore_callback_states_from_checkpoint, which early stopping needs, works beside the run's own state."""
    options = {**BEST, "restore_callback_states_from_checkpoint": True, "save_total_limit": None}
    options.pop("learning_rate")

    def stop() -> EarlyStoppingCallback:
        return EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=100.0)

    whole = trainer(tmp_path / "whole", stop(), **options)
    whole.train()
    with pytest.raises(Interrupted):
        trainer(tmp_path / "part", stop(), Interrupt(4), **options).train()
    resumed = trainer(tmp_path / "part", stop(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 6
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(whole: Any, tmp_path: Path) -> None:
    trainer(tmp_path).train()
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS
    assert_same_run(whole(), tmp_path)


def test_without_a_checkpoint_it_starts_from_the_beginning(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(3), save_steps=4).train()
    assert not list(tmp_path.glob("checkpoint-*"))
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert_same_run(whole(), tmp_path)


def test_the_starting_point_is_the_users_own(whole: Any, tmp_path: Path) -> None:
    """Random numbers used between building and training change nothing: the data order has its own seed."""
    used = trainer(tmp_path)
    torch.manual_seed(99)
    torch.rand(5)
    used.train()
    assert_same_run(whole(), tmp_path, random_state=False)


def test_reference_is_the_start_not_the_checkpoint(tmp_path: Path) -> None:
    """After a resume the reference still is the model that was given: its log-probs are those of before."""
    oracle = RewardFunction(reward)
    with pytest.raises(Interrupted):
        trainer(tmp_path, Interrupt(4), oracle=oracle, learning_rate=1e-2).train()
    resumed = trainer(tmp_path, oracle=oracle, learning_rate=1e-2)
    resumed.train(resume_from_checkpoint=True)
    fresh = make_model().state_dict()
    frozen, _ = resumed.reference.model()
    assert all(torch.equal(value, fresh[name]) for name, value in frozen.state_dict().items())
