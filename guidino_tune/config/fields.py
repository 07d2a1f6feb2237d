"""Types and limits that all sections of an experiment share."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

PATCH = 16
"""Side of one DINOv3 patch in pixels; every image side is a multiple of it."""


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads `on` and `yes` as true, which would silently count as 1
        raise ValueError("a number is needed, not true or false")
    return value


def _a_path(value: str) -> str:
    try:
        possible = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError("holds a character that no path can have")
    return value


LARGEST = 2**31 - 1
"""Of counts: more than anybody has, and few enough for every library to compute with."""

Number = BeforeValidator(_no_switch)
PathText = Annotated[str, AfterValidator(_a_path)]
Positive = Annotated[float, Field(gt=0), Number]
NonNegative = Annotated[float, Field(ge=0), Number]
Fraction = Annotated[float, Field(ge=0, lt=1), Number]
Count = Annotated[int, Field(ge=1, le=LARGEST), Number]
Index = Annotated[int, Field(ge=0, lt=2**63), Number]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Number]
"""What NumPy's older generators take, which Optuna uses."""
