"""What one validation says of single cases: their scores, and the predictions that people look at."""

from __future__ import annotations

import bisect
import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from guidino_tune.config import Data
from guidino_tune.metrics import mean_values, overlap_scores, score_case, values, with_classes
from guidino_tune.training.folder import write_text

SHOWN = 4
"""Validation cases whose predictions are kept for people to look at."""

ENDS = 3
"""Cases with the lowest and with the highest Dice whose predictions are kept as well."""

FILE = "validation-cases.csv"
"""In a trial's folder: the scores of every validation case in the best epoch, and its share of foreground."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A validation case's ``prediction`` (S, S) of 0 and 1 or of labels, and ``guide`` (h, w) in [0, 1], or ``None`` without a gate."""

    id: str
    prediction: np.ndarray
    guide: np.ndarray | None


def scores_of(prediction: np.ndarray, truth: np.ndarray, data: Data, *, distances: bool) -> dict[str, float]:
    """Dice and IoU of a case, (S, S) of labels each; with ``distances``, which take longer than the network, also HD95 and ASD."""
    if distances:
        return values(score_case(prediction, truth, num_classes=data.num_classes, ignore=data.has_ignored))
    return overlap_scores(prediction, truth, num_classes=data.num_classes, ignore=data.has_ignored)


@dataclass(slots=True)
class Validated:
    """One validation: ``scores`` of each case by its id, and the ``worst`` and ``best`` cases that this process saw, from the worst up."""

    scores: dict[str, Mapping[str, float]] = field(default_factory=dict)
    worst: list[tuple[float, Shown]] = field(default_factory=list)
    best: list[tuple[float, Shown]] = field(default_factory=list)

    def add(self, id: str, scores: Mapping[str, float], prediction: np.ndarray, guide: np.ndarray | None) -> None:
        """Takes a case in; its arrays are kept only while it is among the worst or the best."""
        self.scores[id] = scores
        dice = scores["dice"]
        for cases, surplus in ((self.worst, -1), (self.best, 0)):
            at = bisect.bisect_right(cases, dice, key=lambda case: case[0])
            if len(cases) == ENDS and at == (ENDS if surplus else 0):
                continue
            # A copy: what is given is a part of its whole batch.
            cases.insert(at, (dice, Shown(id, prediction.copy(), None if guide is None else guide.copy())))
            if len(cases) > ENDS:
                del cases[surplus]

    def means(self, data: Data) -> dict[str, float]:
        """Of each score over all cases; of several classes also of each class, by its name."""
        return with_classes(mean_values([dict(scores) for scores in self.scores.values()]), data.class_keys)

    @property
    def ends(self) -> list[Shown]:
        """The worst cases and then the best, no case twice."""
        return list({case.id: case for _, case in (*self.worst, *self.best)}.values())


def write_cases(file: Path, epoch: int, scores: Mapping[str, Mapping[str, float]], foreground: Mapping[str, float]) -> None:
    """Writes one line for each case (CSV): its id, the epoch, its scores, and the share of its pixels that are foreground."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(next(iter(scores.values()), {}))
    writer.writerow(["case", "epoch", "foreground", *names])
    for case, found in scores.items():
        writer.writerow([case, epoch, f"{foreground[case]:.6g}", *(f"{found[name]:.6g}" for name in names)])
    write_text(file, text.getvalue())


def read_cases(file: Path) -> dict[str, dict[str, float]]:
    """By case what ``write_cases`` wrote; empty where there is no such file, or where it cannot be read or has no Dice."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            found = dict(_rows(csv.DictReader(lines)))
        return found if all("dice" in scores for scores in found.values()) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _rows(reader: csv.DictReader[str]) -> Iterator[tuple[str, dict[str, float]]]:
    for row in reader:
        case = row.pop("case")
        yield case, {name: float(value) for name, value in row.items()}
