"""What the test cases said about a trained model, as it is kept beside the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from guidino_tune.training.folder import TrialFolder


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trained model reached on the test cases.

    Attributes:
        weights: SHA-256 of the weights: scores belong to them, and weights that were trained anew are measured anew.
        asked: The protocol that was asked for.
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


def read_measured(folder: TrialFolder) -> Measured | None:
    """What was measured before; ``None`` when nothing was, or the file is not whole."""
    try:
        return Measured(**json.loads(folder.test_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
