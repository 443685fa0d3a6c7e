"""What every oracle section takes beside its own keys: `wrap`, `ledger` and caps. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from sail.section import Section


class CapsConfig(Section):
    """What may be spent, over all processes and resumes of a run; null is no limit."""

    calls: int | None = Field(default=None, ge=0, description="Calls, every attempt counted.")
    tokens: int | None = Field(default=None, ge=0, description="Tokens, in and out together.")
    cost: float | None = Field(default=None, ge=0, description="Money, in the currency of prices.")
    at_cap: Literal["abstain", "stop"] = Field(
        default="abstain",
        description="At a cap: further pairs abstain and the run goes on (abstain), or the run stops (stop).",
    )


class PairCapsConfig(Section):
    """What a budget around any oracle allows."""

    calls: int = Field(ge=0, description="Pairs that may be asked; a pair that is in the ledger is free.")
    at_cap: Literal["abstain", "stop"] = Field(
        default="abstain", description="At the cap: further pairs abstain, or the run stops."
    )


class NoiseWrap(Section):
    """Flips verdicts, for studies of robustness."""

    noise: float = Field(
        ge=0, le=1, description="Probability that a pair's verdict is flipped: p becomes 1 - p."
    )
    seed: int = Field(default=0, description="Another seed flips other pairs.")


class BudgetWrap(Section):
    """A cap on the pairs that are asked."""

    budget: PairCapsConfig = Field(description="The cap.")


_PLAIN_WRAPS = ("both_orders", "one_order", "remember")
KEYED_WRAPS: dict[str, type[Section]] = {"noise": NoiseWrap, "budget": BudgetWrap}


def wrap_tag(value: Any) -> str | None:
    """Which wrapper an entry of `wrap` is."""
    if isinstance(value, str):
        return "plain" if value in _PLAIN_WRAPS else None
    if isinstance(value, Mapping):
        return next((name for name in KEYED_WRAPS if name in value), None)
    return next((name for name, kind in KEYED_WRAPS.items() if isinstance(value, kind)), None)


Wrap = Annotated[
    Annotated[Literal["both_orders", "one_order", "remember"], Tag("plain")]
    | Annotated[NoiseWrap, Tag("noise")]
    | Annotated[BudgetWrap, Tag("budget")],
    Discriminator(
        wrap_tag,
        custom_error_type="wrap",
        custom_error_message="is one of both_orders, one_order, remember, {noise: 0.1}, {budget: {calls: 1000}}",
    ),
]


Wraps = Annotated[
    tuple[Wrap, ...],
    Field(
        description="Around the oracle, from the inside outwards: both_orders, one_order, remember, {noise: 0.1}, "
        "{budget: {calls: 1000}}."
    ),
]
LedgerFile = Annotated[
    str | None,
    Field(
        description="SQLite file of every call and answer; null = ledger.sqlite in the run folder, where one is needed."
    ),
]
