"""`sail play` from end to end, at a size that shows that every part is reached; the figures are those of `make play`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sail import play

    out = tmp_path_factory.mktemp("play")
    tiny = play.Size(
        sft_rows=640, sft_epochs=1, prompts=48, steps=5, rows_per_step=8, held_out=16, eval_samples=8
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(play, "QUICK", tiny)
    play.play(out, quick=True, seed=0)
    patch.undo()
    return out


def test_every_method_leaves_a_full_run_folder(played: Path) -> None:
    from sail.play import METHODS

    for method in METHODS:
        left = {path.name for path in (played / method).iterdir()}
        wanted = {
            "config.resolved.yaml",
            "metrics.jsonl",
            "model",
            "results.json",
            "report.html",
            "report.json",
        }
        assert wanted <= left
        # Only runs that sampled have pairs to show.
        assert ("pairs.jsonl.gz" in left) == (method not in ("dpo", "sail-ddp"))


def test_all_methods_start_from_the_same_model_and_take_the_same_steps(played: Path) -> None:
    from sail.play import METHODS

    results = [json.loads((played / method / "results.json").read_text()) for method in METHODS]
    assert len({json.dumps(result["metrics"]["reward_reference"]) for result in results}) == 1
    assert {result["steps"] for result in results} == {5}
    assert [result["oracle_calls"] > 0 for result in results] == [False, True, False, False, True]


def test_the_report_has_the_table_and_its_twin(played: Path) -> None:
    twin = json.loads((played / "report.json").read_text())
    text = json.dumps(twin)
    for words in ("sail-dpr minus dpo", "oracle calls", "online-dpo"):
        assert words in text
    assert (played / "report.html").stat().st_size < 3_000_000


def test_a_finished_play_is_not_run_again(played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sail import play

    before = (played / "sail-dpr" / "metrics.jsonl").stat().st_mtime_ns
    play.play(played, quick=True, seed=0)
    assert (played / "sail-dpr" / "metrics.jsonl").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("already there") == 5
