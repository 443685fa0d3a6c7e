"""The audit of a run: prompts that do not fit, oracles that depend on the order, inverted labels, oracles that fail."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny import EOS, PAD, make_model, make_pairs, make_prompts, make_tokenizer

from sail.data.encode import encode_rows
from sail.data.sources import load_rows
from sail.evaluation.audit import AUDIT, Audit, derangement, evenly
from sail.generation import SamplingSettings
from sail.oracles import as_oracle
from sail.oracles.wrappers import BothOrders, OneOrder


def length_reward(prompts, responses):
    return [float(len(response.split())) for response in responses]


def encoded(rows: list[dict[str, str]]):
    return encode_rows(load_rows(rows), make_tokenizer(), max_length=24, max_prompt_length=12).rows


def sampled(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Lines of pairs.jsonl.gz, as far as the audit reads them."""
    return [
        {
            "index": i,
            "prompt": r["prompt"],
            "first": r["chosen"],
            "second": r["rejected"],
            "first_cut": i % 2 == 0,
        }
        for i, r in enumerate(rows)
    ]


def audit(
    rows: list[dict[str, str]], tmp_path, *, model: Any = None, oracle: Any = length_reward, **changes: Any
):
    model = make_model(scale=0.3) if model is None else model
    data = encoded(rows)
    parts: dict[str, Any] = {
        "reference": lambda: nullcontext(model),
        "tokenizer": make_tokenizer(),
        "settings": SamplingSettings(6, 1.0, (EOS,), pad_id=PAD),
        "oracle": None if oracle is None else as_oracle(oracle),
        "trained": data,
        "data": data,
        "sampled": sampled(rows),
        "max_length": 24,
        "seed": 0,
        **changes,
    }
    found = Audit(**parts).write(tmp_path)
    assert json.loads((tmp_path / AUDIT).read_text()) == found
    return found


def echoing(rows: list[dict[str, str]]) -> Any:
    """A model that was trained, for a moment, to answer each prompt with its chosen response."""
    model = make_model(scale=0.1)
    data = encoded(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    width = max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in data)
    ids = torch.full((len(data), width), PAD)
    labels = torch.full((len(data), width), -100)
    for row, encoded_row in enumerate(data):
        prompt, answer = encoded_row["prompt_ids"], encoded_row["chosen_ids"]
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    for _ in range(60):
        loss = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def world() -> tuple[list[dict[str, str]], Any]:
    """Responses that depend on their prompts (they repeat its words), and a model that has learned so."""
    rows = [{"prompt": p, "chosen": p, "rejected": "w0"} for p in make_prompts(40)]
    return rows, echoing(rows)


def test_responses_fit_their_own_prompts_better(world, tmp_path) -> None:
    rows, model = world
    fit = audit(rows, tmp_path, model=model)["prompt_fit"]
    assert fit["data"]["low"] > 20
    assert fit["sampled"]["low"] > 20
    assert fit["data"]["n"] == 40


def test_a_shuffled_prompt_list_fits_no_more(world, tmp_path) -> None:
    """Each response stands with another row's prompt: 0 nats within the interval, where the right prompts had more than 20."""
    rows, model = world
    moved = [{**row, "prompt": rows[(i + 7) % len(rows)]["prompt"]} for i, row in enumerate(rows)]
    fit = audit(moved, tmp_path, model=model)["prompt_fit"]
    for kind in ("data", "sampled"):
        assert fit[kind]["low"] < 0 < fit[kind]["high"] < 10


def test_prompt_fit_by_hand(tmp_path) -> None:
    """Two rows: the mean of log pi(y1|x1) - log pi(y1|x2) and log pi(y2|x2) - log pi(y2|x1), from the model's own logits."""
    rows = [
        {"prompt": "w1 w2", "chosen": "w3", "rejected": "w0"},
        {"prompt": "w4", "chosen": "w5 w6", "rejected": "w0"},
    ]
    model, tokenizer = make_model(scale=0.3), make_tokenizer()

    def log_prob(prompt: str, response: str) -> float:
        ids = tokenizer(f"{prompt} {response}")["input_ids"] + [EOS]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logs[at - 1, ids[at]]) for at in range(start, len(ids)))

    expected = (
        log_prob("w1 w2", "w3") - log_prob("w4", "w3") + log_prob("w4", "w5 w6") - log_prob("w1 w2", "w5 w6")
    ) / 2
    assert audit(rows, tmp_path, model=model)["prompt_fit"]["data"]["mean"] == pytest.approx(
        expected, abs=1e-4
    )


