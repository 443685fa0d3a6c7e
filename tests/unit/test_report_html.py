"""The page and its JSON twin: same content, nothing executable from outside, nothing fetched, small."""

from __future__ import annotations

import base64
import builtins
import gzip
import hashlib
import html
import json
import math
import re

import pytest
from fake_runs import NASTY, RUNS, summary_table, write_run, write_runs

from sail.errors import DataError, MissingExtraError
from sail.evaluation.stats import paired_interval
from sail.report import RunRecord, build_report, read_run, write_report
from sail.report.charts import draw
from sail.report.page import render
from sail.report.words import clean, messages, show, show_range


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """(page, twin, folders) of five runs of 400 lines."""
    parent = tmp_path_factory.mktemp("play")
    folders = write_runs(parent)
    out = write_report(folders, parent / "report.html", title="Play <b>&", summary_table=summary_table())
    return (
        out.read_text(encoding="utf-8"),
        json.loads(out.with_suffix(".json").read_text(encoding="utf-8")),
        folders,
    )


def visible(page: str) -> str:
    """The page's text without scripts, styles and tags, on one line."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def embedded(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="pair-data">(.*?)</script>', page, flags=re.S)
    return json.loads(found[1])


def test_the_page_says_what_the_twin_says(play):
    page, twin, _ = play
    text = visible(page)
    assert twin["title"] == "Play <b>&"
    assert [run["name"] for run in twin["runs"]] == RUNS
    for tile in twin["answers"]:
        assert " ".join([tile["question"], tile["answer"], tile["detail"]]) in text
    for row in twin["table"]["rows"]:
        for cell in row:
            assert (show(cell["mean"], digits=2) if isinstance(cell, dict) else cell) in text
    assert all(note in text for note in twin["table"]["notes"])
    for chart in twin["charts"]:
        assert f'id="chart-{chart["id"]}"' in page
        assert chart["title"] in text
        assert chart["about"] in text
    assert page.count("<svg") == len(twin["charts"]) + 3  # the gains, and the frontier in two sizes
    for check in twin["health"]:
        assert check["question"] in text
        assert check["limit"] in text
        assert all(outcome["measured"] in text for outcome in check["runs"])
    for fact in twin["facts"]:
        assert all(line in text for cell in fact["cells"] for line in cell["lines"])
    for entry in twin["samples"]["prompts"]:
        for shown in [entry["reference"], *entry["answers"]]:
            assert " ".join(shown["text"].split()) in text
            assert show(shown["reward"], digits=2) in text
    assert embedded(page) == {"names": RUNS, "rows": twin["pairs"]["rows"]}


def test_the_numbers_are_those_of_the_folders(play):
    _, twin, folders = play
    samples = json.loads((folders[4] / "results.json").read_text())["samples"]
    expected = paired_interval(
        [s["reward"] for s in samples],
        [s["reward_reference"] for s in samples],
        [json.dumps(s["prompt"], sort_keys=True) for s in samples],
    )
    gain = twin["runs"][4]["gain"]
    assert (gain["mean"], gain["low"], gain["high"], gain["n"]) == (
        expected.mean,
        expected.low,
        expected.high,
        24,
    )
    charts = {chart["id"]: chart for chart in twin["charts"]}
    record = read_run(folders[4])
    drawn = charts["eval-reward"]["series"][4]
    assert drawn["y"] == pytest.approx(record.column("eval_reward")[1], rel=1e-5)
    assert drawn["low"] == pytest.approx(record.column("eval_reward_low")[1], rel=1e-5)
    kl = next(s for s in charts["kl"]["series"] if s["run"] == 4)
    # 400 steps in 58 groups of 6 or 7: the error of a mean of k steps is 0.4 / sqrt(k)
    assert len(kl["y"]) == 58
    half = (kl["high"][0] - kl["low"][0]) / 2
    assert half == pytest.approx(1.96 * 0.4 / math.sqrt(7), rel=1e-3)
    assert sum(kl["y"]) / 58 == pytest.approx(sum(record.column("kl/policy_ref")[1]) / 400, rel=0.02)
    parts = dict(zip(charts["seconds"]["parts"], charts["seconds"]["series"][4]["values"], strict=True))
    assert parts["policy"] == pytest.approx(sum(record.column("seconds/policy")[1]) / 400, rel=1e-4)


def test_what_is_left_out_is_counted(play):
    page, twin, _ = play
    counts = {RUNS[r["run"]]: (r["total"], r["shown"], r["left_out"]) for r in twin["pairs"]["runs"]}
    assert counts["dpo"] == (0, 0, 0)
    assert counts["sail-dpr"] == (1600, 300, 1300)
    assert "sail-dpr: 300 of 1,600 (1,300 left out, evenly over steps)" in visible(page)
    assert "Zero throughout: Empty responses." in visible(page)


def test_untrusted_text_stays_text(play):
    page, twin, _ = play
    assert len(re.findall(r"<script\b", page)) == 2  # the data and the page's own
    assert "<img" not in page
    assert not re.search(r"<[^>]+\son\w+=", page)
    assert "<title>Play &lt;b&gt;&amp;</title>" in page
    shown = {a["text"] for entry in twin["samples"]["prompts"] for a in entry["answers"]}
    assert {clean(text) for text in NASTY} <= shown
    assert "\x00" not in page


def test_only_the_pages_own_script_may_run(play):
    page, _, _ = play
    own = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert len(own) == 1
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_nothing_is_fetched(play):
    markup = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", play[0], flags=re.S)
    tags = " ".join(re.findall(r"<[a-z][^>]*>", markup))
    references = re.findall(r'\s(?:src|href|action|data|poster|srcset)\s*=\s*"([^"]*)"', tags)
    references += re.findall(
        r"url\(([^)]*)\)", tags + "".join(re.findall(r"<style>(.*?)</style>", markup, flags=re.S))
    )
    assert len(references) > 20
    assert all(ref.startswith("#") or ref == "data:," for ref in references)
    assert "@import" not in markup
    assert "://" not in tags


def test_the_page_is_small(play):
    page, twin, _ = play
    assert len(page.encode()) < 3_000_000
    assert len(json.dumps(twin)) < 3_000_000


def test_long_responses_do_not_make_it_large(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        for step in range(1, 400):
            text = f"{step} " + "é" * 9000
            file.write(
                json.dumps({"step": step, "prompt": "p", "first": text, "second": text, "route": "dpr"})
                + "\n"
            )
    out = write_report([folder], tmp_path / "report.html", title="long")
    twin = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert out.stat().st_size < 3_000_000
    kept = twin["pairs"]["runs"][0]
    assert 40 < kept["shown"] < 300
    assert kept["shown"] + kept["left_out"] == 399
    assert twin["pairs"]["rows"][0]["first"].endswith("more characters)")
    assert twin["pairs"]["rows"][-1]["step"] > 380


def test_it_is_the_same_every_time(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    once, again = (write_report([folder], tmp_path / f"{name}.html", title="t").read_text() for name in "ab")
    assert once == again
    assert (tmp_path / "a.json").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_ids_are_unique_and_links_lead_somewhere(play):
    ids = re.findall(r'\sid="([^"]+)"', play[0])
    assert len(ids) == len(set(ids))
    links = re.findall(r'<a href="#([^"]+)"', play[0])
    assert len(links) > 20
    assert set(links) <= set(ids)
    assert {check["evidence"] for check in play[1]["health"]} <= set(ids)


def test_one_run_without_a_table(tmp_path):
    folder = write_run(tmp_path / "sail-dpp", "sail-dpp", lines=30)
    report = build_report([read_run(folder)], title="one")
    answers = {tile["id"]: tile["answer"] for tile in report["answers"]}
    assert answers["better"] == "Yes"
    assert answers["cost"] == "0 oracle calls"
    assert answers["wrong"] == "Nothing found"
    (wrong,) = (tile for tile in report["answers"] if tile["id"] == "wrong")
    assert wrong["detail"] == "16 checks are fine, 2 not measured, 7 do not apply."
    assert report["table"]["columns"][:2] == ["Run", "Reward gained"]
    assert report["table"]["sizes"][1] == 24
    assert report["gain_chart"] is None
    assert 'data-run="0"' not in render(report)  # nothing to tell apart, no legend


def test_an_empty_folder_makes_a_page_that_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    page = write_report([tmp_path / "empty"], tmp_path / "out" / "report.html", title="nothing").read_text()
    text = visible(page)
    assert "Is anything wrong? 1 warning" in text
    assert text.count("not measured") > 10
    assert "fine" not in re.findall(r'class="chip ([^"]*)"', page)
    assert "metrics.jsonl: not there." in text
    assert "No curves were recorded." in text


def test_damage_is_told_on_the_page(tmp_path):
    folder = write_run(tmp_path / "cut", "sail-dpr", lines=60)
    for name in ("metrics.jsonl", "pairs.jsonl.gz", "results.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])
    text = visible(write_report([folder], tmp_path / "report.html", title="cut").read_text(encoding="utf-8"))
    assert "3 warnings" in text
    assert "metrics.jsonl: the last line is half written and was left out." in text
    assert "pairs.jsonl.gz: ends in the middle of a compressed block" in text
    assert "results.json: cannot be parsed" in text
    assert "+" in text  # the gain comes from the evaluations then


@pytest.mark.parametrize(
    ("low", "high", "answer"), [(0.2, 0.4, "Yes"), (-0.1, 0.4, "Not clear"), (None, None, "Not clear")]
)
def test_the_first_answer_needs_an_interval(low, high, answer):
    results = {"metrics": {"reward_gain": {"mean": 0.3, "low": low, "high": high, "n": 9}}}
    assert build_report([RunRecord("r", results=results)], title="t")["answers"][0]["answer"] == answer


def test_without_results_the_evaluations_speak():
    rows = [
        {"step": s, "eval_reward": r, "eval_reward_low": r - 0.1, "eval_reward_high": r + 0.1}
        for s, r in [(1, 0), (9, 1)]
    ]
    report = build_report([RunRecord("r", metrics=rows)], title="t")
    assert [t["answer"] for t in report["answers"][:3]] == ["Yes", "+1", "—"]
    assert "first evaluation" in report["answers"][1]["detail"]


def test_odd_results_do_no_harm():
    odd = {
        "metrics": {"reward": 3, "kl": "many", "length": None},
        "samples": ["text", {"prompt": 5}, {}],
        "oracle_calls": "x",
    }
    odd["notes"] = ["<no> data.eval", 3]
    report = build_report([RunRecord("r", results=odd), RunRecord("s", results={"samples": {}})], title="t")
    assert report["table"]["rows"][0] == ["r", {"mean": 3, "low": None, "high": None, "n": None}]
    assert [f["text"] for f in report["findings"]] == ["<no> data.eval", "3"]
    assert "&lt;no&gt; data.eval" in render(report)


def test_samples_of_several_runs_meet_at_their_prompt():
    def run(name, *samples):
        return RunRecord(
            name, results={"samples": [{"prompt": p, "reference": "ref", "response": r} for p, r in samples]}
        )

    report = build_report([run("a", ("p", "1"), ("q", "2"), ("p", "3")), run("b", ("p", "4"))], title="t")
    rows = [[x and x["text"] for x in entry["answers"]] for entry in report["samples"]["prompts"]]
    assert rows == [["1", "4"], ["2", None], ["3", None]]


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(DataError, match="at least one"):
        write_report([], tmp_path / "report.html", title="none")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_names_the_way_out(monkeypatch, package):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    report = build_report([RunRecord("r", metrics=rows)], title="t")
    with pytest.raises(MissingExtraError, match=r'pip install "sail-align\[report\]"'):
        render(report)


def test_a_drawing_takes_its_colours_from_the_page():
    series = [
        {"run": run, "x": [1, 2], "y": [0.1, 0.2], "low": [0.0, None], "high": [0.2, None]} for run in (0, 9)
    ]
    chart = {
        "id": "c",
        "kind": "lines",
        "unit": "share",
        "x_unit": "step",
        "rule": [0.5, "chance"],
        "series": series,
    }
    svg = draw(chart, ["a"] * 10)
    assert svg.startswith('<svg viewBox="0 0 400 250"')
    assert "currentColor" in svg
    assert "var(--c0)" in svg
    assert "var(--c1)" in svg  # the tenth run takes the second colour again, with another dash
    assert 'class="run-9"' in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "<style" not in svg


def test_numbers_in_words():
    assert show(None) == "—"
    assert [show(v) for v in (0, 3.0, -1.234, 0.04567, 12345.6, 1e-9, 5e12)] == [
        "0", "3", "−1.23", "0.0457", "12,346", "1.00e-09", "5,000,000,000,000"
    ]  # fmt: skip
    assert show(-0.0001, digits=2) == "0.00"
    assert show_range(-0.5, 1) == "−0.50 to 1.00"


def test_text_that_a_browser_would_hide_is_made_visible():
    assert clean("a\x00b\x1b[1m\r\nc\td") == "a␀b␛[1m\nc\td"
    assert clean("\ud83d") == "?"
    assert clean("\u202eabc") == "⟨U+202E⟩abc"
    assert clean(None) == ""
    assert clean({"a": 1}) == '{"a": 1}'
    assert messages([{"role": "user", "content": [{"type": "text"}]}]) == [
        {"role": "user", "content": '[{"type": "text"}]'}
    ]


def test_spin_replay_and_the_effective_sample_size_are_drawn():
    logged = {"route/spin": 0.5, "route/replay": 0.2, "route/dpr": 0.3}
    metrics = [
        {"step": i + 1, "loss": 0.7, "ratio/ess": 1 - i / 40, "ratio/clipped": 0.0, **logged}
        for i in range(20)
    ]
    routes = {"spin": 0.5, "replay": 0.2, "dpr": 0.3}
    report = build_report([RunRecord("r", config={"train": {"routes": routes}}, metrics=metrics)], title="t")
    by_id = {chart["id"]: chart for chart in report["charts"]}
    assert by_id["routes"]["parts"] == ["dpr", "spin", "replay"]
    assert by_id["routes"]["series"][0]["values"] == [0.3, 0.5, 0.2]
    assert by_id["ratio-ess"]["series"][0]["y"][-1] == pytest.approx(1 - 19 / 40)
    (facts,) = (row for row in report["facts"] if row["id"] == "routes")
    assert [line.split()[0] for line in facts["cells"][0]["lines"]] == ["dpr", "spin", "replay"]
    assert facts["cells"][0]["lines"][1].endswith("wanted 50%")
    assert "Effective sample size of stale rows" in render(report)
