"""What `sail eval` was pointed at: a run folder, a checkpoint of one, or a bare model; and where a moved run's files are now."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sail.build import make_model
from sail.commands.wording import did_you_mean
from sail.config import RunConfig, load_config
from sail.data_config import with_path
from sail.errors import ConfigError, MissingExtraError
from sail.evaluation.files import read_json
from sail.evaluation.fingerprint import model_fingerprint
from sail.fitting import context_of
from sail.oracle_config import moved
from sail.run_folder import RESOLVED
from sail.training.checkpoints import checkpoints, is_complete

ADAPTER = "adapter_config.json"


@dataclass
class Subject:
    """A model to evaluate. `run` and `config` are of the run it belongs to, None for a bare model; `base` is what an adapter
    sits on. `notes` tell of files that were found elsewhere than the run's settings say."""

    name: str
    model: str
    run: Path | None = None
    config: RunConfig | None = None
    step: int | None = None
    base: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Of the files of the model, and of an adapter's base."""
        own = model_fingerprint(self.model)
        return own if self.base is None else f"{own} on {model_fingerprint(self.base)}"

    def load(self, **arguments: Any) -> Any:
        """The model, on the GPU if there is one; an adapter is put on its base. Its own code is trusted as the run was told."""
        arguments["trust_remote_code"] = self.config is not None and self.config.trust_remote_code
        if self.base is None:
            return to_device(make_model(self.model, **arguments))
        try:
            from peft import PeftModel
        except ImportError as error:
            raise MissingExtraError(
                f'{self.model} is a LoRA adapter. Install PEFT to load it: pip install "sail-align[lora]"'
            ) from error
        return to_device(PeftModel.from_pretrained(make_model(self.base, **arguments), self.model))


def generation_config(name: str, *, trust: bool = False) -> Any:
    """The generation settings of a model from its files alone, as they would be once it is loaded."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(name, trust_remote_code=trust))


def check_room(subject: Subject, longest: int, answer: int) -> None:
    """Raises ConfigError if an answer of `answer` tokens does not fit behind a prompt of `longest`, naming the room there is:
    beyond the positions that it was trained on a model says anything."""
    context = context_of(subject.base or subject.model)
    if context is None or not longest or longest + answer <= context:
        return
    whole = f"The context of {subject.name} has {context} tokens, and the longest prompt {longest}"
    if longest >= context:
        raise ConfigError(f"{whole}: there is no room for an answer. Give shorter prompts with --data.")
    raise ConfigError(
        f"{whole}: there is room for answers of {context - longest} tokens, not of {answer}. Give "
        f"--max-new-tokens {context - longest} or less."
    )


def stored_type(name: str) -> Any:
    """The type that a model's weights are stored in, from its files alone; None where they do not say."""
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(name), "dtype", None)


def to_device(model: Any) -> Any:
    """The model on the first GPU, or where it is."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def find_subject(path: str) -> Subject:
    """The subject at a path or hub name. A run folder means its final model, or its newest checkpoint if it has not ended.

    Raises ConfigError where there is no such folder, or a run without any weights.
    """
    folder = Path(path)
    if (folder / RESOLVED).is_file():
        return _of_run(folder)
    _refuse_a_mistyped_run(folder)
    inside = folder.name.startswith("checkpoint-") or folder.name in ("model", "adapter")
    run = folder.absolute().parent
    if folder.is_dir() and inside and (run / RESOLVED).is_file():
        config, notes = run_config(run)
        step = folder.name.removeprefix("checkpoint-")
        found = Subject(f"{run.name}/{folder.name}", path, run, config, int(step) if step.isdigit() else None)
        found.notes = notes
    else:
        found = Subject(folder.name or path, path)
    found.base = _base(folder, found.config)
    return found


def _refuse_a_mistyped_run(folder: Path) -> None:
    """A name beside runs, and like one of theirs, is that of a run: it is not looked for on the hub, which takes a minute to
    say no."""
    if folder.exists() or not folder.parent.is_dir() or str(folder.parent) == ".":
        return
    runs = sorted(one.parent.name for one in folder.parent.glob(f"*/{RESOLVED}"))
    meant = did_you_mean(folder.name, runs)
    could_be_on_the_hub = len(folder.parts) == 2
    if runs and (meant or not could_be_on_the_hub):
        raise ConfigError(f"There is no run {folder}.{meant} The runs in {folder.parent}: {', '.join(runs)}.")


def _of_run(folder: Path) -> Subject:
    config, notes = run_config(folder)
    name = folder.resolve().name
    steps = read_json(folder / "results.json").get("steps")
    if (folder / "model" / "config.json").is_file():
        found = Subject(
            name, str(folder / "model"), folder, config, steps if isinstance(steps, int) else None
        )
    else:
        complete = [one for one in checkpoints(folder) if is_complete(one)]
        if not complete:
            raise ConfigError(
                f"{folder} holds no weights yet: neither model/ nor a complete checkpoint. Train it first."
            )
        newest = complete[0]
        found = Subject(name, str(newest), folder, config, _step(newest), _base(newest, config))
        notes = [*notes, f"The run has not ended: {newest.name} is evaluated."]
    found.notes = notes
    return found


def checkpoint_subjects(run: Subject) -> list[Subject]:
    """The complete checkpoints of a run, the oldest first."""
    folders = [] if run.run is None else [one for one in reversed(checkpoints(run.run)) if is_complete(one)]
    return [
        Subject(f"step {_step(one)}", str(one), run.run, run.config, _step(one), _base(one, run.config))
        for one in folders
    ]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _base(folder: Path, config: RunConfig | None) -> str | None:
    """What the adapter in `folder` sits on; None if it holds no adapter."""
    if not (folder / ADAPTER).is_file():
        return None
    if config is not None:
        return config.model
    return str(read_json(folder / ADAPTER).get("base_model_name_or_path"))


def run_config(run: Path) -> tuple[RunConfig, list[str]]:
    """The settings of a run, with the paths of what was moved along with it put right, and a note for each of those."""
    config = load_config(run / RESOLVED)
    notes: list[str] = []

    def here(path: str | None) -> str | None:
        found = None if path is None else located(path, run, config.train.output_dir)
        if path is not None and found != path:
            notes.append(f"{path} is not there any more; {found} is taken.")
        return found

    data = config.data.model_copy(
        update={key: with_path(getattr(config.data, key), here) for key in ("train", "eval", "prompts")}
    )
    changes: dict[str, Any] = {key: here(getattr(config, key)) for key in ("model", "ref_model", "tokenizer")}
    for key in ("oracle", "eval_oracle"):
        if (section := getattr(config, key)) is not None:
            changes[key] = moved(section, lambda path: here(path) or path)
    return config.model_copy(update={"data": data, **changes}), notes


def located(path: str, run: Path, output_dir: str) -> str:
    """Where a run's file is now: at `path`, or, if that is gone, in the same place relative to the moved run folder.

    The run was at R/output_dir for some folder R above the file; the nearest R for which there is a file is taken.
    """
    if os.path.exists(path) or not os.path.isabs(path):
        return path
    for root in Path(path).parents:
        moved = run.absolute() / os.path.relpath(path, root / output_dir)
        if os.path.exists(os.path.normpath(moved)):
            return os.path.normpath(moved)
    return path
