"""The run config: what loads, what is refused and in which words, and that a resolved run loads back."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from sail.config import (
    OPTIONS,
    DataConfig,
    PeftConfig,
    RunConfig,
    TrainSection,
    chosen_yaml,
    load_config,
)
from sail.errors import ConfigError
from sail.fields import AlignmentFields

DPR = """
model: org/name
data: {train: pairs.jsonl}
oracle: {kind: function, path: "reward.py:reward"}
train:
  preset: sail-dpr
"""


@pytest.fixture(autouse=True)
def _empty_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def load(text: str, *overrides: str) -> RunConfig:
    Path("run.yaml").write_text(text, encoding="utf-8")
    return load_config("run.yaml", overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


# --- What loads -----------------------------------------------------------------------------------------------


def test_a_small_file_gets_every_default_of_the_table() -> None:
    config = load(DPR)
    assert config.model == "org/name"
    assert config.ref_model is None
    assert config.peft is None
    assert config.sft is None
    assert config.train.output_dir == "runs/sail"
    assert config.oracle is not None
    assert config.oracle.temperature == 1.0
    assert config.alignment == AlignmentFields(preset="sail-dpr")
    assert config.mixture.needs_oracle


def test_the_train_section_is_the_table_of_options() -> None:
    generated = TrainSection.model_fields
    for option in fields(AlignmentFields):
        assert generated[option.name].description == option.metadata["help"]
        assert generated[option.name].default == option.default
    assert set(generated) == {*OPTIONS, "output_dir"}


def test_keys_of_training_arguments_are_passed_on() -> None:
    config = load(DPR + "  learning_rate: 1e-6\n  report_to: none\n  logging_steps: 5\n  warmup_steps: .1\n")
    kwargs = config.trainer_kwargs
    assert kwargs["learning_rate"] == 1e-6
    assert kwargs["report_to"] == "none"
    assert kwargs["logging_steps"] == 5
    assert kwargs["warmup_steps"] == 0.1
    assert kwargs["output_dir"] == "runs/sail"
    assert kwargs["beta"] == 0.1


def test_whole_floats_serve_as_whole_numbers() -> None:
    assert load(DPR, "train.max_length=2e3").alignment.max_length == 2000


def test_a_preset_sets_what_it_fixes() -> None:
    text = DPR.replace("sail-dpr", "self-dpo")
    assert load(text).alignment.policy_label == "argmax"
    assert load(text).trainer_kwargs["policy_label"] == "argmax"
    assert load(DPR.replace("sail-dpr", "ipo")).alignment.loss_type == "ipo"


def test_a_section_whose_lines_are_all_commented_out_is_absent() -> None:
    config = load(DPR + "sft:\npeft:\n")
    assert config.sft is None
    assert config.peft is None


def test_peft_defaults_to_all_linear_layers_and_takes_lora_keys() -> None:
    peft = load(DPR + "peft: {r: 8, use_rslora: true}\n").peft
    assert peft is not None
    assert peft.lora_kwargs == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "use_rslora": True,
    }
    assert load(DPR + "peft: {}\n").peft == PeftConfig()
    named = load(DPR + "peft: {target_modules: [q_proj, v_proj]}\n").peft
    assert named is not None
    assert named.lora_kwargs["target_modules"] == ["q_proj", "v_proj"]


def test_what_was_chosen_shows_an_adapter_at_its_defaults() -> None:
    """An empty section would look like a lost one."""
    shown = chosen_yaml(load(DPR + "peft: {r: 64, lora_alpha: 16}\n"))
    assert "r: 64" in shown
    assert "lora_alpha: 16" in shown
    assert "lora_dropout" not in shown


def test_a_file_for_sft_only_asks_nothing_of_the_alignment_until_it_is_wanted() -> None:
    config = load("model: m\nsft: {train: demos.jsonl, warmup_steps: 3}\n")
    assert config.sft is not None
    kwargs = config.sft.trainer_kwargs
    assert kwargs["warmup_steps"] == 3
    assert kwargs["completion_only_loss"] is True
    assert kwargs["learning_rate"] == 2e-5
    assert not {"model", "train", "eval"} & set(kwargs)
    with pytest.raises(ConfigError, match=r"There is no data: set data\.train"):
        _ = config.mixture


def test_the_run_is_frozen() -> None:
    config = load(DPR)
    with pytest.raises(ValidationError):
        config.model = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.train.beta = 1.0  # type: ignore[attr-defined]


# --- Paths ----------------------------------------------------------------------------------------------------


def test_paths_beside_the_file_are_written_out_and_names_are_left(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    (folder / "sft").mkdir(parents=True)
    for name in ("pairs.jsonl", "reward.py"):
        (folder / name).touch()
    Path("held.jsonl").touch()
    (folder / "run.yaml").write_text(
        "model: ./sft\nref_model: org/name\ndata: {train: pairs.jsonl, eval: held.jsonl, prompts: nowhere.jsonl}\n"
        "oracle: {kind: function, path: 'reward.py:score'}\ntrain: {preset: sail-dpr, output_dir: out}\n"
    )
    config = load_config(folder / "run.yaml")
    assert config.model == str(folder / "sft")
    assert config.ref_model == "org/name"
    assert config.data == DataConfig(
        train=str(folder / "pairs.jsonl"), eval=str(tmp_path / "here" / "held.jsonl"), prompts="nowhere.jsonl"
    )
    assert config.oracle is not None
    assert config.oracle.path == f"{folder / 'reward.py'}:score"
    assert config.train.output_dir == "out"


def test_a_path_in_an_override_starts_from_the_current_directory(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()
    for place in (folder, Path.cwd()):
        (place / "other.jsonl").touch()
    (folder / "run.yaml").write_text(DPR)
    config = load_config(folder / "run.yaml", ["data.train=other.jsonl"])
    assert config.data.train == str(tmp_path / "here" / "other.jsonl")


# --- Refusals: keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("trian: {}", "trian: there is no such key. Did you mean train?"),
        ("oracl: {}", "oracl: there is no such key. Did you mean oracle?"),
        ("beta: 0.1", "beta: there is no such key. It belongs in the section train: write train.beta."),
        ("r: 8", "r: there is no such key. It belongs in the section peft: write peft.r."),
        (
            "zzz: 1",
            "zzz: there is no such key. The keys are model, ref_model, tokenizer, trust_remote_code, peft, quantization, data, "
            "oracle, eval_oracle, train, sft, reward, eval, merge.",
        ),
        ("peft: {lora_alpa: 8}", "peft.lora_alpa: there is no such key. Did you mean lora_alpha?"),
        ("1: x", "1 must be text as a key; it is 1."),
    ],
)
def test_unknown_keys(addition: str, said: str) -> None:
    assert refusal(DPR + addition) == f"run.yaml cannot be used:\n  - {said}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.trian=x", "data.trian: there is no such key. Did you mean train?"),
        ("data.format=x", "data.format: there is no such key. The keys are train, eval, prompts, bad_rows."),
        ("oracle.pth=x", "oracle.pth: there is no such key. Did you mean path?"),
        ("train.bet=0.1", "train.bet: there is no such key. Did you mean beta?"),
        ("train.loss_typ=ipo", "train.loss_typ: there is no such key. Did you mean loss_type?"),
        ("train.output_di=x", "train.output_di: there is no such key. Did you mean output_dir?"),
        ("train.oracle=x", "train.oracle: oracle belongs at the top level, beside train and not in it."),
    ],
)
def test_unknown_keys_of_sections(override: str, said: str) -> None:
    assert refusal(DPR, override) == f"run.yaml {override} cannot be used:\n  - {said}"


def _annotated_names(package: str, file: str, name: str) -> list[str]:
    """The fields of a dataclass, read from its source: importing it would load torch."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    return [
        statement.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == name
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]


