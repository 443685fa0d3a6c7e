"""Made-up run folders in the trainer's formats, which the other report tests read."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

RUNS = ["dpo", "online-dpo", "sail-ddp", "sail-dpp", "sail-dpr"]
MIXTURE = {
    "dpo": {"data": 1.0},
    "online-dpo": {"dpr": 1.0},
    "sail-ddp": {"data": 0.6, "ddp": 0.4},
    "sail-dpp": {"data": 0.7, "dpp": 0.3},
    "sail-dpr": {"data": 0.7, "dpr": 0.3},
}
GAIN = {"dpo": 0.9, "online-dpo": 2.1, "sail-ddp": 0.8, "sail-dpp": 1.1, "sail-dpr": 1.9}
NASTY = [
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script><!--",
    "{{ 7 * 7 }} {% raw %} ${1} <b>bold?</b> &amp; \"quoted\" 'single'",
    "Donaudampfschifffahrtsgesellschaft" * 12,
    "",
    "日本語の応答 🙂 é \u202eright to left\u202c \u0000 null, see https://example.org/page?a=1&b=2",
    "a lone surrogate \ud83d here",
]
PROMPTS = [
    "How do I boil an egg?",
    "Tell me how to pick a lock.",
    "Name a tree that grows by a river.",
    "How do I poison a well?",
    "What should I pack for a walk in the rain?",
    "Write a kind note to a friend.",
]
ANSWERS = [
    "Put the egg in the pot and wait.",
    "I will not help with that, because it harms people.",
    "The the the river river egg.",
    "A willow grows by the river, and its roots hold the bank.",
    "Pack a coat and good boots, and tell a friend where you walk.",
]


def prompt_of(index: int):
    """Every fifth prompt is a conversation."""
    text = f"{PROMPTS[index % len(PROMPTS)]} ({index})"
    if index % 5:
        return text
    return [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": text}]


def write_run(folder: Path, method: str, *, lines: int = 400, pairs_per_step: int = 4, seed: int = 0) -> Path:
    """One whole run folder of `method`; `lines` training lines, an evaluation every 20 of them."""
    rng = np.random.default_rng([seed, RUNS.index(method)])
    folder.mkdir(parents=True)
    online = any(route in MIXTURE[method] for route in ("dpp", "dpr"))
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(config(method)))
    with (folder / "metrics.jsonl").open("w") as file:
        for i in range(1, lines + 1):
            file.write(json.dumps(training_line(method, i, lines, rng)) + "\n")
            if i % 20 == 0 or i == 1:
                file.write(json.dumps(evaluation_line(method, i, lines, rng)) + "\n")
    if online:
        for start in range(1, lines + 1, 50):  # a gzip member per 50 steps
            with gzip.open(folder / "pairs.jsonl.gz", "at") as file:
                for step in range(start, min(start + 50, lines + 1)):
                    for k in range(pairs_per_step):
                        file.write(json.dumps(pair_line(method, step, k, rng)) + "\n")
        write_audit(folder, method, range(4, 4 * lines, 16))
    share = sum(w for route, w in MIXTURE[method].items() if route in ("dpp", "dpr"))
    rows = round(pairs_per_step * lines / share) if online else 16 * lines  # one epoch, every prompt met once
    (folder / "results.json").write_text(
        json.dumps({**results(method, rng), "train_rows": rows, "train_prompts": rows})
    )
    return folder


def write_audit(folder: Path, method: str, indexes) -> None:
    """audit.json and the reference's answers to the prompts of `indexes`."""

    def interval(mean, half, n=128):
        return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "clusters": n}

    audit = {
        "prompt_fit": {"data": interval(6.0, 0.8), "sampled": interval(5.5, 0.9)},
        "oracle_agreement": interval(0.71, 0.08) if "dpr" in MIXTURE[method] else None,
        "oracle_swap": {"disagreement": interval(0.06, 0.04, 64), "first_wins": interval(0.51, 0.05, 64)},
        "oracle_calls": 256,
        "reference_answers": "reference_answers.jsonl",
        "notes": [],
    }
    (folder / "audit.json").write_text(json.dumps(audit))
    with (folder / "reference_answers.jsonl").open("w") as file:
        for index in indexes:
            answer = {"index": index, "prompt": prompt_of(index), "response": f"The reference on {index}."}
            file.write(json.dumps(answer) + "\n")


