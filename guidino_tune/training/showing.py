"""A few validation cases with what the model made of them, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guidino_tune.framing import viewable
from guidino_tune.training.case_scores import Shown
from guidino_tune.training.loop import TrainingRun


@dataclass(frozen=True, slots=True)
class ShownCase:
    """``image`` (S, S, 3) uint8, ``truth`` and ``prediction`` (S, S) of 0 and 1 or of labels, ``guide`` (h, w) in [0, 1] or ``None``."""

    id: str
    image: np.ndarray
    truth: np.ndarray
    guide: np.ndarray | None
    prediction: np.ndarray


def shown_cases(run: TrainingRun, shown: Sequence[Shown]) -> list[ShownCase]:
    """Validation cases with the predictions that ``run.shown``, ``run.best_shown`` or a validation kept; nothing is computed for it."""
    table = run.data.validation
    places = [(table.positions[case.id], case) for case in shown]
    return [ShownCase(s.id, np.array(viewable(table.image(i))), np.array(table.mask(i)), s.guide, s.prediction) for i, s in places]
