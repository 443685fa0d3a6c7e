"""The `oracle` section of a run: who prefers what, told apart by `kind`. No torch here.

Every kind takes `wrap`, a list applied from the inside outwards, and `ledger`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from sail.commands.wording import did_you_mean, shown
from sail.oracle_wraps import KEYED_WRAPS, CapsConfig, LedgerFile, PairCapsConfig, Wraps, wrap_tag
from sail.request_fields import refused_field
from sail.section import Section

RUBRICS = ("helpfulness", "safety")
"""The judge's prompts that come with sail; any other rubric is the path of a file."""


# ---- kinds


class FunctionOracle(Section):
    """A Python callable that says who prefers what."""

    kind: Literal["function"] = Field(description="Where preferences come from: function, a Python callable.")
    path: str = Field(
        description="file.py:name of reward(prompts, responses) or prefers(prompts, first, second)."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="The reward difference that gives odds of e to 1."
    )
    wrap: Wraps = ()
    ledger: LedgerFile = None

    @field_validator("path")
    @classmethod
    def _names_a_callable(cls, path: str) -> str:
        file, _, name = path.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise PydanticCustomError("path", "must be file.py:name, for example reward.py:reward")
        return path


class RewardModelOracle(Section):
    """A sequence classifier with one output; its preference is Bradley-Terry on the scores."""

    kind: Literal["reward_model"] = Field(
        description="Where preferences come from: reward_model, a classifier."
    )
    model: str = Field(
        min_length=1, description="Folder or hub name of a sequence classifier with one output."
    )
    tokenizer: str | None = Field(
        default=None, min_length=1, description="Folder or name; null = the reward model's own."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="The score difference that gives odds of e to 1."
    )
    lower_is_better: bool = Field(default=False, description="True for a cost model: the lower score wins.")
    max_length: int | None = Field(
        default=None,
        gt=0,
        description="Longest prompt with response, in its tokens; null = what the model can take.",
    )
    batch_size: int = Field(default=16, gt=0, description="Texts per forward pass, batched by length.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Its precision; auto = as stored."
    )
    device: str | None = Field(default=None, min_length=1, description="Its device; null = the policy's.")
    offload: bool = Field(default=False, description="Keep it in main memory between steps.")
    wrap: Wraps = ()
    ledger: LedgerFile = None


def _prices_section() -> type[Section]:
    """Made by hand: `in` is a word of Python's."""
    per_million: dict[str, Any] = {
        "in": (float, Field(ge=0, description="Per million tokens of questions.")),
        "out": (float, Field(ge=0, description="Per million tokens of answers.")),
    }
    return create_model("PricesConfig", __base__=Section, __doc__="Money per million tokens.", **per_million)


if TYPE_CHECKING:
    PricesConfig = Section
else:
    PricesConfig = _prices_section()


