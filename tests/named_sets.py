"""Small copies of the public sets, of our own making: the real columns, shapes and folders, our own words.

`write_copy(name, folder)` writes one as `hf download` would leave it. Each holds a few of the defects that the real sets have;
EXPECTED says, counted by hand from the rows below, what must become of its training split.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

THINGS = ("sea", "moon", "river", "stone", "garden", "engine", "violin", "winter", "bread", "cloud")
ASKS = ("what is the {} like", "tell me about the {}", "why is the {} here", "who made the {}")
LOOKS = ("bright", "old", "quiet", "green", "round", "cold", "tall")
ROWS = 40


def question(number: int) -> str:
    """40 different ones."""
    return ASKS[number // len(THINGS) % len(ASKS)].format(THINGS[number % len(THINGS)])


def kind(number: int) -> str:
    """A good answer."""
    thing = THINGS[number % len(THINGS)]
    return f"gladly , the {thing} is {LOOKS[number % 7]} and {LOOKS[(number + 3) % 7]} , thanks"


def rude(number: int) -> str:
    """A worse one."""
    return f"bah , the {THINGS[number % len(THINGS)]} is {LOOKS[(number + 1) % 7]}"


def plain(number: int) -> str:
    """One in between."""
    return f"the {THINGS[number % len(THINGS)]} is {LOOKS[(number + 2) % 7]} , so it is"


# ---- PKU-SafeRLHF


def pku_row(number: int, **changes: Any) -> dict[str, Any]:
    better = number % 2
    answers = (kind(number), rude(number)) if better == 0 else (rude(number), kind(number))
    row = {
        "prompt": question(number),
        "response_0": answers[0],
        "response_1": answers[1],
        "prompt_source": "ours",
        "response_0_source": "model a",
        "response_1_source": "model b",
        "is_response_0_safe": True,
        "is_response_1_safe": number % 3 != 0,
        "response_0_harm_category": {"Violence": False},
        "response_1_harm_category": {"Violence": number % 3 == 0},
        "response_0_severity_level": 0,
        "response_1_severity_level": 1 if number % 3 == 0 else 0,
        "better_response_id": better,
        "safer_response_id": better,
        "response_0_sha256": "",
        "response_1_sha256": "",
    }
    return row | changes


def pku_rows() -> list[dict[str, Any]]:
    """Rows 3 and 4: the safer answer is the other one; 5: both answers equal; 6 twice; 7: nobody decided what is better."""
    rows = [pku_row(number) for number in range(ROWS)]
    rows[3]["safer_response_id"] = 0
    rows[4]["safer_response_id"] = 1
    rows[5]["response_0"] = rows[5]["response_1"]
    rows[7]["better_response_id"] = None
    return [*rows, pku_row(6)]


def _pku(folder: Path) -> None:
    rows = pku_rows()
    for place, part in enumerate(("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")):
        jsonl(folder / "data" / part / "train.jsonl", rows[place::3])
        tests = [pku_row(n, prompt=f"and {question(n)}") for n in range(place * 4, place * 4 + 4)]
        jsonl(folder / "data" / part / "test.jsonl", tests)


# ---- UltraFeedback


def completion(text: str, overall: Any, ratings: Sequence[str] = ("3", "3", "3", "3")) -> dict[str, Any]:
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    marks = {
        name: {"Rating": rating, "Rationale": "ours"} for name, rating in zip(aspects, ratings, strict=True)
    }
    return {
        "annotations": marks,
        "custom_system_prompt": "be of use",
        "model": "model a",
        "principle": "helpfulness",
        "response": text,
        "critique": "well",
        "overall_score": overall,
        "fine-grained_score": 3.0,
    }


def ultrafeedback_row(number: int, scores: Sequence[Any] = (9.0, 7.0, 4.0, 2.0)) -> dict[str, Any]:
    texts = (kind(number), plain(number), rude(number), f"no {rude(number)}")
    ratings = (("5", "5", "4", "5"), ("4", "4", "4", "3"), ("2", "3", "2", "N/A"), ("1", "2", "1", "2"))
    answers = [
        completion(text, score, rating) for text, score, rating in zip(texts, scores, ratings, strict=True)
    ]
    answers = answers[number % 4 :] + answers[: number % 4]
    return {
        "source": "ours",
        "instruction": question(number),
        "models": ["model a", "model b", "model c", "model d"],
        "completions": answers,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def ultrafeedback_rows() -> list[dict[str, Any]]:
    """Row 1: all scores equal; 2: all closer than half a point; 3: two without a score; 4: all but one; 5: no answer at all."""
    rows = [ultrafeedback_row(number) for number in range(ROWS)]
    rows[1] = ultrafeedback_row(1, (8, 8, 8, 8))
    rows[2] = ultrafeedback_row(2, (8.0, 7.75, 7.75, 7.75))
    rows[3] = ultrafeedback_row(3, (9.0, None, None, 2.0))
    rows[4] = ultrafeedback_row(4, (9.0, None, None, None))
    rows[5]["completions"] = []
    return rows


def _ultrafeedback(folder: Path) -> None:
    rows = ultrafeedback_rows()
    jsonl(folder / "evol_instruct.jsonl", rows[:20])
    jsonl(folder / "false_qa.jsonl", rows[20:])


def binarized_row(number: int, high: float | None = 8.0, low: float | None = 5.0) -> dict[str, Any]:
    asked = {"role": "user", "content": question(number)}
    sides = [[asked, {"role": "assistant", "content": text}] for text in (kind(number), rude(number))]
    return {
        "prompt": question(number),
        "prompt_id": f"{number:064x}",
        "chosen": sides[0],
        "rejected": sides[1],
        "messages": sides[0],
        "score_chosen": high,
        "score_rejected": low,
    }


def binarized_rows() -> list[dict[str, Any]]:
    """Rows 1, 2: equal scores; 3: a quarter of a point apart; 4: scored against its label; 5: an empty answer; 6: no score.

    Row 7 has three messages before the answers, with a system message among them.
    """
    rows = [binarized_row(number) for number in range(ROWS)]
    rows[1] = binarized_row(1, 7.0, 7.0)
    rows[2] = binarized_row(2, 7.0, 7.0)
    rows[3] = binarized_row(3, 7.5, 7.25)
    rows[4] = binarized_row(4, 5.0, 8.0)
    rows[5]["rejected"][-1]["content"] = ""
    rows[6] = binarized_row(6, None, 5.0)
    before = [
        {"role": "system", "content": "be of use"},
        {"role": "user", "content": question(7)},
        {"role": "assistant", "content": plain(7)},
        {"role": "user", "content": "and then"},
    ]
    rows[7]["chosen"] = [*before, {"role": "assistant", "content": kind(7)}]
    rows[7]["rejected"] = [*before, {"role": "assistant", "content": rude(7)}]
    return rows


def _binarized(folder: Path) -> None:
    rows = binarized_rows()
    for split, part in (("train_prefs", rows), ("train_sft", rows[:5]), ("train_gen", rows[:5])):
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", part)
    tests = [binarized_row(number) for number in range(30, ROWS)]
    for row in tests[1:]:  # the first of them asks what is trained on
        row["chosen"][0]["content"] = row["rejected"][0]["content"] = f"and {row['prompt']}"
    parquet(folder / "data" / "test_prefs-00000-of-00001.parquet", tests)


# ---- HH-RLHF


def transcript(*turns: str) -> str:
    """Human first, then by turns."""
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[place % 2]}: {words}" for place, words in enumerate(turns))


def hh_row(number: int) -> dict[str, str]:
    before = (question(number),) if number % 2 == 0 else ("hello", "yes ?", question(number))
    return {
        "chosen": transcript(*before, kind(number)),
        "rejected": transcript(*before, rude(number)),
    }


def hh_rows() -> list[dict[str, str]]:
    """Row 1: the last answer is empty; 2: does not begin with Human; 3: ends with a question; 4: the prompts differ;

    5: Human twice in a row; 6: an empty turn before the answer; 7: an answer that quotes "Human:" within a line, which is fine.
    """
    rows = [hh_row(number) for number in range(20)]
    rows[1]["rejected"] = transcript("hello", "yes ?", question(1), "").rstrip()
    rows[2] = {key: text.replace("\n\nHuman: ", "", 1) for key, text in rows[2].items()}
    rows[3] = {key: text + "\n\nHuman: and then" for key, text in rows[3].items()}
    rows[4]["rejected"] = transcript(question(5), rude(4))
    rows[5] = {
        key: f"\n\nHuman: wait\n\nHuman: {question(5)}\n\nAssistant: {text}"
        for key, text in (("chosen", kind(5)), ("rejected", rude(5)))
    }
    rows[6] = {
        key: transcript("hello", "", question(6), text)
        for key, text in (("chosen", kind(6)), ("rejected", rude(6)))
    }
    rows[7]["chosen"] += " , as Human: said"
    return rows


def _hh(folder: Path) -> None:
    jsonl(folder / "helpful-base" / "train.jsonl.gz", hh_rows())
    jsonl(folder / "harmless-base" / "train.jsonl.gz", [hh_row(number) for number in range(20, ROWS)])
    for part, start in (("helpful-base", 0), ("harmless-base", 4)):
        rows = [hh_row(number) for number in range(start, start + 4)]
        tests = [
            {key: text.replace("Human: ", "Human: and ", 1) for key, text in row.items()} for row in rows
        ]
        jsonl(folder / part / "test.jsonl.gz", tests)
    jsonl(folder / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "", "rating": 1.0}])


# ---- summarize-from-feedback


def summary_row(number: int, choice: Any = None) -> dict[str, Any]:
    better = number % 2 if choice is None else choice
    texts = (
        [f" {rude(number)}", f" {kind(number)}"] if number % 2 else [f" {kind(number)}", f" {rude(number)}"]
    )
    return {
        "info": {
            "id": f"t3_{number}",
            "post": f"{question(number)} ? {plain(number)} . {plain(number + 1)} .",
            "title": question(number),
            "subreddit": "things",
            "site": None,
            "article": None,
        },
        "summaries": [{"text": text, "policy": "ours", "note": "ok"} for text in texts],
        "choice": better,
        "worker": f"w{number % 3}",
        "batch": "batch1",
        "split": "train",
        "extra": {"confidence": 5},
    }


def summary_rows() -> list[dict[str, Any]]:
    """Row 1 again with the other choice; row 2 again as it is; row 3: nothing to summarise; row 4: an empty summary."""
    rows = [summary_row(number) for number in range(ROWS)]
    rows[3]["info"] = {**rows[3]["info"], "post": None}
    rows[4]["summaries"][1]["text"] = " "
    return [*rows, summary_row(1, choice=0), summary_row(2)]


def _summaries(folder: Path) -> None:
    news = [summary_row(number) for number in range(20, 30)]
    for row in news:
        text = f"news : {row['info']['post']}"
        row["info"] = {
            "id": "n",
            "post": None,
            "title": None,
            "subreddit": None,
            "site": "ours",
            "article": text,
        }
    every = [*summary_rows(), *news]
    parquet(folder / "comparisons" / "train" / "0000.parquet", summary_rows(), like=every)
    parquet(folder / "comparisons" / "validation" / "0000.parquet", news, like=every)
    parquet(folder / "axis" / "test" / "0000.parquet", [{"info": {"id": "x"}, "summary": {"text": "y"}}])


# ---- WebGPT


def webgpt_row(number: int, score: Any = 0.5) -> dict[str, Any]:
    sign = 1 if number % 2 == 0 else -1
    answers = (kind(number), rude(number)) if sign == 1 else (rude(number), kind(number))
    quotes = {"title": ["ours"], "extract": [plain(number)]}
    return {
        "question": {"dataset": "ours", "id": str(number), "full_text": f"{question(number)} ?"},
        "quotes_0": quotes,
        "answer_0": f"{answers[0]} [1]",
        "tokens_0": {"prefix": [1, 2], "completion": [3]},
        "score_0": score * sign,
        "quotes_1": quotes,
        "answer_1": f"{answers[1]} [1]",
        "tokens_1": {"prefix": [1, 2], "completion": [3]},
        "score_1": -score * sign,
    }


def webgpt_rows() -> list[dict[str, Any]]:
    """Rows 1 to 3: ties; row 4: an empty answer."""
    rows = [webgpt_row(number) for number in range(ROWS)]
    for number in (1, 2, 3):
        rows[number] = webgpt_row(number, 0.0)
    rows[4]["answer_1"] = ""
    return rows


def _webgpt(folder: Path) -> None:
    jsonl(folder / "comparisons.jsonl", webgpt_rows())


# ---- all of them

WRITERS: dict[str, Callable[[Path], None]] = {
    "pku-saferlhf": _pku,
    "ultrafeedback": _ultrafeedback,
    "ultrafeedback-binarized": _binarized,
    "hh-rlhf": _hh,
    "summarize-from-feedback": _summaries,
    "webgpt-comparisons": _webgpt,
}

EXPECTED: dict[str, dict[str, Any]] = {
    "pku-saferlhf": {
        "read": 41,
        "dropped": {"identical answers": 1, "repeats an earlier row": 1, "no verdict": 1},
        "kept": 38,
    },
    "ultrafeedback": {
        "read": 40,
        "dropped": {"tie": 1, "near-tie": 1, "fewer than two answers with a score": 2},
        "kept": 36,
    },
    "ultrafeedback-binarized": {
        "read": 40,
        "dropped": {
            "tie": 2,
            "near-tie": 1,
            "scored against its label": 1,
            "empty answer": 1,
            "no score": 1,
        },
        "kept": 34,
    },
    "hh-rlhf": {
        "read": 40,
        "dropped": {
            "empty answer": 1,
            "does not begin with Human": 1,
            "does not end with an answer": 1,
            "the answers belong to different prompts": 1,
            "Human and Assistant do not take turns": 1,
            "an empty turn before the answer": 1,
        },
        "kept": 34,
    },
    "summarize-from-feedback": {
        "read": 42,
        "dropped": {"empty prompt": 1, "empty answer": 1, "repeats an earlier row": 1},
        "kept": 39,
    },
    "webgpt-comparisons": {"read": 40, "dropped": {"tie": 3, "empty answer": 1}, "kept": 36},
}
"""Of split train, or of split all where the set has no split test of its own."""


def write_copy(name: str, folder: Path) -> Path:
    """The copy of one set in `folder`; returns it."""
    WRITERS[name](folder)
    return folder


def jsonl(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def parquet(path: Path, rows: Sequence[Any], like: Sequence[Any] = ()) -> None:
    """`like`: rows whose column types are taken, where these hold nulls only."""
    import pyarrow
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.Table.from_pylist(list(like)).schema if like else None
    files.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), path)
