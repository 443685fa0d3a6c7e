"""vLLM behind the generation contract, against stand-ins with its documented interface (tests/fake_vllm.py): vLLM itself is not
run. That weights are pushed shows in the log-probs: those of the stand-in, which samples, equal the training forward's."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import LAUNCHER, fake_server, fake_vllm
from tiny import EOS, make_config, make_model, make_pairs, make_tokenizer, make_trainer
from transformers import AutoModelForCausalLM

from sail.errors import ConfigError, GenerationError, MissingExtraError
from sail.generation import SamplingSettings
from sail.generation.scoring import score_sequences
from sail.generation.vllm import Drawn, Engine, VLLMGenerator, check_drawn, sampling_options
from sail.generation.vllm_colocated import ColocatedEngine
from sail.rules import Resources, check

SETTINGS = SamplingSettings(6, 0.7, (EOS,), ("w5",), 0)


def saved(folder: Path) -> Any:
    """A model that was loaded from a folder, as vLLM needs it."""
    make_model(scale=0.3).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def lora(rank: int = 4) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear", init_lora_weights=False)


def trainer(folder: Path, *, adapter: Any = None, **options: Any) -> Any:
    model = saved(folder / "start")
    return make_trainer(
        folder / "run", model=model, rows=make_pairs(16), max_steps=3, per_device_train_batch_size=4,
        gradient_accumulation_steps=1, learning_rate=1e-2, use_vllm=True,
        trainer_options={"peft_config": adapter}, **options,
    )  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


# ---- colocated


def test_full_weights_are_pushed_before_each_step(tmp_path: Path) -> None:
    """After a step with a large learning rate the stand-in still samples from the policy of the moment."""
    with fake_vllm() as kind:
        made = trainer(tmp_path, preset="sail-dpr", routes=None)
        made.train()
        (engine,) = kind.made
    assert engine.calls == ["weights", "reset", "generate"] * 3
    assert engine.options["logprobs_mode"] == "processed_logprobs"
    assert engine.options["generation_config"] == "vllm"
    assert engine.options["dtype"] == "float32"
    assert engine.options["max_model_len"] == made.args.max_prompt_length + made.args.max_new_tokens
    found = lines(tmp_path)
    assert len(found) == 3
    assert all(line["vllm/gap"] < 1e-5 and line["vllm/ess"] > 0.9999 for line in found)


def test_the_external_launcher_is_named_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process started by hand has no RANK or MASTER_ADDR, without which that back-end does not start."""
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    with fake_vllm() as kind:
        made = trainer(tmp_path, preset="sail-dpr")
        assert "distributed_executor_backend" not in kind.made[0].options
        for name in LAUNCHER:
            monkeypatch.setenv(name, "0")
        monkeypatch.setattr("sail.generation.vllm_colocated.place", lambda: (1, 2))
        made_engine = ColocatedEngine(made.args, made.model)
        assert made_engine.llm.options["distributed_executor_backend"] == "external_launcher"
    assert os.environ["RANK"] == "0"


def test_weights_in_few_bits_are_not_sampled_in_full_precision(tmp_path: Path) -> None:
    with fake_vllm():
        made = trainer(tmp_path, preset="sail-dpr")
        made.model.is_loaded_in_4bit = True
        with pytest.raises(ConfigError, match="Remove quantization"):
            ColocatedEngine(made.args, made.model)


def test_log_probs_are_made_in_the_chunks_of_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward that scores what vLLM drew makes as many logits at once as the training's."""
    seen: list[Any] = []

    def noted(*args: Any, **options: Any) -> list[float]:
        seen.append(options.get("chunk"))
        return score_sequences(*args, **options)

    monkeypatch.setattr("sail.generation.vllm.score_sequences", noted)
    with fake_vllm():
        trainer(tmp_path, preset="sail-dpr", logprob_chunk=3).train()
    assert set(seen) == {3}


def test_weights_that_are_not_pushed_show(tmp_path: Path) -> None:
    """The check above can fail: without its push the gap is large from the second step on."""
    with fake_vllm() as kind:
        made = trainer(tmp_path, preset="online-dpo")
        made.train()
        made.generator.engine.push = lambda model: None
        made.generator.begin()
        for parameter in made.model.parameters():
            parameter.data.mul_(1.5)
        made.generator.sample([[3, 4]] * 8, [(1, "x", number) for number in range(8)])
        assert made.generator.numbers()["vllm/gap"] > 1e-2
        assert len(kind.made) == 1


