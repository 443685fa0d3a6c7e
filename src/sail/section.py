"""The base of every part of a run file that is a mapping of keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of the run: frozen, and closed to keys it does not know unless it says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _flag_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic reads true as 1; a person who writes beta: yes has made a mistake."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):
            raise PydanticCustomError("flag", "must be a number")
        return value
