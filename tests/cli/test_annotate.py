"""`sail annotate` as a command: what it says, what it exports, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from annotators import Person, Worker, hear_ctrl_c

from sail import cli
from sail.annotate.items import Item
from sail.annotate.store import ANNOTATIONS, Annotations
from sail.data.sources import load_rows
from sail.run_folder import clear

ROWS: list[dict[str, Any]] = [
    {"prompt": f"prompt {number // 2}", "chosen": f"good {number}", "rejected": f"bad {number}"}
    for number in range(10)
]
CHAT = {
    "prompt": [{"role": "user", "content": "hi"}],
    "chosen": [{"role": "assistant", "content": "good chat"}],
    "rejected": [{"role": "assistant", "content": "bad chat"}],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [*ROWS, CHAT, {"prompt": "x", "chosen": "same", "rejected": "same"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def serve(home: Path, *argv: str) -> tuple[subprocess.Popen[str], str]:
    """The command as a process of its own, and what it said until it served."""
    environment = {name: value for name, value in os.environ.items() if name != "SAIL_ANNOTATE_TOKEN"}
    return begin(home, environment, "annotate", *argv, until="Ctrl-C")


def begin(
    home: Path, environment: dict[str, str], *argv: str, until: str
) -> tuple[subprocess.Popen[str], str]:
    """A command of sail as a process of its own, and what it said up to the line with `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sail.cli", *argv],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stdout is not None
    said = ""
    while until not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return process, said


def link_in(said: str) -> str:
    found = re.search(r"http://\S+", said)
    assert found is not None
    return found[0]


def test_from_pairs_to_preference_rows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two people, ten text pairs and a chat: they agree with the file in nine, are split on one and tie on another."""
    process, said = serve(
        home, "pairs.jsonl", "--annotators", "2", "--port", "0", "--question", "Which is kinder?"
    )
    assert "pairs.jsonl: 11 pairs; rows left out: 1 with identical responses" in said
    try:
        for name in ("Ann", "Ben"):
            person = Person(link_in(said), name)
            state = person.next()
            assert state["question"] == "Which is kinder?"
            while "pair" in state:
                pair = state["pair"]
                good = "left" if pair["left"].startswith("good") else "right"
                split = {"Ann": good, "Ben": {"left": "right", "right": "left"}[good]}[name]
                number = re.findall(r"\d+$", pair["left"])
                state = person.label(pair, {"0": split, "1": "tie"}.get(number[0], good) if number else good)
        process.send_signal(signal.SIGINT)
        assert "22 labels are in pairs.annotations.sqlite" in process.communicate(timeout=30)[0]
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    assert cli.main(["annotate", "pairs.jsonl", "--export", "out/labelled.jsonl"]) == 0
    told = capsys.readouterr().out
    assert "11 of 11 pairs have a verdict, from 22 labels; 2 of them are ties" in told
    assert "Ann: 11 labels, median 1.0 s" in told
    assert re.search(r"agreement \(Krippendorff's alpha\): 0\.\d\d \[.*\], n = 11 pairs", told)
    assert re.search(r"as the source prefers: 100% \[\d+%, 100%\], n = 9", told)
    rows = [json.loads(line) for line in Path("out/labelled.jsonl").read_text().splitlines()]
    assert rows[:8] == [{**row, "probability": 1.0, "votes": 2} for row in ROWS[2:]]
    assert rows[8] == {**CHAT, "probability": 1.0, "votes": 2}
    assert len(load_rows("out/labelled.jsonl", need_pairs=True).rows) == 9
    summary = json.loads(Path("out/labelled.summary.json").read_text())
    assert (summary["pairs"], summary["ties"], summary["exported"], summary["labels"]) == (11, 2, 9, 22)
    assert summary["agrees_with_source"]["clusters"] == 5  # prompts 1 to 4, and the chat


@pytest.mark.slow
def test_killed_at_random_moments_no_label_is_lost(home: Path) -> None:
    """SIGKILL in a burst of labels, three times: every label whose answer came back is in the file, none twice."""
    rows = [{"prompt": f"prompt {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(300)]
    (home / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    confirmed: list[str] = []
    chance = random.Random(5)
    for _ in range(3):
        process, said = serve(home, "many.jsonl", "--port", "0")
        person = Person(link_in(said), "Ann")
        state, end, kill = person.next(), time.monotonic() + 30, chance.randint(3, 12)
        try:
            for place in range(100):
                if place == kill:
                    # in the middle of a label: sent, and not waited for
                    headers = {
                        "Content-Type": "application/json",
                        "X-Sail-Annotate": "1",
                        "Cookie": person.cookie,
                    }
                    body = {"name": "Ann", "pair": state["pair"]["id"], "verdict": "tie", "seconds": 1}
                    body["key"] = f"unanswered {len(confirmed)}"
                    person.wire.request("POST", "/api/label", json.dumps(body), headers)
                    time.sleep(chance.uniform(0, 0.01))
                    process.kill()
                    break
                pair = state["pair"]["id"]
                state = person.label(state["pair"], "left")
                confirmed.append(pair)
                assert time.monotonic() < end
        finally:
            process.kill()
            process.communicate()
    labels = Annotations(home / "many.annotations.sqlite").labels()
    pairs = [label.pair for label in labels]
    assert len(set(pairs)) == len(pairs)
    assert set(confirmed) <= set(pairs)
    assert len(pairs) <= len(confirmed) + 3
    assert len(confirmed) >= 9


def test_the_queue_of_a_run(home: Path) -> None:
    folder = home / "runs" / "one"
    labels = Annotations(folder / ANNOTATIONS)
    labels.fact("kind", "training")
    item = Item.of("p", "a", "b")[0]
    labels.ask([item], 1)
    process, said = serve(home, "runs/one", "--port", "0")
    try:
        assert "pairs" not in said.splitlines()[0]
        state = Person(link_in(said), "Ann").next()
        assert state["training"] is True
        assert state["pair"]["id"] == item.hash
    finally:
        process.kill()
        process.communicate()


def test_another_host_is_warned_about(home: Path) -> None:
    process, said = serve(home, "pairs.jsonl", "--host", "0.0.0.0", "--port", "0")
    process.kill()
    process.communicate()
    assert "Warning: this page can be reached from other machines" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing.jsonl"], "There is no missing.jsonl"),
        (["."], "neither annotations.sqlite"),
        (["pairs.jsonl", "--summary"], "Nothing is labelled yet"),
        (["pairs.jsonl", "--export", "out.jsonl"], "Nothing is labelled yet"),
        (["pairs.jsonl", "--labels", "other.sqlite"], "the file of another program"),
    ],
)
def test_what_is_refused(
    home: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect("other.sqlite") as other:
        other.execute("CREATE TABLE something (x)")
    assert cli.main(["annotate", *argv]) == 2
    assert message in capsys.readouterr().err
    with sqlite3.connect("other.sqlite") as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 1
    assert not Path("missing.annotations.sqlite").exists()
    assert not Path("out.jsonl").exists()


def test_nothing_with_a_majority_is_not_exported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = Annotations(home / "pairs.annotations.sqlite")
    item = Item.of("p", "a", "b")[0]
    labels.offer([item], 1)
    labels.label("ann", item.hash, "tie", 1.0, "a key of mine")
    assert cli.main(["annotate", "pairs.jsonl", "--export", "out.jsonl"]) == 2
    assert "no pair with a majority" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_starting_over_keeps_what_people_said(home: Path) -> None:
    """--overwrite clears a run folder: the labels stay, the verdicts of the old run do not."""
    labels = Annotations(home / ANNOTATIONS)
    items = [Item.of("p", "a", "b")[0], Item.of("q", "a", "b")[0]]
    labels.ask(items, 1)
    labels.label("ann", items[0].hash, "first", 1.0, "a key of mine")
    labels.settle([one.hash for one in items], late="too late")
    clear(home)
    assert labels.verdicts([one.hash for one in items]) == {}
    assert [label.verdict for label in labels.labels()] == ["first"]


RUN = """
model: ./model
data: {train: pairs.jsonl, eval: held.jsonl}
oracle: {kind: people, question: "Which has more w3?", port: 0}
train:
  preset: online-dpo
  output_dir: run
  max_steps: 3
  per_device_train_batch_size: 2
  max_new_tokens: 6
  save_steps: 1
  use_cpu: true
  disable_tqdm: true
"""


@pytest.mark.slow
def test_sail_train_asks_people_and_is_stopped_and_resumed(tmp_path: Path) -> None:
    """The whole of it, through the command line: served by the run itself, Ctrl-C while it waits, resumed, finished."""
    from tiny import make_model, make_pairs, make_tokenizer

    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    for name, rows in (("pairs", make_pairs(8)), ("held", make_pairs(3, seed=9))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(RUN)
    token = "a-token-for-this-test"

    def train(*argv: str) -> tuple[subprocess.Popen[str], str]:
        environment = {**os.environ, "SAIL_ANNOTATE_TOKEN": token}
        return begin(tmp_path, environment, "train", "run.yaml", *argv, until="pairs open")

    process, said = train()
    try:
        Worker(link_in(said).replace("$SAIL_ANNOTATE_TOKEN", token), "Ann", most=3).run()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode == 130, rest
        assert "Every label is kept" in rest
        assert "Traceback" not in rest
        process, more = train("--resume")
        worker = Worker(link_in(more).replace("$SAIL_ANNOTATE_TOKEN", token), "Ben")
        assert worker.person.next()["question"] == "Which has more w3?"
        worker.start()
        rest = process.communicate(timeout=120)[0]
        worker.stop()
        assert process.returncode == 0, rest
        assert token not in said + more + rest
    finally:
        process.kill()
        process.communicate()
    labels = Annotations(tmp_path / "run" / ANNOTATIONS).labels()
    assert [label.annotator for label in labels].count("Ann") == 3
    assert len({label.pair for label in labels}) == len(labels)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 3
    assert "People were asked in training only" in " ".join(results["notes"])
    assert cli.main(["annotate", str(tmp_path / "run"), "--summary"]) == 0


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from sail.cli import main\n"
        "try: main(['annotate', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'starlette', 'uvicorn', 'numpy', 'sqlite3'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--annotators" in done.stdout


def test_serving_needs_no_torch(home: Path) -> None:
    code = (
        "import sys, sail.commands.annotate, sail.oracles.people, sail.annotate.server\n"
        "heavy = {'torch', 'transformers', 'datasets', 'trl', 'uvicorn', 'starlette'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
