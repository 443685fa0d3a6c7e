"""Planted faults, trained by the real trainer and read by the real report: each raises the right alarm, healthy runs none.

A world in which prompts matter: a prompt names one of five topics, an answer has words of that topic, and the reward likes the
topic's first word. The reference has learned the topics beforehand, so that responses can fit a prompt or not. A run ends as in
`sail train`: results.json and audit.json come from the code that ships. What an audit's numbers should be is tested by hand in
unit/test_evaluation_audit.py; here, that they tell a spoiled run from a healthy one.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import EOS, PAD, make_model, make_tokenizer, make_trainer

from sail.data.encode import EncodedDataset
from sail.report import read_run
from sail.report.checks import examine
from sail.report.page import build_report
from sail.results import RESULTS, audit_run, final_results, write_json

TOPICS = 5
OF_TOPIC = {t: [f"w{5 + 4 * t + k}" for k in range(4)] for t in range(TOPICS)}
FILLERS = [f"w{number}" for number in range(25, 29)]
METHODS = ["dpo", "online-dpo", "sail-ddp", "sail-dpp", "sail-dpr"]
Row = dict[str, str]


def topic_of(prompt: str) -> int:
    """The prompt's first word is its topic."""
    return int(prompt.split()[0][1:])


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Mean over words: 3 for the topic's first word, 1 for its others, -3 for words of other topics; 0 for nothing."""

    def worth(topic: int, word: str) -> float:
        own = OF_TOPIC[topic]
        return 3.0 if word == own[0] else 1.0 if word in own else -3.0

    told = []
    for prompt, response in zip(prompts, responses, strict=True):
        words = response.split()
        told.append(sum(worth(topic_of(prompt), word) for word in words) / max(1, len(words)))
    return told


def answer(topic: int, chance: random.Random) -> str:
    """Three to five words, nine in ten of the topic."""
    words = [
        chance.choice(OF_TOPIC[topic if chance.random() < 0.9 else chance.randrange(TOPICS)])
        for _ in range(5)
    ]
    return " ".join(words[: chance.randint(3, 5)])


def make_rows(count: int, seed: int) -> list[Row]:
    """Distinct prompts with two different answers, the one with the higher reward chosen."""
    chance = random.Random(seed)
    rows: dict[str, Row] = {}
    while len(rows) < count:
        topic = chance.randrange(TOPICS)
        prompt = " ".join([f"w{topic}", *(chance.choice(FILLERS) for _ in range(chance.randint(3, 5)))])
        pair = sorted({answer(topic, chance) for _ in range(2)}, key=lambda text: reward([prompt], [text])[0])
        if len(pair) == 2:
            rows[prompt] = {"prompt": prompt, "chosen": pair[1], "rejected": pair[0]}
    return list(rows.values())


@pytest.fixture(scope="module")
def assistant() -> Any:
    """A tiny model that has learned to answer with words of the topic."""
    model, tokenizer = make_model(scale=0.1), make_tokenizer()
    optimiser = torch.optim.AdamW(model.parameters(), lr=6e-3)
    chance = random.Random(0)
    rows = make_rows(256, 9)
    for _ in range(150):
        texts = []
        for row in chance.sample(rows, 48):
            prompt, said = (
                tokenizer(text)["input_ids"]
                for text in (row["prompt"], answer(topic_of(row["prompt"]), chance))
            )
            texts.append((prompt, [*said, EOS]))
        longest = max(len(p) + len(r) for p, r in texts)
        ids = torch.tensor([[*p, *r, *[PAD] * (longest - len(p) - len(r))] for p, r in texts])
        labels = torch.tensor(
            [[*[-100] * len(p), *r, *[-100] * (longest - len(p) - len(r))] for p, r in texts]
        )
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def run(
    folder: Path,
    assistant: Any,
    method: str,
    *,
    rows: list[Row] | None = None,
    oracle: Callable[..., list[Any]] = reward,
    plant: Callable[[Any], None] | None = None,
    held_out: list[Row] | None = None,
    **options: Any,
) -> Path:
    """Train on the tiny world and write the end of a run; `plant` may spoil the trainer before it starts."""
    options = {
        "preset": method,
        "max_steps": 16,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        **options,
    }
    options = {"eval_strategy": "steps", "eval_steps": 4, "max_new_tokens": 12, "beta": 0.1, **options}
    trainer = make_trainer(
        folder,
        model=copy.deepcopy(assistant),
        rows=make_rows(256, 1) if rows is None else rows,
        oracle=oracle,
        trainer_options={"eval_dataset": make_rows(64, 2) if held_out is None else held_out},
        **options,
    )
    if plant:
        plant(trainer)
    trainer.train()
    asked = {"train": {"preset": method, **options}, "oracle": {"kind": "function"}}
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(asked))
    results = final_results(trainer, trainer.tracker.totals())
    audit_run(trainer, folder, results)
    write_json(folder / RESULTS, results)
    assert not [
        note for note in results["notes"] if note.startswith("audit")
    ]  # every question of it was answered
    return folder


