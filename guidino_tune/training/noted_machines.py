"""What ``machine`` noted beside a trial's results, for those who only read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "environment.json"
"""In a trial's folder: a list of what ``machine.describe`` gave, each with the epochs that were finished before it, as ``after_epoch``."""


def read_machines(folder: Path) -> list[dict[str, Any]]:
    """The noted machines, oldest first; empty where there are none, or where the list cannot be read."""
    try:
        found: list[dict[str, Any]] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found
