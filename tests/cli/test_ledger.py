"""`sail ledger`: what is shown, what is summed, and an export that TRL and sail train on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from sail.cli import main
from sail.oracles.ledger import LEDGER, Answer, Call, Ledger
from sail.types import Prompt


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "200")
    with Ledger(tmp_path / "run" / LEDGER, run=".") as made:
        yield made


def answer(ledger: Ledger, prompt: Prompt, first: str, second: str, p: float | None, **more: Any) -> None:
    """A call of the judge that was answered."""
    oracle = ledger.oracle("judge small", {"kind": "judge", "model": "small"})
    said = Answer(
        p, **{"raw": "[[A]]", "tokens_in": 10, "tokens_out": 2, "cost": 0.5, "seconds": 0.25, **more}
    )
    ledger.settle(ledger.intend(oracle, Call(prompt, first, second)), said)


def run(*argv: object, code: int = 0, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["ledger", *map(str, argv)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- Shown ----------------------------------------------------------------------------------------------------


def test_calls_and_sums(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in range(3):
        ledger.step = step
        answer(ledger, f"question {step}", "yes", "no", 0.75)
    answer(ledger, [{"role": "user", "content": "a chat"}], "yes", "no", None, reason="unreadable")
    oracle = ledger.oracle("judge small", {"kind": "judge", "model": "small"})
    ledger.settle(ledger.intend(oracle, Call("q", "x", "y")), Answer(None, "HTTP 500"), failed=True)
    ledger.intend(oracle, Call("in flight", "x", "y"))
    said = run(tmp_path / "run", capsys=capsys)
    assert "the last 6 of 6" in said
    for words in (
        "question 2",
        "a chat",
        "abstained",
        "unreadable",
        "failed",
        "HTTP 500",
        "sent",
        "[[A]]",
        "0.75",
    ):
        assert words in said
    # calls, answered, abstained, failed, possibly paid, remembered, tokens in and out, cost, mean seconds: by hand.
    sums = run(tmp_path / "run", "--totals", capsys=capsys)
    assert "question" not in sums
    numbers = [line.split()[-1] for line in sums.splitlines() if "│" in line or "|" in line]
    assert numbers == ["6", "3", "1", "1", "1", "0", "40", "8", "2.0000", "0.25"]
    only = run(tmp_path / "run" / LEDGER, "--step", "1:2", "--limit", 1, capsys=capsys)
    assert "the last 1 of 5" in only
    assert "question 1" not in only
    assert "question 1" in run(tmp_path / "run", "--step", "1", "--search", "QUESTION", capsys=capsys)
    assert "the last 1 of 1" in run(tmp_path / "run", "--abstained", capsys=capsys)
    assert "in flight" in run(tmp_path / "run", "--state", "sent", capsys=capsys)


def test_a_response_cannot_steer_the_terminal(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(ledger, "q", "\x1b[2J[bold]wiped[/bold]\r\x9b2J", "line\nbreak \u202e back", 0.5)
    said = run(tmp_path / "run", capsys=capsys)
    assert "[bold]wiped[/bold]" in said
    assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(said)


def test_an_empty_ledger(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the last 0 of 0" in run(tmp_path / "run", capsys=capsys)
    assert (
        run(tmp_path / "run", "--export", tmp_path / "o.jsonl", capsys=capsys)
        == f"{tmp_path / 'o.jsonl'}: 0 pairs\n"
    )


def test_a_run_that_names_its_ledger(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(ledger, "question", "yes", "no", 1.0)
    (tmp_path / "other").mkdir()
    settings = {"oracle": {"kind": "judge", "ledger": str(tmp_path / "run" / LEDGER)}}
    (tmp_path / "other" / "config.resolved.yaml").write_text(json.dumps(settings))
    assert "question" in run(tmp_path / "other", capsys=capsys)
    settings = {
        "oracle": {"kind": "function"},
        "eval_oracle": {"kind": "judge", "ledger": str(tmp_path / "run" / LEDGER)},
    }
    (tmp_path / "other" / "config.resolved.yaml").write_text(json.dumps(settings))
    assert "question" in run(tmp_path / "other", capsys=capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere"], "There is no file or folder nowhere"),
        (["."], "holds no ledger.sqlite. A run keeps one if its oracle is a judge"),
        (["text.txt"], "is not a ledger"),
        (["empty"], "is an empty file"),
        (["run", "--min-confidence", "0.8"], "Add --export OUT.jsonl"),
        (["run", "--export", "o.csv"], "is neither .jsonl nor .parquet"),
        (["run", "--export", "text.jsonl"], "text.jsonl exists. Give another path, or --force"),
        (["run", "--export", "o.jsonl", "--min-confidence", "0.2"], "a probability from 0.5 to 1; it is 0.2"),
    ],
)
def test_what_cannot_be_shown(
    argv: list[str],
    said: str,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "text.jsonl"):
        Path(name).write_text("just text")
    Path("empty").touch()
    assert said in run(*argv, code=2, capsys=capsys)
    assert Path("text.jsonl").read_text() == "just text"
    assert Path("empty").read_text() == ""


@pytest.mark.parametrize("step", ["x", "1:y", "1-2"])
def test_what_is_no_step(step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ledger", str(tmp_path), "--step", step])
    assert f"{step!r} is no step" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    import subprocess

    code = "import sys, sail.commands.ledger, sail.commands.oracle_verbs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- Exported -------------------------------------------------------------------------------------------------


def test_pairs_are_exported_with_both_orders_as_one(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: .9 and 1 - .3 are .8 for "good"; a tie of both orders and what has no verdict are left out."""
    answer(ledger, "one", "good", "bad", 0.9)
    answer(ledger, "one", "bad", "good", 0.3)
    answer(ledger, "two", "worse", "better", 0.25)
    answer(ledger, "biased", "x", "y", 0.75)
    answer(ledger, "biased", "y", "x", 0.75)
    answer(ledger, "half", "x", "y", 1.0)
    answer(ledger, "half", "y", "x", None)
    answer(ledger, "unanswered", "x", "y", 1.0)
    ledger.intend(
        ledger.oracle("judge small", {"kind": "judge", "model": "small"}), Call("unanswered", "y", "x")
    )
    answer(ledger, "unsure", "x", "y", 0.6)
    answer(ledger, "broken \ud83d", "x", "y", 1.0)
    target = tmp_path / "out" / "pairs.jsonl"
    said = run(tmp_path / "run", "--export", target, "--min-confidence", 0.7, capsys=capsys)
    assert said == f"{target}: 3 pairs; left out: 1 ties, 2 without a verdict, 1 below a confidence of 0.7\n"
    first, second, third = rows_of(target)
    scores = {"score_chosen": pytest.approx(0.8), "score_rejected": pytest.approx(0.2)}
    assert first == {"prompt": "one", "chosen": "good", "rejected": "bad", **scores}
    assert (second["chosen"], second["rejected"], second["score_chosen"]) == ("better", "worse", 0.75)
    assert third["prompt"] == "broken ?"
    everything = run(tmp_path / "run", "--export", target, "--force", capsys=capsys)
    assert ": 4 pairs; left out: 1 ties, 2 without a verdict" in everything


