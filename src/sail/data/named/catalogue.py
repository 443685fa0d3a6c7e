"""All named sets, and what a name stands for."""

from __future__ import annotations

import difflib

from sail.data.named import hh, pku, summarize, ultrafeedback, webgpt
from sail.data.named.base import NamedSet

NAMED: dict[str, NamedSet] = {
    one.name: one
    for one in (pku.SET, ultrafeedback.RAW, ultrafeedback.BINARIZED, hh.SET, summarize.SET, webgpt.SET)
}


def _also() -> dict[str, tuple[str, str]]:
    """Other names: ids of the hub, and a name with its variant, such as pku-saferlhf-10k; in small letters."""
    found: dict[str, tuple[str, str]] = {}
    for one in NAMED.values():
        for variant, form in one.variants.items():
            found.setdefault(f"{one.name}-{variant}".lower(), (one.name, variant))
            found.setdefault(form.hub.lower(), (one.name, variant))
    return found


ALSO = _also()


def known_as(name: str) -> tuple[str, str | None] | None:
    """Name and variant that `name` stands for (variant None: not said), or None if it names no set."""
    if name in NAMED:
        return name, None
    return ALSO.get(name.lower())


def nearest(name: str, cutoff: float = 0.6) -> str | None:
    """The known name that is most like this one, or holds it; None if there is none."""
    lower = {known.lower(): known for known in (*NAMED, *ALSO)}
    if len(name) > 1 and (within := [known for known in NAMED if name.lower() in known]):
        return within[0]
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=cutoff)
    return lower[close[0]] if close else None
