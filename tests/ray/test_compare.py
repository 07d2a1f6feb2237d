"""Finalists of a study and its default: killed, continued, told apart, tested once; a second look at the test cases is told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from conftest import Command
from in_process import without_ray
from small_searches import SPACE, study_folder

from guidino_tune import paths
from guidino_tune.compare import main as compare
from guidino_tune.config import Experiment
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.splits import read_split
from guidino_tune.space.space import read_space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.store import open_study
from guidino_tune.training.folder import TrialFolder
from guidino_tune.workflows.compare import compare_study

Start = Callable[..., Command]


def test_finalists_are_compared_once_and_the_test_is_opened_once(
    home: Path, demo: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Settings with which so small a network learns in four epochs: without scores there is nothing to compare.
    experiment = {**SPACE["experiment"], "loss": {"bce_weight": 0.0}, "guide": {"kind": "none"}}
    experiment["data"] = {**experiment["data"], "root": str(demo), "max_train_cases": 32}
    first = [{"training.lr": rate} for rate in (0.02, 0.005)]
    space = {
        **SPACE,
        "experiment": experiment,
        "space": {"training.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
        "first_trials": first,
        "study": {**SPACE["study"], "trials": 2, "pruner": "none"},
    }
    searched, study = read_space(space, source="small"), study_folder(home, "small")
    open_for_search(searched.base.data, split_file=study.split)
    opened = open_study(searched, study)
    for dice in (0.7, 0.6):  # what a search finds is not looked at again
        trial = opened.ask()
        suggest(searched, trial)
        trial.report(dice, 3)
        opened.tell(trial, dice)

    # Killed between two trainings; the same command goes on, and trains nothing twice.
    words = ["small", "--top", "2", "--seeds", "2", "--epochs", "4"]
    command = start("guidino_tune.compare", *words, "--home", str(home))
    command.until(lambda: len(list(study.path.glob("compare/*/seed-*/best"))) >= 1)
    os.kill(command.process.pid, signal.SIGKILL)
    command.wait()
    assert not list(study.reports.glob("compare*"))
    done = {f.parent: f.read_text().splitlines() for f in study.path.glob("compare/*/seed-*/history.jsonl")}
    assert compare(words) == 0
    output = capsys.readouterr().out
    runs = {folder: TrialFolder(folder) for folder in sorted(study.path.glob("compare/*/seed-*"))}
    # The first trial is the default: two configurations, with two seeds each.
    assert len(runs) == 4
    assert {Experiment.from_yaml(folder / "experiment.yaml").training.seed for folder in runs} == {0, 1}
    assert all([r.epoch for r in run.history()] == [1, 2, 3, 4] for run in runs.values())
    for folder, lines in done.items():  # what was saved is not trained again
        assert runs[folder].history_file.read_text().splitlines()[: max(0, len(lines) - 1)] == lines[:-1]

    # The page: the winner is the best mean of the scores in the file, and it and the default are tested, once.
    page, table = (
        (study.reports / "compare-4-epochs.md").read_text(),
        pd.read_csv(study.reports / "compare-4-epochs.csv", dtype={"case": str}),
    )
    validation, test = (table[table["part"] == part] for part in ("validation", "test"))
    means = validation.groupby("configuration")["dice"].mean()
    winner = str(means.idxmax())
    names = {f"trial {n}{' (default)' if n == 0 else ''}" for n in (0, 1)}
    assert set(means.index) == names
    assert f"Winner on validation: {winner}" in page
    assert f"Winner on validation: {winner}" in output
    split = read_split(study.split)
    assert set(validation["case"]) == set(split.validation)
    assert validation["dice"].max() > 0.1
    assert set(test["case"]) == set(split.test)
    assert set(test["configuration"]) == {winner, "trial 0 (default)"}
    assert len(validation) == 4 * len(split.validation)
    openings = study.path / "test-openings.jsonl"
    assert len(openings.read_text().splitlines()) == 1
    assert "what it is held against" in json.loads(openings.read_text())["reason"]
    assert "opened once, as far" in page
    assert (study.reports / "compare-4-epochs.png").stat().st_size > 5000

    # The model is the winner's seed that is best on validation.
    provenance = yaml.safe_load((study.path / "compare" / "model" / "provenance.yaml").read_text())
    by_seed = validation[validation["configuration"] == winner].groupby("seed")["dice"].mean()
    assert provenance["configuration"] == winner
    assert provenance["chosen_seed"] == by_seed.idxmax()
    assert provenance["validation_dice"] == pytest.approx(by_seed.max(), abs=1e-5)
    assert "guidino-tune-small-compared" in output

    # Another protocol looks at the test cases again: recorded, and told on the console and on the page.
    before = {f: f.stat().st_mtime_ns for f in study.path.rglob("compare/*/seed-*/history.jsonl")}
    without_ray(monkeypatch)  # whose part was seen
    assert compare([*words, "--hd95", "pooled"]) == 0
    assert "the test cases were opened once before" in capsys.readouterr().out
    assert len(openings.read_text().splitlines()) == 2
    (again,) = study.reports.glob("compare-4-epochs-*.md")  # a page of its own: the first one stays
    assert "opened 2 times, as far" in again.read_text()

    # The first once more, from Python: nothing is printed, trained, measured or opened.
    scores = (study.reports / "compare-4-epochs.csv").read_text()
    found = compare_study(SimpleNamespace(folder=paths.studies() / "small"), top=2, seeds=2, epochs=4)
    assert capsys.readouterr().out == ""
    assert {f: f.stat().st_mtime_ns for f in study.path.rglob("compare/*/seed-*/history.jsonl")} == before
    assert len(openings.read_text().splitlines()) == 2
    assert (found.page, found.page.with_suffix(".csv").read_text()) == (study.reports / "compare-4-epochs.md", scores)
    assert (found.winner, found.model, found.left_out) == (winner, study.path / "compare" / "model", {})
    assert all(line in output for line in found.answers)

    from guidino_tune.tracking.client import connect

    client = connect(f"sqlite:///{home}/mlflow.db")
    stored = client.search_runs([client.get_experiment_by_name("guidino_tune").experiment_id])
    (parent,) = [run for run in stored if run.data.tags.get("guidino.kind") == "study"]
    assert {f"compare-4-epochs.{kind}" for kind in ("md", "csv", "png")} <= {a.path for a in client.list_artifacts(parent.info.run_id)}
