"""`sail train-reward`: from the reward section of a run to a reward model, and what it is worth on held-out pairs."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sail.build import make_peft
from sail.config import RunConfig
from sail.data.formats import Row
from sail.data.remarks import left_out
from sail.data.sources import RowSet, load_rows
from sail.errors import CheckpointError, ConfigError
from sail.evaluation.calibration import (
    accuracy,
    calibrating_temperature,
    calibration_error,
    reliability,
    reliability_picture,
)
from sail.fields import LOGS_AND_SAVES
from sail.oracles.ledger import hash_of
from sail.oracles.reward_model import RewardModel
from sail.results import RESULTS, write_json
from sail.reward_training import (
    RewardPairs,
    Start,
    encode_pairs,
    load_start,
    make_reward_trainer,
    save_reward_model,
)
from sail.training.checkpoints import STATE_FILE, checkpoints, step_of
from sail.training.progress import train_or_stop

BEGUN = "reward_run.json"
"""What the run was begun with; it also marks a folder as one that sail train-reward made, and may replace."""
PICTURE = "reliability.svg"
_MAY_CHANGE = LOGS_AND_SAVES | {"output_dir"}


@dataclass(frozen=True)
class _Parts:
    start: Start
    name: str
    rows: RowSet
    train: RewardPairs
    held_rows: RowSet | None
    held_out: RewardPairs | None


def run_train_reward(config: RunConfig, *, resume: bool, overwrite: bool, config_path: str) -> Path:
    """`sail train-reward`: returns the folder of the reward model, with results.json and reliability.svg in it.

    Ctrl-C saves a checkpoint and says how to go on; a run goes on only with the settings and pairs it was begun with.
    """
    folder = Path(_section(config).output_dir)
    _check_folder(folder, resume=resume, overwrite=overwrite)
    parts = _parts(config)
    print("\n".join(_remarks(parts)))
    begun = _identity(config, parts)
    checkpoint = _checkpoint(folder, begun) if resume else None
    began = time.time()
    trainer = make_reward_trainer(
        parts.start, parts.train, parts.held_out, _section(config).trainer_kwargs, peft_config=_peft(config)
    )
    if trainer.is_world_process_zero():
        if overwrite:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / BEGUN, begun)
    if train_or_stop(trainer, str(checkpoint) if checkpoint else None):
        print(
            f"\nStopped at step {trainer.state.global_step}. Continue with:\n  sail train-reward {config_path} --resume"
        )
        raise KeyboardInterrupt("said already")
    if trainer.is_world_process_zero():
        save_reward_model(trainer, folder)
        results = _results(config, parts, trainer, folder)
        results["seconds"] = time.time() - began
        write_json(folder / RESULTS, results)
        _print_results(results, folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def dry_run_reward(config: RunConfig) -> str:
    """`sail train-reward --dry-run`: what would be trained, from the real model and pairs."""
    parts = _parts(config)
    with tempfile.TemporaryDirectory() as elsewhere:
        arguments = _section(config).trainer_kwargs | {"output_dir": elsewhere}
        trainer = make_reward_trainer(
            parts.start, parts.train, parts.held_out, arguments, peft_config=_peft(config)
        )
        steps = int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1])
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in trainer.model.parameters())
    lines = [
        *_remarks(parts),
        f"trainable parameters: {trainable:,} of {every:,}",
        f"optimiser steps: {steps}",
        f"folder: {_section(config).output_dir}",
        "Nothing was trained or written.",
    ]
    return "\n".join(lines)


# ---- parts


def _section(config: RunConfig) -> Any:
    if config.reward is None:
        raise ConfigError(
            "The run has no reward section. Add one: reward: {train: pairs.jsonl, output_dir: reward-model}."
        )
    return config.reward


def _peft(config: RunConfig) -> Any:
    made = make_peft(config)
    if made is not None:
        made.task_type = "SEQ_CLS"  # the score head is trained too, and saved
    return made


def _parts(config: RunConfig) -> _Parts:
    section, policy = _section(config), config.data.bad_rows
    source, held = section.train or config.data.train, section.eval or config.data.eval
    if source is None:
        raise ConfigError("sail train-reward has no pairs: set reward.train or data.train.")
    name = section.model or config.model
    tokenizer = config.tokenizer if section.model is None else None  # that of the run is its model's
    # The files first: a slip in them is told before a model is loaded.
    rows = load_rows(source, bad_rows=policy, need_pairs=True)
    held_rows = load_rows(held, bad_rows=policy, need_pairs=True) if held else None
    seed = int(section.model_dump().get("seed", 42))
    start = load_start(name, tokenizer=tokenizer, max_length=section.max_length, seed=seed)
    train = encode_pairs(rows.rows, start, bad_rows=policy)
    held_out = encode_pairs(held_rows.rows, start, bad_rows=policy) if held_rows else None
    return _Parts(start, name, rows, train, held_rows, held_out)


def _remarks(parts: _Parts) -> list[str]:
    lines = []
    for what, rows, pairs in (
        ("training", parts.rows, parts.train),
        ("held-out", parts.held_rows, parts.held_out),
    ):
        if rows is None or pairs is None:
            lines.append("There is no reward.eval or data.eval, so nothing will be measured.")
            continue
        counts = {
            "skipped": len(rows.skipped) + len(pairs.skipped),
            "with equal responses left out": pairs.identical,
        }
        said = "".join(f", {count} {name}" for name, count in counts.items() if count) + left_out(rows.counts)
        cut = (
            f"; {pairs.cut} texts cut on the left of the prompt at {parts.start.max_length} tokens"
            if pairs.cut
            else ""
        )
        lines.append(f"{what}: {len(pairs.pairs)} pairs{said}{cut}")
    if parts.start.new:
        lines.append(
            f"{parts.name} has no score head ({', '.join(parts.start.new)}): it is made anew and trained."
        )
    return lines


# ---- the folder


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other. Keep one.")
    ours = (folder / BEGUN).exists()
    if not ours and (folder / "config.json").exists():
        raise ConfigError(
            f"{folder} holds a model that sail train-reward has not made. Choose another reward.output_dir."
        )
    used = (folder / RESULTS).exists() or bool(checkpoints(folder))
    if ours and used and not resume and not overwrite:
        raise ConfigError(
            f"{folder} already holds a reward model or a part of its training. Continue with --resume, start anew with "
            "--overwrite, or choose another reward.output_dir."
        )
    if resume and (folder / RESULTS).exists():
        raise ConfigError(f"{folder} is finished: it has {RESULTS}. Start anew with --overwrite.")


def _clear(folder: Path) -> None:
    """Remove what an earlier training has written; files of the user's own stay."""
    for path in checkpoints(folder):
        shutil.rmtree(path)
    for pattern in (
        "*.safetensors*",
        "config.json",
        "tokenizer*",
        "chat_template*",
        "special_tokens_map.json",
    ):
        for path in folder.glob(pattern):
            path.unlink()
    for name in (RESULTS, PICTURE, BEGUN):
        (folder / name).unlink(missing_ok=True)


