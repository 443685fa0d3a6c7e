"""Weights in few bits, and activation checkpointing beside sampling. The contract with bitsandbytes is tested on arguments; where
it is installed, a QLoRA run is trained for real (it has 4-bit kernels for CPUs)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny import make_model, make_pairs, make_tokenizer, make_trainer, weights_of
from transformers import AutoModelForCausalLM

from sail import quantization
from sail.build import run_training
from sail.config import config_from_dict
from sail.errors import ConfigError, MissingExtraError
from sail.generation import TransformersGenerator
from sail.stage_config import QuantizationSection

BASE = {"model": "m", "data": {"train": "pairs.jsonl"}, "train": {"preset": "dpo"}}


def test_without_a_section_nothing_is_passed() -> None:
    assert quantization.loading_arguments(None) == {}


def test_what_from_pretrained_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes' own names, with the type as torch's."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    section = QuantizationSection(
        load_in_4bit=True, bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["head"]
    )
    given = quantization.loading_arguments(section)
    made = given["quantization_config"]
    assert (made.load_in_4bit, made.load_in_8bit, made.bnb_4bit_quant_type) == (True, False, "nf4")
    assert (made.bnb_4bit_compute_dtype, made.bnb_4bit_use_double_quant) == (torch.bfloat16, True)
    assert made.llm_int8_skip_modules == ["head"]
    assert list(given["device_map"]) == [""]
    with pytest.raises(ConfigError, match=r"quantization\.load_in_3bit"):
        quantization.loading_arguments(QuantizationSection(load_in_4bit=True, load_in_3bit=True))


def test_without_bitsandbytes_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"sail-align\[qlora\]"):
        quantization.loading_arguments(QuantizationSection(load_in_4bit=True))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"load_in_4bit": True}, "something else must be trained. Add peft"),
        ({}, "exactly one of load_in_4bit: true and load_in_8bit: true"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exactly one of"),
    ],
)
def test_what_is_refused_when_the_file_is_read(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict({**BASE, "quantization": section})


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_a_colocated_engine_would_sample_from_another_model(mode: str) -> None:
    """vLLM in the training processes loads the base in full precision; a server is started by its owner, with what it serves."""
    train = {"preset": "sail-dpp", "use_vllm": True, "vllm_mode": mode}
    if mode == "server":
        train["vllm_server_base_url"] = "http://127.0.0.1:1"
    raw = {**BASE, "peft": {"r": 4}, "quantization": {"load_in_4bit": True}, "train": train}
    if mode == "server":
        assert config_from_dict(raw).quantization is not None
        return
    with pytest.raises(ConfigError, match="sample from another one than is trained"):
        config_from_dict(raw)


def test_the_real_thing_if_it_is_installed(tmp_path: Path) -> None:
    """QLoRA on a tiny model: 4-bit weights stay as they were, the adapter learns, the model that is left has full weights."""
    pytest.importorskip("bitsandbytes")
    model = make_model(
        torch.bfloat16, scale=0.1, hidden_size=128, intermediate_size=256
    )  # 4-bit blocks have 64 values
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_pairs(16)))
    train = {"output_dir": str(tmp_path / "run"), "preset": "sail-dpp", "max_steps": 3, "learning_rate": 0.01}
    train |= {
        "max_length": 40,
        "max_prompt_length": 16,
        "max_new_tokens": 6,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    train |= {"gradient_checkpointing": True, "save_steps": 2}
    config = config_from_dict(
        {
            "model": str(tmp_path / "base"),
            "peft": {"r": 4},
            "quantization": {"load_in_4bit": True},
            "data": {"train": str(tmp_path / "pairs.jsonl")},
            "train": train,
        }
    )
    folder = run_training(config, resume=False, overwrite=False, config_path="run.yaml", show_config=False)
    left = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert left.dtype == torch.bfloat16
    assert not getattr(left, "is_quantized", False)
    before, after = weights_of(AutoModelForCausalLM.from_pretrained(tmp_path / "base")), weights_of(left)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert all("proj" in name for name in changed)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


# ---- activation checkpointing beside sampling


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_checkpointing_changes_no_gradient_and_sampling_keeps_its_cache(
    tmp_path: Path, adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of two steps: the same sampled texts, and the same weights to the last bit but rounding; under checkpointing the
    layers ran again in the backward pass, and each sampling step saw one new token, as only a cache allows."""
    seen: list[int] = []
    generate = TransformersGenerator._generate

    def watched(self: Any, model: Any, *arguments: Any) -> Any:
        handle = model.get_input_embeddings().register_forward_pre_hook(
            lambda module, given: seen.append(given[0].shape[1])
        )
        try:
            return generate(self, model, *arguments)
        finally:
            handle.remove()

    monkeypatch.setattr(TransformersGenerator, "_generate", watched)
    results, layer_calls = [], []
    for checkpointing in (False, True):
        peft_config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
        trainer = make_trainer(
            tmp_path / str(checkpointing),
            model=make_model(scale=0.3),
            max_steps=2,
            preset="sail-dpr",
            optim="sgd",
            gradient_checkpointing=checkpointing,
            trainer_options={"peft_config": peft_config},
        )
        calls: list[bool] = []
        for name, module in trainer.model.named_modules():
            if name.endswith("layers.0.mlp"):
                module.register_forward_pre_hook(
                    lambda *_, calls=calls: calls.append(torch.is_grad_enabled())
                )
        seen.clear()
        trainer.train()
        assert seen[0] > 1  # the prompts
        assert set(seen) - {1} <= {length for length in seen if length > 1}
        assert seen.count(1) >= len(seen) - 2  # but for one prompt pass in each of the two steps
        results.append((weights_of(trainer.model), list(seen)))
        layer_calls.append(sum(calls))
    (plain, lengths), (again, lengths_again) = results
    assert lengths == lengths_again
    assert all(torch.allclose(plain[name], again[name], rtol=1e-5, atol=1e-7) for name in plain)
    assert layer_calls[1] == 2 * layer_calls[0]