@pytest.mark.parametrize(
    ("package", "file", "name", "section"),
    [
        ("transformers", "training_args.py", "TrainingArguments", "train"),
        ("peft", "tuners/lora/config.py", "LoraConfig", "peft"),
    ],
)
def test_no_real_key_is_taken_for_a_slip(package: str, file: str, name: str, section: str) -> None:
    theirs = _annotated_names(package, file, name)
    assert len(theirs) > 20
    ours = set(TrainSection.model_fields if section == "train" else PeftConfig.model_fields)
    for key in set(theirs) - ours:
        assert key not in RunConfig.model_fields
        likeness = max(difflib.SequenceMatcher(None, key, own).ratio() for own in ours)
        assert likeness < 0.78, key


# --- Refusals: values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=", "model is missing. Folder or hub name of the model to align: the SFT model."),
        ("model=''", "model must not be empty; it is ''."),
        ("model=7", "model must be text; it is 7."),
        ("data=pairs.jsonl", "data must be a section of keys and values; it is 'pairs.jsonl'."),
        ("data.bad_rows=skp", "data.bad_rows is one of error, skip; it is 'skp'. Did you mean skip?"),
        (
            "oracle.kind=jugde",
            "oracle.kind is one of function, reward_model, judge, people, committee; it is 'jugde'. Did you mean judge?",
        ),
        (
            "oracle.path=reward",
            "oracle.path must be file.py:name, for example reward.py:reward; it is 'reward'.",
        ),
        ("oracle.temperature=0", "oracle.temperature must be above 0; it is 0."),
        (
            "oracle={path: a.py:b}",
            "oracle.kind is missing. Where preferences come from: function, reward_model, judge, people, committee.",
        ),
        ("peft={r: 0}", "peft.r must be above 0; it is 0."),
        ("peft={r: 1.5}", "peft.r must be a whole number; it is 1.5."),
        ("peft={lora_dropout: 1}", "peft.lora_dropout must be below 1; it is 1."),
        ("peft={lora_dropout: -1}", "peft.lora_dropout must be at least 0; it is -1."),
        (
            "peft={target_modules: [1]}",
            "peft.target_modules must be a list of layer names, or one pattern; it is [1].",
        ),
        ("train.beta=null", "train.beta must be a number; it is null."),
        ("train.beta=yes", "train.beta must be a number; it is true."),
        ("train.beta=.nan", "train.beta must be a finite number; it is nan."),
        ("train.max_length=1.5", "train.max_length must be a whole number; it is 1.5."),
        ("train.max_length=long", "train.max_length must be a whole number; it is 'long'."),
        ("train.record_pairs=maybe", "train.record_pairs must be true or false; it is 'maybe'."),
        ("train.stop_strings=END", "train.stop_strings must be a list; it is 'END'."),
        ("train.routes=dpr", "train.routes must be a section of keys and values; it is 'dpr'."),
        (
            "train.loss_type=sigmod",
            "train.loss_type is one of sigmoid, ipo, hinge; it is 'sigmod'. Did you mean sigmoid?",
        ),
        ("train.policy_label=hard", "train.policy_label is one of soft, sampled, argmax; it is 'hard'."),
        ("train.refresh=rounds", "train.refresh is one of step, round; it is 'rounds'. Did you mean round?"),
        ("sft={num_train_epochs: 0}", "sft.num_train_epochs must be above 0; it is 0."),
    ],
)
def test_values_of_the_wrong_kind(override: str, said: str) -> None:
    assert refusal(DPR, override) == f"run.yaml {override} cannot be used:\n  - {said}"


