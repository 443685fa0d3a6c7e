"""Numbers and untrusted text, made readable."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_TEXT = 4000  # characters of one text that the page carries
_MINUS = "−"


def show(value: float | None, *, sign: bool = False, digits: int | None = None) -> str:
    """A number as a person reads it: thousands apart, a real minus, "—" for None.

    digits: how many after the point; None = about three significant ones.

    >>> show(12800), show(0.0123), show(1.5, sign=True)
    ('12,800', '0.0123', '+1.50')
    """
    if value is None:
        return "—"
    size = abs(value)
    if digits is not None:
        text = f"{size:,.{digits}f}"
    elif size == round(size) and size < 1e15:
        text = f"{size:,.0f}"
    elif size >= 1e7 or size < 0.0005:
        text = f"{size:.2e}"
    else:
        text = f"{size:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 0.1 else 4}f}"
    if not text.strip("0.,"):  # rounded to nothing: no sign
        return text
    return (_MINUS if value < 0 else "+" if sign else "") + text


def show_range(low: float, high: float) -> str:
    """An interval in words, as a dash would be read as a minus.

    >>> show_range(1.7, 2.04)
    '1.70 to 2.04'
    """
    digits = digits_for(low, high)
    return f"{show(low, digits=digits)} to {show(high, digits=digits)}"


def digits_for(low: float | None, high: float | None) -> int | None:
    """Digits after the point that an estimate and both its limits are shown with; None without an interval."""
    if low is None or high is None:
        return None
    size, width = max(abs(low), abs(high)), high - low
    return 0 if size >= 1000 else 1 if size >= 100 else 2 if width >= 0.02 or width == 0 else 4


def join(*parts: str) -> str:
    """The parts that are not empty, with commas."""
    return ", ".join(part for part in parts if part)


def clean(value: Any) -> str:
    """A text from a run folder as the page can carry it: valid Unicode, control characters visible, not endless.

    Lone surrogates cannot be written to a file, a NUL would vanish in a browser, and marks that turn the direction
    of writing would show another text than the model wrote. What is no text is shown as JSON.
    """
    text = (
        value
        if isinstance(value, str)
        else ""
        if value is None
        else json.dumps(value, ensure_ascii=False, default=str)
    )
    text = text.encode("utf-8", errors="replace").decode("utf-8").replace("\r\n", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), text).replace("\x7f", "␡")
    text = re.sub("[\u202a-\u202e\u2066-\u2069]", lambda m: f"⟨U+{ord(m[0]):X}⟩", text)
    if len(text) > MAX_TEXT:
        return f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
    return text


def messages(prompt: Any) -> list[dict[str, str]]:
    """A prompt as [{"role", "content"}]; plain text has the role "".

    >>> messages("Hi")
    [{'role': '', 'content': 'Hi'}]
    """
    if isinstance(prompt, list) and all(isinstance(m, dict) for m in prompt):
        return [{"role": clean(m.get("role")), "content": clean(m.get("content"))} for m in prompt]
    return [{"role": "", "content": clean(prompt)}]