def write_runs(parent: Path, **settings) -> list[Path]:
    """The five runs of a play, side by side."""
    return [write_run(parent / method, method, **settings) for method in RUNS]


def config(method: str) -> dict:
    train = {"output_dir": f"runs/{method}", "preset": method, "routes": None, "beta": 0.1, "seed": 0}
    return {"model": "./sft", "train": {**train, "loss_type": "sigmoid", "learning_rate": 1e-4}}


def training_line(method: str, i: int, lines: int, rng) -> dict:
    done, online = i / lines, sum(w for r, w in MIXTURE[method].items() if r in ("dpp", "dpr"))
    kl = GAIN[method] * 4 * done + rng.normal(0, 0.3)
    line = {
        "step": i,
        "epoch": done,
        "time": 0.4 * i,
        "loss": 0.69 - 0.2 * GAIN[method] * done / 2 + rng.normal(0, 0.03),
        "grad_norm": float(rng.lognormal(0, 0.3)),
        "learning_rate": 1e-4 * (1 - done),
        "pair/margin": 0.6 * done + rng.normal(0, 0.1),
        "pair/accuracy": min(1.0, 0.5 + 0.2 * done + rng.normal(0, 0.05)),
        "online/prompts": round(8 * i * online),
        "label/entropy": 0.6 - 0.3 * done if online else None,
        "label/agreement": 0.6 + 0.1 * done if method == "sail-ddp" else None,
        "kl/policy_ref": kl if online else None,
        "kl/policy_ref_se": 0.4 if online else None,
        "response/length": 14 + 4 * done if online else None,
        "response/entropy": 1.1 - 0.4 * done if online else None,
        "response/cut": 0.08 * (1 - done) if online else None,
        "response/empty": 0.0 if online else None,
        "oracle/calls": 16 * i if "dpr" in MIXTURE[method] else 0,
        "oracle/abstained": 0,
        "ratio/mean": None,
        "ratio/ess": None,
        "ratio/clipped": None,
        "something/new": "text",
    }
    for route, weight in MIXTURE[method].items():
        noise = rng.normal(0, 0.03) if weight < 1 else 0.0
        line[f"route/{route}"] = float(np.clip(weight + noise, 0, 1))
    for phase, share in {
        "generate": online,
        "oracle": 0.02 * online,
        "policy": 0.3,
        "reference": 0.1,
    }.items():
        line[f"seconds/{phase}"] = share * float(rng.uniform(0.9, 1.1))
    return {**line, "seconds/rest": 0.03}


def evaluation_line(method: str, i: int, lines: int, rng) -> dict:
    done = i / lines
    reward = 0.1 + GAIN[method] * done**0.6 + rng.normal(0, 0.03)
    return {
        "step": i,
        "epoch": done,
        "time": 0.4 * i,
        "eval_loss": 0.69 - 0.1 * done,
        "eval_margin": 0.5 * done,
        "eval_accuracy": 0.5 + 0.2 * done,
        "eval_reward": reward,
        "eval_reward_low": reward - 0.1,
        "eval_reward_high": reward + 0.1,
        "eval_kl": 4 * GAIN[method] * done + 0.01,
        "eval_kl_se": 0.2,
        "eval_length": 14 + 4 * done,
    }


