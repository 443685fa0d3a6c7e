"""What `sail train --help` says about overrides and about the options of the section train."""

from __future__ import annotations

import textwrap
from dataclasses import MISSING, fields

from sail.fields import AlignmentFields

OVERRIDES = """\
overrides:
  key.path=value changes one setting of the run file; the value is YAML. For example
    train.beta=0.2   train.preset=sail-mix   train.routes.dpr.weight=0.4   peft={r: 16}   ref_model=null
  A relative path in an override starts from the current directory.

The keys of every section stand, explained, in the file that sail init writes; those of each kind of oracle with --oracle KIND.
"""


def option_help() -> str:
    """The options of the section train, from the one table that defines them."""
    lines = ["options of the section train, beside every field of transformers.TrainingArguments:"]
    for option in fields(AlignmentFields):
        default = option.default if option.default_factory is MISSING else option.default_factory()
        word = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        lines.append(f"  train.{option.name} ({word})")
        lines += textwrap.wrap(
            option.metadata["help"], 100, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)
