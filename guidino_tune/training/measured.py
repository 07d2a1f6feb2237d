"""What the test cases said about a trained model, as it is kept beside the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidino_tune.training.folder import TrialFolder, write_text


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trained model reached on the test cases.

    Attributes:
        weights: SHA-256 of the weights: scores belong to them, and weights that were trained anew are measured anew.
        asked: The protocol that was asked for, and ``limit`` if only the first so many cases were wanted.
        protocol: The protocol used, in words; post-processing that was chosen on validation cases is decided here.
        cases: How many.
        scores: Means over the cases, as ``metrics.summarise`` names them.
        choice: Mean validation Dice without and with the largest component, where it was to be chosen.
    """

    weights: str
    asked: dict[str, Any]
    protocol: str
    cases: int
    scores: dict[str, float]
    choice: dict[str, float]

    @property
    def key(self) -> str:
        """Eight hexadecimal digits of what was asked."""
        return hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()[:8]


def read_measured(folder: TrialFolder) -> list[Measured]:
    """What was measured before, in the order in which it was last asked for; nothing where the file is missing or not whole."""
    try:
        return [Measured(**entry) for entry in json.loads(folder.test_file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def cases_file(folder: TrialFolder, measured: Measured) -> Path:
    """Where the scores of each case are (CSV); one file for each protocol."""
    return folder.path / f"test-{measured.key}.csv"


def remember(folder: TrialFolder, measured: Measured) -> None:
    """Puts a measurement last; those of other weights are forgotten, for nobody could say what they belong to."""
    known = read_measured(folder)
    for old in known:
        if old.weights != measured.weights and old.key != measured.key:
            cases_file(folder, old).unlink(missing_ok=True)
    kept = [old for old in known if old.weights == measured.weights and old.key != measured.key]
    write_text(folder.test_file, json.dumps([dataclasses.asdict(entry) for entry in (*kept, measured)], indent=1))
