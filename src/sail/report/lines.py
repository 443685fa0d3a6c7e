"""JSON lines that may be half written or damaged: what can be read is read, and what cannot is told."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_CHUNK = 1 << 16  # bytes read at once; small, as what follows a gzip member is copied for each of them


@dataclass(frozen=True)
class Problem:
    """Something missing or damaged in a run folder, in words a user reads; `missing` when the file is not there."""

    file: str
    text: str
    missing: bool = False


def number(value: object) -> float | None:
    """`value` if it is a finite number (a bool is not), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if (isinstance(value, float) and not math.isfinite(value)) or abs(value) > 1e300:
        return None
    return value


class Lines:
    """Parses JSON lines and remembers which of them were no objects."""

    def __init__(self, lines: list[bytes] | Iterator[bytes]) -> None:
        self.lines = lines
        self.bad: list[int] = []
        self.read = 0

    def objects(self) -> Iterator[Row]:
        """Each line that holds a JSON object; blank lines are nothing, others go to `bad`."""
        for line in self.lines:
            if not line.strip():
                continue
            self.read += 1
            try:
                value = json.loads(line.decode("utf-8", errors="replace"))
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            else:
                self.bad.append(self.read)

    def report(self, file: str, problems: list[Problem]) -> None:
        """One problem for a half-written last line, one for all others."""
        if self.bad and self.bad[-1] == self.read:
            problems.append(Problem(file, "the last line is half written and was left out"))
            self.bad.pop()
        if self.bad:
            shown = ", ".join(str(line) for line in self.bad[:5]) + (", ..." if len(self.bad) > 5 else "")
            problems.append(Problem(file, f"{len(self.bad)} lines are no JSON objects, left out: {shown}"))


def unzipped_lines(
    path: Path, damage: list[str], watch: Callable[[int], None] | None = None
) -> Iterator[bytes]:
    """Lines of a file of concatenated gzip members; what can be read of a broken one is read, and `damage` says so.

    The gzip module would raise at the broken member and swallow what it had decoded of it. `watch` is told the bytes read.
    """
    rest = b""
    decoder = zlib.decompressobj(wbits=31)
    fresh = True  # no byte of the current member was read yet
    with path.open("rb") as file:
        data = file.read(_CHUNK)
        if watch:
            watch(len(data))
        while data:
            try:
                text = decoder.decompress(data)
            except zlib.error:
                damage.append("a part is damaged; read up to there")
                fresh = True
                break
            fresh = False
            *lines, rest = (rest + text).split(b"\n")
            yield from lines
            data = b""
            if decoder.eof:
                data, decoder, fresh = decoder.unused_data, zlib.decompressobj(wbits=31), True
            if not data:
                data = file.read(_CHUNK)
                if watch:
                    watch(len(data))
    if not fresh:
        damage.append("ends in the middle of a compressed block; read up to there")
    if rest:
        yield rest