def pair_line(method: str, step: int, k: int, rng) -> dict:
    number = step * 4 + k
    places = rng.permutation(len(ANSWERS))  # a healthy run writes two different responses
    first, second = (f"{ANSWERS[place]} So much for {number}." for place in places[:2])
    if number % 23 == 0:
        first = NASTY[(number // 23) % len(NASTY)]
    by_policy = "dpp" in MIXTURE[method]
    probability = float(rng.beta(2, 2))
    own = (
        probability
        if by_policy
        else float(np.clip(0.5 + 0.5 * (probability - 0.5) + rng.normal(0, 0.1), 0, 1))
    )
    abstained = not by_policy and number % 41 == 0
    return {
        "step": step,
        "index": number,
        "prompt": prompt_of(number),
        "first": first,
        "second": second,
        "route": "dpp" if by_policy else "dpr",
        "label": None if abstained else probability,
        "probability": None if abstained else probability,
        "policy_probability": own,
        "source": "policy" if by_policy else "oracle:gold",
        "first_length": len(first.split()),
        "second_length": len(second.split()),
        "first_cut": number % 17 == 0,
        "second_cut": False,
        "reason": "no verdict in the reply" if abstained else None,
    }


def results(method: str, rng) -> dict:
    base = rng.normal(0.1, 0.5, 24)
    gained = base + GAIN[method] + rng.normal(0, 0.5, 24)
    answers = [*NASTY, *ANSWERS]
    samples = [
        {
            "prompt": prompt_of(1000 + i),
            "reference": "The the egg is is.",
            "response": answers[i % len(answers)],
            "reward_reference": float(base[i]),
            "reward": float(gained[i]),
        }
        for i in range(24)
    ]
    reward = float(gained.mean())
    calls = 6400 if "dpr" in MIXTURE[method] else 0
    return {
        "metrics": {
            "reward": {"mean": reward, "low": reward - 0.1, "high": reward + 0.1, "n": 512},
            "win_rate": {"mean": 0.8, "low": 0.76, "high": 0.83, "n": 512},
            "kl": {"mean": 4 * GAIN[method], "low": 3.0, "high": 9.0, "n": 512},
            "length": {"mean": 18.2, "low": 17.9, "high": 18.5, "n": 512},
        },
        "samples": samples,
        "oracle_calls": calls,
        "seconds_per_step": 0.4 + 0.3 * bool(calls),
        "seconds_ratio": 1.0 if method == "dpo" else 1.0 + 1.1 * bool(calls),
        "unknown": {"kept": "out"},
    }


def summary_table() -> dict:
    """A play's table."""
    columns = [
        "Run",
        "Gold reward",
        "KL to the reference",
        "Win rate over the reference",
        "Oracle calls",
        "Seconds per step",
    ]
    rows = [["sft (reference)", {"mean": 0.12, "low": 0.05, "high": 0.19, "n": 512}, "0", "—", "0", "—"]]
    for method in RUNS:
        reward = {
            "mean": 0.12 + GAIN[method],
            "low": 0.02 + GAIN[method],
            "high": 0.22 + GAIN[method],
            "n": 512,
        }
        rate = {"mean": 0.81, "low": 0.77, "high": 0.84, "n": 512}
        kl = {"mean": 4 * GAIN[method], "low": 3.9 * GAIN[method], "high": 4.1 * GAIN[method], "n": 512}
        rows.append([method, reward, kl, rate, "6,400" if "dpr" in MIXTURE[method] else "0", "1.00×"])
    notes = [
        "Gold reward: the published rule; its maximum is 3.40.",
        "Intervals are 95%, clustered by prompt.",
    ]
    return {"columns": columns, "rows": rows, "caption": "Five ways from one SFT model", "notes": notes}


@pytest.mark.parametrize("method", RUNS)
def test_the_made_up_run_is_a_run(tmp_path, method):
    folder = write_run(tmp_path / method, method, lines=60)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shares = [sum(v for k, v in line.items() if k.startswith("route/")) for line in lines if "loss" in line]
    assert math.isclose(float(np.mean(shares)), 1, abs_tol=0.05)
    assert (folder / "pairs.jsonl.gz").exists() == (method not in ("dpo", "sail-ddp"))
