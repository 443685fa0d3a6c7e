"""A judge that fits into a test: a Llama of about 100,000 parameters that learns in seconds to say [[A]] or [[B]].

Its rule: the response with more of the words w0 ... w14 is better. It reads the messages that sail sends, fence included.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tiny import EOS, PAD, WORDS, make_model, make_tokenizer

from sail.oracles.judge import Rubric, load_rubric

GOOD = {f"w{number}" for number in range(15)}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}\nverdict:{% endif %}"
BATCH, RATE, ENOUGH = 32, 2e-3, 0.95
RUBRIC = "{prompt}\n{first}\n{second}\n"


def merit(response: str) -> int:
    """How many good words it has."""
    return sum(word in GOOD for word in response.split())


def make_judge(folder: Path, *, steps: int = 1000, seed: int = 0) -> tuple[Path, float]:
    """Train the judge until it is right enough and save it, with tokenizer and chat template, to `folder`; its prompt file is
    folder/rubric.md. Returns the folder and the accuracy on 300 fresh pairs of unequal merit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rubric.md").write_text(RUBRIC, encoding="utf-8")
    rubric, chance = load_rubric(folder / "rubric.md", "pairwise"), random.Random(seed)
    words = ["<<<", ">>>", "|", "user", "response", "A", "B", "verdict:", "[[A]]", "[[B]]"]
    tokenizer = make_tokenizer([*(f"w{number}" for number in range(WORDS)), *words])
    tokenizer.chat_template = TEMPLATE
    verdicts = [tokenizer.convert_tokens_to_ids(word) for word in ("[[B]]", "[[A]]")]
    model = make_model(
        vocabulary=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        max_position_embeddings=128,
        seed=seed,
    )

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        texts, answers = zip(*(_question(rubric, tokenizer, chance) for _ in range(size)), strict=True)
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        ids = torch.full((size, max(map(len, rows)) + 2), PAD)
        for place, row in enumerate(rows):
            ids[place, : len(row) + 2] = torch.tensor([*row, verdicts[answers[place]], EOS])
        return ids, torch.tensor([len(row) - 1 for row in rows]), torch.tensor(answers)

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    right: list[float] = []
    model.train()
    for step in range(steps):
        ids, last, answers = batch(BATCH)
        logits = model(ids).logits
        rows = torch.arange(len(ids))
        wanted = torch.tensor(verdicts)[answers]
        loss = torch.nn.functional.cross_entropy(logits[rows, last], wanted)
        loss = loss + 0.1 * torch.nn.functional.cross_entropy(
            logits[rows, last + 1], torch.full_like(wanted, EOS)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 40)
        optimizer.step()
        right.append((logits[rows, last][:, verdicts].argmax(-1) == answers).double().mean().item())
        if sum(right[-20:]) > 20 * ENOUGH:
            break
    model.eval()
    with torch.no_grad():
        ids, last, answers = batch(300)
        chosen = model(ids).logits[torch.arange(300), last][:, verdicts].argmax(-1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, (chosen == answers).double().mean().item()


def _question(rubric: Rubric, tokenizer: Any, chance: random.Random) -> tuple[str, int]:
    first = second = ""
    while merit(first) == merit(second):
        first, second = _words(chance, 1, 8), _words(chance, 1, 8)
    message = rubric.pair(_words(chance, 2, 6), first, second)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    return text, int(merit(first) > merit(second))


def _words(chance: random.Random, least: int, most: int) -> str:
    return " ".join(f"w{chance.randrange(WORDS)}" for _ in range(chance.randint(least, most)))
