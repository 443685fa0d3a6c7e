"""`sail report`: which folders it takes, where it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_runs import write_run

from sail import cli
from sail.commands import report as command
from sail.errors import DataError


@pytest.fixture(scope="module")
def play(tmp_path_factory) -> Path:
    """A folder as sail play leaves it: two runs, and things beside them that are none."""
    parent = tmp_path_factory.mktemp("play")
    for method in ("sail-dpr", "dpo"):
        write_run(parent / method, method, lines=8)
    (parent / "world").mkdir()
    (parent / "dpo.yaml").write_text("model: x")
    return parent


def run(*words: object, capsys) -> tuple[int, str, str]:
    code = cli.main(["report", *map(str, words)])
    return (code, *capsys.readouterr())


def test_one_run_gets_its_report_beside_it(play, tmp_path, capsys):
    folder = shutil.copytree(play / "sail-dpr", tmp_path / "sail-dpr")
    code, out, err = run(folder, "--pairs", 5, capsys=capsys)
    assert (code, err) == (0, "")
    assert (
        out == f"The report is {folder / 'report.html'}; report.json beside it says the same to programs.\n"
    )
    twin = json.loads((folder / "report.json").read_text())
    assert twin["title"] == "sail run sail-dpr"
    assert twin["pairs"]["runs"][0]["shown"] == 5
    assert "<title>sail run sail-dpr</title>" in (folder / "report.html").read_text()


def test_several_runs_and_a_folder_of_runs(play, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(play, capsys=capsys)[0] == 0
    twin = json.loads(Path("report.json").read_text())
    assert [r["name"] for r in twin["runs"]] == ["dpo", "sail-dpr"]
    assert twin["title"] == "sail report of 2 runs"
    assert (
        run(play / "sail-dpr", play / "dpo", "--out", "deep/er/both.html", "--title", "Both", capsys=capsys)[
            0
        ]
        == 0
    )
    twin = json.loads(Path("deep/er/both.json").read_text())
    assert [r["name"] for r in twin["runs"]] == ["sail-dpr", "dpo"]
    assert twin["title"] == "Both"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist. Runs beside it: dpo, sail-dpr."),
        ("dpo.yaml", "dpo.yaml is a file, not the folder of a run. Runs beside it: dpo, sail-dpr."),
        (
            "world",
            "holds no run: none of metrics.jsonl, results.json, pairs.jsonl.gz is in it. Runs beside it",
        ),
    ],
)
def test_what_is_no_run_is_refused_with_the_way_out(play, name, message, capsys):
    code, _, err = run(play / "dpo", play / name, capsys=capsys)
    assert code == 2
    assert message in err


def test_without_a_run_near_by_it_says_what_to_give(tmp_path, capsys):
    assert (
        "Give the folder of a run: the train.output_dir of its YAML." in run(tmp_path / "x", capsys=capsys)[2]
    )


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page.json", "must end in .html"),
        (".", "is a folder. Give a file: --out report.html."),
        ("file/page.html", "cannot be used"),
    ],
)
def test_where_it_cannot_write(play, out, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    code, _, err = run(play / "dpo", "--out", out, capsys=capsys)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("words", [[], ["dpo", "--pairs", "0"]])
def test_wrong_words(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", *words])
    assert "sail report: error" in capsys.readouterr().err


def test_much_to_read_shows_a_bar(play, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "_MUCH", 10)
    command.report([play / "sail-dpr"], out=tmp_path / "r.html")
    assert "reading pairs" in capsys.readouterr().err


def test_runs_in_keeps_the_order_given(play):
    assert [p.name for p in command.runs_in([play / "sail-dpr", play])] == ["sail-dpr", "dpo", "sail-dpr"]
    with pytest.raises(DataError):
        command.runs_in([play / "world"])
