"""Small searches on demo images, and what is looked at afterwards; for ``tests/ray`` and ``tests/workflows``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.study.store import StudyFolder, load_study

SPACE: dict[str, Any] = {
    "experiment": {
        "data": {"kind": "demo", "image_size": 32, "max_train_cases": 8, "max_validation_cases": 4},
        "guide": {"kind": "dino", "backbone": "tiny", "weights": "random", "tokenbook": {"num_prototypes": 4}},
        "segmenter": {"kind": "unet", "base_width": 2},
        "training": {"epochs": 3, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "steps_per_epoch": "cases"},
    },
    "space": {
        "training.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "guide.lora.rank": {"choices": [0, 2]},
        "loss.lambda_guide": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
    },
    "first_trials": [{"training.lr": 1e-3, "guide.lora.rank": 0, "loss.lambda_guide": 0.1}],
    "study": {"name": "small", "trials": 4, "startup_trials": 2, "min_epochs": 1},
    "resources": {"concurrent": 2, "executor": "actor"},
}

STATE = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED", "RUNNING": "SCHEDULED"}
"""In MLflow, of a trial's state."""


def study_folder(home: Path, name: str) -> StudyFolder:
    return StudyFolder(home / "studies" / name)


def trials_of(home: Path, name: str) -> list[FrozenTrial]:
    """The trials of a study as they are stored now; none before it exists."""
    folder = study_folder(home, name)
    return load_study(folder).get_trials() if folder.definition.exists() else []


def slow_space(tmp_path: Path, demo: Path, *, epochs: int, trials: int, **study: Any) -> Path:
    """A space with trials long enough to be killed in the middle, and no guide: its libraries cost each process seconds."""
    space = {
        **SPACE,
        "space": {"training.lr": SPACE["space"]["training.lr"]},
        "first_trials": [{"training.lr": 1e-3}],
        "experiment": {
            **SPACE["experiment"],
            "guide": {"kind": "none"},
            "data": {**SPACE["experiment"]["data"], "root": str(demo)},
            "training": {**SPACE["experiment"]["training"], "epochs": epochs},
        },
        "study": {**SPACE["study"], "trials": trials, **study},
    }
    file = tmp_path / "slow.yaml"
    file.write_text(yaml.safe_dump(space))
    return file


def agrees_with_mlflow(home: Path, name: str, interrupted: bool = False) -> None:
    """Trial by trial: one run each, its state, its epochs, and their values."""
    from guidino_tune.tracking.client import connect

    client = connect(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("guidino_tune")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [r for r in runs if r.data.tags["guidino.kind"] == "study" and r.data.tags["guidino.study"] == name]
    assert len(parents) == 1
    assert parents[0].info.status == ("KILLED" if interrupted else "FINISHED")
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    trials = [t for t in trials_of(home, name) if t.state != TrialState.WAITING]
    assert sorted(int(r.data.tags["guidino.trial"]) for r in children) == [t.number for t in trials]
    for trial in trials:
        run = next(r for r in children if int(r.data.tags["guidino.trial"]) == trial.number)
        assert run.info.status == STATE[trial.state.name]
        values = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val_dice")}
        if trial.state == TrialState.RUNNING:
            # Its last epoch may be saved and yet untold: MLflow knows it from the trial's file, the study hears of it again.
            history = study_folder(home, name).trial(trial.number).history()
            saved = {r.epoch: r.metrics["val_dice"] for r in history if "val_dice" in r.metrics}
            assert trial.intermediate_values.items() <= values.items() <= saved.items()
            continue
        assert values == pytest.approx(trial.intermediate_values, abs=1e-12)
        assert len(client.get_metric_history(run.info.run_id, "val_dice")) == len(values)
        assert float(run.data.params["training.lr"]) == pytest.approx(trial.params["training.lr"], rel=1e-9)


def finished(home: Path, name: str) -> dict[int, tuple[Any, ...]]:
    """All that must never change of trials that have ended, with their history files."""
    found = {}
    for t in trials_of(home, name):
        if t.state.is_finished():
            history = study_folder(home, name).trial(t.number).history_file
            text = history.read_text() if history.exists() else None
            found[t.number] = (t.state, t.datetime_start, t.datetime_complete, t.intermediate_values, t.params, text)
    return found


def running(home: Path, name: str) -> list[int]:
    """Trials that run and have told at least one epoch."""
    return [t.number for t in trials_of(home, name) if t.state == TrialState.RUNNING and t.intermediate_values]


def check_history(home: Path, name: str, epochs: int) -> None:
    """Every ended trial has each of its epochs once, in its file as in the study."""
    for trial in trials_of(home, name):
        records = study_folder(home, name).trial(trial.number).history()
        assert [r.epoch for r in records] == list(range(1, len(records) + 1))
        assert {r.epoch: r.metrics["val_dice"] for r in records} == trial.intermediate_values
        if trial.state == TrialState.COMPLETE:
            assert len(records) == epochs
            assert trial.value == max(trial.intermediate_values.values())
