"""Scores of all cases, each by the model that has not seen it, in one table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from training_helpers import make_experiment

from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.measured import Measured, cases_file
from guidino_tune.workflows.cross_validate import FoldModel, _write_out_of_fold
from guidino_tune.workflows.listed import Training


def test_folds_that_an_earlier_version_measured_join_those_of_this_one(tmp_path: Path) -> None:
    """It called the scores of a class by its number."""
    models = []
    for fold, column in enumerate(("dice_class_1", "dice_nucleus")):
        folder = TrialFolder(tmp_path / str(fold))
        folder.path.mkdir()
        measured = Measured("weights", {}, "native", 1, {"dice": 0.5}, {})
        cases_file(folder, measured, "validation").write_text(f"case,dice,{column},protocol\nc{fold},0.{4 + fold},0.1,native\n")
        models.append(FoldModel(fold, 0, Training("t", make_experiment(), folder, tmp_path / "split.json"), measured))
    means = _write_out_of_fold(models, tmp_path / "out-of-fold.csv")
    assert means == {"dice": pytest.approx(0.45)}
    with (tmp_path / "out-of-fold.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["fold"], row["dice"]) for row in rows] == [("c0", "0", "0.4"), ("c1", "1", "0.5")]