@pytest.mark.parametrize("sleeps", [False, True])
def test_an_adapter_is_requested_under_a_new_number(tmp_path: Path, sleeps: bool) -> None:
    """Adapters by path; the stand-in keeps what it loaded under a number, as vLLM does."""
    with fake_vllm() as kind:
        made = trainer(tmp_path, adapter=lora(), preset="sail-dpr", vllm_enable_sleep_mode=sleeps)
        made.train()
        (engine,) = kind.made
    assert sorted(engine.adapters) == [1, 2, 3]
    assert (engine.options["enable_lora"], engine.options["max_lora_rank"]) == (True, 4)
    assert engine.asleep is sleeps
    assert ("wake" in engine.calls) is sleeps
    assert all(line["vllm/gap"] < 1e-5 for line in lines(tmp_path))
    left = sorted(path.name for path in (tmp_path / "run" / "vllm-adapters" / "rank-0").iterdir())
    assert left == ["step-2", "step-3"]


def test_kernels_that_differ_are_logged_and_corrected(tmp_path: Path) -> None:
    """With noise on the logits the gap shows; as stale rows, the rows get importance ratios around 1."""
    with fake_vllm() as kind:
        kind.noise = 0.3
        made = trainer(
            tmp_path,
            routes={"dpr": {"weight": 1.0, "coefficient": 0.5}},
            vllm_importance_sampling_correction=True,
        )
        made.train()
    for line in lines(tmp_path):
        assert line["vllm/gap"] > 0.01
        assert 0.1 < line["vllm/ess"] < 0.999
        assert 0.1 < line["ratio/ess"] < 0.999
        assert line["kl/policy_ref"] is None


# ---- one response


class Scripted(Engine):
    """Returns what it was told."""

    def __init__(self, *drawn: Drawn) -> None:
        self.drawn = drawn

    def push(self, model: Any) -> None:
        """Nothing."""

    def draw(self, prompts: Any, options: Any) -> list[Drawn]:
        """What it was told."""
        return list(self.drawn)


def test_ends_and_log_probs_follow_the_contract() -> None:
    """EOS kept and not cut; a stop string not cut; the longest cut. log_prob at temperature 1 of the training model, by an own
    sum; sampling_log_prob as vLLM said it."""
    model = make_model(scale=0.3)
    said = (
        Drawn((7, 9, EOS), (-1.0, -2.0, -0.5), "stop", EOS),
        Drawn((9, 8), (-1.0, -1.5), "stop", "w5"),
        Drawn((9, 7, 9, 7, 9, 7), (-1.0,) * 6, "length", None),
        Drawn((9, 7, 9, 7, 9, EOS), (-1.0,) * 6, "length", None),
    )
    generator = VLLMGenerator(Scripted(*said), lambda: model, make_tokenizer(), SETTINGS)
    found = generator.sample([[3, 4]] * 4, [(0, "x", number) for number in range(4)])
    assert [one.ids for one in found] == [one.ids for one in said]
    assert [one.cut for one in found] == [False, False, True, False]
    assert found[0].text == "w4 w6"
    assert [one.sampling_log_prob for one in found] == [-3.5, -2.5, -6.0, -6.0]
    logits = model(input_ids=torch.tensor([[3, 4, 7, 9]])).logits[0, 1:].double()
    scores = torch.log_softmax(logits, -1)
    assert found[0].log_prob == pytest.approx(float(scores[0, 7] + scores[1, 9] + scores[2, EOS]), abs=1e-5)
    tempered = torch.log_softmax(logits / 0.7, -1)
    mine = float(tempered[0, 7] + tempered[1, 9] + tempered[2, EOS])
    assert score_sequences(model, [([3, 4], [7, 9, EOS])], pad_id=0, batch_size=1, temperature=0.7)[0] == (
        pytest.approx(mine, abs=1e-5)
    )
    assert generator.gaps[0] == pytest.approx(mine + 3.5, abs=1e-5)


@pytest.mark.parametrize(
    ("drawn", "match"),
    [
        (Drawn((7, 9), (-1.0,), "length", None), "2 ids and 1 log-probs"),
        (Drawn((7,), (math.nan,), "stop", "w5"), "not finite"),
        (Drawn((7,), (2.0,), "stop", "w5"), "processed_logprobs"),
        (Drawn((EOS, 7), (-1.0, -1.0), "stop", "w5"), "went on after an EOS"),
        (Drawn((7, 8), (-1.0, -1.0), "length", None), "max_new_tokens is 6"),
        (Drawn((7, 8), (-1.0, -1.0), "stop", 8), "neither an EOS"),
        (Drawn((7, 8), (-1.0, -1.0), "abort", None), "'abort'"),
    ],
)
def test_anything_else_is_refused(drawn: Drawn, match: str) -> None:
    with pytest.raises(GenerationError, match=match):
        check_drawn(drawn, SETTINGS)


def test_nothing_is_cut_off_the_distribution_and_rows_have_seeds() -> None:
    options = [sampling_options(SETTINGS, (1, "sample", 3, index, 0)) for index in (4, 5, 4)]
    assert options[0] == options[2]
    assert options[0]["seed"] != options[1]["seed"]
    assert 0 <= options[0]["seed"] < 2**63
    given = {
        key: options[0][key] for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n")
    }
    assert given == {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "n": 1,
    }
    assert (options[0]["stop_token_ids"], options[0]["stop"], options[0]["ignore_eos"]) == (
        [EOS],
        ["w5"],
        True,
    )
    assert options[0]["logprobs"] == 0


