"""What somebody who looks around has found: one line for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about one thing.

    Attributes:
        mark: ``ok``; ``note`` for what is worth knowing; ``missing`` for what stops a search.
        name: What was looked at.
        found: What is there.
        todo: What to do about it, if anything.
    """

    mark: Literal["ok", "note", "missing"]
    name: str
    found: str
    todo: str = ""