def test_one_prompt_has_no_other_to_compare_with(tmp_path) -> None:
    rows = [{"prompt": "w1", "chosen": f"w{i}", "rejected": "w0"} for i in range(2, 9)]
    assert audit(rows, tmp_path)["prompt_fit"] == {"data": None, "sampled": None}


def test_an_oracle_that_agrees_and_one_whose_labels_are_inverted(tmp_path) -> None:
    rows = [{**row, "chosen": row["chosen"] + " w1" * 9} for row in make_pairs(40)]
    found = audit(rows, tmp_path)
    assert found["oracle_agreement"]["mean"] == 1.0
    assert found["oracle_swap"] == {"kind": "scores"}
    assert found["oracle_calls"] == 40
    inverted = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert audit(inverted, tmp_path)["oracle_agreement"]["high"] < 0.5


def test_an_oracle_that_likes_the_first_one(tmp_path) -> None:
    """It agrees with nobody: asked with the chosen response first only, it would agree with everybody."""
    found = audit(make_pairs(80), tmp_path, oracle=lambda prompts, first, second: [0.9] * len(prompts))
    assert found["oracle_swap"]["first_wins"]["mean"] == pytest.approx(0.9)
    assert found["oracle_swap"]["disagreement"]["mean"] == 1.0
    assert found["oracle_agreement"]["mean"] == 0.5
    assert found["oracle_calls"] == 2 * 64


def test_an_oracle_that_likes_the_first_one_does_not_hide_behind_both_orders(tmp_path) -> None:
    """Averaged over both orders every verdict is a half, and the audit said "symmetric"."""
    inner = as_oracle(lambda prompts, first, second: [0.9] * len(prompts))
    found = audit(make_pairs(80), tmp_path, oracle=BothOrders(inner))
    assert found["oracle_swap"]["kind"] == "both_orders"
    assert found["oracle_swap"]["first_wins"]["mean"] == pytest.approx(0.9)
    assert (found["oracle_swap"]["disagreement"]["mean"], found["oracle_swap"]["disagreement"]["n"]) == (
        1.0,
        64,
    )
    assert found["oracle_agreement"]["mean"] == 0.5
    one = audit(make_pairs(80), tmp_path, oracle=OneOrder(inner))
    assert one["oracle_swap"] == {"kind": "one_order"}


def test_an_oracle_that_fails_costs_its_own_part_only(tmp_path) -> None:
    def broken(prompts, responses):
        raise ConnectionError("no service")

    found = audit(make_pairs(20), tmp_path, oracle=broken)
    assert found["oracle_agreement"] is None
    assert found["prompt_fit"]["data"] is not None
    assert "no service" in found["notes"][0]


def test_without_an_oracle_or_a_pair(tmp_path) -> None:
    found = audit(make_pairs(8), tmp_path, oracle=None, sampled=[], trained=[], data=[])
    assert found["prompt_fit"] == {"data": None, "sampled": None}
    assert (found["oracle_agreement"], found["oracle_swap"], found["reference_answers"]) == (None, None, None)
    assert found["notes"] == []


def test_the_references_answers(tmp_path) -> None:
    rows = make_pairs(10)
    twice = sampled(rows) + sampled(rows)
    found = audit(rows, tmp_path, sampled=twice)
    lines = [json.loads(line) for line in (tmp_path / found["reference_answers"]).read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in rows]
    assert all(set(line) == {"index", "prompt", "response"} for line in lines)
    first = (tmp_path / "reference_answers.jsonl").read_bytes()
    audit(rows, tmp_path, sampled=twice)
    assert (tmp_path / "reference_answers.jsonl").read_bytes() == first


def test_no_row_keeps_its_own_prompt() -> None:
    keys = list("aabbbac")
    others = derangement(keys)
    assert all(keys[other] != key for key, other in zip(keys, others, strict=True))
    assert others == [2, 2, 5, 5, 5, 6, 0]
    assert derangement(["a", "a"]) == [None, None]
    assert len(evenly(list(range(1000)), 128)) == 128
