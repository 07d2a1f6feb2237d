"""Numbers, durations and values as people read them."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from guidino_tune.reporting.document import Cell

NONE = "–"
"""Stands where there is nothing."""


def dice(value: float | None) -> str:
    """Four digits behind the point, as everywhere in the program."""
    return NONE if value is None else f"{value:.4f}"


def figure(value: float) -> str:
    """Three significant digits, or all of a large whole number."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 999.5:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.3g}"


def setting(value: Any) -> str:
    """The value of a parameter."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Such as ``12 s``, ``4.2 min``, ``31 h`` or ``1,230 h``."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{figure(seconds / length)} {unit}"
    return f"{figure(seconds)} s"


def when(at: datetime | None) -> str:
    """A date with minutes."""
    return f"{at:%Y-%m-%d %H:%M}" if at else NONE


def many(number: int, one: str, several: str = "") -> str:
    """Such as ``1 trial`` and ``2 trials``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def listed(names: list[str], most: int = 6) -> str:
    """Such as ``a, b and c``; of more than ``most`` the number of the others."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "none"


def dice_cell(value: float | None) -> Cell:
    """For a table."""
    return Cell(dice(value), value)


def number_cell(value: float | None) -> Cell:
    """For a table."""
    return Cell(NONE if value is None else figure(value), value)


def setting_cell(value: Any) -> Cell:
    """The value of a parameter for a table; text is sorted as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(setting(value), float(value) if is_number else None)


def interval(low: float, high: float, digits: int = 4) -> str:
    """Such as ``0.0012 to 0.0340``."""
    return NONE if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"
