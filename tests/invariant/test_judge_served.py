"""The real thing: a tiny judge, trained here, behind a real `transformers serve` on loopback, labels a real sail-dpr run."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"`transformers serve` needs {', '.join(MISSING)}: pip install 'transformers[serving]'",
    ),
]
READY = 120.0


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_judge import make_judge

    folder, accuracy = make_judge(tmp_path_factory.mktemp("judge") / "judge")
    assert accuracy > 0.8, accuracy
    return folder


@pytest.fixture(scope="module")
def served(judge_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base address of the server."""
    home = tmp_path_factory.mktemp("home")
    (home / "hub").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(judge_folder)]
    log = home / "server.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(process, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + READY
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"transformers serve does not answer: {log.read_text()[-3000:]}")


def test_a_served_judge_labels_a_run(served: str, judge_folder: Path, tmp_path: Path) -> None:
    """Every label of the run is the verdict that the same model gives in this process, word for word of the same message."""
    from tiny import make_pairs, make_trainer

    from sail.oracles.judge import Judge
    from sail.oracles.ledger import Ledger

    folder = tmp_path / "run"
    with Ledger(folder / "ledger.sqlite") as ledger:
        judge = Judge(
            served,
            str(judge_folder),
            rubric=judge_folder / "rubric.md",
            max_tokens=4,
            ledger=ledger,
            concurrency=4,
        )
        trainer = make_trainer(
            folder,
            rows=make_pairs(24),
            oracle=judge,
            max_steps=6,
            per_device_train_batch_size=4,
            preset="sail-dpr",
        )
        trainer.train()
        rows = list(ledger.rows())
    asked = [row for row in _pairs(folder) if row["source"] == f"oracle:{judge.name}"]
    assert len(asked) >= 8
    assert all(row["state"] == "answered" for row in rows)
    assert {row["raw"] for row in rows} <= {"[[A]]", "[[B]]"}
    expected = _verdicts_of_the_model(judge_folder, judge, rows)
    assert [row["probability"] for row in rows] == expected
    assert len(set(expected)) == 2, "the judge has preferences"
    by_text = {(row["prompt"], row["first"], row["second"]): row["probability"] for row in rows}
    for row in asked:
        if row["first"] != row["second"]:
            assert row["label"] == row["probability"] == by_text[row["prompt"], row["first"], row["second"]]
    assert sum(row["tokens_in"] for row in rows) > 0


def _pairs(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for line in gzip.decompress((folder / "pairs.jsonl.gz").read_bytes()).decode().splitlines()
    ]


def _verdicts_of_the_model(folder: Path, judge: object, rows: list[dict[str, object]]) -> list[float]:
    """1 for [[A]] and 0 for [[B]], by greedy choice, one message at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sail.oracles.ledger import Call

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    worth = {tokenizer.convert_tokens_to_ids("[[A]]"): 1.0, tokenizer.convert_tokens_to_ids("[[B]]"): 0.0}
    found = []
    for row in rows:
        message = judge.message(Call(row["prompt"], row["first"], row["second"]))  # type: ignore[attr-defined, arg-type]
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        with torch.no_grad():
            found.append(worth[int(model(ids).logits[0, -1].argmax())])
    return found