def alarms(folder: Path) -> set[str]:
    """The checks that raise a warning."""
    return {check["id"] for check in examine([read_run(folder)]) if check["runs"][0]["state"] == "warning"}


def measured(folder: Path, id: str) -> dict[str, Any]:
    (outcome,) = (check["runs"][0] for check in examine([read_run(folder)]) if check["id"] == id)
    return outcome


@pytest.mark.parametrize("method", METHODS)
def test_a_healthy_run_raises_no_alarm(tmp_path: Path, assistant: Any, method: str) -> None:
    folder = run(tmp_path / method, assistant, method)
    assert alarms(folder) == set()
    assert measured(folder, "prompt-fit")["state"] == "fine"
    assert measured(folder, "inverted")["state"] == "fine"
    if method not in ("dpo", "sail-ddp"):
        looked_at = [
            measured(folder, id)["state"]
            for id in ("prompts", "duplicates", "identical", "entropy", "length")
        ]
        assert looked_at == ["fine"] * 5
    (wrong,) = (
        tile for tile in build_report([read_run(folder)], title="t")["answers"] if tile["id"] == "wrong"
    )
    assert wrong["answer"] == "Nothing found"


def test_a_shuffled_prompt_list(tmp_path: Path, assistant: Any) -> None:
    rows = make_rows(256, 1)
    prompts = [row["prompt"] for row in rows]
    random.Random(5).shuffle(prompts)
    shuffled = [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]
    folder = run(tmp_path / "run", assistant, "sail-dpr", rows=shuffled)
    assert "prompt-fit" in alarms(folder)
    audit = json.loads((folder / "audit.json").read_text())["prompt_fit"]
    assert audit["sampled"]["low"] > 0  # what the policy itself says still fits: only the dataset was spoiled
    (wrong,) = (
        f for f in build_report([read_run(folder)], title="t")["findings"] if f["check"] == "prompt-fit"
    )
    assert wrong["text"] == "Responses do not fit their prompts."


def test_samples_that_come_back_in_another_order(tmp_path: Path, assistant: Any) -> None:
    def plant(trainer: Any) -> None:
        real = trainer.generator.sample

        def rotated(prompts: list[Any], keys: list[Any]) -> list[Any]:
            said = real(prompts, keys)
            return said[6:] + said[:6]  # a shift by three prompts: each gets the responses of another

        trainer.maker.generator.sample = rotated

    folder = run(tmp_path / "run", assistant, "sail-dpr", plant=plant)
    assert "prompt-fit" in alarms(folder)
    assert json.loads((folder / "audit.json").read_text())["prompt_fit"]["data"]["low"] > 0


def test_a_pool_of_one_prompt(tmp_path: Path, assistant: Any) -> None:
    """The file has 256 prompts, and every draw comes from its first row. (A file of one prompt is the user's own choice.)"""

    class Starved(EncodedDataset):
        def __getitem__(self, position: int) -> Any:
            return super().__getitem__(0)

    def plant(trainer: Any) -> None:
        trainer.train_dataset.__class__ = Starved

    folder = run(tmp_path / "run", assistant, "sail-dpr", plant=plant)
    assert {"prompts", "prompt-share"} <= alarms(folder)
    assert "1 different prompt" in measured(folder, "prompts")["measured"]


@pytest.mark.parametrize(("value", "others"), [(0.5, {"chance"}), (0.9, {"position", "swapped"})])
def test_a_constant_oracle(tmp_path: Path, assistant: Any, value: float, others: set[str]) -> None:
    def prefers(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        return [value] * len(prompts)

    folder = run(tmp_path / "run", assistant, "sail-dpr", oracle=prefers)
    assert {"constant", *others} <= alarms(folder)


def test_an_inverted_label(tmp_path: Path, assistant: Any) -> None:
    def inverted(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [-value for value in reward(prompts, responses)]

    folder = run(tmp_path / "run", assistant, "sail-dpr", oracle=inverted)
    assert "inverted" in alarms(folder)


def test_inverted_columns_of_the_file(tmp_path: Path, assistant: Any) -> None:
    def turned(rows: list[Row]) -> list[Row]:
        return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]

    folder = run(
        tmp_path / "run",
        assistant,
        "sail-dpr",
        rows=turned(make_rows(256, 1)),
        held_out=turned(make_rows(64, 2)),
    )
    assert "inverted" in alarms(folder)


def test_a_collapsed_policy(tmp_path: Path, assistant: Any) -> None:
    folder = run(tmp_path / "run", assistant, "online-dpo", learning_rate=5e-2, beta=0.01)
    assert {"entropy", "duplicates", "identical", "reward"} <= alarms(folder)
