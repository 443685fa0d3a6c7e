"""Every YAML example of docs/oracles.md loads as it stands, and every command in it is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from sail.cli import build_parser
from sail.config import config_from_dict

TEXT = (Path(__file__).parents[2] / "docs" / "oracles.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = list(re.findall(r"^(sail ledger .*)$", TEXT, flags=re.MULTILINE))


@pytest.mark.parametrize("text", YAML)
def test_examples_load(text: str) -> None:
    run = {"model": "m", "data": {"train": "pairs.jsonl"}, "train": {"preset": "sail-dpr"}}
    assert config_from_dict({**run, **yaml.safe_load(text)}).oracle is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    build_parser().parse_args(shlex.split(command.partition("   ")[0])[1:])


def test_there_are_examples() -> None:
    assert len(YAML) >= 2
    assert len(COMMANDS) >= 4
