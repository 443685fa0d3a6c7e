"""The text of a run file: YAML in, overrides put in, YAML out. Knows nothing of what the keys mean.

It and wording.py import nothing of sail but its errors, so that sail.config can stand on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sail.commands.wording import shown
from sail.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-5 is a number, a date is text, and a key given twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                )
            if isinstance(key.value, str):
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT, _DATE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_NUMBER = re.compile(
    r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT, _DATE)]
        for first, resolvers in _kind.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(_FLOAT, _NUMBER, list("-+.0123456789"))


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; ConfigError names `source` and the line where it cannot be read."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: this is not valid YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: this is not valid YAML: {error}.") from None


def dump_yaml(values: dict[str, Any], *, leaves_in_line: bool = False) -> str:
    """YAML in the order of the keys, which parse_yaml reads back as the same values. `leaves_in_line`: {a: 1} on one line."""
    flow = None if leaves_in_line else False
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=flow
    )


def read_run_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}. `sail init {path}` writes one to start from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a text file: {error}.") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds {shown(raw)}"
        raise ConfigError(
            f"{path} {what}, but a run is keys and values. `sail init` writes one to start from."
        )
    return raw


def parse_override(text: str) -> tuple[list[str], Any]:
    """The key's path and the value of `key.path=value`; the value is YAML."""
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"{text!r} is not an override. Write key.path=value, for example train.beta=0.2.")
    return parts, parse_yaml(value, f"The value of {key}")


def put(raw: dict[str, Any], key: Sequence[str], value: Any) -> None:
    """Set a nested key in place, making the sections on its way."""
    *sections, last = key
    for depth, name in enumerate(sections):
        inner = raw.get(name)
        if inner is None:
            inner = raw[name] = {}
        if not isinstance(inner, dict):
            where, dotted = ".".join(sections[: depth + 1]), ".".join(key)
            raise ConfigError(
                f"{dotted} cannot be set to {shown(value)}: {where} is {shown(inner)}, which has no keys. "
                f"Write {where}={{...}} with all its keys."
            )
        raw = inner
    raw[last] = value
