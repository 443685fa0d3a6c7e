"""What an evaluation was of: fingerprints of model files, of weights in memory, and of any file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
TOKENIZERS = (".jinja", ".model")
"""Endings of chat templates and of sentencepiece's files."""
PROBES = 512
"""Values of each weight that a fingerprint in memory looks at."""


def file_fingerprint(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_fingerprint(name: str) -> str:
    """sha256 (hex) over the weights, the configurations and the tokenizer of a model folder, its chat templates and adapters
    included; a hub name stands for itself."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        weights = path.suffix == ".safetensors" or (path.suffix == ".bin" and "model" in path.name)
        if path.is_file() and (weights or path.name in CONFIGURATIONS or path.suffix in TOKENIZERS):
            digest.update(f"{path.name} {file_fingerprint(path)}\n".encode())
    return digest.hexdigest()


def weights_fingerprint(model: Any) -> str:
    """sha256 (hex) over evenly spaced values of every weight, as float32 and by name: cheap, and the same for a model and for
    the base of an adapter around it. It tells models apart; it is no proof that two are equal in every value."""
    digest = hashlib.sha256()
    found = {}
    for name, value in model.state_dict().items():
        plain = name.removeprefix("module.").removeprefix("base_model.model.").replace(".base_layer.", ".")
        if "lora_" not in plain:
            found[plain] = value
    for name in sorted(found):
        flat = found[name].detach().reshape(-1)
        stride = max(1, flat.numel() // PROBES)
        digest.update(f"{name} {tuple(found[name].shape)}".encode())
        digest.update(flat[::stride].to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
