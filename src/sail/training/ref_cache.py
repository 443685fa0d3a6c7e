"""Reference log-probs of all dataset rows, computed once, and kept on disk for whoever asks the same question again.

A file belongs to everything that its numbers depend on: every value of the reference's weights, its configuration, the token
ids of the rows, precision, device, attention, kernels, versions, batch size and number of processes (the last digits depend on
them). So what is read is, bit
for bit, what a forward would have given, and a resumed run does not notice where its numbers came from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from sail.data.encode import EncodedDataset
from sail.generation.head import find_head
from sail.generation.joined import RULE, joins
from sail.generation.unwrap import unwrapped
from sail.mixture import ROUTES, Share
from sail.online import DATASET, Example, collate, dataset_responses
from sail.training.models import has_adapter
from sail.training.reference import Reference
from sail.training.step import gather, place_among_processes

REF_CACHE = "ref_cache"
"""The folder in a run's own, where the option names no other."""
UNIMPORTANT = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")


def remember_all(reference: Reference, dataset: EncodedDataset, args: Any) -> str:
    """Let the reference remember the log-probs of all rows with a pair; returns a sentence on where they came from.

    `args`: SAILConfig. Every process must call it; they share the work, and the first one writes the file.
    """
    batch_size, device = args.per_device_eval_batch_size, args.device
    facts = facts_of(reference, dataset, batch_size, device)
    count = len(dataset) - dataset.prompt_only
    folder = Path(args.ref_cache) if args.ref_cache else Path(args.output_dir) / REF_CACHE
    file = None if facts is None else folder / f"{key_of(facts)}.safetensors"
    found = None if file is None else read(file, len(dataset))
    # All or none: a process without the file would wait for the others' forwards.
    if all(gather([found is not None])) and found is not None:
        _take(reference, dataset, found)
        return f"reference log-probs of {count} rows: read from {file}, nothing computed."
    _take(reference, dataset, computed(reference, dataset, batch_size, device))
    if file is None or facts is None:
        return f"reference log-probs of {count} rows: computed; not kept, because the weights are spread over devices."
    problem = None
    if place_among_processes()[0] == 0:
        problem = write(file, _table(reference, dataset), facts)
    kept = (
        f"kept in {file}." if problem is None else f"not kept, because {file} cannot be written ({problem})."
    )
    return (
        f"reference log-probs of {count} rows: nothing kept for these weights and rows, so computed; {kept}"
    )


def facts_of(
    reference: Reference, dataset: EncodedDataset, batch_size: int, device: torch.device
) -> dict[str, Any] | None:
    """What the numbers depend on, JSON-able; None where the weights are sharded, and no process has all of them."""
    weights = weights_hash(reference)
    if weights is None:
        return None
    model, its_weights = reference.model()
    with its_weights, reference.precision():
        mixed = torch.is_autocast_enabled(device.type)
        autocast = str(torch.get_autocast_dtype(device.type)) if mixed else None
    config = {key: value for key, value in model.config.to_dict().items() if key not in UNIMPORTANT}
    return {
        "weights": weights,
        "config": json.loads(json.dumps(config, default=str, sort_keys=True)),
        "rows": dataset.fingerprint,
        "autocast": autocast,
        "attention": attention_of(model.config),
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kernels": kernels(),
        "batch_size": batch_size,
        "processes": place_among_processes()[1],
        "logprob_chunk": reference.chunk,
        "prompt_read_once": _rule(model, reference.chunk),
    }


def _rule(model: Any, chunk: int | None) -> str | None:
    """By which rule pairs may have their prompt read once; None where they never have."""
    able = chunk != 0 and find_head(model) is not None and joins(unwrapped(model))
    return RULE if able else None


def attention_of(config: Any) -> str | None:
    """Which attention runs (eager, sdpa, flash_attention_2, ...): the configuration's dict does not say."""
    found = getattr(config, "_attn_implementation", None)
    return None if found is None else str(found)


def device_name(device: torch.device) -> str:
    """cpu, or the name of the GPU: other GPUs have other kernels."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def kernels() -> list[Any]:
    """The process's switches that change how matrices are multiplied and attention is computed."""
    cuda = torch.backends.cuda
    return [
        torch.get_float32_matmul_precision(),
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    ]


