"""`sail data` put together: from what was typed to what is looked at, printed and written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sail.commands.data import SOURCE_OPTIONS, print_inspection, print_sets
from sail.config import load_config
from sail.data.named.catalogue import NAMED, known_as
from sail.data_config import DataSource, parse_source
from sail.errors import ConfigError
from sail.inspect_data import Wanted, export, inspect, write_twin


def run_data(options: argparse.Namespace) -> None:
    """`sail data`: prints, and writes the files that were asked for."""
    if options.source is None:
        print_sets(NAMED)
        return
    wanted = _wanted(options)
    for path in (options.json, options.export):
        if path is not None and path.exists() and not options.force:
            raise ConfigError(f"{path} exists. Give another path, or --force to overwrite it.")
    made, rows = inspect(wanted)
    print_inspection(made)
    if options.json is not None:
        write_twin(made, options.json, force=options.force)
        print(f"The same for programs: {options.json}")
    if options.export is not None:
        export(rows, options.export, force=options.force)
        print(f"{len(rows)} rows are in {options.export}, in TRL's format.")


def _wanted(options: argparse.Namespace) -> Wanted:
    if options.source.endswith((".yaml", ".yml")):
        wanted = _of_run(options)
    else:
        if options.overrides:
            raise ConfigError(
                f"{options.overrides[0]} is a setting of a run file, and {options.source} is none. Use the options of "
                "sail data."
            )
        source = _source(options)
        wanted = Wanted(source, _held_out(options, source))
    limits = (options.max_length, options.max_prompt_length)
    wanted.tokenizer = options.tokenizer or wanted.tokenizer
    if wanted.tokenizer is None and any(limit is not None for limit in limits):
        raise ConfigError("--max-length and --max-prompt-length count tokens. Add --tokenizer MODEL.")
    wanted.max_length = options.max_length or wanted.max_length
    wanted.max_prompt_length = options.max_prompt_length or wanted.max_prompt_length
    wanted.pairs, wanted.seed = options.pairs, options.seed
    return wanted


def _source(options: argparse.Namespace) -> str | DataSource:
    """The source on the command line; a plain file stays a path where no option concerns it."""
    given = {key: getattr(options, key) for key in SOURCE_OPTIONS if getattr(options, key) is not None}
    is_name = known_as(options.source) is not None and not Path(options.source).is_file()
    if not given and not is_name:
        source = parse_source(options.source)
        assert source is not None
        return source
    if "path" in given and not is_name:
        near = parse_source({"name": options.source, **given})  # says which names there are
        assert near is not None
        return near
    made = parse_source({"name" if is_name else "path": options.source, **given})
    assert made is not None
    return made


def _held_out(options: argparse.Namespace, source: str | DataSource) -> str | DataSource | None:
    """What was asked for; else split test of the same set, where the source is a training part of one."""
    if options.held_out == "none":
        return None
    if options.held_out is not None:
        return parse_source(options.held_out, held_out=True)
    if isinstance(source, DataSource) and source.split == "train":
        return source.model_copy(update={"split": "test", "limit": None})
    return None


def _of_run(options: argparse.Namespace) -> Wanted:
    """The data of a run file, with its tokenizer and its limits, unless its tokenizer is not here."""
    for key in SOURCE_OPTIONS:
        if getattr(options, key) is not None:
            name = f"--{key.replace('_', '-')}"
            raise ConfigError(
                f"{name} does not go with a run file. Write it there, or override it: sail data {options.source} "
                f"data.train.{key}=..."
            )
    config = load_config(options.source, options.overrides)
    source: Any = config.data.train or config.data.prompts or (config.sft.train if config.sft else None)
    if source is None:
        raise ConfigError(f"{options.source} names no data. Set data.train.")
    held = _held_out(options, "") if options.held_out else config.data.eval
    wanted = Wanted(source, held, config.tokenizer or config.model)
    wanted.max_length, wanted.max_prompt_length = (
        config.alignment.max_length,
        config.alignment.max_prompt_length,
    )
    if options.tokenizer is None and not Path(wanted.tokenizer or "").is_dir():
        wanted.notes.append(
            f"Tokens were not counted: {wanted.tokenizer} is no folder here. Give --tokenizer to count them."
        )
        wanted.tokenizer = None
    return wanted