# ---- the server


def test_a_served_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters loaded under new names, old ones unloaded, ids and log-probs from completions; the key comes from the
    environment and goes into the header only."""
    monkeypatch.setenv("VLLM_API_KEY", "not-for-files")
    with fake_server(make_model(scale=0.3)) as server:
        made = trainer(
            tmp_path,
            adapter=lora(),
            preset="sail-dpr",
            vllm_mode="server",
            vllm_server_base_url=server.url + "/",
        )
        made.train()
        paths = [path for path, *_ in server.seen if "lora" in path]
        assert paths == ["/v1/load_lora_adapter"] + ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] * 2
        (left,) = server.adapters
        assert re.fullmatch(r"sail-run-3-[0-9a-f]{12}", left)
        assert {key for *_, key in server.seen} == {"Bearer not-for-files"}
        assert all(content["return_token_ids"] for path, content, _ in server.seen if "completions" in path)
    assert all(line["vllm/gap"] < 1e-5 for line in lines(tmp_path))
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"not-for-files" not in path.read_bytes()


def test_a_second_process_is_not_refused_the_names_of_the_first(tmp_path: Path) -> None:
    """A server that goes on knows what a killed process, or another run of a folder of the same name, has loaded."""
    with fake_server(make_model(scale=0.3)) as server:
        options = {"preset": "sail-dpr", "vllm_mode": "server", "vllm_server_base_url": server.url}
        for folder in (tmp_path, tmp_path, tmp_path / "other"):
            trainer(folder, adapter=lora(), **options).train()
        assert len(server.adapters) == 3
        names = [content["lora_name"] for path, content, _ in server.seen if "/load" in path]
        assert len(set(names)) == 9


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("broken")])
def test_a_push_that_fails_ends_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, error: Exception
) -> None:
    """The first of two processes tells the other one before it raises; the other one raises what it was told."""
    told: list[Any] = []

    def broadcast(values: list[Any], src: int) -> None:
        if rank == 1:
            values[:] = ["name", "No space left on device"]
        told.append(list(values))

    def fail(*_: Any) -> None:
        raise error

    with fake_server(make_model(scale=0.3)) as server:
        made = trainer(
            tmp_path, adapter=lora(), preset="sail-dpr", vllm_mode="server", vllm_server_base_url=server.url
        )
        monkeypatch.setattr("sail.generation.vllm_server.place", lambda: (rank, 2))
        monkeypatch.setattr("sail.generation.vllm_server.save_adapter", fail)
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
        with pytest.raises(Exception, match=r"No space left|broken") as caught:
            made.generator.engine.push(made.model)
    assert (caught.value is error) == (rank == 0)
    assert isinstance(caught.value, GenerationError) == (rank == 1)
    ((_, problem),) = told
    assert problem == (str(error) if rank == 0 else "No space left on device")


@pytest.mark.parametrize(
    ("options", "match"),
    [({"may_load": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"), ({"gives_ids": False}, "0.10.2 or newer")],
)
def test_a_server_that_cannot_is_refused(tmp_path: Path, options: dict[str, bool], match: str) -> None:
    with fake_server(make_model(scale=0.3), **options) as server:
        made = trainer(
            tmp_path, adapter=lora(), preset="sail-dpr", vllm_mode="server", vllm_server_base_url=server.url
        )
        with pytest.raises(GenerationError, match=match):
            made.train()


def test_no_server(tmp_path: Path) -> None:
    with fake_server(make_model()) as server:
        url = server.url
    made = trainer(tmp_path, adapter=lora(), preset="sail-dpr", vllm_mode="server", vllm_server_base_url=url)
    with pytest.raises(GenerationError, match="does not answer"):
        made.train()


# ---- what is refused


def test_absence_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"sail-align\[vllm\]"):
        trainer(tmp_path, preset="sail-dpr")


def test_full_weights_do_not_go_to_a_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LoRA adapters only"):
        trainer(tmp_path, preset="sail-dpr", vllm_mode="server", vllm_server_base_url="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "dpo", "use_vllm": True}, "nothing to do"),
        ({"preset": "sail-dpr", "use_vllm": True, "vllm_mode": "server"}, "needs vllm_server_base_url"),
        ({"preset": "sail-dpr", "vllm_importance_sampling_correction": True}, "use_vllm: true"),
        ({"preset": "sail-dpr", "vllm_gpu_memory_utilization": 1.5}, "at most 1"),
        ({"preset": "sail-dpr", "vllm_tensor_parallel_size": 0}, "at least 1"),
        ({"preset": "sail-dpr", "max_skipped_steps": 0}, "at least 1"),
    ],
)
def test_rules(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        check(make_config(tmp_path, **options), Resources(oracle=True, ref_model=False))
