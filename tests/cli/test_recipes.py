"""Every recipe loads, says what it is, and passes a dry run on a real (tiny) model folder, pairs and reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_judge import FakeJudge
from tiny import make_model, make_pairs, make_tokenizer

from sail import play
from sail.config import RunConfig, load_config
from sail.dry_run import dry_run
from sail.mixture import PRESETS
from sail.trainer import SAILConfig

RECIPES = Path(__file__).parents[2] / "recipes"
PLAYGROUND, JUDGED = "playground", "sail-dpr-judge"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
REWARD = "def reward(prompts, responses):\n    return [float(len(response)) for response in responses]\n"
# What only concerns the machine and the tiny model: its positions end at 64.
SMALL = (
    "train.use_cpu=true",
    "train.max_length=40",
    "train.max_prompt_length=16",
    "train.max_new_tokens=8",
    "train.save_strategy=no",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes expect beside them, tiny."""
    folder = tmp_path_factory.mktemp("world")
    make_model().save_pretrained(folder / "sft")
    make_tokenizer().save_pretrained(folder / "sft")
    for name, count in (("pairs", 40), ("held", 8)):
        rows = make_pairs(count, seed=count)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(name: str, *overrides: str) -> RunConfig:
    return load_config(RECIPES / f"{name}.yaml", overrides)


def test_one_recipe_per_preset_and_the_playground() -> None:
    assert {*PRESETS, PLAYGROUND, JUDGED} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_its_arguments_build(name: str) -> None:
    config = recipe(name, "train.use_cpu=true")
    arguments = SAILConfig(**config.trainer_kwargs)
    meant = "sail-dpr" if name in (PLAYGROUND, JUDGED) else name
    assert arguments.preset == config.alignment.preset == meant
    assert config.train.output_dir == f"runs/{name}"
    assert (config.oracle is not None) == config.mixture.needs_oracle


@pytest.mark.parametrize("name", [name for name in NAMES if name != PLAYGROUND])
def test_the_papers_settings(name: str) -> None:
    """Those of the paper's alignment stage, as far as the preset uses them."""
    config = recipe(name, "train.use_cpu=true")
    arguments = SAILConfig(**config.trainer_kwargs)
    assert arguments.optim == "rmsprop"
    assert (arguments.learning_rate, arguments.warmup_steps, arguments.num_train_epochs) == (1e-5, 150, 5)
    assert arguments.beta == 0.1
    assert config.peft is not None
    assert (config.peft.r, config.peft.lora_alpha) == (64, 16)
    if config.mixture.on_policy:
        assert (arguments.temperature, arguments.max_new_tokens) == (0.9, 1024)


@pytest.mark.parametrize("name", NAMES)
def test_its_header_gives_the_command_and_the_hardware(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    header = " ".join(line[1:].strip() for line in text.split("\n\n")[0].splitlines())
    assert f"sail train recipes/{name}.yaml" in header
    assert "It expects" in header
    assert "Meant for: " in header
    # A number of minutes or a result may only stand where somebody measured it.
    assert name == PLAYGROUND or "Not yet run at this size" in header
    assert ("no KL is estimated" in header) == ("temperature: 0.9" in text)


@pytest.mark.parametrize("name", NAMES)
def test_its_dry_run(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "none")
    with FakeJudge() as server:
        oracle = recipe(name).oracle
        judged = oracle is not None and oracle.kind == "judge"
        path = f"oracle.url={server.url}" if judged else f"oracle.path={world / 'reward.py'}:reward"
        _dry_run(name, world, *([path] if oracle else []))
        assert len(server.bodies) == (4 if judged else 0)  # two pairs, in both orders


def _dry_run(name: str, world: Path, *overrides: str) -> None:
    config = recipe(
        name,
        f"model={world / 'sft'}",
        f"data.train={world / 'pairs.jsonl'}",
        f"data.eval={world / 'held.jsonl'}",
        *overrides,
        *SMALL,
    )
    said = dry_run(config)
    assert "pairs.jsonl: 40 rows\n" in said
    assert said.endswith("Nothing was trained or written.")
    told = said.split("responses sampled: ")[1].splitlines()[0]
    sampled = 0 if told == "none" else int(told.split()[1].replace(",", ""))
    assert (sampled > 0) == bool(config.mixture.on_policy)
    assert not list(Path.cwd().iterdir())


def test_the_playground_is_what_sail_play_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, seen from the folder that holds runs/, and into a folder of its own."""
    monkeypatch.setattr(play, "load_config", lambda path: path)
    monkeypatch.setattr(play, "run_training", lambda *args, **kwargs: None)
    out = Path("runs") / "play"
    out.mkdir(parents=True)
    play._align(out, "sail-dpr", play.FULL, 0)
    written: dict[str, Any] = yaml.safe_load((out / "sail-dpr.yaml").read_text(encoding="utf-8"))
    ours: dict[str, Any] = yaml.safe_load((RECIPES / f"{PLAYGROUND}.yaml").read_text(encoding="utf-8"))
    written["train"]["output_dir"] = ours["train"]["output_dir"]
    written["model"] = f"{out}/{written['model']}"
    written["oracle"]["path"] = f"{out}/{written['oracle']['path']}"
    files = ("train", "eval")
    written["data"].update({name: f"{out}/{written['data'][name]}" for name in files})
    # YAML reads 2e-4 as text; load_config makes it a number.
    ours["train"]["learning_rate"] = float(ours["train"]["learning_rate"])
    assert ours == written
