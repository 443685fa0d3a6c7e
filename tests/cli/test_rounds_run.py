"""Runs in rounds through the verbs of the command line: what a dry run foretells, and what results.json compares with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import EOS, PAD, make_model, make_pairs, make_prompts, make_tokenizer

from sail.build import make_model as load
from sail.build import run_training
from sail.config import RunConfig, config_from_dict
from sail.dry_run import dry_run
from sail.errors import ConfigError
from sail.generation import SamplingSettings, TransformersGenerator
from sail.run_folder import clear

REWARD = "def reward(prompts, responses):\n    return [float(len(response)) for response in responses]\n"
PREFERS = "def prefers(prompts, first, second):\n    return [0.5 for _ in first]\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 40 pairs, 8 held-out ones, 24 prompts as a parquet file, and both forms of an oracle."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("world")
    make_model().save_pretrained(folder / "sft")
    make_tokenizer().save_pretrained(folder / "sft")
    for name, count in (("pairs", 40), ("held", 8)):
        text = "".join(json.dumps(row) + "\n" for row in make_pairs(count, seed=count))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    prompts = pyarrow.table({"prompt": make_prompts(24, seed=9)})
    pyarrow.parquet.write_table(prompts, folder / "prompts.parquet")
    (folder / "reward.py").write_text(REWARD + PREFERS, encoding="utf-8")
    return folder


def config(
    world: Path, folder: Path, *, oracle: str | None = "reward", data: Any = None, **train: Any
) -> RunConfig:
    files = {"train": "pairs.jsonl", "eval": "held.jsonl"} if data is None else data
    raw = {
        "model": str(world / "sft"),
        "data": {key: str(world / name) for key, name in files.items()},
        "train": {
            "output_dir": str(folder),
            "use_cpu": True,
            "max_length": 40,
            "max_prompt_length": 16,
            "max_new_tokens": 6,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "max_steps": 8,
            "learning_rate": 1e-2,
            **train,
        },
    }
    if oracle:
        raw["oracle"] = {"kind": "function", "path": f"{world / 'reward.py'}:{oracle}"}
    return config_from_dict(raw)


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            {"preset": "iterative-dpo", "round_steps": 3},
            ["rounds: 3 of 3 steps", "responses sampled: about 256", "oracle calls (pairs): about 128"],
        ),
        (
            {"preset": "spin"},
            [
                "rounds: 1 of 10 steps; the reference is replaced at each but the first",
                "responses sampled: about 32",
                "oracle calls (pairs): none",
            ],
        ),
        (
            {"preset": "online-dpo"},
            ["of 4 rows", "responses sampled: about 64", "oracle calls (pairs): about 32"],
        ),
        (
            {"routes": {"data": 0.5, "dpr": 0.5}, "ask_share": 0.5},
            ["responses sampled: about 32", "oracle calls (pairs): about 8"],
        ),
    ],
)
def test_a_dry_run_counts_responses_and_calls(
    world: Path, tmp_path: Path, options: dict[str, Any], lines: list[str]
) -> None:
    """8 steps of 4 rows: 32 rows. iterative-dpo samples 8 each and scores all, which is 4 calls; spin samples one."""
    said = dry_run(config(world, tmp_path / "run", **options))
    for line in lines:
        assert line in said
    assert not (tmp_path / "run").exists()


def test_prompts_from_a_parquet_file(world: Path, tmp_path: Path) -> None:
    """24 prompts beside 40 pairs, and alone; the rows are answered by the on-policy route."""
    both = {"train": "pairs.jsonl", "prompts": "prompts.parquet"}
    said = dry_run(config(world, tmp_path / "run", data=both, routes={"data": 0.5, "dpr": 0.5}))
    assert "prompts.parquet: 24 rows, 24 with prompt only" in said
    folder = tmp_path / "alone"
    alone = config(world, folder, data={"prompts": "prompts.parquet"}, preset="iterative-dpo", round_steps=2)
    run_training(alone, resume=False, overwrite=False, config_path="run.yaml", show_config=False)
    assert json.loads((folder / "results.json").read_text())["oracle_calls"] > 0


def test_an_oracle_that_only_compares_cannot_choose(world: Path, tmp_path: Path) -> None:
    """Known once the file is imported, so when the trainer is built."""
    with pytest.raises(ConfigError, match="needs an oracle that scores single responses, and this one only"):
        dry_run(config(world, tmp_path, oracle="prefers", preset="iterative-dpo"))


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_results_compare_with_the_start_and_say_so(world: Path, tmp_path: Path, adapter: bool) -> None:
    """The reference's answers in results.json are those of the starting folder on the same random numbers, not those of the
    reference that the last round had."""
    run = config(world, tmp_path, preset="spin", round_steps=3, learning_rate=5e-2)
    if adapter:
        run = config_from_dict({**run.model_dump(exclude_none=True), "peft": {"r": 4, "lora_alpha": 8}})
    run_training(run, resume=False, overwrite=False, config_path="run.yaml", show_config=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert any("the one that the run began with" in note for note in results["notes"])
    tokenizer, held = make_tokenizer(), make_pairs(8, seed=8)
    prompts = [row["prompt"] for row in held]
    given = [tokenizer(prompt).input_ids for prompt in prompts]
    settings = SamplingSettings(6, eos_ids=(EOS,), pad_id=PAD)
    said = {}
    for name, folder in (("reference", world / "sft"), ("response", tmp_path / "model")):
        model = load(str(folder))
        generator = TransformersGenerator(lambda model=model: model, tokenizer, settings)
        sampled = generator.sample(given, [(42, "final", place) for place in range(len(given))])
        said[name] = [one.text for one in sampled]
    assert said["reference"] != said["response"]
    for key, texts in said.items():
        assert [sample[key] for sample in results["samples"]] == texts
    assert (tmp_path / "rounds").is_dir()
    clear(tmp_path)
    assert not (tmp_path / "rounds").exists()
