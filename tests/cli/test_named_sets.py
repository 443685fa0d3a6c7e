"""Every public set, from a local copy of our own making, through sail data, sft, train (an on-policy route) and eval.

The real command line, in one process; a byte-level tokenizer with a chat template and a Llama of 30,000 random weights.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from named_sets import EXPECTED, WRITERS, kind, question, rude, write_copy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sail import cli
from sail.data.named.catalogue import NAMED
from sail.data.sources import load_rows

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REWARD = """\
def reward(prompts, responses):
    return [response.count("a") - 0.1 * len(response) for response in responses]
"""
QUICK = {"use_cpu": True, "per_device_train_batch_size": 4, "max_steps": 2, "disable_tqdm": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sets")
    for name in WRITERS:
        write_copy(name, home / name)
    (home / "reward.py").write_text(REWARD, encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [make(number) for number in range(40) for make in (question, kind, rude)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    made.chat_template = TEMPLATE
    made.save_pretrained(home / "base")
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(made), eos_token_id=made.eos_token_id, bos_token_id=None, **shape)
    LlamaForCausalLM(config).save_pretrained(home / "base")
    return home


def run_file(home: Path, name: str) -> Path:
    held_out = {} if "test" in next(iter(NAMED[name].variants.values())).splits else {"held_out": 0.2}
    both = {"name": name, "path": name, **held_out}
    run: dict[str, Any] = {
        "model": f"out/{name}/sft",
        "data": {"train": both, "eval": {**both, "limit": 6}},
        "oracle": {"kind": "function", "path": "reward.py:reward"},
        "train": {
            "output_dir": f"out/{name}/run",
            "preset": "sail-dpr",
            "max_length": 192,
            "max_prompt_length": 160,
            "max_new_tokens": 6,
            "save_strategy": "no",
            **QUICK,
        },
        "sft": {"model": "base", "output_dir": f"out/{name}/sft", "max_length": 192, **QUICK},
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_the_whole_way(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    path = str(run_file(home, name))
    twin, exported = home / f"{name}.json", home / f"{name}.jsonl"

    def sail(*argv: str) -> str:
        assert cli.main(list(argv)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    said = sail("data", path, "--tokenizer", "base", "--json", str(twin), "--export", str(exported))
    made = json.loads(twin.read_text(encoding="utf-8"))
    assert made["rows"]["read"] == EXPECTED[name]["read"]
    for reason, count in EXPECTED[name]["dropped"].items():
        assert f"left out: {reason} " in said
        assert made["rows"]["dropped"][reason] == count
    assert made["limits"]["prompts_too_long"] == 0
    assert made["lengths"]["tokens"]["prompt"]["max"] <= 160
    assert len(load_rows(exported).rows) == made["rows"]["kept"]

    assert f"{made['rows']['kept']} rows; of {made['rows']['read']} read, left out: " in sail("sft", path)
    said = sail("train", path)
    assert f"{made['rows']['kept']} rows" in said
    run = home / "out" / name / "run"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["train_rows"] == made["rows"]["kept"]
    assert results["fingerprints"]["train_rows"]
    assert gzip.decompress((run / "pairs.jsonl.gz").read_bytes())
    resolved = yaml.safe_load((run / "config.resolved.yaml").read_text(encoding="utf-8"))
    assert resolved["data"]["train"]["split"] == "train"
    assert resolved["data"]["eval"]["split"] == "test"
    assert resolved["data"]["train"]["path"] == str(home / name)

    sail("eval", str(run), "--prompts", "4")
    measured = json.loads((run / "eval" / "results.json").read_text(encoding="utf-8"))
    assert measured["metrics"]["reward"]["n"] > 0


def test_a_reward_model_and_another_evaluation_set(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """train-reward reads named data too, and sail eval takes a name; one that is not here is refused in a sentence."""
    monkeypatch.chdir(home)
    path = run_file(home, "pku-saferlhf")
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = {"name": "pku-saferlhf", "path": "pku-saferlhf", "label": "safe"}
    run["reward"] = {"model": "base", "train": source, "output_dir": "out/rm", **QUICK, "save_strategy": "no"}
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    assert cli.main(["train-reward", str(path), "--dry-run"]) == 0
    assert "39 pairs; of 41 read, left out: " in capsys.readouterr().out
    assert cli.main(["eval", "base", "--data", "hh-rlhf", "--out", "out/none"]) == 2
    assert "could not be loaded from the hub as Anthropic/hh-rlhf" in capsys.readouterr().err
