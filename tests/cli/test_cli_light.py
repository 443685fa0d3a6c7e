"""The command line without the heavy parts: what it parses, what it calls, what it says and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sail
from sail import cli
from sail.commands import env
from sail.config import RunConfig
from sail.errors import DataError, MissingExtraError
from sail.fields import AlignmentFields
from sail.mixture import PRESETS

VERBS = ("play", "init", "sft", "train", "sample", "eval", "compare", "report", "annotate", "data", "env")


class FakeBuild(ModuleType):
    """Stands for sail.build: remembers what it was asked, and raises what it is told to."""

    def __init__(self) -> None:
        super().__init__("sail.build")
        self.asked: list[tuple[str, Any, dict[str, Any]]] = []
        self.fails: BaseException | None = None

    def _answer(self, what: str, subject: Any, extra: dict[str, Any], answer: Any) -> Any:
        self.asked.append((what, subject, extra))
        if self.fails is not None:
            raise self.fails
        return answer

    def run_sft(self, config: RunConfig) -> Path:
        return self._answer("sft", config, {}, Path("sft"))

    def dry_run(self, config: RunConfig) -> str:
        return self._answer("dry_run", config, {}, "the plan")

    def run_training(self, config: RunConfig, *, resume: bool, overwrite: bool, config_path: str) -> Path:
        extra = {"resume": resume, "overwrite": overwrite, "config_path": config_path}
        return self._answer("train", config, extra, Path("runs/sail"))

    def sample(self, model: str, prompts: list[str], **extra: Any) -> list[list[str]]:
        return self._answer("sample", (model, prompts), extra, [["one\ntwo", ""] for _ in prompts])


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    """In a folder with a run.yaml of `sail init`, with sail.build replaced."""
    fake = FakeBuild()
    monkeypatch.setitem(sys.modules, "sail.build", fake)
    monkeypatch.setitem(sys.modules, "sail.dry_run", fake)
    monkeypatch.delenv("SAIL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    return fake


def argparse_refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- Nothing heavy --------------------------------------------------------------------------------------------


def test_the_parser_and_the_contents_page_load_nothing_heavy() -> None:
    code = (
        "import sys, sail, sail.cli; sail.cli.build_parser().format_help(); dir(sail); light = set(sys.modules);"
        "import sail.config, sail.commands.init; sail.load_config, sail.Pair, sail.SailError;"
        "print(sorted(light & {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'rich', 'sail.config'}),"
        "sorted({'torch', 'transformers', 'numpy', 'accelerate'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] []"


def test_every_public_name_is_found_or_belongs_to_the_trainer() -> None:
    assert set(sail.__all__) == {*sail._HOME, "__version__"}
    for name in sail.__all__:
        if sail._HOME.get(name) != "sail.trainer":
            assert getattr(sail, name) is not None
    assert set(sail.__all__) <= set(dir(sail))
    with pytest.raises(AttributeError, match="module 'sail' has no attribute 'nothing'"):
        _ = sail.nothing


def test_the_version_of_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert sail._installed_version() == "0+unknown"


# --- Help -----------------------------------------------------------------------------------------------------


def test_help_shows_one_example_of_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  sail {verb}" in text
    assert max(map(len, text.splitlines())) <= 110


def test_help_of_train_lists_every_option_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    unwrapped = " ".join(text.split())
    for option in fields(AlignmentFields):
        assert f"train.{option.name} (" in text
        assert " ".join(option.metadata["help"].split()) in unwrapped


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sail {sail.__version__}\n"


def test_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "sail play --quick" in capsys.readouterr().out


# --- init -----------------------------------------------------------------------------------------------------


def test_init_writes_refuses_and_forces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "new/my.yaml", "--preset", "dpo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Wrote new/my.yaml. Next:\n")
    assert "sail train new/my.yaml --dry-run" in said
    assert "oracle" not in said
    written = Path("new/my.yaml").read_text()
    assert "preset: dpo" in written

    assert cli.main(["init", "new/my.yaml"]) == 2
    assert capsys.readouterr().err == (
        "sail: new/my.yaml exists. Give another path, or --force to overwrite it.\n"
    )
    assert Path("new/my.yaml").read_text() == written

    assert cli.main(["init", "new/my.yaml", "--force"]) == 0
    assert "oracle.path (your reward function)" in capsys.readouterr().out
    assert "preset: sail-dpr" in Path("new/my.yaml").read_text()


def test_init_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["init", str(tmp_path / "file" / "run.yaml")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_init_knows_its_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'sial'" in argparse_refusal(["init", "--preset", "sial"], capsys)
    with pytest.raises(SystemExit):
        cli.main(["init", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in PRESETS)


# --- train and sft --------------------------------------------------------------------------------------------


def test_train_passes_the_config_and_its_switches(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "run.yaml", "train.beta=0.2", "--resume"]) == 0
    what, config, extra = build.asked[-1]
    assert what == "train"
    assert config.alignment.beta == 0.2
    assert extra == {"resume": True, "overwrite": False, "config_path": "run.yaml train.beta=0.2"}
    assert capsys.readouterr().out.endswith("Run folder: runs/sail\n")


@pytest.mark.parametrize(
    "words",
    [
        ["train.beta=0.2", "train.nll=0.1", "--dry-run"],
        ["--dry-run", "train.beta=0.2", "train.nll=0.1"],
        ["train.beta=0.2", "--dry-run", "train.nll=0.1"],
    ],
)
def test_overrides_may_stand_before_and_after_switches(
    words: list[str], build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "run.yaml", *words]) == 0
    what, config, _ = build.asked[-1]
    assert what == "dry_run"
    assert (config.alignment.beta, config.alignment.nll) == (0.2, 0.1)
    assert capsys.readouterr().out.endswith("the plan\n")


def test_words_that_belong_nowhere(build: FakeBuild, capsys: pytest.CaptureFixture[str]) -> None:
    message = argparse_refusal(["train", "run.yaml", "--dryrun"], capsys)
    assert "sail train: error: unrecognized arguments: --dryrun" in message
    assert "unrecognized arguments: more" in argparse_refusal(["env", "more"], capsys)
    assert "not allowed with" in argparse_refusal(["train", "run.yaml", "--resume", "--overwrite"], capsys)
    assert not build.asked


def test_sft_passes_the_config(build: FakeBuild) -> None:
    assert cli.main(["sft", "run.yaml", "sft.max_length=64"]) == 0
    what, config, _ = build.asked[-1]
    assert what == "sft"
    assert config.sft.max_length == 64


def test_a_config_mistake_is_told_before_anything_heavy_loads(
    monkeypatch: pytest.MonkeyPatch, build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sail.build", None)  # importing it would raise
    assert cli.main(["train", "run.yaml", "train.bet=1"]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "sail: run.yaml train.bet=1 cannot be used:\n"
        "  - train.bet: there is no such key. Did you mean beta?\n"
    )
    assert cli.main(["sft", "no.yaml"]) == 2
    assert "There is no file no.yaml" in capsys.readouterr().err


# --- Errors ---------------------------------------------------------------------------------------------------


def test_an_error_is_plain_text_and_exit_code_2(build: FakeBuild, capsys: pytest.CaptureFixture[str]) -> None:
    build.fails = DataError("pairs.jsonl, row 3: rejected is empty.")
    assert cli.main(["train", "run.yaml"]) == 2
    assert capsys.readouterr().err == "sail: pairs.jsonl, row 3: rejected is empty.\n"


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAIL_DEBUG", "1")
    build.fails = MissingExtraError("trl is missing.")
    assert cli.main(["sft", "run.yaml"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert message.endswith("sail: trl is missing.\n")


def test_an_interrupt_is_exit_code_130(build: FakeBuild, capsys: pytest.CaptureFixture[str]) -> None:
    build.fails = KeyboardInterrupt()
    assert cli.main(["train", "run.yaml"]) == 130
    assert capsys.readouterr().err == "sail: interrupted\n"


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(build: FakeBuild) -> None:
    build.fails = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "run.yaml"])


# --- sample, play, env ----------------------------------------------------------------------------------------


def test_sample_passes_its_arguments_and_prints_the_answers(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert (
        cli.main(["sample", "m", "--prompt", "a", "--prompt", "b", "--n", "2", "--seed", "7", "--chat"]) == 0
    )
    assert build.asked[-1] == (
        "sample",
        ("m", ["a", "b"]),
        {"n": 2, "max_new_tokens": 256, "temperature": 1.0, "seed": 7, "chat": True},
    )
    answer = "  one\n  two\n  (an empty answer)\n"
    assert capsys.readouterr().out == f"prompt: a\n{answer}prompt: b\n{answer}"


def test_sample_needs_a_prompt_and_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert "required: --prompt" in argparse_refusal(["sample", "m"], capsys)
    refused = argparse_refusal(["sample", "m", "--prompt", "a", "--n", "0"], capsys)
    assert "'0' is not a whole number of at least 1" in refused


def test_play_passes_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Path, dict[str, Any]]] = []

    def play(out: Path, **extra: Any) -> Path:
        asked.append((out, extra))
        return out / "report.html"

    fake = ModuleType("sail.play")
    fake.play = play  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sail.play", fake)
    assert cli.main(["play", "--quick", "--out", "there", "--seed", "3"]) == 0
    assert cli.main(["play"]) == 0
    assert asked == [
        (Path("there"), {"quick": True, "seed": 3}),
        (Path("runs/play"), {"quick": False, "seed": 0}),
    ]


def test_eval_passes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not given is None, for the run to fill in; --against may be given several times."""
    asked: list[Any] = []
    fake = ModuleType("sail.evaluate")
    fake.EvalOptions = make_dataclass(  # type: ignore[attr-defined]
        "EvalOptions",
        ["subject", "against", "samples", "seed", "checkpoints", "batch_size", "max_new_tokens"],
    )
    fake.evaluate = asked.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sail.evaluate", fake)
    words = ["--against", "dataset", "--against", "runs/dpo", "--samples", "4", "--checkpoints"]
    assert cli.main(["eval", "runs/dpr", *words]) == 0
    assert cli.main(["eval", "runs/dpr", "--seed", "3"]) == 0
    assert asked == [
        fake.EvalOptions("runs/dpr", ("dataset", "runs/dpo"), 4, None, True, 64, None),
        fake.EvalOptions("runs/dpr", (), 1, 3, False, 64, None),
    ]


def test_compare_passes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    fake = ModuleType("sail.compare")
    fake.compare = lambda runs, **extra: asked.append((runs, extra))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sail.compare", fake)
    assert cli.main(["compare", "a", "b", "--to", "b"]) == 0
    assert asked == [([Path("a"), Path("b")], {"to": "b", "out": Path("compare.json")})]


def test_env_says_what_is_missing_and_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    installed = {"sail-align": "0.1.0", "transformers": "5.17.0"}
    monkeypatch.setattr(env, "_version", installed.get)
    text = env.environment()
    assert 'torch         not installed (pip install "sail-align")' in text
    assert 'trl           not installed (pip install "sail-align[sft]")' in text
    assert 'peft          not installed (pip install "sail-align[lora]")' in text
    assert "transformers  5.17.0" in text
    assert "cores" in text
    assert "hf_secret" not in text
    assert str(Path.home()) not in text


def test_env_tells_versions_and_no_paths() -> None:
    """The real command, in a process of its own."""
    command = [str(Path(sys.executable).with_name("sail")), "env"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert all(name in done.stdout for name in ("torch", "transformers", "python", "cores"))
    assert os.sep not in done.stdout
    assert "Traceback" not in done.stderr
