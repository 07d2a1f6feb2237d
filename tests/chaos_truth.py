"""What must be true of a study, however often something of it was killed: it, its folders and MLflow agree, and nothing is doubled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import TrialState
from small_searches import study_folder, trials_of

from guidino_tune.study.promotion import DECISION

TIMES = ("epoch_seconds", "images_per_second")
"""Metrics that differ from run to run."""

Saved = dict[tuple[int, int], dict[str, Any]]
"""Records by trial and epoch."""


def outcome(home: Path, name: str) -> dict[str, Any]:
    """Everything that two runs of the same study have in common, to the last bit: a flat mapping, for one to be compared with another."""
    folder = study_folder(home, name)
    found: dict[str, Any] = {"best": yaml.safe_load(folder.best.read_text())["provenance"]["trial"] if folder.best.exists() else None}
    for trial in trials_of(home, name):
        place, key = folder.trial(trial.number), f"trial {trial.number}"
        found[f"{key}, state"] = trial.state.name
        found[f"{key}, parameters"] = trial.params
        found[f"{key}, value"] = trial.value
        found[f"{key}, values"] = trial.intermediate_values
        found[f"{key}, notes"] = {k: trial.user_attrs.get(k) for k in ("name", "hash", "epochs", "failure")}
        for record in place.history():
            found[f"{key}, epoch {record.epoch}"] = {k: v for k, v in record.metrics.items() if k not in TIMES}
        weights = place.best / "weights.safetensors"
        found[f"{key}, best weights"] = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None
    return found


def differences(reference: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is not as in the undisturbed study; entries that are not a number count as equal to each other."""
    keys = [k for k in {**reference, **found} if repr(reference.get(k, "absent")) != repr(found.get(k, "absent"))]
    return [f"{k}: {found.get(k, 'absent')} instead of {reference.get(k, 'absent')}" for k in keys]


def decision_problems(home: Path, name: str) -> list[str]:
    """Trials that were stopped although no rung had said so, or although one had let them go on."""
    return [
        f"trial {trial.number} was stopped after epoch {trial.last_step}, where its decision was {trial.user_attrs.get(DECISION)}"
        for trial in trials_of(home, name)
        if trial.state == TrialState.PRUNED and trial.user_attrs.get(DECISION) != [trial.last_step, True]
    ]


def study_problems(home: Path, name: str) -> list[str]:
    """Where a finished study and the folders of its trials disagree."""
    problems = []
    for trial in trials_of(home, name):
        place = study_folder(home, name).trial(trial.number)
        lines = [json.loads(line) for line in place.history_file.read_text().splitlines()] if place.history_file.exists() else []
        epochs = [line["epoch"] for line in lines]
        if epochs != list(range(1, len(epochs) + 1)):
            problems.append(f"trial {trial.number} has the epochs {epochs}")
        told = {line["epoch"]: line["metrics"]["val_dice"] for line in lines if "val_dice" in line["metrics"]}
        if told != trial.intermediate_values:
            problems.append(f"trial {trial.number}: its folder has {told}, the study {trial.intermediate_values}")
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            problems.append(f"trial {trial.number} is left {trial.state.name.lower()}")
        if place.checkpoints():
            problems.append(f"trial {trial.number} has kept its checkpoints")
    return problems


def mlflow_problems(uri: str, home: Path, name: str) -> list[str]:
    """Where MLflow and a finished study disagree: one parent, one run for each trial, each epoch once, with its values."""
    from guidino_tune.tracking.client import connect

    client = connect(uri)
    experiment = client.get_experiment_by_name("guidino_tune")
    runs = (
        [] if experiment is None else client.search_runs([experiment.experiment_id], f"tags.`guidino.study` = '{name}'", max_results=1000)
    )
    parents = [run for run in runs if run.data.tags["guidino.kind"] == "study"]
    problems = [] if [run.info.status for run in parents] == ["FINISHED"] else [f"parent runs: {[run.info.status for run in parents]}"]
    children = sorted((run for run in runs if run not in parents), key=lambda run: int(run.data.tags["guidino.trial"]))
    trials = trials_of(home, name)
    numbers = [int(run.data.tags["guidino.trial"]) for run in children]
    if numbers != [trial.number for trial in trials]:
        return [*problems, f"MLflow has runs of the trials {numbers}, the study has {len(trials)} trials"]
    for run, trial in zip(children, trials, strict=True):
        key = f"MLflow, trial {trial.number}"
        wanted = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
        if run.info.status != wanted or {run.data.tags.get("mlflow.parentRunId")} != {parent.info.run_id for parent in parents}:
            problems.append(f"{key}: {run.info.status} below {run.data.tags.get('mlflow.parentRunId')}")
        problems += [
            f"{key}: {path} is {run.data.params.get(path)}, not {value}"
            for path, value in trial.params.items()
            if yaml.safe_load(run.data.params.get(path, "")) != value
        ]
        history = study_folder(home, name).trial(trial.number).history()
        for metric in {metric for record in history for metric in record.metrics}:
            stored = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))
            saved = [(record.epoch, record.metrics[metric]) for record in history if metric in record.metrics]
            if repr(stored) != repr([(epoch, float(value)) for epoch, value in saved]):
                problems.append(f"{key}: {metric} is {stored}, not {saved}")
    return problems


def saved(home: Path, name: str) -> Saved:
    """The epochs that are on the disk now, with the moment at which each was trained: in histories, and in the newest whole checkpoint."""
    found: Saved = {}
    for path in sorted((study_folder(home, name).path / "trials").glob("[0-9]*")):
        place = study_folder(home, name).trial(int(path.name))
        found |= {(int(path.name), record.epoch): record.to_dict() for record in place.history()}
        for checkpoint in place.checkpoints():
            try:
                records = json.loads((checkpoint / "state.json").read_text())["history"]
            except (OSError, ValueError):
                continue  # it is being removed
            found |= {(int(path.name), record["epoch"]): record for record in records}
            break
    return found


def trained_again(before: Saved, after: Saved) -> list[tuple[int, int]]:
    """Epochs that were on the disk and were nevertheless trained once more, or lost: their record is another one."""
    return [key for key, record in before.items() if repr(after.get(key)) != repr(record)]
