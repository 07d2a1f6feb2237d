"""A search that is killed, stopped and extended: nothing is run twice, nothing is lost, and MLflow says the same as the study."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SPACE, Command, study_folder, trials_of
from optuna.trial import TrialState

from guidino_tune.search import main as search

Start = Callable[..., Command]
STATE = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED", "RUNNING": "SCHEDULED"}


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


def check_history(home: Path, name: str, epochs: int) -> None:
    """Every ended trial has each of its epochs once, in its file as in the study."""
    for trial in trials_of(home, name):
        records = study_folder(home, name).trial(trial.number).history()
        assert [r.epoch for r in records] == list(range(1, len(records) + 1))
        assert {r.epoch: r.metrics["val_dice"] for r in records} == trial.intermediate_values
        if trial.state == TrialState.COMPLETE:
            assert len(records) == epochs
            assert trial.value == max(trial.intermediate_values.values())


def test_a_killed_search_goes_on_and_is_extended(home: Path, tmp_path: Path, demo: Path, start: Start) -> None:
    space = slow_space(tmp_path, demo, epochs=9, trials=5, min_epochs=3)
    command = ("guidino_tune.search", str(space))
    first = start(*command)
    first.until(lambda: bool(finished(home, "small")) and bool(running(home, "small")))
    os.kill(first.process.pid, signal.SIGKILL)  # the driver only
    first.process.wait()
    # A trial's process may write its last epoch after the driver's death; that epoch is told again.
    before, left = finished(home, "small"), running(home, "small")
    assert before
    assert left
    params = {t.number: t.params for t in trials_of(home, "small")}

    assert search([str(space)]) == 0
    after = finished(home, "small")
    assert {n: after[n] for n in before} == before
    trials = trials_of(home, "small")
    assert len(trials) == 5
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    for number, drawn in params.items():  # the driver may have died between two parameters of a trial
        assert trials[number].params.items() >= drawn.items()
    check_history(home, "small", 9)
    agrees_with_mlflow(home, "small")
    assert (study_folder(home, "small").best).exists()

    assert search([str(space), "--trials", "7"]) == 0
    extended = finished(home, "small")
    assert {n: extended[n] for n in after} == after
    assert sorted(extended) == list(range(7))
    check_history(home, "small", 9)
    agrees_with_mlflow(home, "small")
    rates = [t.params["training.lr"] for t in trials_of(home, "small")]
    assert len(set(rates)) == 7


def test_a_time_budget_leaves_trials_to_the_next_run(home: Path, tmp_path: Path, demo: Path) -> None:
    space = slow_space(tmp_path, demo, epochs=150, trials=2, pruner="none")
    assert search([str(space), "--time-budget", "6"]) == 0
    states = [t.state for t in trials_of(home, "small")]
    assert TrialState.RUNNING in states
    assert not {TrialState.PRUNED, TrialState.FAIL} & set(states)
    agrees_with_mlflow(home, "small", interrupted=True)


def test_a_trial_that_diverges_is_one_failure_among_others(home: Path, tmp_path: Path, demo: Path) -> None:
    """In the process of the test, joined to the cluster that is there."""
    space = yaml.safe_load(slow_space(tmp_path, demo, epochs=3, trials=3, pruner="none").read_text())
    space["experiment"]["training"]["grad_clip"] = None
    space["space"] = {"training.lr": {"type": "float", "low": 1e-4, "high": 1e38, "log": True}}
    space["first_trials"] = [{"training.lr": 1e38}, {"training.lr": 1e-3}, {"training.lr": 2e-3}]
    file = tmp_path / "diverging.yaml"
    file.write_text(yaml.safe_dump(space))
    assert search([str(file)]) == 0
    states = [t.state for t in trials_of(home, "small")]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    failed = trials_of(home, "small")[0]
    assert failed.user_attrs["failure"] == "diverged"
    assert "not finite" in failed.user_attrs["message"]
    agrees_with_mlflow(home, "small")
