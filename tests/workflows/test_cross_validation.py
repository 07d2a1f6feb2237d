"""Cross-validation from the command to the registered ensemble: every case scored once by a model that has not seen it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from small_searches import SPACE

from guidino_tune.data.openings import openings
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import read_split
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.retrain import main as retrain
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.measured import read_measured
from guidino_tune.training.model_folder import load_model
from guidino_tune.workflows.cross_validate import CrossValidated
from guidino_tune.workflows.retrain import retrain_model


def test_each_case_is_scored_once_and_the_ensemble_is_tested_once(
    home: Path, tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**SPACE["experiment"], "data": {**SPACE["experiment"]["data"], "root": str(demo)}}
    values["guide"] = {"kind": "none"}
    values["training"] = {**values["training"], "epochs": 1}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    command = [str(tmp_path / "mine.yaml"), "--folds", "2"]
    assert retrain(command) == 0
    printed = capsys.readouterr().out
    assert "40 cases are published as validation: with data.folds they are divided" in printed
    folder = home / "retrained" / "mine-2-folds"
    splits = [read_split(folder / f"fold-{number}" / "split.json") for number in range(2)]
    listing = find_cases(load_model(folder / "model")[1].data)
    tested = {name for name, part in listing.published.items() if part == "test"}
    assert {*splits[0].validation, *splits[1].validation} == {case.id for case in listing.cases} - tested
    assert not set(splits[0].validation) & set(splits[1].validation)
    with (folder / "out-of-fold.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["case"] for row in rows) == sorted({*splits[0].validation, *splits[1].validation})
    assert all(row["case"] in splits[int(row["fold"])].validation for row in rows)
    provenance = yaml.safe_load((folder / "model" / "provenance.yaml").read_text())
    assert provenance["out_of_fold"]["dice"] == pytest.approx(sum(float(row["dice"]) for row in rows) / len(rows))
    (measured,) = read_measured(TrialFolder(folder / "ensemble"))
    assert (measured.cases, provenance["test"]) == (40, pytest.approx(measured.scores))
    assert [opening["reason"] for opening in openings(folder / "split.json")] == ["final measurement of mine-2-folds: ensemble"]
    model, _ = load_model(folder / "model")
    assert isinstance(model, Ensemble)
    assert len(model.members) == 2
    assert read_split(folder / "model" / "member-1" / "split.json") == splits[1]

    # The same again, from Python: nothing is printed, trained, opened or registered a second time.
    files = {path: path.stat().st_mtime_ns for path in (*folder.rglob("history.jsonl"), *folder.rglob("best/*"))}
    again = retrain_model(command[0], folds=2)
    assert isinstance(again, CrossValidated)
    assert (again.model, again.out_of_fold, [m.fold for m in again.models]) == (folder / "model", provenance["out_of_fold"], [0, 1])
    assert again.tested == measured
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(openings(folder / "split.json")) == 1
    from guidino_tune.tracking.client import connect

    client = connect(f"sqlite:///{home}/mlflow.db")
    (version,) = client.search_model_versions("name='guidino-tune-mine-2-folds'")
    assert client.get_run(version.run_id).data.metrics["out_of_fold_dice"] == pytest.approx(provenance["out_of_fold"]["dice"])
    assert retrain([*command[:1], "--folds", "1"]) == 2
