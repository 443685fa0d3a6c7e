"""A model, pairs and a reward that the project has not seen, through the real command: one YAML and no code.

The world: a Llama with a byte-level BPE tokenizer (no pad token) and a chat template; conversational rows. Answers open and
close with a kind, a plain or a rude word; the reward counts the kind words less the rude ones, from -2 to 2.
"""

from __future__ import annotations

import gzip
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.slow

SAIL = Path(sys.executable).with_name("sail")
KIND, PLAIN, RUDE = ("gladly", "thanks"), ("well", "so"), ("bah", "never")
NOUNS = ("sea", "moon", "river", "stone", "garden", "engine", "violin", "winter", "bread", "cloud")
ASKS = ("tell me about the {}", "what is the {} like", "describe the {} please", "the {} , how is it")
LOOKS = ("bright", "old", "quiet", "green", "round", "cold")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
REWARD = f"""\
KIND, RUDE = {KIND!r}, {RUDE!r}


def reward(prompts, responses):
    assert all(messages[-1]["role"] == "user" for messages in prompts)
    words = [response.split() for response in responses]
    return [sum(word in KIND for word in one) - sum(word in RUDE for word in one) for one in words]
"""
FAILING = (
    REWARD
    + """

calls = 0
count_words = reward


def reward(prompts, responses):
    global calls
    calls += 1
    if calls > 7:
        raise ConnectionError("the reward service is down")
    return count_words(prompts, responses)
"""
)
STEPS = 40
RUN: dict[str, Any] = {
    "model": "./sft",
    "data": {"train": "pairs.jsonl", "eval": "held.jsonl"},
    "oracle": {"kind": "function", "path": "reward.py:reward"},
    "train": {
        "output_dir": "runs/full",
        "preset": "sail-dpr",
        "max_length": 64,
        "max_prompt_length": 40,
        "max_new_tokens": 24,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "logging_steps": 2,
        "save_steps": 5,
        "save_total_limit": 2,
        "use_cpu": True,
    },
    "sft": {
        "model": "./base",
        "train": "sft.jsonl",
        "output_dir": "sft",
        "num_train_epochs": 4,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 16,
        "max_length": 64,
        "use_cpu": True,
    },
}
LORA = ("train.output_dir=runs/lora", "train.learning_rate=3e-3", "peft={r: 8, lora_alpha: 16}")