def test_every_problem_is_told_at_once() -> None:
    message = refusal(DPR + "  bet: 1\n  max_length: long\ntrian: 1\n", "data.bad_rows=x")
    assert message.splitlines()[1:] == [
        "  - train.bet: there is no such key. Did you mean beta?",
        "  - data.bad_rows is one of error, skip; it is 'x'.",
        "  - train.max_length must be a whole number; it is 'long'.",
        "  - trian: there is no such key. Did you mean train?",
    ]


# --- Refusals: combinations -----------------------------------------------------------------------------------

_NO_ORACLE = DPR.replace('oracle: {kind: function, path: "reward.py:reward"}\n', "")


@pytest.mark.parametrize(
    ("overrides", "cause", "way_out"),
    [
        (["oracle=null"], "Route dpr needs an oracle", "Add an oracle"),
        (["train.preset=null"], "No mixture", "set preset to one of dpo"),
        (["train.preset=sail-drp"], "There is no preset 'sail-drp'", "The presets are dpo"),
        (["train.routes={data: 1}"], "preset and routes were both given", "Keep one"),
        (["train.preset=", "train.routes={dpr: 0.3}"], "sum to 0.3, not to 1", "add data: {weight: 0.7}"),
        (["train.preset=", "train.routes={dprr: 1}"], "There is no route 'dprr'", "The routes are data"),
        (
            ["train.preset=ipo", "train.loss_type=sigmoid"],
            "Preset ipo is defined with loss_type: ipo",
            "Remove loss_type",
        ),
        (["data.train="], "There is no data", "set data.train (preference pairs)"),
        (["data={prompts: p.jsonl}"], "Route data needs preference pairs", "Add data.train with pairs"),
        (
            ["train.preset=dpo", "data.prompts=p.jsonl"],
            "can only be used by routes whose responses are all sampled",
            "remove data.prompts",
        ),
        (
            ["train.eval_samples=8"],
            "eval_samples answers held-out prompts, and there are none",
            "Set data.eval",
        ),
        (["train.max_length=512"], "= 768 is above max_length 512", "Raise max_length to 768"),
        (["train.beta=0"], "beta must be a number above 0", "it is 0.0"),
        (
            ["train.disable_dropout=false"],
            "disable_dropout: false cannot be used",
            "Set disable_dropout: true",
        ),
        (
            ["train.preset=", "train.routes={dpp: {weight: 1, coefficient: 1}}"],
            "Every route labels itself",
            "give ref_model",
        ),
        (["sft={}", "data={prompts: p.jsonl}"], "sft.train: null means the chosen answers", "Set one"),
    ],
)
def test_combinations_that_cannot_be_run(overrides: list[str], cause: str, way_out: str) -> None:
    message = refusal(DPR, *overrides)
    assert cause in message
    assert way_out in message
    assert message.startswith(f"run.yaml {' '.join(overrides)} cannot be used:\n  - ")


def test_a_reference_of_its_own_permits_self_labels_alone() -> None:
    routes = "train.routes={dpp: {weight: 1, coefficient: 1}}"
    assert load(_NO_ORACLE, "train.preset=", routes, "ref_model=org/before").mixture.only_self_labels
