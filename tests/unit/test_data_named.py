"""Public sets by name: what becomes of the real columns, of ties, repeats and defects, and which files of a copy are read.

Expected rows and counts are written by hand from the rows in named_sets.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import named_sets
import pytest
from named_sets import EXPECTED, ROWS, WRITERS, kind, plain, question, rude, transcript

from sail.data.formats import Row
from sail.data.named import hh, pku, summarize, ultrafeedback, webgpt
from sail.data.named.base import Answered, Choice, Unusable, number, pair_of, verdict
from sail.data.named.catalogue import NAMED, known_as, nearest
from sail.data.selection import part_of, prompt_id
from sail.data.sources import RowSet, load_rows, load_sft_rows
from sail.data_config import DataSource, parse_source
from sail.errors import ConfigError, DataError, MissingExtraError


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("copies")
    for name in WRITERS:
        named_sets.write_copy(name, home / name)
    return home


def source(name: str, copies: Path, **keys: Any) -> DataSource:
    made = parse_source({"name": name, "path": str(copies / name), **keys})
    assert isinstance(made, DataSource)
    return made


def read(name: str, copies: Path, **keys: Any) -> RowSet:
    return load_rows(source(name, copies, **keys))


def whole(name: str) -> str:
    return "train" if "test" in next(iter(NAMED[name].variants.values())).splits else "all"


def by_question(rows: list[Row], asked: str) -> Row:
    (found,) = [row for row in rows if not isinstance(row.prompt, str) and row.prompt[-1]["content"] == asked]
    return found


# --- Every set -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_the_counts_are_those_counted_by_hand(name: str, copies: Path) -> None:
    found = read(name, copies, split=whole(name))
    assert found.counts is not None
    assert {
        "read": found.counts.read,
        "dropped": dict(found.counts.dropped),
        "kept": len(found.rows),
    } == EXPECTED[name]
    assert found.counts.read == len(found.rows) + sum(found.counts.dropped.values())
    assert not found.skipped


@pytest.mark.parametrize("name", WRITERS)
def test_the_good_answer_is_the_chosen_one(name: str, copies: Path) -> None:
    rows = read(name, copies, split=whole(name)).rows
    contradicts = {"summarize-from-feedback": 1}  # one row says the other choice on purpose
    good = [row.chosen is not None and row.chosen.strip().startswith("gladly") for row in rows]
    assert good.count(False) == contradicts.get(name, 0)
    assert all(row.conversational == (NAMED[name].shape == "chat") for row in rows)


@pytest.mark.parametrize("name", WRITERS)
def test_both_shapes_hold_the_same_pairs(name: str, copies: Path) -> None:
    chat = read(name, copies, split=whole(name), shape="chat").rows
    text = read(name, copies, split=whole(name), shape="text").rows
    assert [row.chosen for row in chat] == [row.chosen.strip() for row in text if row.chosen]
    for row in text:
        assert isinstance(row.prompt, str)
        assert row.prompt.endswith(("\n\nAssistant:", "TL;DR:"))
        assert (row.chosen or "").startswith(" ")
    assert all(not isinstance(row.prompt, str) and row.prompt[-1]["role"] == "user" for row in chat)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("held_out", [0.1, 0.3])
def test_no_prompt_is_in_both_parts(name: str, held_out: float, copies: Path) -> None:
    """Where the prompts are parted by hash; what a set's own test split shares is only counted (sail data)."""
    keys: dict[str, Any] = {"held_out": held_out}
    parts = [read(name, copies, split=split, **keys).rows for split in ("train", "test")]
    prompts = [{prompt_id(row.prompt) for row in rows} for rows in parts]
    assert not prompts[0] & prompts[1]
    assert sum(map(len, parts)) == EXPECTED[name]["kept"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_is_deterministic_nested_and_moved_by_the_seed(name: str, copies: Path) -> None:
    def limited(count: int, seed: int = 0) -> list[Row]:
        return read(name, copies, split=whole(name), limit=count, seed=seed).rows

    few, more = limited(5), limited(12)
    assert len(few) == 5
    assert limited(5) == few
    assert [row for row in more if row in few] == few
    assert limited(5, seed=1) != few
    assert len(limited(1000)) == EXPECTED[name]["kept"]


@pytest.mark.parametrize("name", WRITERS)
def test_other_columns_are_refused_and_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "x"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"this is no row of {name}: it lacks .*columns found: text"
    ) as caught:
        load_rows(source(name, tmp_path, path=str(path)))
    assert NAMED[name].columns[0] in str(caught.value)


