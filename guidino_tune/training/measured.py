"""What the test or the validation cases said about a trained model, as it is kept beside the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guidino_tune.training.folder import TrialFolder, write_text

Part = Literal["test", "validation"]
"""Of the split."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trained model reached on the test or the validation cases.

    Attributes:
        weights: SHA-256 of the weights: scores belong to them, and weights that were trained anew are measured anew.
        asked: The protocol that was asked for, and ``limit`` if only the first so many cases were wanted.
        protocol: The protocol used, in words; post-processing that was chosen on validation cases is decided here.
        cases: How many.
        scores: Means over the cases, as ``metrics.summarise`` names them, and ``hd95_percent`` of the diagonal, which measurements of
            earlier versions lack.
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
        return asked_key(self.asked)


def asked_key(asked: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a protocol with its ``limit``, as ``Measured.asked`` has them."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def read_measured(folder: TrialFolder, part: Part = "test") -> list[Measured]:
    """What was measured before, in the order in which it was last asked for; nothing where the file is missing or not whole."""
    try:
        return [Measured(**entry) for entry in json.loads(_file(folder, part).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def cases_file(folder: TrialFolder, measured: Measured, part: Part = "test") -> Path:
    """Where the scores of each case are (CSV); one file for each protocol."""
    return folder.path / f"{part}-{measured.key}.csv"


def remember(folder: TrialFolder, measured: Measured, part: Part = "test") -> None:
    """Puts a measurement last. Those of other weights are dropped: nobody could say what they belong to."""
    known = read_measured(folder, part)
    for old in known:
        if old.weights != measured.weights and old.key != measured.key:
            cases_file(folder, old, part).unlink(missing_ok=True)
    kept = [old for old in known if old.weights == measured.weights and old.key != measured.key]
    write_text(_file(folder, part), json.dumps([dataclasses.asdict(entry) for entry in (*kept, measured)], indent=1))


def _file(folder: TrialFolder, part: Part) -> Path:
    return folder.test_file if part == "test" else folder.path / f"{part}-scores.json"
