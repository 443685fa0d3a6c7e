"""Public sets by name: what becomes of the real columns, shapes and defects.

Expected rows and counts are written by hand from the rows in named_sets.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import named_sets
import pytest
from named_sets import EXPECTED, WRITERS, kind, plain, question, rude, summary_row, transcript
from reading_sets import read, source, whole

from sail.data.formats import Row
from sail.data.named import hh, pku, summarize, ultrafeedback, webgpt
from sail.data.named.base import Answered, Choice, Unusable, number, pair_of, verdict
from sail.data.named.catalogue import NAMED
from sail.data.sources import load_rows, load_sft_rows
from sail.data_config import DataSource
from sail.errors import DataError


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
def test_other_columns_are_refused_and_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "x"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"this is no row of {name}: it lacks .*columns found: text"
    ) as caught:
        load_rows(source(name, tmp_path, path=str(path)))
    assert NAMED[name].columns[0] in str(caught.value)


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    """An object of lists in place of a list of objects, and one list is shorter."""
    row = summary_row(1) | {"summaries": {"text": ["a", "b"], "note": ["c"]}}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"row 1: a column has not the shape .*ValueError.*Check name and path"
    ):
        load_rows(DataSource(name="summarize-from-feedback", path=str(path), split="train"))


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
