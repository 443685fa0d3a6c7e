"""Where rows come from, as a run file says it: a path, the name of a public set, or keys such as {name: hh-rlhf, limit: 1000}."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from sail.commands.wording import did_you_mean, problem, shown
from sail.data.named.base import SHAPES, NamedSet, Variant
from sail.data.named.catalogue import NAMED, known_as, nearest
from sail.errors import ConfigError
from sail.section import Section

HELD_OUT = 0.05
"""Share of the prompts that is held out where a set has no split for it."""

_ENDINGS = (".jsonl", ".json", ".gz", ".parquet", ".csv", ".yaml", ".yml")


class DataSource(Section):
    """A public set by its name, or a file of rows, and which of its rows to take."""

    name: str | None = Field(
        default=None,
        description="A public set (docs/data.md lists them); null = rows in our format, at path.",
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        description="A local copy: a folder as on the hub, or a file; null = the hub.",
    )
    split: str | None = Field(
        default=None,
        description="train, test, all, or the hub's name of a split; null = train, of data.eval test.",
    )
    limit: int | None = Field(
        default=None, gt=0, description="At most so many rows, drawn by hash: the same ones every time."
    )
    label: str | None = Field(default=None, description="Which verdict decides; null = the set's first.")
    variant: str | None = Field(default=None, description="Which form of the set; null = its first.")
    pairing: str | None = Field(
        default=None, description="Of several answers, which make the pair; null = the set's first way."
    )
    min_gap: float | None = Field(
        default=None,
        ge=0,
        description="Pairs whose scores lie closer are near-ties, left out; null = the set's.",
    )
    shape: str | None = Field(default=None, description="chat (messages) or text; null = the set's own.")
    held_out: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=f"Share of training prompts that is split test instead; null = the set's own split, else {HELD_OUT}.",
    )
    drop_repeats: bool | None = Field(
        default=None,
        description="Leave out repeated pairs and pairs of identical answers; null = yes for a public set, no for a file.",
    )
    seed: int = Field(default=0, description="What limit and random pairing draw by.")

    @model_validator(mode="after")
    def _fits(self) -> DataSource:
        """One message for each thing that the set does not have."""
        problems = list(_of_file(self) if self.name is None else _of_set(self))
        if problems:
            raise PydanticCustomError("refused", "{said}", {"said": " ".join(map(_sentence, problems))})
        return self

    # ---- what null stands for

    @property
    def known(self) -> NamedSet | None:
        """The public set; None for a file."""
        return None if self.name is None else NAMED[self.name]

    @property
    def chosen_variant(self) -> str:
        """The variant, resolved; empty for a file."""
        return self.variant or (next(iter(self.known.variants)) if self.known else "")

    @property
    def form(self) -> Variant | None:
        """That variant."""
        return self.known.variants[self.chosen_variant] if self.known else None

    @property
    def chosen_label(self) -> str | None:
        """The label, resolved; None where the set has one only."""
        return self.label or (self.known.labels[0] if self.known and self.known.labels else None)

    @property
    def chosen_pairing(self) -> str | None:
        """The pairing, resolved; None where rows are pairs already."""
        return self.pairing or (self.known.pairings[0] if self.known and self.known.pairings else None)

    @property
    def chosen_shape(self) -> str:
        """chat or text, resolved."""
        return self.shape or (self.known.shape if self.known else "chat")

    @property
    def gap(self) -> float:
        """The least difference in score that is no near-tie."""
        default = (self.known.min_gap or 0.0) if self.known else 0.0
        return default if self.min_gap is None else self.min_gap

    @property
    def drops_repeats(self) -> bool:
        """drop_repeats, resolved."""
        return self.name is not None if self.drop_repeats is None else self.drop_repeats

    @property
    def share(self) -> float:
        """held_out, resolved."""
        return HELD_OUT if self.held_out is None else self.held_out

    @property
    def hashed_part(self) -> str | None:
        """train or test where the prompts are parted by hash: held_out is given, or there is no split of that kind."""
        own = self.form.splits if self.form else {}
        by_hash = self.held_out is not None or "test" not in own
        split = self.split or (None if self.name is None else "train")
        return split if by_hash and split in ("train", "test") else None

    @property
    def hub_splits(self) -> tuple[str, ...]:
        """The splits to read, by the hub's names."""
        own = self.form.splits if self.form else {"train": "train"}
        if self.hashed_part is not None:
            return (own["train"],)
        split = self.split or "train"
        return tuple(own.values()) if split == "all" else (own.get(split, split),)

    @property
    def title(self) -> str:
        """The source in a few words, for messages."""
        if self.known is None:
            split = f" [{self.split}]" if self.split else ""
            return f"{Path(self.path or '').name}{split}"
        variant = f" {self.chosen_variant}" if len(self.known.variants) > 1 else ""
        return f"{self.name}{variant} [{self.split or 'train'}]"


