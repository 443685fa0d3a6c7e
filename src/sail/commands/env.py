"""`sail env`: the versions and the hardware that a bug report needs, and nothing private."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = {
    "torch": "sail-align",
    "transformers": "sail-align",
    "accelerate": "sail-align",
    "peft": "sail-align[lora]",
    "trl": "sail-align[sft]",
    "datasets": "sail-align[sft]",
    "starlette": "sail-align[annotate]",
    "uvicorn": "sail-align[annotate]",
}
"""Each package, with what to install to get it."""


def environment() -> str:
    """One line per fact."""
    facts = [
        ("sail", _version("sail-align") or "not installed as a package"),
        ("python", platform.python_version()),
    ]
    for package, source in _PACKAGES.items():
        facts.append((package, _version(package) or f'not installed (pip install "{source}")'))
    facts.append(("system", f"{platform.system()} {platform.machine()}"))
    facts.append(("cores", str(_cores())))
    facts.extend(_torch_facts())
    return "\n".join(f"{name:<13} {value}" for name, value in facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    """The cores this process may use, which a container may make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _torch_facts() -> Iterator[tuple[str, str]]:
    try:
        torch: Any = import_module("torch")  # looked for like any other package: nothing here needs it
    except ImportError:
        return
    yield "threads", str(torch.get_num_threads())
    if not torch.cuda.is_available():
        yield "cuda", "no device"
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{device.name}, {memory}, CUDA {torch.version.cuda}"