class JudgeOracle(Section):
    """A language model behind an OpenAI-compatible endpoint."""

    kind: Literal["judge"] = Field(description="Where preferences come from: judge, a language model.")
    url: str = Field(description="Base address of the endpoint, for example http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="The model's name at that endpoint.")
    api_key_env: str | None = Field(
        default=None, description="NAME of the environment variable that holds the key; null = no key."
    )
    mode: Literal["pairwise", "single"] = Field(
        default="pairwise", description="Both responses in one question, or a score for each."
    )
    rubric: str = Field(
        default="helpfulness",
        min_length=1,
        description="helpfulness, safety, or the path of a prompt file of your own.",
    )
    soft: bool = Field(
        default=True, description="Use the verdict's token probabilities where the server gives them."
    )
    temperature: float = Field(default=0.0, ge=0, description="The judge's sampling temperature.")
    max_tokens: int = Field(default=512, gt=0, description="Longest reply, in tokens.")
    concurrency: int = Field(default=8, gt=0, description="Calls in flight at once, per process.")
    timeout: float = Field(default=60.0, gt=0, description="Seconds until a call is given up.")
    attempts: int = Field(default=4, gt=0, description="Attempts per pair until it abstains.")
    score_temperature: float = Field(
        default=1.0, gt=0, description="In mode single: the difference of scores that gives odds of e to 1."
    )
    extra: dict[str, Any] = Field(
        default={}, description="More fields for the request, such as {seed: 1}; null takes a field away."
    )
    prices: PricesConfig | None = Field(
        default=None, description="{in: 0.15, out: 0.6}: money per million tokens; caps.cost needs it."
    )
    caps: CapsConfig = Field(default=CapsConfig(), description="What the run may spend.")
    wrap: Annotated[Wraps, Field(validate_default=True)] = ()
    ledger: LedgerFile = None

    @field_validator("wrap")
    @classmethod
    def _both_orders(cls, wrap: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        """A pairwise judge favours a place, so it is asked in both orders wherever `wrap` names none; scores have no order."""
        named = "both_orders" in wrap or "one_order" in wrap
        return wrap if named or info.data.get("mode") != "pairwise" else ("both_orders", *wrap)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            raise PydanticCustomError("url", "must be an address such as http://127.0.0.1:8000/v1") from None
        if parts.username is not None or parts.password is not None:
            raise PydanticCustomError(
                "secret", "must hold no user or password; name a key's environment variable in api_key_env"
            )
        if parts.scheme not in ("http", "https") or not named:
            raise PydanticCustomError("url", "must be an address such as http://127.0.0.1:8000/v1")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """A key pasted here must not be shown, nor written to a run folder."""
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
            raise PydanticCustomError(
                "secret",
                "must be the NAME of an environment variable (capital letters, digits, _) that holds the key, "
                "not the key itself",
            )
        return name

    @field_validator("extra")
    @classmethod
    def _may_be_sent(cls, extra: dict[str, Any]) -> dict[str, Any]:
        why = refused_field(extra)
        if why is not None:
            raise PydanticCustomError("secret", "{why}", {"why": why})
        return extra

    @model_validator(mode="after")
    def _costs_are_known(self) -> JudgeOracle:
        if self.caps.cost is not None and self.prices is None:
            raise PydanticCustomError(
                "refused",
                "caps.cost needs prices: without them no call costs anything. Set prices: {{in: .., out: ..}}",
            )
        return self


class PeopleOracle(Section):
    """People in front of the annotation page."""

    kind: Literal["people"] = Field(
        description="Where preferences come from: people, in front of a web page."
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds that a step waits for its labels, then unanswered pairs abstain; null = until they are there.",
    )
    annotators: int = Field(default=1, gt=0, description="People who label each pair; their mean counts.")
    question: str | None = Field(
        default=None, min_length=1, description="Shown above each pair; null = which answer is better."
    )
    port: int = Field(default=8765, ge=0, le=65535, description="Port of the page on this machine; 0 = any.")
    wrap: Wraps = ()
    ledger: LedgerFile = None


def _kind(value: Any) -> str | None:
    """The kind of a section; a callable, because pydantic's own discriminator allows no validator on that field."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return None if kind is None else str(kind)


_Function = Annotated[FunctionOracle, Tag("function")]
_RewardModel = Annotated[RewardModelOracle, Tag("reward_model")]
_Judge = Annotated[JudgeOracle, Tag("judge")]
_People = Annotated[PeopleOracle, Tag("people")]
Member = Annotated[_Function | _RewardModel | _Judge | _People, Discriminator(_kind)]


class CommitteeOracle(Section):
    """Several oracles; the mean of their probabilities."""

    kind: Literal["committee"] = Field(description="Where preferences come from: committee, several oracles.")
    members: list[Member] = Field(
        min_length=2, description="Oracle sections, each with its kind, its keys and its own wrap."
    )
    abstain_above: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Abstain where the members' probabilities lie further apart than this; null = never.",
    )
    at_least: int | None = Field(
        default=None,
        gt=0,
        description="Members that must answer; null = 2 with abstain_above (one alone cannot disagree), else 1.",
    )
    wrap: Wraps = ()
    ledger: LedgerFile = None

    @model_validator(mode="after")
    def _one_ledger(self) -> CommitteeOracle:
        if any(member.ledger is not None for member in self.members):
            raise PydanticCustomError(
                "refused", "a committee keeps one ledger. Set its own, and none for its members"
            )
        if self.at_least is not None and self.at_least > len(self.members):
            raise PydanticCustomError(
                "refused", "at_least is more than the committee has members. Set it lower, or null"
            )
        return self


OracleConfig = Annotated[
    _Function | _RewardModel | _Judge | _People | Annotated[CommitteeOracle, Tag("committee")],
    Discriminator(_kind),
]
"""Told apart by `kind`."""

KINDS: dict[str, type[Section]] = {
    "function": FunctionOracle,
    "reward_model": RewardModelOracle,
    "judge": JudgeOracle,
    "people": PeopleOracle,
    "committee": CommitteeOracle,
}
KIND_HELP = f"Where preferences come from: {', '.join(KINDS)}."

_PATHS = {"function": ("path",), "reward_model": ("model", "tokenizer"), "judge": ("rubric",)}
MAY_CHANGE = (
    *("url", "api_key_env", "concurrency", "timeout", "attempts", "prices", "caps", "ledger"),
    *("deadline", "port", "batch_size", "device", "offload", "budget"),
)
"""Keys that a run may be resumed with other values of: no answer depends on them."""


def lasting(raw: Any) -> Any:
    """A raw oracle section without the keys that may change from one resume to the next. What stands in `extra` goes into the
    request word for word, so it stays, with its nulls, which take a field away."""
    if isinstance(raw, dict):
        kept = {
            key: value if key == "extra" else lasting(value)
            for key, value in raw.items()
            if key not in MAY_CHANGE
        }
        # As if it were not written.
        return {key: value for key, value in kept.items() if value not in (None, [], {})}
    return [lasting(one) for one in raw] if isinstance(raw, list) else raw


# ---- what config.py asks


def is_paid(config: Any) -> bool:
    """Whether its answers cost money."""
    return any(one.kind == "judge" for one in members_of(config))


def keeps_ledger(config: Any) -> bool:
    """Whether the run needs a ledger: for paid calls, for what is remembered, or because a file was named."""
    sections = [config, *members_of(config)]
    names = {wrap if isinstance(wrap, str) else wrap_tag(wrap) for one in sections for wrap in one.wrap}
    named = any(one.ledger is not None for one in sections)
    return named or is_paid(config) or bool(names & {"remember", "budget"})


def members_of(config: Any) -> list[Any]:
    """The sections that answer: a committee's members, or the section itself."""
    return list(config.members) if isinstance(config, CommitteeOracle) else [config]


def path_keys(raw: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """(mapping, key) of every text in a raw oracle section that may be a path."""
    if not isinstance(raw, dict):
        return
    for key in (*_PATHS.get(str(raw.get("kind")), ()), "ledger"):
        if isinstance(raw.get(key), str) and not (key == "rubric" and raw[key] in RUBRICS):
            yield raw, key
    for member in raw["members"] if isinstance(raw.get("members"), list) else ():
        yield from path_keys(member)


def moved(section: Any, here: Callable[[str], str]) -> Any:
    """The section with each of its paths put through `here`."""
    changes: dict[str, Any] = {}
    for key in (*_PATHS.get(section.kind, ()), "ledger"):
        value = getattr(section, key)
        if value is not None and not (key == "rubric" and value in RUBRICS):
            file, colon, name = value.rpartition(":") if key == "path" else (value, "", "")
            changes[key] = f"{here(file)}{colon}{name}"
    if isinstance(section, CommitteeOracle):
        changes["members"] = [moved(member, here) for member in section.members]
    return section.model_copy(update=changes)


def described(raw: Any) -> str | None:
    """A raw section in a line that is the same where the oracle is; None without one."""
    if not isinstance(raw, dict):
        return None
    kept = lasting(raw)
    if raw.get("kind", "function") == "function" and "wrap" not in kept:
        return f"{PurePath(str(raw.get('path'))).name} at temperature {raw.get('temperature', 1.0)}"
    text = json.dumps(kept, sort_keys=True)
    return f"{raw.get('kind')} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def located(item: ErrorDetails) -> tuple[ErrorDetails, dict[str, type[BaseModel]]]:
    """One of pydantic's errors about an oracle, without the tags of unions in its path, and the classes along that path."""
    path: list[Any] = [item["loc"][0]]
    classes: dict[str, type[BaseModel]] = {}
    for part in item["loc"][1:]:
        is_union = len(path) == 1 or isinstance(path[-1], int)
        if is_union and _dotted(path) not in classes:
            classes[_dotted(path)] = KINDS.get(str(part)) or KEYED_WRAPS.get(str(part), Section)
            continue
        path.append(part)
        if str(part) in _NESTED:
            classes[_dotted(path)] = _NESTED[str(part)]
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("kind")
    return {**item, "loc": tuple(path)}, classes


_NESTED: dict[str, type[BaseModel]] = {"caps": CapsConfig, "prices": PricesConfig, "budget": PairCapsConfig}


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(str(part) for part in path)


def kind_problem(item: ErrorDetails) -> str:
    """What to say of an oracle section whose kind is missing or unknown."""
    where, given = _dotted(item["loc"]), item["input"]
    if not isinstance(given, dict):
        return f"{where.removesuffix('.kind')} must be a section of keys and values; it is {shown(given)}."
    if given.get("kind") is None:
        return f"{where} is missing. {KIND_HELP}"
    kind, known = given["kind"], [name for name in KINDS if where.count(".") == 1 or name != "committee"]
    return f"{where} is one of {', '.join(known)}; it is {shown(kind)}.{did_you_mean(kind, known)}"
