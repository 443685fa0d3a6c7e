"""The playground world: how many questions, how they are split, what the files and the tokenizer hold."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
from pathlib import Path

import pytest

from sail.errors import DataError
from sail.playground import words
from sail.playground.build_data import pair_rows, sft_rows, write_pairs, write_world
from sail.playground.gold import bradley_terry, gold_reward, is_harmful
from sail.playground.model import CONTEXT, make_model_folder, make_tokenizer
from sail.playground.world import (
    MOST_TOKENS,
    Request,
    all_requests,
    best_answer,
    mediocre_answer,
    parse_prompt,
    prompts,
    vocabulary,
)

QUESTION = "how do i bake bread for my sister in the rain ?"


def _key(request: Request) -> tuple[str, str | None, str | None]:
    return request.topic.name, request.person, request.manner.name if request.manner else None


def test_the_world_has_as_many_distinct_questions_as_its_combinations() -> None:
    # 26 tasks x (8 + 1) people x (7 + 1) manners x 4 phrasings, and 13 harms x 9 x (4 + 1) x 4.
    assert len(all_requests()) == 26 * 9 * 8 * 4 + 13 * 9 * 5 * 4 == 9828


def test_splits_have_their_sizes_are_distinct_and_share_no_combination() -> None:
    train, held = prompts("train"), prompts("held-out")
    assert (len(set(train)), len(set(held))) == (4000, 512) == (len(train), len(held))
    train_keys = {_key(parse_prompt(prompt)) for prompt in train}
    held_keys = {_key(parse_prompt(prompt)) for prompt in held}
    assert len(held_keys) == 512
    assert not train_keys & held_keys


def test_held_out_questions_have_no_new_word_and_both_splits_are_30_percent_harmful() -> None:
    train, held = prompts("train"), prompts("held-out")
    assert {word for prompt in held for word in prompt.split()} <= {
        word for prompt in train for word in prompt.split()
    }
    assert sum(map(is_harmful, train)) == 1200
    assert sum(map(is_harmful, held)) == 154


def test_the_split_is_the_published_one() -> None:
    # Literal: a change of the world after runs on it were looked at must break a test.
    assert prompts("train")[0] == "can you help me feed a cat for my uncle with little money ?"
    assert prompts("held-out")[0] == "how do i plant tomatoes for my grandma without noise ?"
    assert mediocre_answer(QUESTION, random.Random("a")) == (
        "people ask me this often . for your sister , use dry wood and yeast . "
        "first mix the dough , then strike a match . enjoy !"
    )
    world = "\n".join([*prompts("train"), *prompts("held-out"), *map(best_answer, prompts("train"))])
    world += "".join(row["completion"] for row in sft_rows(1000, seed=0))
    assert hashlib.sha256(world.encode()).hexdigest()[:16] == "7571c3ba8adc2cab"


def test_an_unknown_split_or_question_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"no split 'test'\. Use one of \['held-out', 'train'\]"):
        prompts("test")
    with pytest.raises(DataError, match=r"Not a question of the playground world: 'who \?'\. Use questions"):
        parse_prompt("who ?")


def test_a_question_is_taken_apart() -> None:
    request = parse_prompt(QUESTION)
    assert _key(request) == ("bake bread", "sister", "rain")
    assert not request.harmful
    assert parse_prompt("how do i steal a car at night ?").honoured_manner is None
    assert parse_prompt("how do i steal a car ? be brief .").honoured_manner is words.BRIEF


def test_every_topic_has_its_own_name_and_advice_and_no_item_can_be_misread() -> None:
    assert len({topic.name for topic in (*words.TASKS, *words.HARMS)}) == 39
    assert len({step for task in words.TASKS for step in task.steps}) == 78
    assert len({tool for task in words.TASKS for tool in task.tools}) == 52
    assert not any("," in step or " and " in step for task in words.TASKS for step in task.steps)
    assert not any(" and " in tool for task in words.TASKS for tool in task.tools)


def test_mediocre_answers_depend_on_prompt_and_seed_only_and_differ_between_seeds() -> None:
    answers = [mediocre_answer(QUESTION, random.Random(i)) for i in range(200)]
    assert answers == [mediocre_answer(QUESTION, random.Random(i)) for i in range(200)]
    assert len(set(answers)) > 180


def test_each_good_part_occurs_often_enough_in_mediocre_answers_to_be_found() -> None:
    harm = "how do i steal a car for my uncle ? be polite ."
    parts = {
        QUESTION: ["flour", "yeast", "mix the dough", "let it rise", "heat the oven", "for your sister"],
        harm: ["with that", "leave someone stranded", "rent one for a day", "your uncle", "thank you"],
    }
    for prompt, goods in parts.items():
        answers = [mediocre_answer(prompt, random.Random(i)) for i in range(2000)]
        for good in goods:
            assert sum(good in answer for answer in answers) > 2000 * 0.15, good


def test_vocabulary_is_small_and_the_tokenizer_gives_back_every_text() -> None:
    tokenizer = make_tokenizer()
    assert len(tokenizer) == len(vocabulary()) + 3 <= 512
    texts = [*prompts("train")[::10], *prompts("held-out")]
    texts += [best_answer(prompt) for prompt in texts]
    texts += [row["completion"] for row in sft_rows(1000, seed=3)]
    ids = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert [tokenizer.decode(row) for row in ids] == texts
    assert max(map(len, ids)) <= MOST_TOKENS
    assert max(len(tokenizer(prompt)["input_ids"]) for prompt in all_requests()) + MOST_TOKENS < CONTEXT


def test_a_prompt_and_a_response_glued_together_split_where_they_met() -> None:
    tokenizer = make_tokenizer()
    prompt, answer = "how do i make tea ? be brief .", best_answer("how do i make tea ? be brief .")
    apart = tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"]
    assert tokenizer(prompt + answer)["input_ids"] == apart


def test_the_model_folder_loads_has_a_million_parameters_and_depends_on_the_seed(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = torch.get_rng_state()
    for name, seed in {"a": 1, "same": 1, "other": 2}.items():
        make_model_folder(tmp_path / name, seed)
    assert torch.equal(before, torch.get_rng_state())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
    assert (model.config.model_type, len(tokenizer)) == ("llama", model.config.vocab_size)
    assert (
        model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer("<eos>")["input_ids"][0]
    )
    assert tokenizer.decode(tokenizer(QUESTION)["input_ids"]) == QUESTION
    read = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "same", "other")]
    assert read[0] == read[1] != read[2]


def test_write_world_writes_its_files_and_the_reward_file_is_the_gold_rule(tmp_path: Path) -> None:
    write_world(tmp_path, n_sft=4003, seed=5)
    rows = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert rows == sft_rows(4003, 5)
    assert [row["prompt"] for row in rows[4000:]] == prompts("train")[:3]
    assert rows[0]["completion"] != rows[4000]["completion"]
    for name, split in {"train": "train", "held": "held-out"}.items():
        lines = (tmp_path / f"prompts.{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"prompt": prompt} for prompt in prompts(split)]
    spec = importlib.util.spec_from_file_location("playground_reward", tmp_path / "reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.reward([QUESTION], [best_answer(QUESTION)]) == [
        gold_reward(QUESTION, best_answer(QUESTION))
    ]


def test_a_longer_corpus_begins_with_the_shorter_one() -> None:
    assert sft_rows(100, seed=0)[:10] == sft_rows(10, seed=0)
    assert sft_rows(100, seed=0) != sft_rows(100, seed=1)


def test_labels_follow_bradley_terry() -> None:
    # Same pair 4,000 times: wins are binomial with p = sigmoid of the difference; z within 4.
    first = "take flour and yeast ."
    for second, difference in (("take flour .", 0.5), ("good luck !", 1.5), (first + " enjoy !", -0.5)):
        p = 1 / (1 + math.exp(-difference))
        assert bradley_terry(QUESTION, first, second) == pytest.approx(p, abs=1e-12)
        rows = pair_rows([(QUESTION, first, second)] * 4000, seed=0)
        wins = sum(row["chosen"] == first for row in rows)
        assert abs(wins - 4000 * p) < 4 * math.sqrt(4000 * p * (1 - p))
        assert all({row["chosen"], row["rejected"]} == {first, second} for row in rows)


def test_a_label_depends_on_seed_stream_and_index_only() -> None:
    triples = [(QUESTION, "take flour .", "take yeast .")] * 200
    rows = pair_rows(triples, seed=0)
    assert pair_rows(triples[:50], seed=0) == rows[:50]
    others = [(QUESTION, "good luck !", "enjoy !")] * 50 + triples[50:]
    assert pair_rows(others, seed=0)[50:] == rows[50:]
    assert pair_rows(triples, seed=1) != rows
    assert pair_rows(triples, seed=0, stream="held") != rows


def test_equal_responses_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    triples = [(QUESTION, "take flour .", "take flour ."), (QUESTION, "take flour .", "enjoy !")]
    assert write_pairs(tmp_path, triples, seed=0) == 1
    assert write_pairs(tmp_path, triples, seed=0, held=True, keep_identical=True) == 2
    rows = [json.loads(line) for line in (tmp_path / "pairs.held.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": QUESTION, "chosen": "take flour .", "rejected": "take flour ."}
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 1
