"""`sail pipeline`: the stages of one run file, each in a process of its own, and only those that are not up to date. No torch."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from sail.commands.stage_file import LOCK, Stage, Verdict, begin, finish, judge, record_of
from sail.commands.stages import NAMES, stages_of
from sail.errors import ConfigError, SailError

_FLAGS = {
    "sft": "",
    "train-reward": "--overwrite",
    "train": "--overwrite",
    "eval": "--overwrite",
    "merge": "--overwrite",
}
_KEPT = ("sft", "train-reward", "train")
"""Stages whose folders may hold what nobody could make again."""
_RESUMES = {"train-reward": "--resume", "train": "--resume"}


def pipeline(
    path: str,
    overrides: Sequence[str],
    *,
    only: Sequence[str] = (),
    start: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    launcher: str = "",
) -> None:
    """Run what is not up to date of the stages, saying of each why it runs or not.

    `only` and `start` choose stages; the others are taken as they are. `force` runs the chosen ones even if they are up to date,
    and may replace what somebody else has put into their folders. `launcher` goes before the command of the stage train.
    Raises SailError where a stage fails: the same command then goes on with that stage.
    """
    stages = stages_of(path, overrides)
    chosen = _chosen(stages, only, start)
    left_open: list[str] = []
    for stage in stages:
        if stage.name not in chosen:
            _tell(stage, f"not asked for; {_state(judge(stage))}")
            continue
        missing = [f"{label} ({place})" for label, place in stage.inputs.items() if _is_missing(place)]
        if dry_run:
            if _tell_plan(stage, left_open, missing, force):
                left_open.append(stage.name)
            continue
        if missing:
            raise ConfigError(
                f"Stage {stage.name} cannot start: there is no {', no '.join(missing)}. Run the stage that makes it, or correct "
                "the path."
            )
        with _locked(stage) as lock:
            _run(stage, judge(stage), lock, force, launcher)
    print("Nothing was run." if dry_run else "All stages that were asked for are done.")


def _chosen(stages: Sequence[Stage], only: Sequence[str], start: str | None) -> set[str]:
    there = [stage.name for stage in stages]
    for name in [*only, *([start] if start else [])]:
        if name not in there:
            what = "is no stage" if name not in NAMES else "has no section in the run file"
            raise ConfigError(f"{name} {what}. The stages of this run are {', '.join(there)}.")
    after = there if start is None else there[there.index(start) :]
    return {name for name in after if not only or name in only}


def _is_missing(place: str) -> bool:
    return os.path.isabs(place) and not os.path.exists(place)


def _tell(stage: Stage, what: str) -> None:
    print(f"[{stage.name}] {what}", flush=True)


def _state(verdict: Verdict) -> str:
    return "up to date" if verdict.action == "skip" else f"taken as it is, but not up to date ({verdict.why})"


def _tell_plan(stage: Stage, left_open: Sequence[str], missing: Sequence[str], force: bool) -> bool:
    """Print what would be done; returns whether the stage would run, as far as that can be known."""
    if left_open and missing:
        _tell(stage, f"would run after {left_open[-1]}: $ {shlex.join(['sail', *stage.words])}")
        return True
    verdict = judge(stage)
    if verdict.action == "skip" and not force:
        after = f", unless {left_open[-1]} makes something else" if left_open else ""
        _tell(stage, f"up to date{after}")
        return False
    try:
        if verdict.action == "run" and verdict.used and not force:
            _refuse_loss(stage, verdict)
    except ConfigError as error:
        _tell(stage, f"would be refused: {error}")
        return True
    _tell(stage, f"would run: {verdict.why}. $ {shlex.join(['sail', *stage.words])}")
    return True


# ---- one stage


def _run(stage: Stage, verdict: Verdict, lock: BinaryIO | None, force: bool, launcher: str) -> None:
    if verdict.action == "skip" and not force:
        _tell(stage, "skipped: up to date")
        return
    if (
        verdict.action == "resume"
        and stage.name == "train-reward"
        and verdict.used
        and (stage.folder / "results.json").exists()
    ):
        _tell(
            stage, "had ended; only its record was missing"
        )  # results.json is the last thing that it writes
        finish(stage)
        return
    if verdict.action == "resume" and not force:
        _tell(stage, f"continues: {verdict.why}")
        flag = _RESUMES.get(stage.name, "")
        overwrites = False
    else:
        _tell(stage, f"runs: {'--force' if verdict.action == 'skip' else verdict.why}")
        if verdict.used and not force:
            _refuse_loss(stage, verdict)
        # What sail eval has begun by hand it goes on with by itself, or refuses.
        by_hand = stage.name == "eval" and not any(record_of(stage))
        flag = _FLAGS[stage.name] if verdict.used and (force or not by_hand) else ""
        overwrites = bool(flag)
    words = [*stage.words, *([flag] if flag else [])]
    _tell(stage, f"$ {shlex.join(['sail', *words])}")
    if stage.lock is None:  # sail merge puts its folder there whole
        begin(stage, overwrites=overwrites)
    code = _in_own_process(words, lock, launcher if stage.name == "train" else "")
    if code in (130, -signal.SIGINT):
        print("The same sail pipeline command goes on from here.", file=sys.stderr)
        raise KeyboardInterrupt
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise SailError(
            f"Stage {stage.name} {how}; what it said stands above. The same command goes on with this stage."
        )
    finish(stage)


def _refuse_loss(stage: Stage, verdict: Verdict) -> None:
    """A stage begins anew over what an earlier one left; not over what was made otherwise, nor over checkpoints of a run that has
    not ended, nor over answers that were paid."""
    record, torn = record_of(stage)
    if stage.name in _KEPT and not record:
        raise ConfigError(
            f"{stage.folder} holds something that sail pipeline has not made. Choose another folder for {stage.name}, or replace "
            "it with --force."
        )
    ended = record.get("status") == "done" or (stage.folder / "results.json").exists()
    # Trainer writes its state last, so these are whole.
    saved = sorted(
        stage.folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime
    )
    if stage.name in _RESUMES and saved and not ended and not torn:
        section = "train" if stage.name == "train" else "reward"
        raise ConfigError(
            f"{stage.folder} holds a run that has not ended ({saved[-1].parent.name}), and {stage.name} would begin anew: "
            f"{verdict.why}. Put that back to go on with it, choose another {section}.output_dir, or begin anew with --force."
        )
    if stage.name == "train" and (stage.folder / "ledger.sqlite").exists():
        raise ConfigError(
            f"{stage.folder} holds a ledger of paid answers, which a run that begins anew would remove. Name a file outside of "
            "it in oracle.ledger (a copy of it, so that its answers are used again), choose another train.output_dir, or remove "
            "it with --force."
        )


def _in_own_process(words: Sequence[str], lock: BinaryIO | None, launcher: str) -> int:
    """Run `sail WORDS...` and wait for it; its exit code, negative for a signal. A stage's memory ends with its process."""
    python = shlex.split(launcher) or [sys.executable]
    kept = [] if lock is None else [lock.fileno()]
    with subprocess.Popen(
        [*python, "-m", "sail.cli", *words], pass_fds=kept, preexec_fn=_end_with_parent if _LINUX else None
    ) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue  # Ctrl-C reaches the stage too: it saves, and says how to go on


_LINUX = sys.platform == "linux"


def _end_with_parent() -> None:
    """If this command is killed, its stage is told to stop, as by Ctrl-C: it saves what can be continued."""
    import ctypes

    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


@contextlib.contextmanager
def _locked(stage: Stage) -> Iterator[BinaryIO | None]:
    """The lock of the stage's folder, which its process inherits: a stage that outlives a killed pipeline still holds it."""
    path = stage.lock or stage.folder / LOCK
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell(stage, "another process is working on it; waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