def _of_file(source: DataSource) -> Iterator[str]:
    if source.path is None:
        yield f"give name (one of {', '.join(NAMED)}) or path"
        return
    for key in ("label", "variant", "pairing", "min_gap", "shape"):
        if getattr(source, key) is not None:
            yield f"{key} belongs to a public set: give name too, or leave {key} out"
    if source.split not in (None, "train", "test", "all"):
        yield f"split of a file is train, test (a share of the prompts, by hash) or all; it is {source.split}"
    if source.held_out is not None and source.split is None:
        yield "held_out parts the file in two: say which part with split: train or split: test"


def _of_set(source: DataSource) -> Iterator[str]:
    if source.name not in NAMED:
        near = nearest(source.name or "")
        yield (
            f"there is no data set {source.name!r}; "
            + (f"did you mean {near}?" if near else f"the names are {', '.join(NAMED)}")
        )
        return
    known = NAMED[source.name]
    choices = {
        "label": known.labels,
        "variant": tuple(known.variants),
        "pairing": known.pairings,
        "shape": SHAPES,
    }
    wrong = False
    for key, allowed in choices.items():
        given = getattr(source, key)
        if given is None or given in allowed:
            continue
        wrong = True
        if not allowed:
            yield f"{known.name} has no {key} to choose: leave it out"
        else:
            yield f"{key} of {known.name} is one of {', '.join(allowed)}; it is {given!r}.{did_you_mean(given, allowed)}"
    if source.min_gap is not None and known.min_gap is None:
        yield f"{known.name} has no scores, so min_gap says nothing: leave it out"
    if not wrong:
        own = source.form.splits if source.form else {}
        allowed = tuple(dict.fromkeys(["train", "test", "all", *own.values()]))
        if source.split is not None and source.split not in allowed:
            yield f"split of {known.name} is one of {', '.join(allowed)}; it is {source.split!r}"


# ---- a value of a run file


def parse_source(value: Any, *, held_out: bool = False) -> str | DataSource | None:
    """A path as it is; a name or keys as a DataSource, of split test where `held_out`, else train. Raises ConfigError."""
    if value is None or isinstance(value, DataSource):
        return value
    if isinstance(value, str):
        return _of_text(value, held_out)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"must be a path, the name of a data set, or keys such as {{name: hh-rlhf, limit: 1000}}; it is {shown(value)}."
        )
    keys = dict(value)
    if isinstance(keys.get("name"), str) and (known := known_as(keys["name"])):
        keys["name"] = known[0]
        if keys.get("variant") is None and known[1] is not None:
            keys["variant"] = known[1]
    if keys.get("name") is not None and keys.get("split") is None:
        keys["split"] = "test" if held_out else "train"
    try:
        return DataSource.model_validate(keys)
    except ValidationError as error:
        said = [_said(item) for item in error.errors(include_url=False)]
        raise ConfigError(_sentence(" ".join(said))) from None


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _said(item: Any) -> str:
    return _sentence(str(item["msg"])) if item["type"] == "refused" else problem(item, {"": DataSource})


def _of_text(value: str, held_out: bool) -> str | DataSource:
    """A name is a name unless a file is called so; a text that is nearly a name, and no file, is a slip."""
    if os.path.isfile(value):
        return value
    if known_as(value):
        return parse_source({"name": value}, held_out=held_out) or value
    if value and not value.endswith(_ENDINGS) and not value.startswith((".", "/", "~")):
        near = nearest(value, cutoff=0.75)
        if near and not os.path.exists(value):
            raise ConfigError(f"there is no file and no data set {value!r}; did you mean {near}?")
    return value


def checked_source(value: Any, info: ValidationInfo) -> Any:
    """`parse_source` as a validator of a section's field; a field named eval means held-out rows."""
    try:
        return parse_source(value, held_out=info.field_name == "eval")
    except ConfigError as error:
        raise PydanticCustomError("refused", "{said}", {"said": str(error)}) from None


def title_of(source: str | DataSource) -> str:
    """The source in a few words, for messages."""
    return Path(source).name if isinstance(source, str) else source.title


def with_path(
    source: str | DataSource | None, here: Callable[[str | None], str | None]
) -> str | DataSource | None:
    """The source with its path put through `here`."""
    return (
        source.model_copy(update={"path": here(source.path)})
        if isinstance(source, DataSource)
        else here(source)
    )


def source_paths(raw: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The mappings of a raw run that may hold the path of a source."""
    for section in ("data", "sft", "reward"):
        keys = raw.get(section)
        for field in ("train", "eval", "prompts"):
            if isinstance(keys, dict) and isinstance(keys.get(field), dict):
                yield keys[field]
