"""Reports of runs: read a run folder (record), one self-contained page and its JSON twin (page)."""

from sail.report.page import build_report, write_report
from sail.report.record import RunRecord, read_run, read_runs

__all__ = ["RunRecord", "build_report", "read_run", "read_runs", "write_report"]
