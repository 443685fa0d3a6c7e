"""What survives: gradients that are not finite, a full disk, broken checkpoints, another process that dies."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import Interrupt, Interrupted
from tiny import largest_difference, make_model, make_pairs, make_trainer, weights_of

from sail.errors import SailError, TrainingError
from sail.training.checkpoints import is_complete, run_state
from sail.training.survival import is_full, is_lost, what_happened

STEPS = 8


def trainer(folder: Path, bad: tuple[int, ...] = (), kind: float = float("nan"), **options: Any) -> Any:
    """A run whose gradient holds a NaN (or `kind`) in one weight at the steps `bad`, counted from 1."""
    model = make_model()
    usual: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    usual |= {"save_strategy": "steps", "save_steps": 1}
    made = make_trainer(folder, model=model, rows=make_pairs(24), max_steps=STEPS, **{**usual, **options})

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if made.state.global_step + 1 not in bad:
            return gradient
        spoiled = gradient.clone()
        spoiled.view(-1)[3] = kind
        return spoiled

    model.model.layers[0].mlp.up_proj.weight.register_hook(spoil)
    return made


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- gradients


@pytest.mark.parametrize("kind", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_an_update_that_is_not_finite_is_left_out(tmp_path: Path, kind: float, max_grad_norm: float) -> None:
    """Weights and the optimizer's moments are those of the step before; the next steps train on, and the line counts it."""
    made = trainer(tmp_path, (3,), kind, max_grad_norm=max_grad_norm)
    made.train()
    states = [
        torch.load(tmp_path / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)["state"]
        for step in (2, 3, 4)
    ]
    assert all(torch.equal(states[0][one]["exp_avg"], states[1][one]["exp_avg"]) for one in states[0])
    assert not all(torch.equal(states[1][one]["exp_avg"], states[2][one]["exp_avg"]) for one in states[1])
    weights = [(tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (2, 3, 4)]
    assert weights[0] == weights[1] != weights[2]
    assert all(torch.isfinite(one).all() for one in weights_of(made.model).values())
    assert [line["step/skipped"] for line in lines(tmp_path) if "loss" in line] == [0, 0, 1, 1, 1, 1, 1, 1]


def test_the_run_ends_after_so_many_in_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two, one good, then three in a row: the third ends it, with the checkpoint to continue from."""
    made = trainer(tmp_path, (1, 2, 4, 5, 6), max_skipped_steps=3)
    with pytest.raises(TrainingError, match=r"3 steps in a row up to step 6.*checkpoint-5; continue"):
        made.train()
    assert (made.survival.skipped, made.survival.in_a_row) == (5, 3)
    assert "Step 4: the gradient is not finite" in capsys.readouterr().out


def test_the_counts_survive_a_resume(tmp_path: Path) -> None:
    """Interrupted between two skipped steps: the count goes on, in a row too, and the end is the uninterrupted run's."""
    with pytest.raises(TrainingError, match="3 steps in a row up to step 6"):
        trainer(tmp_path / "whole", (2, 4, 5, 6), max_skipped_steps=3).train()
    stopped = trainer(tmp_path / "two", (2, 4, 5, 6), max_skipped_steps=3)
    stopped.add_callback(Interrupt(5))
    with pytest.raises(Interrupted):
        stopped.train()
    assert run_state(tmp_path / "two" / "checkpoint-5")["survival"] == {"skipped": 3, "in_a_row": 2}
    again = trainer(tmp_path / "two", (2, 4, 5, 6), max_skipped_steps=3)
    with pytest.raises(TrainingError, match="3 steps in a row up to step 6"):
        again.train(resume_from_checkpoint=True)
    # A limit is no part of what is computed: another one is accepted, and the run goes on to its end.
    last = trainer(tmp_path / "two", (2, 4, 5, 6), max_skipped_steps=4)
    last.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "other", (2, 4, 5, 6), max_skipped_steps=4)
    whole.train()
    assert largest_difference(weights_of(last.model), weights_of(whole.model)) == 0.0
    counted = [
        [line["step/skipped"] for line in lines(tmp_path / name) if "loss" in line]
        for name in ("two", "other")
    ]
    assert counted[0] == counted[1] == [0, 1, 1, 2, 3, 4, 4, 4]


def test_finite_numbers_whose_squares_overflow_are_no_reason(tmp_path: Path) -> None:
    """1e30 is finite in float32, its square is not: the usual norm would call that gradient infinite."""
    from sail.training.survival import finite

    assert finite([torch.tensor([1e30, -1e30]), torch.empty(0)])
    assert not finite([torch.ones(2), torch.tensor([1.0, float("nan")])])
    assert not finite([torch.tensor([-float("inf")])])


# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; a test that needs it is skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("mounting needs rights that this process does not have")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_and_says_where_to_go_on(small_disk: Path, tmp_path: Path) -> None:
    """Checkpoints of 280 kB until the disk is full; with room made, the run continues and ends as one that had it all along."""
    with pytest.raises(
        TrainingError, match=r"disk or the quota is full.*last complete checkpoint is .*checkpoint-\d"
    ):
        trainer(small_disk / "run").train()
    folders = {path.name: is_complete(path) for path in (small_disk / "run").glob("checkpoint-*")}
    assert any(folders.values())
    # What the message says: old checkpoints can go.
    newest = max((name for name, whole in folders.items() if whole), key=lambda name: int(name[11:]))
    for path in (small_disk / "run").glob("checkpoint-*"):
        if path.name != newest:
            subprocess.run(["rm", "-r", str(path)], check=True)
    again = trainer(small_disk / "run", save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", save_steps=100)
    whole.train()
    assert largest_difference(weights_of(again.model), weights_of(whole.model)) == 0.0
    assert (small_disk / "run" / "pairs.jsonl.gz").read_bytes() == (
        tmp_path / "whole" / "pairs.jsonl.gz"
    ).read_bytes()


def test_what_a_full_disk_says() -> None:
    """Each library in its own words: the system, safetensors, torch.save, and one wrapped in another."""
    import errno

    assert is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"))
    assert is_full(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    wrapped = ValueError("while saving")
    wrapped.__cause__ = OSError(errno.EFBIG, "File too large")
    assert is_full(wrapped)
    assert not is_full(OSError(errno.EACCES, "Permission denied"))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    """A bug is not called a full disk, and a lost process is none where there is only one."""
    assert what_happened(ZeroDivisionError("x"), tmp_path) is None
    assert is_lost(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"))
    assert what_happened(RuntimeError("Connection closed by peer"), tmp_path) is None
    made = trainer(tmp_path)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("a bug")

    made.compute_loss = broken
    with pytest.raises(ZeroDivisionError):
        made.train()


# ---- checkpoints and settings


def test_a_checkpoint_that_cannot_be_read_is_left_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its state is no text at all."""
    stopped = trainer(tmp_path)
    stopped.add_callback(Interrupt(4))
    with pytest.raises(Interrupted):
        stopped.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_bytes(b"\xff\x00\xfe" * 40)
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-4 was not written completely" in capsys.readouterr().out
    whole = trainer(tmp_path / "whole")
    whole.train()
    assert largest_difference(weights_of(again.model), weights_of(whole.model)) == 0.0


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    stopped = trainer(tmp_path, beta=0.1)
    stopped.add_callback(Interrupt(2))
    with pytest.raises(Interrupted):
        stopped.train()
    with pytest.raises(SailError, match=r"beta: 0.1 then, 0.3 now; .*temperature: 1.0 then, 0.7 now"):
        trainer(tmp_path, beta=0.3, temperature=0.7).train(resume_from_checkpoint=True)


# ---- options of transformers and the number of processes


def begun(folder: Path, **options: Any) -> None:
    """A run interrupted after two steps."""
    stopped = trainer(folder, **options)
    stopped.add_callback(Interrupt(2))
    with pytest.raises(Interrupted):
        stopped.train()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learning_rate": 2e-3}, "learning_rate: 0.001 then, 0.002 now"),
        ({"weight_decay": 0.1}, "weight_decay: 0.0 then, 0.1 now"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps: 2 then, 1 now"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size: 2 then, 4 now"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type: 'constant' then, 'cosine' now"),
        ({"optim": "sgd"}, "optim: '.*' then, 'sgd' now"),
        ({"max_grad_norm": 0.5}, "max_grad_norm: 1.0 then, 0.5 now"),
        ({"adam_beta2": 0.9}, "adam_beta2: 0.999 then, 0.9 now"),
        ({"bf16": True}, "bf16: False then, True now"),
    ],
)
def test_options_that_change_what_a_step_computes_are_refused(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    begun(tmp_path)
    with pytest.raises(SailError, match=said):
        trainer(tmp_path, **changed).train(resume_from_checkpoint=True)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    """The checkpoint says how many there were; one of two processes is not continued by one."""
    begun(tmp_path)
    file = tmp_path / "checkpoint-2" / "sail_state.json"
    state = json.loads(file.read_text())
    assert state["run"]["processes"] == 1
    state["run"]["processes"] = 2
    file.write_text(json.dumps(state))
    with pytest.raises(SailError, match="processes: 2 then, 1 now"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5},
        {
            "routes": {
                "data": {"weight": 0.5, "final_weight": 0.2},
                "dpr": {"weight": 0.5, "final_weight": 0.8},
            }
        },
    ],
    ids=["learning rate", "warm-up", "weights"],
)
def test_the_length_stays_where_something_goes_by_it(tmp_path: Path, options: dict[str, Any]) -> None:
    begun(tmp_path, **options)
    longer = trainer(tmp_path, **options)
    longer.args.max_steps = STEPS + 2
    with pytest.raises(SailError, match=r"steps of the schedule: \[8, 3.0\] then, \[10, 3.0\] now"):
        longer.train(resume_from_checkpoint=True)


def test_a_run_with_a_constant_rate_may_go_on_longer(tmp_path: Path) -> None:
    """It ends with the weights of a run that was longer from the start."""
    begun(tmp_path / "two")
    weights = []
    for folder, resume in ((tmp_path / "two", True), (tmp_path / "one", None)):
        made = trainer(folder)
        made.args.max_steps = STEPS + 2
        made.train(resume_from_checkpoint=resume)
        assert made.state.global_step == STEPS + 2
        weights.append(weights_of(made.model))
    assert largest_difference(*weights) == 0.0


def test_a_checkpoint_of_before_is_held_to_what_it_knows(tmp_path: Path) -> None:
    begun(tmp_path)
    file = tmp_path / "checkpoint-2" / "sail_state.json"
    state = json.loads(file.read_text())
    kept = {"seed", "training rows", "beta"}
    state["run"] = {name: value for name, value in state["run"].items() if name in kept}
    file.write_text(json.dumps(state))
    trainer(tmp_path, learning_rate=2e-3).train(resume_from_checkpoint=True)
