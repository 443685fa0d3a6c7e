"""`sail merge`: the merged model says what base and adapter say together, and nothing half is ever left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_model, make_pairs, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from sail import cli
from sail.build import run_training
from sail.config import config_from_dict
from sail.merge import MARK

TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
IDS = torch.tensor([[5, 9, 4, 21, 3, 17]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a chat template and generation settings of its own, and an adapter far from zero."""
    folder = tmp_path_factory.mktemp("merge")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    model = make_model()
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    torch.manual_seed(3)
    adapted = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder / "adapter")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def test_it_says_what_the_adapter_says(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "one" / "merged"
    assert cli.main(["merge", str(world / "adapter"), "--out", str(out)]) == 0
    base = AutoModelForCausalLM.from_pretrained(world / "base")
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, world / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert (logits(merged) - expected).abs().max() < 1e-5
    assert (expected - before).abs().max() > 0.01  # the adapter does something
    assert [path.name for path in out.glob("*.bin")] == []
    assert (out / "model.safetensors").is_file()
    assert not (out / "adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert GenerationConfig.from_pretrained(out).temperature == 0.7
    assert merged.config.use_cache
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_its_type_is_the_bases_or_the_one_asked_for(world: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    make_model(torch.bfloat16).save_pretrained(half)
    make_tokenizer().save_pretrained(half)
    for given, expected in ((None, torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)):
        out = tmp_path / str(given)
        words = ["merge", str(world / "adapter"), "--base", str(half), "--out", str(out)]
        assert cli.main([*words, *(["--dtype", given] if given else [])]) == 0
        assert AutoModelForCausalLM.from_pretrained(out).dtype == expected
        assert json.loads((out / MARK).read_text())["dtype"] == str(expected).removeprefix("torch.")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["merge", *words]) == 2
    return capsys.readouterr().err


def test_what_is_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to merge" in refused(capsys, str(world / "base"))
    adapter = str(world / "adapter")
    assert "what the model is made from" in refused(capsys, adapter, "--out", str(world / "base"))
    assert "what the model is made from" in refused(capsys, adapter, "--out", adapter)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert "has not made it" in refused(capsys, adapter, "--out", str(mine), "--overwrite")
    assert (mine / "thesis.txt").read_text() == "years of work"
    out = str(tmp_path / "merged")
    assert cli.main(["merge", adapter, "--out", out]) == 0
    assert "--overwrite" in refused(capsys, adapter, "--out", out)
    assert cli.main(["merge", adapter, "--out", out, "--overwrite"]) == 0
    other = tmp_path / "other"
    make_model(hidden_size=48, intermediate_size=96).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    assert "does not fit" in refused(capsys, adapter, "--base", str(other), "--out", str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_a_full_disk_leaves_the_old_model_and_nothing_half(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged"
    words = [str(world / "adapter"), "--out", str(out)]
    assert cli.main(["merge", *words]) == 0
    before = (out / "model.safetensors").read_bytes()
    save = PreTrainedModel.save_pretrained

    def half(self: Any, folder: Path, **options: Any) -> None:
        save(self, folder, **options)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", half)
    assert "No space left on device" in refused(capsys, *words, "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (out / "model.safetensors").read_bytes() == before
    assert "No space left" in refused(capsys, str(world / "adapter"), "--out", str(tmp_path / "fresh"))
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_run_and_a_checkpoint_of_it(world: Path, tmp_path: Path) -> None:
    """The merged adapter of a finished run is the model that the run left; a checkpoint is another one."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_pairs(16)))
    run = tmp_path / "run"
    train = {"output_dir": str(run), "preset": "dpo", "max_steps": 4, "save_steps": 2, "learning_rate": 0.01}
    train |= {"max_length": 40, "max_prompt_length": 16, "use_cpu": True, "disable_tqdm": True}
    config = config_from_dict(
        {
            "model": str(world / "base"),
            "peft": {"r": 4},
            "data": {"train": str(tmp_path / "pairs.jsonl")},
            "train": train,
        }
    )
    run_training(config, resume=False, overwrite=False, config_path="run.yaml", show_config=False)
    assert cli.main(["merge", str(run)]) == 0
    final = logits(AutoModelForCausalLM.from_pretrained(run / "model"))
    assert (logits(AutoModelForCausalLM.from_pretrained(run / "merged")) - final).abs().max() < 1e-5
    assert cli.main(["merge", str(run / "checkpoint-2")]) == 0
    early = logits(AutoModelForCausalLM.from_pretrained(run / "checkpoint-2-merged"))
    assert (early - final).abs().max() > 1e-4