def test_columns_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"instruction": "x", "completions": ["a", "b"]}\n', encoding="utf-8")
    with pytest.raises(DataError, match="a column has not the shape that ultrafeedback has"):
        load_rows(DataSource(name="ultrafeedback", path=str(path), split="all"))


def test_supervised_rows_are_the_chosen_answers(copies: Path) -> None:
    rows = load_sft_rows(source("hh-rlhf", copies, split="train"))
    pairs = read("hh-rlhf", copies, split="train").rows
    assert rows.rows == [(row.prompt, row.chosen) for row in pairs]


# --- PKU-SafeRLHF --------------------------------------------------------------------------------------------


def test_pku_by_either_verdict(copies: Path) -> None:
    helpful, safe = (read("pku-saferlhf", copies, label=label) for label in ("helpful", "safe"))
    swapped = by_question(safe.rows, question(3))
    assert (swapped.chosen, swapped.rejected) == (rude(3), kind(3))
    assert by_question(helpful.rows, question(3)).chosen == kind(3)
    assert helpful.counts is not None
    assert safe.counts is not None
    assert helpful.counts.noted[pku.DISAGREE] == 2
    # nobody said which answer to row 7 is better, but somebody said which is safer
    assert len(safe.rows) == len(helpful.rows) + 1


@pytest.mark.parametrize("given", [None, -1, 2, True, "x", math.nan])
def test_pku_without_a_verdict(given: Any) -> None:
    row = named_sets.pku_row(0, better_response_id=given)
    assert pku.convert(row, Choice("helpful")) == Unusable("no verdict")


def test_pku_parts_of_the_full_set(copies: Path) -> None:
    whole_set = read("pku-saferlhf", copies)
    parts = [read("pku-saferlhf", copies, variant=name) for name in ("alpaca-7b", "alpaca2-7b", "alpaca3-8b")]
    assert [part.counts.read for part in parts if part.counts] == [14, 14, 13]
    assert whole_set.counts is not None
    assert whole_set.counts.read == 41


# --- UltraFeedback -------------------------------------------------------------------------------------------


def test_ultrafeedback_best_against_random_or_worst(copies: Path) -> None:
    drawn = read("ultrafeedback", copies, split="all").rows
    worst = read("ultrafeedback", copies, split="all", pairing="best_worst").rows
    row = by_question(worst, question(8))
    assert (row.chosen, row.rejected) == (kind(8), f"no {rude(8)}")
    kinds = {(row.rejected or "").split()[0] for row in drawn}
    assert kinds == {"the", "bah", "no"}  # each of the other three is drawn somewhere
    assert drawn == read("ultrafeedback", copies, split="all").rows
    assert drawn != read("ultrafeedback", copies, split="all", seed=5).rows


def test_ultrafeedback_the_drawn_answer_is_far_enough_below(copies: Path) -> None:
    """Scores 9, 7, 4, 2: at a gap of 6 only the last one qualifies."""
    rows = read("ultrafeedback", copies, split="all", min_gap=6).rows
    assert {(row.rejected or "").split()[0] for row in rows} == {"no"}
    assert len(rows) == 36  # nobody is lost to a near-tie while one of the others is far enough
    with pytest.raises(DataError, match=r"none of 40 rows is left \(.*near-tie"):
        read("ultrafeedback", copies, split="all", min_gap=9)


def test_ultrafeedback_by_the_mean_of_the_aspects() -> None:
    """By hand: means 4.75, 3.75, (2 + 3 + 2) / 3 of the three that are numbers, 1.5."""
    made = ultrafeedback.convert_raw(
        named_sets.ultrafeedback_row(0), Choice("fine_grained", "best_worst", min_gap=0.5)
    )
    assert isinstance(made, Answered)
    assert made.gap == pytest.approx(4.75 - 1.5)
    scores = [
        ultrafeedback._score(one, "fine_grained") for one in named_sets.ultrafeedback_row(0)["completions"]
    ]
    assert scores == [pytest.approx(value) for value in (4.75, 3.75, 7 / 3, 1.5)]


