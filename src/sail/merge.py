"""`sail merge`: a LoRA adapter added into its base, as an ordinary model folder. Whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from sail.build import make_tokenizer
from sail.errors import ConfigError, SailError
from sail.evaluation.files import read_json, write_json
from sail.evaluation.fingerprint import model_fingerprint
from sail.subject import ADAPTER, find_subject, generation_config
from sail.training.merging import merged_with_base

MARK = "sail_merge.json"
"""What a merged folder was made of; it also marks the folder as one that sail merge made, and may replace."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Sources:
    """The folder of an adapter, and the folder or hub name of its base."""

    adapter: Path
    base: str


def merge(
    path: str,
    *,
    out: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge the adapter of a run, of a checkpoint, or in a folder; returns the new folder.

    W = W_base + (alpha / r) B A for every adapted layer, added in float32 and rounded once to `dtype` (None: as the base is
    stored). Written: safetensors, the tokenizer with its chat template, and the generation settings, beside RUN or the adapter
    unless `out` says where. Raises SailError for a full model, a missing base, a folder of something else, a full disk.
    """
    sources = _sources(path, base)
    target = Path(out) if out else _default_out(Path(path), sources.adapter)
    _check_target(target, sources, overwrite=overwrite)
    made = write_merged(sources, target, dtype)
    print(f"{sources.adapter} is merged into {sources.base} ({made}): {target}")
    return target


def write_merged(sources: Sources, target: Path, dtype: str | None = None) -> str:
    """Merge and put the result at `target` in one rename, replacing what is there; returns the type of its weights."""
    unfinished = target.with_name(target.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model, stored = merged_with_base(sources.adapter, sources.base)
        model.generation_config = generation_config(sources.base)
        kind = getattr(torch, dtype) if dtype else stored
        target.parent.mkdir(parents=True, exist_ok=True)
        model.to(kind).save_pretrained(unfinished, safe_serialization=True)
        _save_tokenizer(sources, unfinished)
        write_json(unfinished / MARK, _made_of(sources, kind))
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except (OSError, RuntimeError) as error:
        raise SailError(
            f"The merged model could not be written to {target}: {error}. Nothing was left there."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(kind).removeprefix("torch.")


def _save_tokenizer(sources: Sources, folder: Path) -> None:
    """That of the adapter's folder where there is one: training may have given it a pad token or another template."""
    run = sources.adapter.parent / "model"
    for place in (sources.adapter, run):
        if (place / "tokenizer_config.json").is_file():
            # A checkpoint has no config.json, so it is no model folder, and its tokenizer can be loaded all the same.
            AutoTokenizer.from_pretrained(str(place)).save_pretrained(folder)
            return
    make_tokenizer(sources.base).save_pretrained(folder)


def _made_of(sources: Sources, kind: torch.dtype) -> dict[str, Any]:
    return {
        "adapter": str(sources.adapter),
        "adapter_fingerprint": model_fingerprint(str(sources.adapter)),
        "base": sources.base,
        "base_fingerprint": model_fingerprint(sources.base),
        "dtype": str(kind).removeprefix("torch."),
    }


# ---- from what, and where to


def _sources(path: str, base: str | None) -> Sources:
    """The adapter that a path means: a run's final one, else that of its newest checkpoint; a checkpoint's; a folder's own."""
    folder = Path(path)
    inside = folder / "adapter"
    if (inside / ADAPTER).is_file():
        folder = inside
    elif not (folder / ADAPTER).is_file():
        subject = find_subject(path)
        folder = Path(subject.model)
        if subject.base is None:
            raise ConfigError(
                f"{path} holds a full model and no adapter, so there is nothing to merge: use {subject.model} as it is."
            )
    found = base or find_subject(str(folder)).base
    if not found or found == "None":
        raise ConfigError(f"{folder} does not say what it was trained on. Give the base with --base MODEL.")
    return Sources(folder, found)


def _default_out(given: Path, adapter: Path) -> Path:
    """RUN/merged, or the adapter's own name with -merged."""
    run = given if adapter != given and given.is_dir() else None
    return run / "merged" if run else adapter.with_name(f"{adapter.name}-merged")


def _check_target(target: Path, sources: Sources, *, overwrite: bool) -> None:
    here = target.resolve()
    if (
        here in (sources.adapter.resolve(), Path(sources.base).resolve())
        or here in sources.adapter.resolve().parents
    ):
        raise ConfigError(f"{target} is what the model is made from. Choose another folder with --out.")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / MARK).is_file():
        raise ConfigError(
            f"{target} is there, and sail merge has not made it. Choose another folder with --out."
        )
    if not overwrite:
        raise ConfigError(
            f"{target} already holds a merged model ({read_json(target / MARK).get('adapter')}). Replace it with --overwrite, or "
            "choose another folder with --out."
        )