def _identity(config: RunConfig, parts: _Parts) -> dict[str, Any]:
    """What must be the same for a run to go on as if it had never stopped."""
    given = {
        key: value
        for key, value in _section(config).model_dump().items()
        if key not in _MAY_CHANGE | {"train"}
    }
    return json.loads(
        json.dumps(
            {
                **given,
                "model": parts.name,
                "pairs": parts.train.fingerprint,
                "peft": config.peft and hash_of(config.peft.lora_kwargs),
            },
            default=str,
        )
    )


def _checkpoint(folder: Path, begun: dict[str, Any]) -> Path | None:
    """The newest checkpoint that was written completely: Trainer writes its state file last."""
    complete = [path for path in checkpoints(folder) if (path / STATE_FILE).exists() and step_of(path)]
    if not complete:
        return None
    before = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    keys = (before.keys() | begun.keys()) - _MAY_CHANGE
    changed = sorted(key for key in keys if before.get(key) != begun.get(key))
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} then, {begun.get(key)!r} now" for key in changed)
        raise CheckpointError(
            f"{folder} was begun with other settings ({listed}). Put them back, or start anew with --overwrite."
        )
    return complete[0]


# ---- what it is worth


def _results(config: RunConfig, parts: _Parts, trainer: Any, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {
        "base": parts.name,
        "score_head": "new" if parts.start.new else "kept",
        "steps": trainer.state.global_step,
        "train_pairs": len(parts.train.pairs),
        "cut": parts.train.cut,
        "identical": parts.train.identical,
        "skipped": len(parts.rows.skipped) + len(parts.train.skipped),
        "curve": [
            {key: line[key] for key in ("step", "loss", "accuracy", "eval_loss") if key in line}
            for line in trainer.state.log_history
            if "loss" in line or "eval_loss" in line
        ],
        "notes": [],
    }
    if parts.held_rows is None or parts.held_out is None:
        results["notes"].append("There are no held-out pairs (reward.eval, data.eval): nothing was measured.")
        return results
    # Through the folder that was saved, and through the oracle that a run will ask.
    batch_size = trainer.args.per_device_eval_batch_size
    oracle = RewardModel(str(folder), batch_size=batch_size, max_length=parts.start.max_length)
    results.update(judge_pairs(oracle, parts.held_out.rows))
    results["held_out_skipped"] = len(parts.held_rows.skipped) + len(parts.held_out.skipped)
    title = f"{folder.name}: {results['accuracy']['n']} held-out pairs"
    (folder / PICTURE).write_text(reliability_picture(results["reliability"], title), encoding="utf-8")
    return results


def judge_pairs(oracle: RewardModel, rows: Sequence[Row]) -> dict[str, Any]:
    """accuracy, loss, calibration_error, calibrating_temperature and reliability over held-out pairs, with n and 95% intervals
    clustered by prompt; pairs with equal responses say nothing and are left out. Probabilities at temperature 1."""
    pairs = [row for row in rows if not row.identical]
    prompts = [row.prompt for row in pairs]
    chosen = oracle.score(prompts, [row.chosen or "" for row in pairs])
    rejected = oracle.score(prompts, [row.rejected or "" for row in pairs])
    scored = [
        (one - two, json.dumps(prompt, sort_keys=True))
        for one, two, prompt in zip(chosen, rejected, prompts, strict=True)
        if one is not None and two is not None
    ]
    margins, keys = [margin for margin, _ in scored], [key for _, key in scored]
    return {
        "accuracy": asdict(accuracy(margins, keys)),
        "loss": float(np.logaddexp(0.0, -np.array(margins)).mean()),
        "calibration_error": asdict(calibration_error(margins, keys)),
        "calibrating_temperature": asdict(calibrating_temperature(margins, keys)),
        "reliability": reliability(margins, keys),
        "held_out_cut": oracle.counts["cut"],
    }


def _print_results(results: dict[str, Any], folder: Path) -> None:
    names = {
        "accuracy": "held-out accuracy",
        "calibration_error": "expected calibration error",
        "calibrating_temperature": "temperature that would calibrate it",
    }
    for key, name in names.items():
        if key in results:
            print(f"{name:<40} {_shown(results[key])}")
    print(f"The reward model is in {folder}. Use it: oracle: {{kind: reward_model, model: {folder}}}")


def _shown(interval: dict[str, Any]) -> str:
    if interval["mean"] is None:
        return "none: no temperature above 0 is best"
    low, high = ("?" if interval[end] is None else f"{interval[end]:.3f}" for end in ("low", "high"))
    return f"{interval['mean']:.3f} [{low}, {high}], n {interval['n']}, {interval['clusters']} prompts"