@pytest.mark.parametrize("missing", [None, "N/A", math.nan, ""])
def test_ultrafeedback_answers_without_a_score_are_left_aside(missing: Any) -> None:
    made = ultrafeedback.convert_raw(
        named_sets.ultrafeedback_row(0, (missing, 7.0, 4.0, 2.0)), Choice("overall", "best_worst")
    )
    assert isinstance(made, Answered)
    assert (made.chosen, made.gap, made.notes) == (plain(0), 5.0, (ultrafeedback.SOME_UNSCORED,))


def test_binarized_keeps_the_messages_before_the_answers(copies: Path) -> None:
    rows = read("ultrafeedback-binarized", copies).rows
    row = by_question(rows, "and then")
    assert not isinstance(row.prompt, str)
    assert [turn["role"] for turn in row.prompt] == ["system", "user", "assistant", "user"]
    assert (row.chosen, row.rejected) == (kind(7), rude(7))
    assert len(read("ultrafeedback-binarized", copies, min_gap=0).rows) == len(rows) + 1


# --- HH-RLHF -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (transcript("a", "b"), ["a", "b"]),
        (transcript("a", "b", "c", "d"), ["a", "b", "c", "d"]),
        ("Human: a\n\nAssistant: b", ["a", "b"]),
        ("\n\nHuman:a\n\nAssistant:b", ["a", "b"]),
        (transcript("a\n\nb: c", "d\n\ne"), ["a\n\nb: c", "d\n\ne"]),
        (transcript("a", "said Human: b"), ["a", "said Human: b"]),
        ("\n\nAssistant: a\n\nHuman: b", hh.NOT_A_TRANSCRIPT),
        ("Humanity: a", hh.NOT_A_TRANSCRIPT),
        (None, hh.NOT_A_TRANSCRIPT),
        ("\n\nHuman: a", hh.NO_LAST_ANSWER),
        (transcript("a", "b", "c"), hh.NO_LAST_ANSWER),
        ("\n\nHuman: a\n\nAssistant:", "empty answer"),
        (transcript("a", " "), "empty answer"),
        (transcript("", "b"), hh.EMPTY_TURN),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", hh.NOT_IN_TURNS),
    ],
)
def test_hh_transcripts(text: Any, expected: Any) -> None:
    found = hh._turns(text)
    if isinstance(expected, str):
        assert found == Unusable(expected)
    else:
        assert not isinstance(found, Unusable)
        assert [turn["content"] for turn in found] == expected
        assert [turn["role"] for turn in found] == ["user", "assistant"] * (len(expected) // 2)


def test_hh_as_text_is_the_transcript(copies: Path) -> None:
    row = next(
        row
        for row in read("hh-rlhf", copies, shape="text", variant="helpful-base").rows
        if "hello" in str(row.prompt)
    )
    number = 7
    assert row.prompt == transcript("hello", "yes ?", question(number)) + "\n\nAssistant:"
    assert row.rejected == f" {rude(number)}"


def test_hh_never_reads_what_holds_no_pairs(copies: Path) -> None:
    origins = {row.origin.rsplit("/", 2)[1] for row in read("hh-rlhf", copies, split="all").rows}
    assert origins == {"helpful-base", "harmless-base"}
    one = read("hh-rlhf", copies, variant="harmless-base")
    assert one.counts is not None
    assert one.counts.read == 20
    with pytest.raises(DataError, match=r"no folder helpful-online, only harmless-base, helpful-base"):
        read("hh-rlhf", copies, variant="helpful-online")


# --- summarize-from-feedback and WebGPT ----------------------------------------------------------------------


def test_summaries_go_on_from_the_prompt(copies: Path) -> None:
    rows = read("summarize-from-feedback", copies).rows
    row = rows[0]
    assert row.prompt == (
        f"SUBREDDIT: r/things\n\nTITLE: {question(0)}\n\nPOST: {question(0)} ? {plain(0)} . {plain(1)} .\n\nTL;DR:"
    )
    assert (row.chosen, row.rejected) == (f" {kind(0)}", f" {rude(0)}")
    news = read("summarize-from-feedback", copies, split="test").rows[0]
    assert str(news.prompt).startswith("ARTICLE: news : ")
    assert "TITLE" not in str(news.prompt)


def test_the_choice_is_the_place_of_a_summary() -> None:
    """Both places of the preferred summary, so that a swap cannot go unnoticed."""
    for choice, other in ((0, 1), (1, 0)):
        row = named_sets.summary_row(0, choice=choice)
        made = summarize.convert(row, Choice(shape="chat"))
        assert isinstance(made, Answered)
        assert made.chosen == row["summaries"][choice]["text"].strip()
        assert made.rejected == row["summaries"][other]["text"].strip()
    assert summarize.convert(named_sets.summary_row(0, choice=2), Choice()) == Unusable("no verdict")


def test_webgpt_gaps_are_differences_of_the_scores() -> None:
    """Scores .5 and -.5; a question that is plain text, as some copies have it, serves too."""
    row = named_sets.webgpt_row(1)
    made = webgpt.convert(row, Choice())
    assert isinstance(made, Answered)
    assert (made.gap, made.chosen) == (1.0, f"{kind(1)} [1]")
    assert isinstance(webgpt.convert({**row, "question": "why"}, Choice()), Answered)
    assert webgpt.convert({**row, "score_1": None}, Choice()) == Unusable("no score")


# --- Selection -----------------------------------------------------------------------------------------------


def rows_file(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_keeps_all_of_its_rows_unless_told_otherwise(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = rows_file(tmp_path, [row, row, {**row, "rejected": "a"}, {"prompt": "only"}])
    assert len(load_rows(DataSource(path=path)).rows) == 4
    found = load_rows(DataSource(path=path, drop_repeats=True))
    assert len(found.rows) == 2
    assert found.counts is not None
    assert dict(found.counts.dropped) == {"repeats an earlier row": 1, "identical answers": 1}


def test_a_file_is_parted_by_hash_and_its_bad_rows_are_still_bad(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n // 2}", "chosen": "a", "rejected": f"b {n}"} for n in range(200)]
    path = rows_file(tmp_path, [*rows, {"prompt": 5}])
    with pytest.raises(DataError, match="row 201: field 'prompt' is the int 5"):
        load_rows(DataSource(path=path, split="train", held_out=0.2))
    train, test = (
        load_rows(DataSource(path=path, split=split, held_out=0.2), bad_rows="skip")
        for split in ("train", "test")
    )
    assert len(train.rows) + len(test.rows) == 200
    assert 20 <= len(test.rows) <= 60  # 40 expected; 3.5 standard deviations of 100 prompts are 14 prompts
    assert not {row.prompt for row in train.rows} & {row.prompt for row in test.rows}
    assert len(load_rows(DataSource(path=path, limit=7), bad_rows="skip").rows) == 7


def test_a_conversation_falls_to_one_part_as_a_whole() -> None:
    opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    longer = [*opening, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
    for share in (0.1, 0.5, 0.9):
        assert part_of(opening, share) == part_of(longer, share)
    many = [part_of(f"prompt {number}", 0.3) for number in range(2000)]
    assert abs(many.count("test") / 2000 - 0.3) < 0.04  # 4 standard deviations
    small = {n for n in range(2000) if part_of(f"prompt {n}", 0.1) == "test"}
    assert small <= {n for n in range(2000) if part_of(f"prompt {n}", 0.3) == "test"}


def test_whitespace_makes_no_other_prompt() -> None:
    assert prompt_id("a  b\n") == prompt_id("a b")
    assert prompt_id("ab") != prompt_id("a b")
    assert prompt_id([{"role": "user", "content": "a"}]) != prompt_id("a")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(4, 4.0), ("4", 4.0), ("N/A", None), (math.nan, None), (math.inf, None), (None, None), (True, None)],
)
def test_numbers_in_public_files(value: Any, expected: float | None) -> None:
    assert number(value) == expected
    assert verdict(value) is None


def test_lists_that_a_table_keeps_by_column() -> None:
    row = named_sets.summary_row(0)
    by_column = {key: [one[key] for one in row["summaries"]] for key in ("text", "policy")}
    assert summarize.convert({**row, "summaries": by_column}, Choice()) == summarize.convert(row, Choice())


def test_a_pair_needs_words() -> None:
    assert pair_of([], "a", "b", Choice()) == Unusable("empty prompt")
    assert pair_of([{"role": "user", "content": "p"}], " ", "b", Choice()) == Unusable("empty answer")
    assert pair_of([{"role": "user", "content": "p"}], "a", None, Choice()) == Unusable("empty answer")


# --- Copies and the hub --------------------------------------------------------------------------------------


def test_a_single_file_is_a_copy(copies: Path) -> None:
    """Of a split if its name says so, else of the training rows."""
    path = copies / "hh-rlhf" / "helpful-base" / "test.jsonl.gz"
    assert len(load_rows(source("hh-rlhf", copies, path=str(path), split="test")).rows) == 4
    with pytest.raises(DataError, match=r"no file of the split train in .*test\.jsonl\.gz"):
        load_rows(source("hh-rlhf", copies, path=str(path), split="train"))
    alone = copies / "webgpt-comparisons" / "comparisons.jsonl"
    assert len(load_rows(source("webgpt-comparisons", copies, path=str(alone), split="all")).rows) == 36


def test_a_copy_without_the_split_says_what_is_there(copies: Path, tmp_path: Path) -> None:
    named_sets.jsonl(tmp_path / "train.jsonl", [named_sets.pku_row(n) for n in range(ROWS)])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "test.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"no file of the split test .*\(found: train\.jsonl\).*held_out: 0\.05"
    ):
        load_rows(source("pku-saferlhf", copies, path=str(tmp_path), split="test"))
    parts = [
        load_rows(
            source("pku-saferlhf", copies, path=str(tmp_path), split=split, variant="10K", held_out=0.2)
        )
        for split in ("train", "test")
    ]
    assert sum(len(part.rows) for part in parts) == ROWS
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        load_rows(source("pku-saferlhf", copies, path=str(tmp_path / "nowhere")))


def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pointer of git-lfs.*git lfs pull"):
        load_rows(str(path))


SCRIPTS = ("summarize-from-feedback", "webgpt-comparisons")
"""Sets that the hub keeps as a script, with a conversion of its own."""


@pytest.mark.parametrize("name", WRITERS)
def test_the_hubs_loader_gives_the_same_rows(
    name: str, copies: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real datasets.load_dataset with the hub's id replaced by our folder: same splits and rows as by our own reader."""
    datasets = pytest.importorskip("datasets")
    real = datasets.load_dataset

    def local(hub: str, config: Any = None, **options: Any) -> Any:
        assert hub == next(iter(NAMED[name].variants.values())).hub
        if name in SCRIPTS and options.get("revision") is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found it.py")
        return real(str(folder), config, cache_dir=str(tmp_path), **options)

    folder = copies / name
    if name == "webgpt-comparisons":  # the hub's own conversion has other folders than the original
        folder = tmp_path / "webgpt"
        named_sets.parquet(folder / "default" / "train" / "0000.parquet", named_sets.webgpt_rows())
    monkeypatch.setattr(datasets, "load_dataset", local)
    variant = {"hh-rlhf": "helpful-base"}.get(name)
    keys = {"split": whole(name), "variant": variant}
    made = parse_source({"name": name, **keys})
    assert isinstance(made, DataSource)
    of_hub, of_copy = load_rows(made), read(name, copies, **keys)
    assert [(row.prompt, row.chosen, row.rejected) for row in of_hub.rows] == [
        (row.prompt, row.chosen, row.rejected) for row in of_copy.rows
    ]
    assert of_hub.rows[0].origin.startswith(made.form.hub if made.form else "")


def test_a_hub_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with HF_HUB_OFFLINE=1, so this is the real refusal."""
    made = parse_source("summarize-from-feedback")
    assert isinstance(made, DataSource)
    with pytest.raises(DataError) as caught:
        load_rows(made)
    said = str(caught.value)
    assert "could not be loaded from the hub as openai/summarize_from_feedback" in said
    assert (
        "hf download openai/summarize_from_feedback --repo-type dataset --revision refs/convert/parquet"
        in said
    )
    assert "path: DIR" in said


def test_without_datasets_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"sail-align\[sft\]\", or give path"):
        load_rows(parse_source("hh-rlhf"))  # type: ignore[arg-type]


# --- What a run file may say ---------------------------------------------------------------------------------


def test_names_and_other_names() -> None:
    assert known_as("PKU-Alignment/PKU-SafeRLHF-10K") == ("pku-saferlhf", "10K")
    assert known_as("pku-saferlhf-30k") == ("pku-saferlhf", "30K")
    assert known_as("Anthropic/hh-rlhf") == ("hh-rlhf", "all")
    assert known_as("openai/summarize_from_feedback") == ("summarize-from-feedback", "comparisons")
    assert known_as("nothing") is None
    assert nearest("hh-rlfh") == "hh-rlhf"
    assert nearest("ultrafeedback_binarized") is not None


@pytest.mark.parametrize(
    ("value", "held_out", "expected"),
    [
        ("pairs.jsonl", False, "pairs.jsonl"),
        ("hh-rlhf", False, DataSource(name="hh-rlhf", split="train")),
        ("hh-rlhf", True, DataSource(name="hh-rlhf", split="test")),
        ("pku-saferlhf-10k", True, DataSource(name="pku-saferlhf", variant="10K", split="test")),
        ({"name": "hh-rlhf", "split": "all"}, True, DataSource(name="hh-rlhf", split="all")),
        ({"path": "p.jsonl", "limit": 3}, False, DataSource(path="p.jsonl", limit=3)),
        (None, False, None),
    ],
)
def test_values_of_a_run_file(value: Any, held_out: bool, expected: Any) -> None:
    assert parse_source(value, held_out=held_out) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "must be a path, the name of a data set, or keys"),
        ("hh-rlfh", "there is no file and no data set 'hh-rlfh'; did you mean hh-rlhf?"),
        (
            {"name": "webgtp-comparisons"},
            "no data set 'webgtp-comparisons'; did you mean webgpt-comparisons?",
        ),
        ({"name": "zzz"}, "the names are pku-saferlhf, ultrafeedback"),
        ({}, "give name (one of pku-saferlhf"),
        ({"nmae": "hh-rlhf"}, "nmae: there is no such key. Did you mean name?"),
        ({"name": "hh-rlhf", "limit": 0}, "limit must be above 0; it is 0"),
        ({"name": "hh-rlhf", "label": "safe"}, "hh-rlhf has no label to choose: leave it out"),
        (
            {"name": "pku-saferlhf", "label": "safer"},
            "one of helpful, safe; it is 'safer'. Did you mean safe?",
        ),
        ({"name": "pku-saferlhf", "variant": "20K"}, "variant of pku-saferlhf is one of full, 10K, 30K"),
        ({"name": "pku-saferlhf", "min_gap": 1}, "has no scores, so min_gap says nothing"),
        ({"name": "hh-rlhf", "split": "dev"}, "split of hh-rlhf is one of train, test, all; it is 'dev'"),
        ({"name": "hh-rlhf", "shape": "html"}, "shape of hh-rlhf is one of chat, text"),
        ({"name": "hh-rlhf", "held_out": 1}, "held_out must be below 1"),
        ({"path": "p.jsonl", "label": "safe"}, "label belongs to a public set: give name too"),
        ({"path": "p.jsonl", "split": "dev"}, "split of a file is train, test"),
        ({"path": "p.jsonl", "held_out": 0.1}, "say which part"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    value: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parse_source(value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hubs_name_of_a_split_serves_too(copies: Path) -> None:
    one, other = (read("ultrafeedback-binarized", copies, split=split) for split in ("test", "test_prefs"))
    assert one.rows == other.rows
    assert source("hh-rlhf", copies, split="test", held_out=0.1).hub_splits == ("train",)