def key_of(facts: dict[str, Any]) -> str:
    """A name for the facts: the first 32 hex digits of their sha256."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def weights_hash(reference: Reference) -> str | None:
    """sha256 (hex) over name, type, shape and every byte of the tensors that make the reference speak; about a second per
    gigabyte. An adapter that is switched off is none of them."""
    model, its_weights = reference.model()
    without_adapter = has_adapter(model) and not reference.kept
    digest = hashlib.sha256()
    with its_weights:
        tensors: list[tuple[str, Tensor]] = [
            (name, value)
            for name, value in model.named_parameters()
            if not (without_adapter and value.requires_grad)
        ]
        tensors += list(model.named_buffers())
        for name, value in tensors:
            if hasattr(value, "full_tensor") or hasattr(value, "ds_id"):
                return None
            for part, content in [(name, value), *_scales(name, value)]:
                _add(digest, part, content)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        digest.update(f"{name} {value}".encode())
        return
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
    digest.update(flat.cpu().numpy().data)


def _scales(name: str, value: Any) -> list[tuple[str, Any]]:
    """What bitsandbytes keeps beside a weight in few bits, and multiplies it with: the state of 4 bits (its numbers, nested
    ones too), the scales of 8 bits."""
    found: list[tuple[str, Any]] = []
    if getattr(value, "SCB", None) is not None:
        found.append((f"{name}.SCB", value.SCB))
    state = getattr(value, "quant_state", None)
    if state is not None:
        found += [(f"{name}.quant_state.{key}", one) for key, one in sorted(state.as_dict().items())]
    return found


def computed(
    reference: Reference, dataset: EncodedDataset, batch_size: int, device: torch.device
) -> dict[int, tuple[float, float]]:
    """index -> (log pi_ref of the chosen, of the rejected response), nats. Batches of like length are dealt out to the processes,
    each of which does as many forwards as every other: sharded weights wait for all."""
    paired: list[dict[str, Any]] = [dict(row) for row in dataset.rows if row["chosen_ids"] is not None]
    paired.sort(
        key=lambda row: len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    )
    batches = [paired[start : start + batch_size] for start in range(0, len(paired), batch_size)]
    place, processes = place_among_processes()
    own = batches[place::processes]
    if len(own) < math.ceil(len(batches) / processes):
        own.append(batches[-1])
    return dict(gather([pair for rows in own for pair in _scored(reference, rows, device)]))


def _scored(
    reference: Reference, rows: Sequence[dict[str, Any]], device: torch.device
) -> list[tuple[int, tuple[float, float]]]:
    share = Share(ROUTES["data"], 1.0)
    examples = [Example(row, share, 0.0, *dataset_responses(row), source=DATASET) for row in rows]
    values = reference.forward(collate(examples, reference.pad_id), device).cpu().double().tolist()
    return [
        (example.index, (values[place], values[len(examples) + place]))
        for place, example in enumerate(examples)
    ]


def _take(
    reference: Reference, dataset: EncodedDataset, found: Tensor | dict[int, tuple[float, float]]
) -> None:
    if isinstance(found, dict):
        reference.remember = found
        return
    reference.remember = {
        row["index"]: (values[0], values[1])
        for row, values in zip(dataset.rows, found.tolist(), strict=True)
        if row["chosen_ids"] is not None
    }


def _table(reference: Reference, dataset: EncodedDataset) -> Tensor:
    """(rows, 2) float64 in the dataset's order, nan for rows without a pair."""
    nothing = (math.nan, math.nan)
    return torch.tensor(
        [reference.remember.get(row["index"], nothing) for row in dataset.rows], dtype=torch.float64
    )


# ---- files


def read(file: Path, rows: int) -> Tensor | None:
    """The table of a file, (rows, 2) float64; None if there is none, or one that is torn or was changed."""
    if not file.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            expected = (opened.metadata() or {}).get("sha256")
            table: Tensor = opened.get_tensor("log_probs")
    except (SafetensorError, OSError, ValueError):
        return None
    whole = table.dtype == torch.float64 and table.shape == (rows, 2) and expected == _hash(table)
    return table if whole else None


def write(file: Path, table: Tensor, facts: dict[str, Any]) -> str | None:
    """Keep the table under the file's name once all of it is on disk; returns what went wrong, or None."""
    from safetensors.torch import save

    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as opened:
            opened.write(
                save(
                    {"log_probs": table}, {"facts": json.dumps(facts, sort_keys=True), "sha256": _hash(table)}
                )
            )
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        return str(error.strerror or error)
    return None


def _hash(table: Tensor) -> str:
    return hashlib.sha256(table.contiguous().numpy().tobytes()).hexdigest()
