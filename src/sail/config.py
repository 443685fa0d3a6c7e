"""The run as one frozen, typed object; every problem is named before anything heavy loads.

The `train` section is generated from the one table of options (sail.fields), so an option exists once. Keys
beside it belong to transformers.TrainingArguments (in `sft`: trl.SFTConfig; in `peft`: peft.LoraConfig): they
are kept as they are and checked by those classes when the objects are built, so no torch is needed here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from sail.commands.run_file import dump_yaml, parse_override, put, read_run_file
from sail.commands.wording import Sections, no_such_key, problem
from sail.data_config import DataSource, checked_source, source_paths
from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import Mixture, preset_of
from sail.oracle_config import FunctionOracle, OracleConfig, kind_problem, located, path_keys
from sail.reward_config import RewardSection, with_reward_model
from sail.rules import Resources, apply_preset, check
from sail.rules_scale import QUANTIZED, is_colocated
from sail.section import Section
from sail.stage_config import EvalSection, MergeSection, QuantizationSection

OPTIONS = tuple(option.name for option in fields(AlignmentFields))
"""The names of sail's own options in `train`."""


# --- The sections -------------------------------------------------------------------------------------------


class PeftConfig(Section):
    """LoRA; every key of peft.LoraConfig is accepted beside these."""

    model_config = ConfigDict(extra="allow")

    r: int = Field(default=64, gt=0, description="Rank of the adapters.")
    lora_alpha: int = Field(
        default=16, gt=0, description="Scale: an adapter's output is multiplied by lora_alpha / r."
    )
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout in the adapters; train.disable_dropout overrides it."
    )
    target_modules: list[str] | str | None = Field(
        default=None, description="Names of the layers that get an adapter; null = all linear layers."
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names_layers(cls, value: Any) -> Any:
        """One message instead of one per member of the union."""
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise PydanticCustomError("names", "must be a list of layer names, or one pattern")
        return value

    @property
    def lora_kwargs(self) -> dict[str, Any]:
        """Everything for peft.LoraConfig(**kwargs), but for the task type."""
        return self.model_dump() | {"target_modules": self.target_modules or "all-linear"}


class DataConfig(Section):
    """What the run learns from."""

    train: str | DataSource | None = Field(
        default=None,
        description="Preference pairs: JSONL or parquet in TRL's preference formats, or a public set by name (docs/data.md).",
    )
    eval: str | DataSource | None = Field(
        default=None, description="Held-out pairs, in the same forms; null = no evaluation."
    )
    prompts: str | DataSource | None = Field(
        default=None, description="More rows with a prompt only, in the same forms, for routes dpp and dpr."
    )
    bad_rows: Literal["error", "skip"] = Field(
        default="error",
        description="A row that cannot be used stops the run (error), or is left out and counted (skip).",
    )
    _sources = field_validator("train", "eval", "prompts", mode="before")(checked_source)


class SFTSection(Section):
    """Supervised fine-tuning, the stage before; every key of trl.SFTConfig is accepted beside these."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(
        default=None, min_length=1, description="The model that sail sft starts from; null = the run's model."
    )
    train: str | DataSource | None = Field(
        default=None, description="Rows with prompt and completion; null = the chosen answers of data.train."
    )
    eval: str | DataSource | None = Field(default=None, description="Held-out rows in the same format.")
    _sources = field_validator("train", "eval", mode="before")(checked_source)
    output_dir: str = Field(
        default="sft", min_length=1, description="Folder of the model, relative to the current directory."
    )
    num_train_epochs: float = Field(default=1.0, gt=0, description="Passes over the rows.")
    learning_rate: float = Field(default=2e-5, ge=0, description="Peak learning rate.")
    per_device_train_batch_size: int = Field(default=8, gt=0, description="Rows per device and forward pass.")
    max_length: int | None = Field(default=1024, gt=0, description="Longest row in tokens; the rest is cut.")

    @property
    def trainer_kwargs(self) -> dict[str, Any]:
        """Everything for trl.SFTConfig(**kwargs); the loss is on the completion, unless set otherwise."""
        return {"completion_only_loss": True} | self.model_dump(exclude={"model", "train", "eval"})


class _TrainBase(Section):
    model_config = ConfigDict(extra="allow")

    output_dir: str = Field(
        default="runs/sail", min_length=1, description="The run folder, relative to the current directory."
    )


def _train_section() -> type[_TrainBase]:
    """The `train` section: types, defaults, choices and help of AlignmentFields; nothing is written twice."""
    hints = get_type_hints(AlignmentFields)
    made: dict[str, Any] = {}
    for option in fields(AlignmentFields):
        choices = option.metadata.get("choices")
        default = option.default if option.default_factory is MISSING else option.default_factory()
        kind = Literal[choices] if choices else hints[option.name]
        made[option.name] = (kind, Field(default, description=option.metadata["help"]))
    return create_model("TrainSection", __base__=_TrainBase, __doc__=AlignmentFields.__doc__, **made)


if TYPE_CHECKING:
    TrainSection = _TrainBase
else:
    TrainSection = _train_section()


class RunConfig(Section):
    """One run. Make it with `load_config` or `config_from_dict`: they apply the preset and the rules."""

    model: str = Field(min_length=1, description="Folder or hub name of the model to align: the SFT model.")
    ref_model: str | None = Field(
        default=None, min_length=1, description="The reference; null = the starting weights."
    )
    tokenizer: str | None = Field(
        default=None, min_length=1, description="Folder or name; null = the model's own."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run the code that comes with the model's folder; without it such a model is refused.",
    )
    peft: PeftConfig | None = Field(default=None, description="LoRA; absent = full fine-tuning.")
    quantization: QuantizationSection | None = Field(
        default=None, description="Frozen weights in 4 or 8 bits (QLoRA); absent = as stored."
    )
    data: DataConfig = Field(default=DataConfig(), description="What the run learns from.")
    oracle: OracleConfig | None = Field(default=None, description="Who prefers what; route dpr needs it.")
    eval_oracle: OracleConfig | None = Field(
        default=None,
        description="Scores the held-out answers beside the oracle, as eval_gold: a gold rule beside a reward model's proxy.",
    )
    train: TrainSection = Field(default=TrainSection(), description="The alignment run.")
    sft: SFTSection | None = Field(default=None, description="The stage before, for sail sft.")
    reward: RewardSection | None = Field(default=None, description="A reward model, for sail train-reward.")
    eval: EvalSection | None = Field(default=None, description="The stage eval of sail pipeline.")
    merge: MergeSection | None = Field(default=None, description="The stage merge of sail pipeline.")

    @property
    def alignment(self) -> AlignmentFields:
        """sail's own options, resolved."""
        return AlignmentFields(**{name: getattr(self.train, name) for name in OPTIONS})

    @property
    def trainer_kwargs(self) -> dict[str, Any]:
        """Everything for SAILConfig(**kwargs): sail's options, output_dir and TrainingArguments' own keys."""
        return self.train.model_dump()

    @property
    def mixture(self) -> Mixture:
        """The routes of the run; ConfigError where the options cannot be run together."""
        if not (self.data.train or self.data.prompts):
            raise ConfigError(
                "There is no data: set data.train (preference pairs) or, for on-policy routes, data.prompts."
            )
        have = Resources(
            oracle=self.oracle is not None,
            ref_model=self.ref_model is not None,
            pairs=None if self.data.train else False,  # the file may hold prompts only: known once it is read
            prompts=self.data.prompts is not None,
        )
        mixture = check(self.alignment, have)
        if self.alignment.eval_samples and not self.data.eval:
            raise ConfigError(
                "eval_samples answers held-out prompts, and there are none. Set data.eval or eval_samples: 0."
            )
        return mixture


_SECTIONS: Sections = {
    "": RunConfig,
    "train": TrainSection,
    "data": DataConfig,
    "oracle": FunctionOracle,
    "eval_oracle": FunctionOracle,
    "peft": PeftConfig,
    "sft": SFTSection,
    "reward": RewardSection,
    "quantization": QuantizationSection,
    "eval": EvalSection,
    "merge": MergeSection,
}
_PATHS = (
    *("model", "ref_model", "tokenizer", "data.train", "data.eval", "data.prompts"),
    *("sft.model", "sft.train", "sft.eval", "reward.model", "reward.train", "reward.eval"),
    *("eval.data", "eval.reference", "eval.questions"),
)
"""The oracle's lie in its section, by its kind."""


# --- Loading ------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run in the YAML file at `path`, with `key.path=value` overrides (values are YAML), checked.

    Paths of models, data and oracles: one in the file is looked for beside the file, then in the current
    directory; one in an override in the current directory only. What is found is written out in full; anything else,
    such as a hub name, stays as given. output_dir is relative to the current directory.
    """
    path, here = Path(path), Path.cwd()
    raw = read_run_file(path)
    _find_paths(raw, (path.absolute().parent, here))
    for override in overrides:
        put(raw, *parse_override(override))
    _find_paths(raw, (here,))
    return config_from_dict(raw, source=" ".join([str(path), *map(_without_secret, overrides)]))


def config_from_dict(raw: Mapping[str, Any], source: str = "The run") -> RunConfig:
    """The run that a mapping shaped like the YAML file describes; its paths are left alone.

    `source` begins the error message. An `sft` or `reward` section without `train` is a run of that stage only: nothing
    is asked of its alignment until `config.mixture` is.
    """
    # a section left empty (`train:` with every line commented out) is one that was not written
    raw = with_reward_model({key: _without_slips(value) for key, value in raw.items() if value is not None})
    problems = list(_near_misses(raw))
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems += [_problem(item) for item in error.errors(include_url=False)]
    if problems:
        raise ConfigError(_refusal(source, problems))
    try:
        fixed = apply_preset(config.alignment, frozenset(config.train.model_fields_set))
        config = config.model_copy(update={"train": config.train.model_copy(update=fixed)})
        if config.quantization is not None and config.peft is None:
            raise ConfigError(
                "quantization freezes the weights, so something else must be trained. Add peft: {r: 64}."
            )
        if config.quantization is not None and is_colocated(config.alignment):
            raise ConfigError(QUANTIZED)
        if config.sft is not None and not (config.sft.train or config.data.train):
            raise ConfigError(
                "sft.train: null means the chosen answers of data.train, but neither is given. Set one."
            )
        if (config.sft is None and config.reward is None) or "train" in raw:
            _ = config.mixture
    except ConfigError as error:
        raise ConfigError(_refusal(source, [str(error)])) from None
    return config


def _find_paths(raw: dict[str, Any], folders: Sequence[Path]) -> None:
    """Write out in full, in place, the paths that exist in one of the folders."""
    places = [(raw.get(section) if section else raw, key) for section, _, key in map(_parted, _PATHS)]
    places += [(keys, "path") for keys in source_paths(raw)]
    callables = [*path_keys(raw.get("oracle")), *path_keys(raw.get("eval_oracle"))]
    for keys, key in [*places, *callables]:
        if not isinstance(keys, dict) or not isinstance(keys.get(key), str) or not keys[key]:
            continue
        of_oracle = any(keys is section for section, _ in callables)
        file, colon, name = keys[key].rpartition(":") if key == "path" and of_oracle else (keys[key], "", "")
        for folder in folders if file else ():
            if (found := folder / Path(file).expanduser()).exists():
                keys[key] = f"{os.path.abspath(found)}{colon}{name}"
                break


def _parted(dotted: str) -> tuple[str, str, str]:
    return dotted.rpartition(".")


def _without_slips(section: Any) -> Any:
    """YAML reads eval_strategy: no as false, and TrainingArguments wants the word."""
    if not isinstance(section, dict):
        return section
    return {
        key: "no" if value is False and str(key).endswith("_strategy") else value
        for key, value in section.items()
    }


# --- Telling what is wrong ----------------------------------------------------------------------------------


def _refusal(source: str, problems: Sequence[str]) -> str:
    return f"{source} cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems)


def _problem(item: ErrorDetails) -> str:
    if item["loc"][0] not in ("oracle", "eval_oracle"):
        return problem(item, _SECTIONS)
    item, sections = located(item)
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return kind_problem(item)
    return problem(item, {**_SECTIONS, **sections})


def _near_misses(raw: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the open sections that are surely meant for sail; all others are passed on.

    0.8 lies well above the likeness of any key of TrainingArguments or LoraConfig to one of ours (tested).
    """
    for section in ("train", "peft"):
        given, known = raw.get(section), list(_SECTIONS[section].model_fields)
        for key in given if isinstance(given, dict) else ():
            if key in known:
                continue
            if key in RunConfig.model_fields:
                yield f"{section}.{key}: {key} belongs at the top level, beside {section} and not in it."
            elif difflib.get_close_matches(str(key), known, n=1, cutoff=0.8):
                yield no_such_key(section, str(key), known)


# --- Writing ------------------------------------------------------------------------------------------------

_GIVEN_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
_SECRET = re.compile(r"(^|_)(hub_token|auth_token|access_token|api_key|secret|password)$")


def resolved_yaml(config: RunConfig) -> str:
    """The run with every option written out, as YAML that loads to an equal RunConfig.

    Secrets are left out: hub_token belongs in the environment, not in a run folder.
    """
    head = "# A run with every option written out; sail train can be given this file.\n"
    stage_only = (config.sft or config.reward) is not None and config.train == TrainSection()
    values = config.model_dump(exclude={"train"} if stage_only else None)
    return head + _routes_of_preset(config) + dump_yaml(_without_secrets(values))


def chosen_yaml(config: RunConfig) -> str:
    """The same for a reader: without the options that are at their defaults."""
    head = (
        "# The run, without what is at its default; a run folder's config.resolved.yaml has every option.\n"
    )
    values = config.model_dump(exclude_defaults=True)
    if config.peft is not None:  # a rank that is the default too: an empty section looks like a lost one
        values["peft"] = config.peft.model_dump(include={"r", "lora_alpha"}) | values.get("peft", {})
    return head + _routes_of_preset(config) + dump_yaml(_without_secrets(values))


def _routes_of_preset(config: RunConfig) -> str:
    if not config.alignment.preset:
        return ""
    routes = {name: dict(entry) for name, entry in preset_of(config.alignment.preset).routes.items()}
    return f"# preset {config.alignment.preset} = routes {routes}\n"


def _without_secret(override: str) -> str:
    """An override as an error may show it: what is given to a key with such a name may be the secret itself."""
    key, equals, value = override.partition("=")
    secret = equals and (
        _GIVEN_SECRET.search(key.rpartition(".")[2]) or _GIVEN_SECRET.search(value) or "@" in value
    )
    return f"{key}=..." if secret and key.startswith(("oracle", "eval_oracle")) else override


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items() if not _SECRET.search(str(key))}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value
