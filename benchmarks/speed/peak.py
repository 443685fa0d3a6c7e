"""Peak live tensor bytes: every storage that an operation reads or makes, from its first use until it is freed.

An allocator's own counter says what a device has reserved; this one says what the program keeps alive, on any device, to the
byte. Temporary memory inside a kernel is not seen. Slow: every operation passes through Python, so time nothing under it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """`with PeakBytes() as peak: ...; peak.peak` in bytes. Storages that the block reads count from their first use on;
    `start` counts tensors as there from the beginning. `largest` is the biggest single storage."""

    def __init__(self, start: Any = ()) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._sizes: dict[int, tuple[int, Any]] = {}
        self._see(start)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then look at what it was given and what it made."""
        result = func(*args, **(kwargs or {}))
        self._see((args, kwargs or {}, result))
        return result

    def _see(self, tree: Any) -> None:
        for one in tree_leaves(tree):
            if isinstance(one, torch.Tensor):
                self._count(one.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        before = self._sizes.get(key)
        if before is None:
            self._sizes[key] = (size, weakref.ref(storage, lambda _: self._free(key)))
            self.now += size
        elif before[0] != size:
            self._sizes[key] = (size, before[1])
            self.now += size - before[0]
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, self.now)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)[0]
