"""`sail report`: which folders are runs, where the page goes, and a bar where there is much to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sail.errors import DataError
from sail.report.page import PAIRS, write_report
from sail.report.pairs_file import FILE, Watch

_OF_A_RUN = ("metrics.jsonl", "results.json", FILE)
_MUCH = 8_000_000  # compressed bytes of pairs from which on reading takes seconds


def report(
    folders: Sequence[Path], *, out: Path | None = None, title: str | None = None, pairs: int = PAIRS
) -> Path:
    """Write the report of the runs in `folders` and its JSON twin; returns the page's path.

    A folder that holds no run but has folders of runs in it, as that of a play, stands for those, in the order of their names.
    out: RUN/report.html for one run, ./report.html for several. pairs: on-policy pairs of each run that the page carries.
    Raises DataError naming the folder that is no run, or the file that cannot be written.
    """
    runs = runs_in(folders)
    target = _target(runs, out)
    name = runs[0].resolve().name
    words = title or (f"sail run {name}" if len(runs) == 1 else f"sail report of {len(runs)} runs")
    try:
        with _bar(runs) as watch:
            return write_report(runs, target, title=words, max_pairs=pairs, watch=watch)
    except OSError as error:
        raise DataError(
            f"{error.filename or target} cannot be used ({error.strerror}). Mend that, or choose another place with --out."
        ) from error


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The run folders that `folders` mean; see `report` for which."""
    found: list[Path] = []
    for folder in folders:
        inside = [] if _is_run(folder) else _runs_below(folder)
        if not _is_run(folder) and not inside:
            raise DataError(_no_run(folder))
        found += inside or [folder]
    return found


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in _OF_A_RUN)


def _runs_below(folder: Path) -> list[Path]:
    return [child for child in sorted(folder.iterdir()) if _is_run(child)] if folder.is_dir() else []


def _no_run(folder: Path) -> str:
    """Why `folder` is not a run, and which ones near it are."""
    if not folder.exists():
        why = f"{folder} does not exist."
    elif not folder.is_dir():
        why = f"{folder} is a file, not the folder of a run."
    else:
        why = f"{folder} holds no run: none of {', '.join(_OF_A_RUN)} is in it."
    beside = _runs_below(folder.parent)
    if beside:
        return f"{why} Runs beside it: {', '.join(path.name for path in beside[:8])}."
    return f"{why} Give the folder of a run: the train.output_dir of its YAML."


def _target(runs: list[Path], out: Path | None) -> Path:
    if out is None:
        return (runs[0] if len(runs) == 1 else Path()) / "report.html"
    if out.is_dir():
        raise DataError(f"--out {out} is a folder. Give a file: --out {out / 'report.html'}.")
    if out.suffix not in (".html", ".htm"):
        raise DataError(
            f"--out {out} must end in .html: the page's twin is the same name ending in .json beside it."
        )
    return out


@contextmanager
def _bar(runs: list[Path]) -> Iterator[Watch | None]:
    """What the reading tells its bytes to: a bar, if there is much to read (each file is read twice)."""
    total = 2 * sum(path.stat().st_size for run in runs if (path := run / FILE).is_file())
    if total < _MUCH:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="reading pairs", leave=False) as bar:
        yield bar.update
