"""Models load from safetensors only, and bring no code of their own unless that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from tiny import make_config, make_model, make_tokenizer, reward

from sail.build import make_model as load_model
from sail.build import require_model
from sail.config import config_from_dict
from sail.errors import ConfigError
from sail.trainer import SAILTrainer
from sail.training.models import with_reference

CODE = """\
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).with_name("ran").write_text("yes")
(Path({folder!r}) / "ran").write_text("yes")


class OwnConfig(LlamaConfig):
    model_type = "sail_test_own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A folder whose weights are a pickle."""
    model = make_model()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    make_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def own_code(tmp_path: Path) -> Path:
    """A folder whose config names classes in a file beside it."""
    folder = tmp_path / "own"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "sail_test_own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(folder=str(tmp_path)))
    return folder


def test_pickled_weights_are_refused_with_the_way_out(pickled: Path) -> None:
    with pytest.raises(ConfigError, match=r"not safetensors.*use_safetensors=False"):
        load_model(str(pickled))
    with pytest.raises(ConfigError, match="not safetensors"):
        SAILTrainer(str(pickled), args=make_config(pickled / "run"), oracle=reward)


def test_the_way_out_works(pickled: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trusted = AutoModelForCausalLM.from_pretrained(pickled, use_safetensors=False)
    trusted.save_pretrained(tmp_path / "converted")
    loaded = load_model(str(tmp_path / "converted"))
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in make_model().state_dict().items())


def test_code_is_not_run_unasked(own_code: Path) -> None:
    with pytest.raises(ConfigError, match=r"code of its own.*trust_remote_code: true"):
        load_model(str(own_code))
    assert not (own_code.parent / "ran").exists()


def test_code_is_run_where_it_is_trusted(own_code: Path) -> None:
    assert type(load_model(str(own_code), trust_remote_code=True)).__name__ == "OwnModel"
    assert (own_code.parent / "ran").exists()


def test_the_run_file_says_it() -> None:
    raw = {"model": "m", "data": {"train": "x.jsonl"}, "train": {"preset": "dpo"}}
    assert config_from_dict(raw).trust_remote_code is False
    assert config_from_dict({**raw, "trust_remote_code": True}).trust_remote_code is True


@pytest.mark.parametrize("given", ["config", "model"])
def test_a_learnt_prompt_is_refused(given: str) -> None:
    """It lives outside the model that is sampled from."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = make_model()
    adapted = (
        (model, None, config) if given == "config" else (get_peft_model(model, config), make_model(), None)
    )
    with pytest.raises(ConfigError, match="Prompt and prefix tuning cannot be trained"):
        with_reference(*adapted, no_dropout=False)


def test_an_adapter_is_no_model_and_the_way_out_is_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a LoRA adapter; take the model/ beside it"):
        require_model(str(tmp_path))


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("models/first")
    Path("models/notes").mkdir()
    with pytest.raises(ConfigError, match=r"no folder models/frist.* Beside it: first\. Check"):
        require_model("models/frist")
    require_model("organisation/name")
    Path("organisation").mkdir()
    require_model("organisation/name")
    require_model("name")
