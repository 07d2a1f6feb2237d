"""Types and limits that all sections of an experiment share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

PATCH = 16
"""Side of one DINOv3 patch in pixels; every image side is a multiple of it."""


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads `on` and `yes` as true, which would silently count as 1
        raise ValueError("a number is needed, not true or false")
    return value


Number = BeforeValidator(_no_switch)
Positive = Annotated[float, Field(gt=0), Number]
NonNegative = Annotated[float, Field(ge=0), Number]
Fraction = Annotated[float, Field(ge=0, lt=1), Number]
Count = Annotated[int, Field(ge=1), Number]
Index = Annotated[int, Field(ge=0), Number]
