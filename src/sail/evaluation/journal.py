"""A file that work is appended to chunk by chunk, so that what was killed continues where it stopped. No torch.

The first line is a header that says what the work is of (fingerprints of models and data, settings, seed). Every other line
is one row of a chunk, {"chunk": name, "of": rows in the chunk, ...}. A chunk counts once all its rows are there; the rest of
the file is cut off when it is opened, and made again. What is read back equals what was written, to the last digit.

The file is locked while it is open, so that one process at a time works on it. The lock ends with its process, however that ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from sail.errors import SailError

Row = dict[str, Any]


class Journal:
    """Rows of finished chunks by name; use it as a context. `overwrite` starts anew whatever is there.

    Raises SailError, naming the keys that differ, if the file was begun with another header; if another process has it open; if
    it cannot be written.
    """

    def __init__(self, path: Path, header: Row, *, overwrite: bool = False) -> None:
        self.path = path
        self.header: Row = json.loads(json.dumps(header))
        self.chunks: dict[str, list[Row]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Neither cuts nor reads what is there before it is locked.
            self.file = path.open("a+b")
        except OSError as error:
            raise SailError(f"{path} cannot be written: {error}. Choose another folder with --out.") from None
        try:
            _lock(self.file, path)
            kept = 0 if overwrite else self._read()
            self.file.truncate(kept)
            if kept == 0:
                self._write([self.header])
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def chunk(self, name: str, make: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a chunk: those of the file, else those that `make` returns (at least one), which are written first."""
        if name not in self.chunks:
            rows = make()
            self._write([{"chunk": name, "of": len(rows), **row} for row in rows])
            self.chunks[name] = rows
        return self.chunks[name]

    def _write(self, rows: list[Row]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        self.file.write(text.encode("utf-8", errors="replace"))
        self.file.flush()

    def _read(self) -> int:
        """Take the whole chunks; returns how many bytes of the file are good."""
        self.file.seek(0)
        lines = self.file.read().splitlines(keepends=True)
        before = _row(lines[0]) if lines else None
        if before is None:
            # A header that was cut off by a kill is a single line without an end.
            if lines and (len(lines) > 1 or lines[0].endswith(b"\n")):
                raise SailError(
                    f"{self.path} is not a file that sail eval wrote. Choose another folder with --out."
                )
            return 0
        self._refuse_changes(before)
        good = place = len(lines[0])
        open_chunk: list[Row] = []
        for line in lines[1:]:
            row = _row(line)
            if row is None or (open_chunk and row.get("chunk") != open_chunk[0].get("chunk")):
                break
            place += len(line)
            open_chunk.append(row)
            if len(open_chunk) == row.get("of"):
                self.chunks[row["chunk"]] = [
                    {key: value for key, value in one.items() if key not in ("chunk", "of")}
                    for one in open_chunk
                ]
                good, open_chunk = place, []
        return good

    def _refuse_changes(self, before: Row) -> None:
        keys = sorted(before.keys() | self.header.keys())
        changed = [key for key in keys if before.get(key) != self.header.get(key)]
        if changed:
            listed = "; ".join(
                f"{key}: {_short(before.get(key))} then, {_short(self.header.get(key))} now"
                for key in changed
            )
            raise SailError(
                f"{self.path} was begun with other settings ({listed}), so it cannot be continued. Put them back, start anew "
                "with --overwrite, or choose another folder with --out."
            )


def _lock(file: BinaryIO, path: Path) -> None:
    """Lock an open file for this process, or refuse. Where the file system or Windows has no such locks, there is none."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SailError(
            f"Another sail eval is writing {path} now. Wait for its end, or choose another folder with --out."
        ) from None
    except (ImportError, OSError):
        return


def _row(line: bytes) -> Row | None:
    """The object of a whole line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 44 else text[:41] + "..."