def sail(folder: Path, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`; no error is ever shown as a traceback."""
    done = subprocess.run([SAIL, *argv], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


# ---- the world


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the texts. Like many published ones it has no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    made.chat_template = TEMPLATE
    return made


def base_model(tokenizer: Any) -> LlamaForCausalLM:
    """A Llama of 135,000 random weights, always the same ones."""
    shape = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, **ids, num_key_value_heads=2, max_position_embeddings=128))


def answer(chance: random.Random, noun: str) -> str:
    words = KIND + PLAIN + RUDE
    return f"{chance.choice(words)} the {noun} is {chance.choice(LOOKS)} {chance.choice(words)}"


def score(text: str) -> int:
    return sum((word in KIND) - (word in RUDE) for word in text.split())


def chat(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def make_rows(count: int, *, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(supervised rows, pairs of which the kinder answer is chosen); every answer of the former is as likely as any other."""
    chance = random.Random(seed)
    supervised, pairs = [], []
    while len(pairs) < count:
        noun = chance.choice(NOUNS)
        prompt = chat("user", chance.choice(ASKS).format(noun))
        better, worse = sorted((answer(chance, noun), answer(chance, noun)), key=score, reverse=True)
        supervised.append({"prompt": prompt, "completion": chat("assistant", chance.choice((better, worse)))})
        if score(better) > score(worse):
            row = {"prompt": prompt, "chosen": better, "rejected": worse}
            pairs.append({**row, **{key: chat("assistant", row[key]) for key in ("chosen", "rejected")}})
    return supervised, pairs


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: base model, data, reward, run.yaml; and after `sail sft run.yaml` the model in sft."""
    folder = tmp_path_factory.mktemp("home")
    supervised, pairs = make_rows(400, seed=0)
    tokenizer = tokenizer_of([row["completion"][0]["content"] for row in supervised] + list(ASKS))
    base_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_jsonl(folder / "sft.jsonl", supervised)
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "held.jsonl", make_rows(100, seed=1)[1])
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN, sort_keys=False), encoding="utf-8")
    assert "The model is in sft." in sail(folder, "sft", "run.yaml").stdout
    return folder


@pytest.fixture(scope="module")
def full(home: Path) -> tuple[Path, str]:
    """The whole run, fine-tuning all weights, and what it said."""
    return home / "runs" / "full", sail(home, "train", "run.yaml").stdout


@pytest.fixture(scope="module")
def lora(home: Path) -> tuple[Path, str]:
    """The same with an adapter."""
    return home / "runs" / "lora", sail(home, "train", "run.yaml", *LORA).stdout


# ---- from a model folder, pairs and a reward file to an aligned model


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_reward_has_risen(tuning: str, request: pytest.FixtureRequest) -> None:
    """The paired 95% interval over held-out prompts lies above 0, and the answers in results.json say the same."""
    folder, said = request.getfixturevalue(tuning)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    gain = results["metrics"]["reward_gain"]
    assert gain["n"] == 100
    assert gain["low"] > 0
    assert "The reward has risen." in said
    gains = [score(one["response"]) - score(one["reference"]) for one in results["samples"]]
    assert sum(gains) / len(gains) == pytest.approx(gain["mean"])
    assert results["steps"] == STEPS
    assert results["metrics"]["kl"]["mean"] > 0


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_run_folder_is_whole(tuning: str, request: pytest.FixtureRequest) -> None:
    folder, said = request.getfixturevalue(tuning)
    files = {"config.resolved.yaml", "metrics.jsonl", "pairs.jsonl.gz", "results.json"}
    files |= {"report.html", "report.json", "model", "checkpoint-35", f"checkpoint-{STEPS}"}
    files |= {"audit.json", "reference_answers.jsonl", *(["adapter"] if tuning == "lora" else [])}
    assert {path.name for path in folder.iterdir()} == files
    resolved = (folder / "config.resolved.yaml").read_text(encoding="utf-8")
    chosen = said.split("default; ")[1].split("\n\n")[0].splitlines()[1:]
    assert set(chosen[: chosen.index("  preset: sail-dpr")]) <= set(resolved.splitlines())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(2, STEPS + 1, 2))
    with gzip.open(folder / "pairs.jsonl.gz", "rt", encoding="utf-8") as stream:
        pairs = [json.loads(line) for line in stream]
    assert {pair["route"] for pair in pairs} == {"dpr"}
    last = [line for line in lines if "oracle/calls" in line][-1]
    identical = sum(pair["first"] == pair["second"] for pair in pairs)
    assert last["oracle/calls"] == len(pairs) - identical
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))


LOADING = """
import json, sys
sys.modules["sail"] = None  # importing it would fail
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

full, lora, base = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(full + "/model")
messages = [{"role": "user", "content": "tell me about the sea"}]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
def logits(model):
    with torch.no_grad():
        return model.eval()(ids).logits
start = logits(AutoModelForCausalLM.from_pretrained(base))
aligned = logits(AutoModelForCausalLM.from_pretrained(full + "/model"))
merged = logits(AutoModelForCausalLM.from_pretrained(lora + "/model"))
apart = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora + "/adapter"))
both = {"adapter": (merged, apart), "full moved": (aligned, start), "lora moved": (merged, start)}
print(json.dumps({name: (a - b).abs().max().item() for name, (a, b) in both.items()}))
"""


def test_the_models_load_without_sail(home: Path, full: tuple[Path, str], lora: tuple[Path, str]) -> None:
    """As ordinary folders; the merged model is the base with the adapter, up to rounding (logits are of order 10)."""
    argv = [sys.executable, "-c", LOADING, str(full[0]), str(lora[0]), str(home / "sft")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    differences = json.loads(done.stdout.strip().splitlines()[-1])
    assert differences["adapter"] < 1e-4
    assert differences["full moved"] > 0.1
    assert differences["lora moved"] > 0.1


def test_sample_answers_in_the_chat_template(home: Path, full: tuple[Path, str]) -> None:
    argv = ["sample", str(full[0] / "model"), "--prompt", "describe the moon please", "--chat", "--n", "3"]
    said = sail(home, *argv, "--max-new-tokens", "24").stdout.splitlines()
    assert said[0] == "prompt: describe the moon please"
    assert len(said) == 4
    assert sum("the moon is" in line for line in said[1:]) >= 2
    assert not any("<|" in line for line in said)


# ---- interrupted, and continued


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "the run did not get that far"
        time.sleep(0.01)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_same_run(expected: Path, folder: Path) -> None:
    """Bit for bit the same model, and the same pairs."""
    name = "model/model.safetensors"
    assert (folder / name).read_bytes() == (expected / name).read_bytes()
    pairs = [gzip.decompress((where / "pairs.jsonl.gz").read_bytes()) for where in (expected, folder)]
    assert pairs[0] == pairs[1]


def test_interrupted_with_ctrl_c_and_continued_as_it_says(home: Path, full: tuple[Path, str]) -> None:
    argv = ["train", "run.yaml", "train.output_dir=runs/stopped"]
    folder = home / "runs" / "stopped"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([SAIL, *argv], cwd=home, text=True, **pipes)
    wait_for(lambda: lines_of(folder / "metrics.jsonl") >= 3, process)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 130, said + complained
    assert "Traceback" not in said + complained
    assert "saving a checkpoint" in said + complained
    assert not (folder / "model").exists()
    before = (folder / "metrics.jsonl").read_bytes()

    refused = sail(home, *argv, "train.beta=0.2", "train.seed=3", "--resume", code=2).stderr
    assert "train.beta: 0.1 then, 0.2 now" in refused
    assert "train.seed" in refused
    assert "train.output_dir:" not in refused
    assert (folder / "metrics.jsonl").read_bytes() == before

    command = said.split("Continue with:\n")[1].strip().splitlines()[0]
    assert command.startswith("sail train run.yaml ")
    assert command.endswith(" --resume")
    sail(home, *shlex.split(command)[1:])
    assert_same_run(full[0], folder)


def test_an_oracle_that_raises(home: Path, full: tuple[Path, str]) -> None:
    """The rows are named; the run goes on from its last checkpoint once the oracle works again."""
    folder = home / "runs" / "raised"
    # The same file name, because pairs.jsonl.gz tells who gave a label.
    service = home / "service" / "reward.py"
    argv = ["train", "run.yaml", "train.output_dir=runs/raised", "oracle.path=service/reward.py:reward"]
    service.parent.mkdir()
    service.write_text(FAILING, encoding="utf-8")
    complained = sail(home, *argv, code=2).stderr
    for said in (
        "raised ConnectionError: the reward service is down",
        "row 0 ('",
        "checkpoint-5; continue from it with --resume.",
    ):
        assert said in complained
    assert any(noun in complained for noun in NOUNS)
    assert (folder / "checkpoint-5").is_dir()
    service.write_text(REWARD, encoding="utf-8")
    sail(home, *argv, "--resume")
    assert_same_run(full[0], folder)


# ---- one folder, one run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_holds_a_run(home: Path, lora: tuple[Path, str], tmp_path: Path) -> None:
    """Refused as it is; replaced with --overwrite, but not for a run that cannot begin; the user's own files stay."""
    folder = tmp_path / "used"
    shutil.copytree(lora[0], folder)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    before = everything(folder)
    argv = ["train", "run.yaml", f"train.output_dir={folder}", "train.max_steps=2"]
    refused = sail(home, *argv, code=2).stderr
    for way_out in ("already holds a run", "--resume", "--overwrite", "train.output_dir"):
        assert way_out in refused
    sail(home, *argv, "--overwrite", "data.train=missing.jsonl", code=2)
    assert everything(folder) == before
    sail(home, *argv, "--overwrite")
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["steps"] == 2
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2"}
    assert not (folder / "adapter").exists()
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"


# ---- nothing begins that cannot end well


def test_a_bad_row_stops_the_run_before_it_begins(home: Path, tmp_path: Path) -> None:
    rows = (home / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    rows[3] = json.dumps({**json.loads(rows[3]), "rejected": 7})
    (tmp_path / "bad.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    argv = ["train", "run.yaml", f"data.train={tmp_path / 'bad.jsonl'}", f"train.output_dir={out}"]
    complained = sail(home, *argv, code=2).stderr
    assert "bad.jsonl row 4" in complained
    assert "field 'rejected'" in complained
    assert not out.exists()


def test_dry_run_writes_nothing(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = sail(home, "train", "run.yaml", f"train.output_dir={out}", "--dry-run").stdout
    assert f"output_dir: {out}" in said
    assert "pairs.jsonl: 400 rows" in said
    assert f"optimiser steps: {STEPS} of 16 rows" in said
    assert said.endswith("Nothing was trained or written.\n")
    assert not out.exists()
