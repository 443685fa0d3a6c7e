"""Prompt files: what a judge is told. Plain Markdown with placeholders, to be copied and replaced."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from sail.errors import ConfigError
from sail.oracles.judge.fence import fenced, fenced_prompt, mark_of
from sail.types import Prompt

PROMPTS = Path(__file__).parent / "prompts"
MODES = ("pairwise", "single")
SHIPPED = ("helpfulness", "safety")
REQUIRED = {"pairwise": ("prompt", "first", "second"), "single": ("prompt", "response")}
OPTIONAL = ("mark",)
LONGEST = 100_000

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)
class Rubric:
    """A prompt file, read and checked. `digest` is the sha256 (hex) of its bytes: another text is another judge."""

    name: str
    mode: str
    text: str
    digest: str

    def pair(self, prompt: Prompt, first: str, second: str) -> str:
        """The message that asks about two responses, in this order."""
        mark = mark_of([prompt, first, second])
        return self._filled(
            mark,
            prompt=fenced_prompt(prompt, mark),
            first=fenced("response A", first, mark),
            second=fenced("response B", second, mark),
        )

    def one(self, prompt: Prompt, response: str) -> str:
        """The message that asks about one response."""
        mark = mark_of([prompt, response])
        return self._filled(
            mark, prompt=fenced_prompt(prompt, mark), response=fenced("response", response, mark)
        )

    def _filled(self, mark: str, **parts: str) -> str:
        """All placeholders in one pass, so that one inside judged text stays what it is; a fence's lines stand alone."""

        def fill(found: re.Match[str]) -> str:
            if found.group(1) == "mark":
                return mark
            before, after = self.text[: found.start()], self.text[found.end() :]
            open_line = "" if before.endswith("\n") or not before else "\n"
            return open_line + parts[found.group(1)] + ("" if after.startswith("\n") or not after else "\n")

        return _PLACEHOLDER.sub(fill, self.text)


def load_rubric(name: str | Path, mode: str) -> Rubric:
    """A shipped rubric by its name (helpfulness, safety), or the file at a path.

    Placeholders: {prompt}, {first}, {second} in mode pairwise, {prompt}, {response} in mode single, and {mark}
    where wanted. Raises ConfigError if the file is missing, not UTF-8, too long, or has other placeholders or
    not all of these; other braces are text.
    """
    if mode not in MODES:
        raise ConfigError(f"The mode of a judge is pairwise or single; it is {mode!r}.")
    file = PROMPTS / f"{name}-{mode}.md" if str(name) in SHIPPED else Path(name)
    try:
        data = file.read_bytes()
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no rubric {name}: it is neither one of {', '.join(SHIPPED)} nor a prompt file. Check oracle.rubric."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The prompt file {name} cannot be read: {error}. It must be UTF-8 text.") from None
    if len(text) > LONGEST:
        raise ConfigError(
            f"The prompt file {name} has {len(text):,} characters; at most {LONGEST:,} are read."
        )
    _check_placeholders(file, mode, set(_PLACEHOLDER.findall(text)))
    return Rubric(str(name) if str(name) in SHIPPED else file.name, mode, text.strip(), _digest(data))


def _check_placeholders(file: Path, mode: str, found: set[str]) -> None:
    known = REQUIRED[mode]
    unknown = sorted(found - {*known, *OPTIONAL})
    if unknown:
        raise ConfigError(
            f"The prompt file {file} has the placeholder {{{unknown[0]}}}, which mode {mode} does not fill. It fills "
            f"{_listed(known + OPTIONAL)}."
        )
    missing = [name for name in known if name not in found]
    if missing:
        raise ConfigError(
            f"The prompt file {file} lacks {_listed(missing)}: mode {mode} of a judge needs {_listed(known)}. "
            f"Write it where the text "
            "belongs."
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
