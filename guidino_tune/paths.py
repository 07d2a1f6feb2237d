"""Where things are kept: one home folder for studies, data sets, caches and the tracking database."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``$GUIDINO_TUNE_HOME``, or ``~/guidino_tune``: absolute, so that a job that Ray runs elsewhere finds the same place."""
    return Path(os.environ.get("GUIDINO_TUNE_HOME") or "~/guidino_tune").expanduser().absolute()


def datasets() -> Path:
    """Where ``prepare`` puts data sets, one folder per kind."""
    return home() / "datasets"


def cache() -> Path:
    """Decoded cases; may be deleted at any time."""
    return home() / "cache"


def studies() -> Path:
    """One folder per study."""
    return home() / "studies"