def test_several_oracles_must_be_told_apart(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(ledger, "one", "good", "bad", 0.9)
    ledger.remember(ledger.oracle("people", {"kind": "people"}), [(Call("one", "good", "bad"), Answer(0.0))])
    target = tmp_path / "pairs.jsonl"
    refused = run(tmp_path / "run", "--export", target, code=2, capsys=capsys)
    assert "answers of several oracles: judge small (" in refused
    assert "people (" in refused
    run(tmp_path / "run", "--export", target, "--oracle", "people", capsys=capsys)
    assert rows_of(target)[0]["chosen"] == "bad"


def test_scores_of_single_responses_are_no_pairs(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = ledger.oracle("judge", {"kind": "judge", "mode": "single"})
    ledger.settle(ledger.intend(oracle, Call("q", "text", "")), Answer(0.9))
    said = run(tmp_path / "run", "--export", tmp_path / "o.jsonl", capsys=capsys)
    assert "0 pairs; left out: 1 scores of single responses (wrap the judge in remember)" in said


def test_text_and_chat_are_not_mixed(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(ledger, "text", "x", "y", 1.0)
    answer(ledger, [{"role": "user", "content": "chat"}], "x", "y", 1.0)
    refused = run(tmp_path / "run", "--export", tmp_path / "o.jsonl", code=2, capsys=capsys)
    assert "text prompts and conversations" in refused
    assert not (tmp_path / "o.jsonl").exists()


CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_export_trains_in_trl_and_in_sail(
    ending: str, chat: bool, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step each, on the same rows; TRL sees the format that it calls explicit, or conversational."""
    import torch
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    for row in tiny.make_pairs(8):
        prompt: Any = [{"role": "user", "content": row["prompt"]}] if chat else row["prompt"]
        answer(ledger, prompt, row["chosen"], row["rejected"], 0.9)
        answer(ledger, prompt, row["rejected"], row["chosen"], 0.2)
    target = tmp_path / f"pairs.{ending}"
    run(tmp_path / "run", "--export", target, capsys=capsys)
    kind = "json" if ending == "jsonl" else ending
    rows = load_dataset(kind, data_files=str(target), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert rows["score_chosen"] == pytest.approx([0.85] * 8)
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    common = {"max_steps": 1, "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    theirs = DPOTrainer(
        tiny.make_model(),
        ref_model=tiny.make_model(),
        args=DPOConfig(str(tmp_path / "trl"), per_device_train_batch_size=8, bf16=False, **common),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    # At the start the policy is the reference: log 2.
    assert theirs.train().training_loss == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    ours = tiny.make_trainer(
        tmp_path / "sail", rows=str(target), tokenizer=tokenizer, preset="dpo", oracle=None, max_steps=1
    )
    assert len(ours.train_dataset) == 8
    assert ours.train().training_loss == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
