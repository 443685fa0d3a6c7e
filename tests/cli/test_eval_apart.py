"""What `sail eval` keeps apart: models in folders of the same name, two evaluations at once, other settings of a tokenizer."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from eval_runs import HELD_OUT, SAIL, measure, write_lines
from tiny import make_model, make_pairs, make_tokenizer

from sail.cli import main
from sail.errors import ConfigError, SailError
from sail.evaluate import EvalOptions, evaluate
from sail.evaluation.files import read_json
from sail.evaluation.fingerprint import model_fingerprint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other(home: Path) -> Path:
    """Another model than `base`, with other weights, in a folder that is called the same; a copy of it is called otherwise."""
    for folder in (home / "elsewhere" / "base", home / "renamed"):
        make_model(scale=0.3, seed=1).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    return home / "elsewhere" / "base"


def test_models_in_folders_of_the_same_name_speak_for_themselves(
    home: Path, other: Path, tmp_path: Path
) -> None:
    """The reference and the rival are called as the subject: all is as with a copy of them that is called otherwise."""
    asked: dict[str, Any] = {
        "data": str(home / "held.jsonl"),
        "oracle": f"{home / 'reward.py'}:reward",
        "max_new_tokens": 8,
        "prompts": 12,
    }
    alike, apart = (
        measure(
            home / "base", tmp_path / name, reference=str(model), against=("reference", str(model)), **asked
        )
        for name, model in (("alike", other), ("apart", home / "renamed"))
    )
    assert alike["samples"] == [
        {key.replace("renamed", "base"): value for key, value in one.items()} for one in apart["samples"]
    ]
    assert alike["metrics"]["kl"] == apart["metrics"]["kl"]
    assert alike["metrics"]["kl"]["mean"] > 1
    assert alike["metrics"]["win_rate_base"] == apart["metrics"]["win_rate_renamed"]
    assert alike["metrics"]["win_rate_base"]["ties"] < 12
    assert all(one["response"] != one["reference"] for one in alike["samples"])


@pytest.mark.parametrize("called", ["step 4", "policy answers", "model"])
def test_a_rival_called_as_a_part_of_the_evaluation(
    full: Path, home: Path, other: Path, tmp_path: Path, called: str
) -> None:
    """A rival whose folder is called like a checkpoint's answers, or like nothing else: all is the same but its name."""
    shutil.copytree(other, tmp_path / called)
    with_rival = {"checkpoints": True, "prompts": 12}
    plain = measure(full, tmp_path / "a", against=("reference", str(home / "renamed")), **with_rival)
    found = measure(full, tmp_path / "b", against=("reference", str(tmp_path / called)), **with_rival)
    assert found["frontier"] == plain["frontier"]
    assert found["win_rates"] == {
        called if name == "renamed" else name: value for name, value in plain["win_rates"].items()
    }
    assert found["win_rates"][called]["win_rate"]["ties"] < 12


def test_a_rival_must_not_be_called_as_the_results_are(
    full: Path, home: Path, other: Path, tmp_path: Path
) -> None:
    shutil.copytree(other, tmp_path / "dataset")
    with pytest.raises(ConfigError, match='called "dataset", a word that the results use'):
        measure(full, tmp_path / "out", against=(str(tmp_path / "dataset"),))
    with pytest.raises(ConfigError, match="models of the same name"):
        measure(full, tmp_path / "out", against=(str(home / "base"), str(other)))


def test_a_second_evaluation_at_the_same_time_is_refused(full: Path, home: Path, tmp_path: Path) -> None:
    """The first, slowed down, goes on as if nobody had asked; the second names the file and the way out."""
    options = ["--samples", "3", "--batch-size", "2", "--prompts", "12", "--out", str(tmp_path / "both")]
    evaluate(EvalOptions(str(full), samples=3, batch_size=2, prompts=12, out=str(tmp_path / "alone")))
    (home / "slow").touch()
    try:
        argv = [SAIL, "eval", str(full), *options]
        first = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        limit = time.monotonic() + 120
        while not (tmp_path / "both" / "judgements.jsonl").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < limit
            time.sleep(0.002)
        for overwrite in (False, True):
            with pytest.raises(SailError, match=r"Another sail eval is writing .*answers\.jsonl now.*--out"):
                measure(full, tmp_path / "both", samples=3, prompts=12, overwrite=overwrite)
        said, _ = first.communicate()
        assert first.returncode == 0, said
    finally:
        (home / "slow").unlink()
    for name in ("answers.jsonl", "judgements.jsonl", "results.json"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_a_file_in_the_place_of_the_folder_is_refused(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert main(["eval", str(full), "--out", str(out)]) == 2
        assert f"--out {out} must be a folder, and {tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_answers_that_do_not_fit_the_context_are_refused(full: Path, home: Path, tmp_path: Path) -> None:
    """64 positions; the longest of the held-out prompts counted here by its words, one token each."""
    longest = max(len(row["prompt"].split()) for row in make_pairs(120)[:HELD_OUT])
    room = 64 - longest
    with pytest.raises(
        ConfigError, match=f"room for answers of {room} tokens, not of 2000.*tokens {room} or"
    ):
        measure(full, tmp_path / "a", max_new_tokens=2000)
    with pytest.raises(ConfigError, match=f"not of {room + 1}"):
        measure(full, tmp_path / "a", max_new_tokens=room + 1)
    assert not (tmp_path / "a").exists()
    assert measure(full, tmp_path / "a", max_new_tokens=room)["metrics"]["length"]["n"] == HELD_OUT
    write_lines(tmp_path / "long.jsonl", [{"prompt": "w1 " * 64}])
    with pytest.raises(ConfigError, match="longest prompt 64: there is no room for an answer"):
        measure(home / "base", tmp_path / "b", data=str(tmp_path / "long.jsonl"), max_new_tokens=1)
    # A rival with less room than the subject.
    make_model(max_position_embeddings=longest + 7).save_pretrained(tmp_path / "short")
    make_tokenizer().save_pretrained(tmp_path / "short")
    with pytest.raises(
        ConfigError, match=r"The context of short has .* room for answers of 7 tokens, not of 8"
    ):
        measure(full, tmp_path / "c", against=(str(tmp_path / "short"),))


def test_another_chat_template_is_another_model(full: Path, home: Path, tmp_path: Path) -> None:
    """Every file that decides what a model reads belongs to its fingerprint, and a begun evaluation knows it."""
    model = tmp_path / "model"
    shutil.copytree(home / "base", model)
    asked: dict[str, Any] = {"data": str(home / "held.jsonl"), "max_new_tokens": 8, "prompts": 4}
    measure(model, tmp_path / "out", **asked)
    seen = {model_fingerprint(str(model))}
    settings = read_json(model / "tokenizer_config.json")
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 1 }}"}))
    seen.add(model_fingerprint(str(model)))
    for name in ("chat_template.jinja", "special_tokens_map.json", "additional_chat_templates/tool.jinja"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
        seen.add(model_fingerprint(str(model)))
    assert len(seen) == 5
    (model / "README.md").write_text("said of it")
    assert model_fingerprint(str(model)) in seen
    with pytest.raises(SailError, match=r"begun with other settings .*tokenizer: "):
        measure(model, tmp_path / "out", **asked)
