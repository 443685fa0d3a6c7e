"""`sail data`: the figures against rows small enough to count by hand, the warnings, the files, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from named_sets import question, write_copy

from sail import cli
from sail.data.formats import Row, to_record
from sail.data.sources import load_rows
from sail.data_config import DataSource
from sail.errors import ConfigError, DataError
from sail.inspect_data import Wanted, examples, export, inspect, length_bias, repeats, spread
from sail.inspect_warnings import warnings_of


def row(prompt: Any, chosen: str | None, rejected: str | None) -> Row:
    return Row(prompt, chosen, rejected, "here")


ROWS = [
    row("p", "a", "b"),
    row("p ", "a", "b"),  # the same prompt but for whitespace: repeats the first
    row("p", "b", "a"),  # and contradicts both
    row("p", "a", "c"),
    row("q", "a", "b"),
    row("q", "d", "d"),
    row("only", None, None),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(to_record(one)) + "\n" for one in ROWS), encoding="utf-8")
    return path


# --- Figures -------------------------------------------------------------------------------------------------


def test_repeats_counted_by_hand() -> None:
    assert repeats(ROWS) == {"identical": 1, "duplicated": 1, "contradictory": 3}
    assert repeats([]) == {"identical": 0, "duplicated": 0, "contradictory": 0}


def test_length_bias_counted_by_hand() -> None:
    """Two of four longer, one equal: (2 + 1/2) / 4; the row without a pair is not counted. Two prompts."""
    pairs = [row("p", "x", "y")] * 2 + [row("q", "x", "y")] * 2
    lengths: list[tuple[int, ...] | None] = [(3, 1), (2, 1), (1, 1), (1, 5), None]
    found = length_bias([*pairs, row("r", None, None)], lengths, "words")
    assert (found["mean"], found["n"], found["clusters"], found["equal"]) == (0.625, 4, 2, 1)
    assert found["low"] < 0.625 < found["high"]
    assert length_bias([], [], "words")["mean"] is None


def test_percentiles_are_numpys() -> None:
    values = [1, 5, 2, 9, 9, 3, 40]
    found = spread(values)
    assert found is not None
    assert [found[f"p{q}"] for q in (5, 50, 95, 99)] == list(np.percentile(values, (5, 50, 95, 99)))
    assert (found["mean"], found["max"]) == (pytest.approx(69 / 7), 40)
    assert spread([]) is None


def test_pairs_to_read_are_the_same_every_time_and_depend_on_the_seed() -> None:
    many = [row(f"p {n}", "a", f"b {n}") for n in range(100)]
    assert examples(many, 10, 0) == examples(many, 10, 0)
    assert examples(many, 10, 0) != examples(many, 10, 1)
    assert [one["prompt"] for one in examples(many[:4], 10, 0)] == ["p 0", "p 1", "p 2", "p 3"]


def test_all_of_a_file(file: Path) -> None:
    made, rows = inspect(Wanted(str(file), DataSource(path=str(file), limit=1), pairs=2))
    assert len(rows) == 7
    counted = made["rows"]
    assert (
        counted["read"],
        counted["kept"],
        counted["pairs"],
        counted["prompt_only"],
        counted["prompts"],
    ) == (
        7,
        7,
        6,
        1,
        3,
    )
    assert made["held_out"]["shared_prompts"] == 1
    assert made["lengths"]["characters"]["prompt"]["max"] == 4
    assert "tokens" not in made["lengths"]
    assert len(made["examples"]) == 2


def test_bad_rows_are_counted_and_named(file: Path) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write('{"prompt": "p", "chosen": "", "rejected": "b"}\n')
    made, _ = inspect(Wanted(str(file)))
    assert (made["rows"]["read"], made["rows"]["bad"]) == (8, 1)
    assert "row 8" in made["warnings"][0]
    assert "data.bad_rows: skip" in made["warnings"][0]


def test_lengths_in_tokens_are_those_of_training(tmp_path: Path) -> None:
    """One id per word and one EOS per answer; limits: prompt above 3; a prompt of 3 leaves 2 ids within 5."""
    from tiny import make_model, make_tokenizer
    from transformers import AutoModelForCausalLM

    from sail.data.encode import encode_rows, eos_ids

    make_tokenizer().save_pretrained(tmp_path / "model")
    make_model().save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": "w1 w2", "chosen": "w1", "rejected": "w2 w3"},
        {"prompt": "w1 w2 w3", "chosen": "w1", "rejected": "w2 w3"},  # 3 + 3 ids: the rejected answer is cut
        {"prompt": "w1 w2 w3 w4", "chosen": "w1", "rejected": "w2"},  # above max_prompt_length
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    wanted = Wanted(str(path), tokenizer=str(tmp_path / "model"), max_length=5, max_prompt_length=3)
    made, _ = inspect(wanted)
    tokens, limits = made["lengths"]["tokens"], made["limits"]
    assert (tokens["prompt"]["mean"], tokens["prompt"]["max"]) == (3, 4)
    assert tokens["chosen"]["max"] == 2
    assert tokens["rejected"]["max"] == 3
    assert (limits["prompts_too_long"], limits["rows_with_a_cut"], limits["responses_cut"]) == (1, 1, 1)
    assert limits["share_above"] == pytest.approx(2 / 3)
    assert made["length_bias"]["unit"] == "tokens"
    assert any("1 of 3 prompts are above the limit" in said for said in made["warnings"])
    assert any("cut at max_length (5)" in said for said in made["warnings"])

    # as the run itself counts, with the model at hand
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    encoded = encode_rows(
        load_rows(str(path)), make_tokenizer(), max_length=5, max_prompt_length=3, bad_rows="skip",
        eos=eos_ids(make_tokenizer(), model.generation_config),
    )  # fmt: skip
    assert (len(encoded.skipped), encoded.cut) == (1, 1)
    write_copy("hh-rlhf", tmp_path / "hh")
    wanted.source = DataSource(name="hh-rlhf", path=str(tmp_path / "hh"))
    with pytest.raises(DataError, match=r"has no chat template.*--shape text"):
        inspect(wanted)


def test_the_ends_of_a_response_are_the_models_too(tmp_path: Path) -> None:
    """A generation config with a second end (w5): an answer that ends with it needs no other, and is one id shorter."""
    from tiny import make_model, make_tokenizer

    from sail.inspect_tokens import count_tokens

    tokenizer, model = make_tokenizer(), make_model()
    tokenizer.save_pretrained(tmp_path / "alone")
    tokenizer.save_pretrained(tmp_path / "model")
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("w5")]
    model.save_pretrained(tmp_path / "model")
    rows = [row("w1", "w2 w5", "w2"), row("w1", None, None)]
    assert count_tokens(rows, str(tmp_path / "model")).lengths == [(1, 2, 2), (1,)]
    assert count_tokens(rows, str(tmp_path / "model")).unreadable == []


def test_a_tokenizer_that_cannot_spell_the_text_is_named(tmp_path: Path) -> None:
    """Of 3 + 2 + 2 ids 4 are unknown; a tokenizer whose unknown token is its EOS cannot be asked."""
    from tiny import make_model, make_tokenizer

    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "w1 six apples", "chosen": "seven", "rejected": "eight"}) + "\n")
    made = {}
    for name in ("own", "shared"):
        tokenizer = make_tokenizer()
        if name == "shared":
            tokenizer.unk_token = tokenizer.eos_token
        tokenizer.save_pretrained(tmp_path / name)
        make_model().save_pretrained(tmp_path / name)
        made[name], _ = inspect(Wanted(str(path), tokenizer=str(tmp_path / name), max_length=20))
    assert made["own"]["limits"]["unknown_tokens"] == pytest.approx(4 / 7)
    assert any(said.startswith("57% of the tokens are unknown ones") for said in made["own"]["warnings"])
    assert made["shared"]["limits"]["unknown_tokens"] == 0


# --- Warnings ------------------------------------------------------------------------------------------------


def measured(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "rows": {"read": 100, "bad": 0, "bad_examples": [], "dropped": {}, "prompt_only": 0, "pairs": 100},
        "limits": None,
        "held_out": {"prompts": 10, "shared_prompts": 0, "shared_rows": 0},
        "repeats": {"identical": 0, "duplicated": 0, "contradictory": 0},
        "length_bias": {"mean": 0.5, "low": 0.45, "high": 0.55},
    }
    for key, value in changes.items():
        made[key] = {**made[key], **value} if isinstance(made[key], dict) and value is not None else value
    return made


def test_nothing_wrong_is_no_warning() -> None:
    assert warnings_of(measured()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": None}, "There are no held-out rows"),
        ({"held_out": {"shared_prompts": 3, "shared_rows": 4}}, "3 of 10 held-out prompts (4 rows)"),
        ({"repeats": {"identical": 2}}, "2 pairs have two identical answers"),
        ({"repeats": {"duplicated": 2}}, "2 pairs repeat an earlier one"),
        ({"repeats": {"contradictory": 2}}, "2 pairs are preferred both ways"),
        (
            {"length_bias": {"mean": 0.7, "low": 0.65, "high": 0.75}},
            "The longer answer is the chosen one in 70%",
        ),
        (
            {"length_bias": {"mean": 0.2, "low": 0.1, "high": 0.3}},
            "The shorter answer is the chosen one in 80%",
        ),
        ({"rows": {"dropped": {"tie": 21}}}, "21% of the rows read are left out, most of them for: tie"),
        ({"rows": {"prompt_only": 5}}, "5 rows have a prompt and no pair"),
    ],
)
def test_each_warning_and_only_it(changes: dict[str, Any], said: str) -> None:
    (warning,) = warnings_of(measured(**changes))
    assert warning.startswith(said)


@pytest.mark.parametrize(
    "changes",
    [
        {"length_bias": {"mean": 0.65, "low": 0.55, "high": 0.75}},
        {"rows": {"dropped": {"above the limit": 90, "in the other part (held-out split)": 5, "tie": 5}}},
    ],
)
def test_what_is_no_reason_to_warn(changes: dict[str, Any]) -> None:
    assert warnings_of(measured(**changes)) == []


# --- Files and command ---------------------------------------------------------------------------------------


def test_exported_rows_are_read_back_as_the_same(tmp_path: Path, file: Path) -> None:
    chat = [{"role": "user", "content": "p"}]
    rows = [row("p", " a\u2028", "b"), row(chat, "a", "b"), row("only", None, None)]
    export(rows, tmp_path / "new" / "out.jsonl", force=False)
    back = load_rows(str(tmp_path / "new" / "out.jsonl")).rows
    assert [to_record(one) for one in back] == [to_record(one) for one in rows]
    with pytest.raises(ConfigError, match=r"exists.*--force"):
        export(rows, tmp_path / "new" / "out.jsonl", force=False)


def test_the_command_on_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "data",
        "pairs.jsonl",
        "--drop-repeats",
        "--pairs",
        "3",
        "--json",
        "d.json",
        "--export",
        "rows.jsonl",
    ]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "left out: repeats an earlier row" in said
    assert "--- pair 3 of 3: " in said
    assert "Warning: There are no held-out rows" in said
    assert json.loads(Path("d.json").read_text())["rows"]["kept"] == 5
    assert len(load_rows("rows.jsonl").rows) == 5
    assert cli.main(words) == 2
    assert "d.json exists" in capsys.readouterr().err
    assert cli.main([*words, "--force"]) == 0


def test_the_command_on_a_public_set(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own test split is what it is held against; one prompt of it is trained on, by our own making."""
    write_copy("ultrafeedback-binarized", file.parent / "copy")
    assert cli.main(["data", "ultrafeedback-binarized", "--path", "copy", "--json", "d.json"]) == 0
    said = capsys.readouterr().out
    assert "data: ultrafeedback-binarized [train]" in said
    assert "left out: near-tie" in said
    made = json.loads(Path("d.json").read_text())
    assert made["held_out"]["shared_prompts"] == 1
    assert question(30)
    assert any(warning.startswith("1 of 10 held-out prompts") for warning in made["warnings"])
    words = ["data", "ultrafeedback-binarized", "--path", "copy", "--held-out", "none", "--split", "test"]
    assert cli.main([*words, "--limit", "3"]) == 0
    assert "above the limit" in capsys.readouterr().out


