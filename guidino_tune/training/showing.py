"""A few validation cases with what the model makes of them, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from guidino_tune.inference import to_labels
from guidino_tune.normalisation import normalise
from guidino_tune.training.loop import TrainingRun


@dataclass(frozen=True, slots=True)
class ShownCase:
    """``image`` (S, S, 3) uint8, ``truth`` and ``prediction`` (S, S) of 0 and 1 or of labels, ``guide`` (h, w) in [0, 1] or ``None``."""

    id: str
    image: np.ndarray
    truth: np.ndarray
    guide: np.ndarray | None
    prediction: np.ndarray


@torch.no_grad()
def shown_cases(run: TrainingRun, number: int = 4) -> list[ShownCase]:
    """The first validation cases, always the same ones, so that trials can be compared by eye."""
    table = run.data.validation
    run.model.eval()
    shown = []
    for index in range(min(number, len(table))):
        image = table.image(index)
        with run.autocast:
            output = run.model(normalise(image, run.experiment.data.normalisation)[None].to(run.device))
        guide = None if output.guide is None else output.guide[0, 0].float().cpu().numpy()
        prediction = to_labels(output.logits[0].float())[0].cpu().numpy()
        shown.append(ShownCase(table.ids[index], np.array(image), np.array(table.mask(index)), guide, prediction))
    return shown
