"""From the study to a tested and registered model: each step once, however often the commands run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console
from small_searches import SPACE, study_folder, trials_of

from guidino_tune.config import Experiment
from guidino_tune.data.splits import read_split
from guidino_tune.evaluate import main as evaluate
from guidino_tune.export import main as export
from guidino_tune.retrain import main as retrain
from guidino_tune.search import main as search
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.measured import read_measured
from guidino_tune.training.model_folder import load_model
from guidino_tune.workflows.retrain import Retrained, retrain_model, take_split


def test_export_retrain_test_evaluate(
    home: Path, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A search, from which the best and one given trial are exported.
    space = {
        **SPACE,
        "experiment": {
            **SPACE["experiment"],
            "data": {**SPACE["experiment"]["data"], "root": str(demo)},
            "training": {**SPACE["experiment"]["training"], "epochs": 1},
        },
        "study": {**SPACE["study"], "trials": 2, "pruner": "none"},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(space))
    assert search([str(tmp_path / "small.yaml")]) == 0
    monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")
    best, given = tmp_path / "best.yaml", tmp_path / "trial1.yaml"
    assert export(["small", "--output", str(best)]) == 0
    assert export(["small", "--output", str(best)]) == 0  # the same again is no conflict
    assert export(["small", "--trial", "1", "--output", str(given)]) == 0
    assert export(["small", "--trial", "1", "--output", str(best)]) in (0, 2)
    assert export(["small", "--trial", "9", "--output", "-"]) == 2
    assert "trials: 0 to 1" in capsys.readouterr().err
    trials = trials_of(home, "small")
    winner = max(trials, key=lambda t: (t.value, -t.number))
    described = yaml.safe_load(best.read_text())
    assert described["provenance"]["trial"] == winner.number
    assert described["provenance"]["val_dice"] == winner.value
    assert best.read_text() == study_folder(home, "small").best.read_text()
    assert Experiment.from_yaml(given).training.lr == trials[1].params["training.lr"]
    assert yaml.safe_load(given.read_text())["provenance"]["trial"] == 1

    # Two seeds, the sealed test once.
    command = [str(best), "--seeds", "2", "--epochs", "2"]
    assert retrain(command) == 0
    folder = home / "retrained" / f"small-{winner.number}"
    openings = folder / "test-openings.jsonl"
    assert len(openings.read_text().splitlines()) == 1
    seeds = {n: TrialFolder(folder / f"seed-{n}") for n in (0, 1)}
    ((first,), (second,)) = (read_measured(seeds[n]) for n in (0, 1))
    results = (first, second)
    assert [len(seeds[n].history()) for n in (0, 1)] == [2, 2]
    validation = {n: max(r.metrics["val_dice"] for r in seeds[n].history()) for n in (0, 1)}
    chosen = max((0, 1), key=lambda n: (validation[n], -n))
    provenance = yaml.safe_load((folder / "model" / "provenance.yaml").read_text())
    assert (provenance["chosen_seed"], provenance["validation_dice"]) == (chosen, validation[chosen])
    assert provenance["test"] == pytest.approx(results[chosen].scores)
    assert (folder / "model" / "weights.safetensors").read_bytes() == (seeds[chosen].best / "weights.safetensors").read_bytes()

    # Measured in another way: MLflow hears of the new numbers, and the first way is not forgotten.
    from guidino_tune.tracking.client import connect

    def versions() -> int:
        client = connect(f"sqlite:///{home}/mlflow.db")
        return len(client.search_model_versions(f"name='guidino-tune-small-{winner.number}'"))

    assert versions() == 1
    name = f"guidino-tune-small-{winner.number}"
    assert str(connect(f"sqlite:///{home}/mlflow.db").get_model_version_by_alias(name, "champion").version) == "1"
    card = (folder / "model" / "README.md").read_text()
    assert f"| Sealed test | {results[chosen].cases} | {results[chosen].scores['dice']:.4f} [" in card
    assert f"| {validation[chosen]:.4f} |" in card
    files = {p: p.stat().st_mtime_ns for p in folder.rglob("history.jsonl")}
    assert retrain([*command, "--hd95", "pooled", "--largest-component", "validation"]) == 0
    assert [len(read_measured(run)) for run in seeds.values()] == [2, 2]
    assert all("pooled" in read_measured(run)[-1].protocol for run in seeds.values())
    assert set(read_measured(seeds[0])[-1].choice) == {"never", "always"}
    assert (versions(), len(openings.read_text().splitlines())) == (2, 2)

    # The first once more, from Python: nothing is printed, and nothing trained, opened or registered a second time.
    assert retrain([*command, "--set", "training.lr=0.5"]) == 2  # another experiment under this name
    capsys.readouterr()
    again = retrain_model(SimpleNamespace(experiment=Experiment.from_yaml(best), provenance=described["provenance"]), seeds=2, epochs=2)
    assert isinstance(again, Retrained)
    assert capsys.readouterr().out == ""
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("history.jsonl")} == files
    assert (versions(), len(openings.read_text().splitlines())) == (2, 2)
    assert (again.model, again.chosen.seed) == (folder / "model", chosen)
    assert [(r.seed, r.validation, r.test) for r in again.seeds] == [(n, validation[n], results[n].scores) for n in (0, 1)]

    # The model: its test scores are those that were measured.
    model = folder / "model"
    assert evaluate([str(model), "--split", "test", "--reason", "a test", "--output", str(tmp_path / "scores.csv")]) == 0
    with (tmp_path / "scores.csv").open(newline="") as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file)]
    assert len(dice) == 40
    assert sum(dice) / len(dice) == pytest.approx(results[chosen].scores["dice"], abs=1e-5)
    assert len(openings.read_text().splitlines()) == 3
    assert load_model(model)[1].training.seed == chosen


def test_the_split_of_the_search_is_taken_over_and_no_other_accepted(home: Path, tmp_path: Path, demo: Path) -> None:
    """The test cases of another split may have been seen by the search."""
    data = {**SPACE["experiment"]["data"], "root": str(demo)}
    split = json.loads(_split(tmp_path, demo).read_text())
    split["validation"], split["test"] = split["test"], split["validation"]  # as a person may have divided them by hand
    other = tmp_path / "other.json"
    other.write_text(json.dumps(split))
    fresh = tmp_path / "fresh" / "split.json"
    take_split(
        {"split": str(other)},
        fresh,
        Experiment.from_dict(SPACE["experiment"] | {"data": data}).data,
        Console(),
        file=tmp_path / "best.yaml",
    )
    assert read_split(fresh) == read_split(other)
    kept = home / "retrained" / "best" / "split.json"
    kept.parent.mkdir(parents=True)
    kept.write_text((tmp_path / "split.json").read_text())
    export_file = {"provenance": {"split": str(other)}, "experiment": {**SPACE["experiment"], "data": data}}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(export_file))
    assert retrain([str(tmp_path / "best.yaml"), "--seeds", "1", "--epochs", "1"]) == 2
    assert not (home / "retrained" / "best" / "test-openings.jsonl").exists()


def _split(tmp_path: Path, demo: Path) -> Path:
    from guidino_tune.config import Data
    from guidino_tune.data.opening import open_for_search

    file = tmp_path / "split.json"
    open_for_search(Data(kind="demo", root=str(demo), image_size=32, max_train_cases=2, max_validation_cases=1), split_file=file)
    return file