def test_the_command_on_a_run_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(
        "model: org/name\ndata: {train: {path: pairs.jsonl, split: train, held_out: .4}, eval: {path: pairs.jsonl, split: "
        "test, held_out: .4}}\ntrain: {preset: dpo}\n",
        encoding="utf-8",
    )
    assert cli.main(["data", "run.yaml", "data.train.limit=2", "--json", "d.json"]) == 0
    said = capsys.readouterr().out
    assert "Note: Tokens were not counted: org/name is no folder here." in said
    made = json.loads(Path("d.json").read_text())
    assert made["rows"]["kept"] == 2
    assert made["held_out"]["rows"] > 0
    assert cli.main(["data", "run.yaml", "--limit", "2"]) == 2
    assert "data.train.limit=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jsonl"], "there is no such file"),
        (["webgtp-comparisons"], "did you mean webgpt-comparisons?"),
        (["hh", "--path", "x"], "did you mean hh-rlhf?"),
        (["pairs.jsonl", "--label", "safe"], "label belongs to a public set"),
        (["pairs.jsonl", "--max-length", "5"], "Add --tokenizer MODEL"),
        (["pairs.jsonl", "train.beta=1"], "is a setting of a run file"),
        (["pairs.jsonl", "--tokenizer", "./nothing"], "There is no folder ./nothing"),
        (["hh-rlhf", "--path", "nowhere"], "there is no nowhere"),
        (["pku-saferlhf", "--label", "safer"], "Did you mean safe?"),
        (["no.yaml"], "There is no file no.yaml"),
    ],
)
def test_mistakes_end_with_a_sentence(
    words: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sail: ")
    assert said in error
    assert error.rstrip().endswith((".", "?"))


def test_without_a_source_the_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data"]) == 0
    assert "PKU-Alignment/PKU-SafeRLHF" in capsys.readouterr().out


def test_terminal_commands_in_rows_do_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(json.dumps({"prompt": "p \x1b[2J [red]x[/red]", "chosen": "a", "rejected": "b"}) + "\n")
    assert cli.main(["data", "pairs.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said
    assert "[red]x[/red]" in said


def test_no_torch_unless_tokens_are_counted(file: Path) -> None:
    code = "import sys; from sail import cli; cli.main(['data', 'pairs.jsonl']); print({'torch', 'datasets'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=file.parent
    )
    assert done.stdout.rstrip().endswith("set()")
