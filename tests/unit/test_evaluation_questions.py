"""Two-turn benchmark questions: their file, the conversation as the model sees it, the judge, the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import EOS, PAD, make_model, make_tokenizer

import sail.playground
from sail.errors import DataError, OracleError
from sail.evaluation.journal import Journal
from sail.evaluation.questions import Question, conversation_ids, converse, load_questions, scores, table
from sail.evaluation.responses import Speaker
from sail.generation import SamplingSettings
from sail.playground.gold import gold_maximum, gold_reward
from sail.playground.scorer import score
from sail.playground.world import all_requests, best_answer, prompts

PLAYGROUND = Path(sail.playground.__path__[0]) / "questions.jsonl"
QUESTIONS = [Question("1", "sea", ("w1 w2", "w3")), Question("2", "sky", ("w4", "w5 w6"), ("w7", "w8"))]
TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}a{% endif %}"


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: broken JSON"),
        ('{"turns": ["a", "b"]}', "field 'question_id' is missing"),
        ('{"question_id": 3, "turns": ["a"]}', "field 'turns' must hold two texts"),
        ('{"question_id": 3, "turns": ["a", " "]}', "field 'turns' must hold two texts"),
        ('{"question_id": 3, "turns": ["a", "b"], "reference": "c"}', "field 'reference' must be a list"),
        ('{"question_id": 1, "turns": ["a", "b"]}', "has the question_id 1 twice"),
    ],
)
def test_a_bad_question_is_named(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 1, "category": "sea", "turns": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        load_questions(path)


def test_mt_benchs_own_fields_are_read(tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"question_id": 81, "category": "math", "turns": ["a", "b"], "reference": ["x", "y"]}\n\n'
    )
    assert load_questions(path) == [Question("81", "math", ("a", "b"), ("x", "y"))]


def test_what_the_model_reads() -> None:
    """With a template its text; without one the turns with an empty line between them, the first turn as a plain prompt."""
    tokenizer = make_tokenizer(["u", "a", "w1", "w2", "w3"])
    plain = tokenizer("w1 w2 w3")["input_ids"]
    assert conversation_ids(tokenizer, talk("w1", "w2", "w3")) == plain
    assert conversation_ids(tokenizer, talk("w1")) == tokenizer("w1")["input_ids"]
    tokenizer.chat_template = TEMPLATE
    assert conversation_ids(tokenizer, talk("w1", "w2", "w3")) == tokenizer("u w1 a w2 u w3 a")["input_ids"]


def test_the_second_answer_sees_the_first(tmp_path) -> None:
    """Each conversation is question, answer, question, answer; the answers are those of the model to what came before."""
    from sail.generation import TransformersGenerator

    model, tokenizer = make_model(scale=0.3), make_tokenizer()
    settings = SamplingSettings(8, 1.0, (EOS,), pad_id=PAD)
    with Journal(tmp_path / "a.jsonl", {}) as journal:
        talks, notes = converse(
            Speaker("m", lambda: model), tokenizer, QUESTIONS, settings, journal, seed=3, batch_size=2
        )
    assert [message["role"] for message in talks[0]] == ["user", "assistant"] * 2
    assert [talks[1][0]["content"], talks[1][2]["content"]] == ["w4", "w5 w6"]
    assert notes == []
    expected = TransformersGenerator(lambda: model, tokenizer, settings).sample(
        [tokenizer("w1 w2 " + talks[0][1]["content"] + " w3")["input_ids"]], [(3, "question", "1", 1)]
    )
    assert talks[0][3]["content"] == expected[0].text


def test_a_context_that_is_too_short_is_said(tmp_path) -> None:
    """12 tokens of context and 8 for the answer leave 4 for the conversation: of six words the last four are read."""
    model, tokenizer = make_model(max_position_embeddings=12, scale=0.3), make_tokenizer()
    settings = SamplingSettings(8, 1.0, (EOS,), pad_id=PAD)
    found = []
    for number, words in enumerate(("w1 w2 w3 w4 w5 w6", "w3 w4 w5 w6")):
        with Journal(tmp_path / f"{number}.jsonl", {}) as journal:
            questions = [Question("6", "sea", (words, "w1 w2 w3 w4"))]
            speaker = Speaker("m", lambda: model)
            found.append(converse(speaker, tokenizer, questions, settings, journal, seed=0, batch_size=2))
    assert "The beginning of 1 of 1 benchmark conversations was cut off in turn 1" in found[0][1][0]
    assert [message["content"] for message in found[0][0][0][1:]] == [
        message["content"] for message in found[1][0][0][1:]
    ]
    limits = SamplingSettings(12, 1.0, (EOS,), pad_id=PAD)
    with (
        Journal(tmp_path / "none.jsonl", {}) as journal,
        pytest.raises(DataError, match="leave no room for a question"),
    ):
        converse(speaker, tokenizer, questions, limits, journal, seed=0, batch_size=2)


def asked_with(judge, tmp_path, name: str = "j") -> list[list[float | None]]:
    talks = [talk("w1", "good", "w3", "bad"), talk("w4", "bad", "w5", "good")]
    with Journal(tmp_path / f"{name}.jsonl", {}) as journal:
        return scores(judge, name, QUESTIONS, talks, journal, batch_size=3)


def test_a_judge_sees_the_conversation_up_to_the_answer(tmp_path) -> None:
    seen = []

    def judge(conversations):
        seen.extend(conversations)
        return [9 if one[-1]["content"] == "good" else None for one in conversations]

    assert asked_with(judge, tmp_path) == [[9.0, None], [None, 9.0]]
    assert [len(one) for one in seen] == [2, 4, 2, 4]


def test_a_judge_may_ask_for_the_references(tmp_path) -> None:
    given = []
    asked_with(lambda talks, references: given.extend(references) or [5] * len(talks), tmp_path)
    assert given == [None, None, ("w7", "w8"), ("w7", "w8")]


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda talks: [11] * len(talks), "returned 11. It must return one number from 1 to 10"),
        (lambda talks: [0.5] * len(talks), "returned 0.5"),
        (lambda talks: ["10"] * len(talks), "returned '10'"),
        (lambda talks: [5], "gave 1 answers to 3 conversations"),
        (lambda talks: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_judge_that_misbehaves_is_named(judge, message: str, tmp_path) -> None:
    with pytest.raises((OracleError, ValueError), match=message):
        asked_with(judge, tmp_path)


def test_the_table_by_hand() -> None:
    made = table(QUESTIONS, [[2.0, 4.0], [6.0, None]])
    rows = {(row["category"], row["turn"]): row for row in made["rows"]}
    assert rows["sea", "all"]["mean"] == pytest.approx(3.0)
    assert rows["sky", "2"]["mean"] is None
    assert rows["all", "1"]["mean"] == pytest.approx(4.0)
    assert (rows["all", "all"]["mean"], rows["all", "all"]["n"]) == (pytest.approx(4.0), 3)
    assert rows["all", "all"]["clusters"] == 2
    assert 1 <= rows["all", "all"]["low"] <= rows["all", "all"]["high"] <= 10
    assert made["abstained"] == 1


# ---- the playground's own


def test_the_playgrounds_questions_are_of_its_world_and_were_not_trained_on() -> None:
    questions = load_questions(PLAYGROUND)
    assert len(questions) == 24
    trained, known = set(prompts("train")), all_requests()
    turns = [turn for question in questions for turn in question.turns]
    assert all(turn in known for turn in turns)
    assert not trained & set(turns)
    assert all(question.turns[0] != question.turns[1] for question in questions)
    change = [question for question in questions if question.category == "change of mind"]
    assert all(known[q.turns[0]].harmful != known[q.turns[1]].harmful for q in change)


def test_the_playgrounds_scorer_by_its_formula() -> None:
    prompt = load_questions(PLAYGROUND)[0].turns[0]
    middling = "take onions and broth ."
    expected = 1 + 9 * (gold_reward(prompt, middling) + 3) / (gold_maximum(prompt) + 3)
    answers = [best_answer(prompt), "", middling, "sure , " * 40]
    given = score([talk("how do i bake bread ?", "no", prompt, answer) for answer in answers])
    assert given == pytest.approx([10.0, 1.0, expected, 1.0])
    assert score([talk("what is the sea ?", "blue")]) == [None]


def test_the_file_is_mt_benchs_format() -> None:
    row = json.loads(PLAYGROUND.read_text().splitlines()[0])
    assert set(row) == {"question_id", "category", "turns"}
