"""What is known of a model's quality, for its card: means over cases, and intervals where the score of each case is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from guidino_tune.analysis.statistics import interval
from guidino_tune.config import Data
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError
from guidino_tune.metrics import NAMES
from guidino_tune.training.card import Scores
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.measured import Measured, Part, cases_file


def scores_of(folder: TrialFolder, data: Data, *, best: float, split_file: Path, measured: Measured | None, part: Part = "test") -> Scores:
    """Of one training: validation at its best epoch, and what was measured at the end.

    Args:
        folder: Of the training.
        data: The section ``data``, for the groups of its cases.
        best: Validation Dice at the best epoch.
        split_file: Its split.
        measured: On the test, or on the validation cases; ``None`` where nothing was.
        part: Of which ``measured`` speaks; that of validation takes the place of ``best``.
    """
    how = "one forward pass at training size, at the epoch that it chose"
    found: dict[str, Any] = {}
    if part != "validation" or measured is None:
        found["validation"] = {"cases": len(read_split(split_file).validation), "how": how, "scores": {"dice": {"mean": best}}}
    if measured is not None:
        found[part] = measured_scores(measured, cases_file(folder, measured, part), groups_of(data))
    return found


def groups_of(data: Data) -> Mapping[str, str]:
    """Group by case, as far as the data set is here."""
    try:
        return {case.id: case.group for case in find_cases(data).cases}
    except UserError:
        return {}


def measured_scores(measured: Measured, file: Path, groups: Mapping[str, str]) -> dict[str, Any]:
    """The means of a measurement, with intervals from the scores of its cases where their file is there.

    Args:
        measured: Its means.
        file: CSV with ``case`` and the scores.
        groups: Group by case; a case that is not in it is a group of its own.
    """
    return {"cases": measured.cases, "how": measured.protocol, "scores": with_intervals(measured.scores, file, groups)}


def with_intervals(means: Mapping[str, float], file: Path, groups: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """``mean`` of each score, and ``low`` and ``high`` of the usual ones."""
    found = {name: {"mean": float(value)} for name, value in means.items() if math.isfinite(value)}
    if not file.is_file():
        return found
    table = pd.read_csv(file, dtype={"case": str}, keep_default_na=False)
    group = table["case"].map(lambda case: groups.get(case, case)).to_numpy()
    for name in NAMES:
        if name in found and name in table:
            low, high = interval(table[name].to_numpy(float), group)
            if math.isfinite(low) and math.isfinite(high):
                found[name] |= {"low": low, "high": high}
    return found
