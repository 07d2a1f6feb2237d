"""What a study looks for and keeps to: the values of its objectives, and constraints as Optuna knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.config import Experiment, Study
from guidino_tune.config.study import OBJECTIVE, OBJECTIVES
from guidino_tune.training.reporter import EpochRecord

COUNTED = ("parameters", "operations")
"""Known before a trial is trained."""

MEASURED = ("latency", "memory")
"""Measured by the trial in its first epoch, see ``guidino_tune.training.costs``."""

Records = Mapping[int, EpochRecord]
Count = Callable[[Experiment], Mapping[str, float]]
"""Gives ``parameters`` and ``operations`` of an experiment's network, see ``guidino_tune.models.cost``."""


def uncounted(experiment: Experiment) -> Mapping[str, float]:
    """In place of a ``Count`` where a study needs none."""
    raise TypeError("this study looks at parameters or operations: give the driver `count`, such as models.cost.network_cost")


SOURCES: dict[str, Callable[[FrozenTrial, Records, int], float]] = {
    "val_dice": lambda trial, records, workers: max(trial.intermediate_values.values()),
    "val_hd95": lambda trial, records, workers: records[trial.user_attrs["epochs"]].metrics["val_hd95"],
    "seconds": lambda trial, records, workers: workers * _quiet_seconds(trial, records),
    "parameters": lambda trial, records, workers: trial.user_attrs["parameters"],
    "operations": lambda trial, records, workers: trial.user_attrs["operations"],
}
"""Where the value of each objective comes from: a trial as it is stored, its epochs, and its workers. ``KeyError``: it is not there."""

SHORT = {"val_dice": "val Dice", "val_hd95": "val HD95", "seconds": "seconds", "parameters": "parameters", "operations": "GFLOPs"}
"""Headings."""


def directions(study: Study) -> list[Literal["minimize", "maximize"]]:
    """What Optuna wants of each objective."""
    return [OBJECTIVES[name] for name in study.objectives]


def values(study: Study, trial: FrozenTrial, records: Records, workers: int) -> list[float]:
    """The values of a trial that ran its whole budget, in the order of the study's objectives.

    Args:
        study: Its settings.
        trial: As it is stored, with a Dice for each validated epoch.
        records: Its epochs.
        workers: Of the trial.

    Raises:
        KeyError: An epoch or a metric is missing, as when the trial's history was lost.
    """
    return [float(SOURCES[name](trial, records, workers)) for name in study.objectives]


def as_dict(study: Study, trial: FrozenTrial) -> dict[str, float]:
    """What is known of a trial's objectives and constraints beside its scores, by name."""
    found = dict(zip(study.objectives, trial.values or (), strict=False)) if len(study.objectives) > 1 else {}
    found |= {name: trial.user_attrs[name] for name in (*COUNTED, *MEASURED) if name in trial.user_attrs}
    return {name: float(value) for name, value in found.items() if not name.startswith("val_")}


def note_counted(study: Study, trial: optuna.Trial, experiment: Experiment, count: Count) -> None:
    """Stores what is known of a trial before it is trained, where the study asks for it."""
    if set(COUNTED) & {*study.objectives, *study.constraints} and COUNTED[-1] not in trial.user_attrs:
        note(study, trial, count(experiment))


def note_measured(study: Study, trial: optuna.Trial, metrics: Mapping[str, float]) -> None:
    """Stores what a trial measured of itself, where the study asks for it; what was measured first is kept."""
    found = {name: metrics[name] for name in MEASURED if name in study.constraints and name in metrics}
    if found and not found.keys() <= trial.user_attrs.keys():
        note(study, trial, found)


def note(study: Study, trial: optuna.Trial, found: Mapping[str, float]) -> None:
    """Stores figures of a trial, and how far each is beyond its constraint."""
    known = trial.constraints
    for name, value in found.items():
        if name in study.constraints and name not in known:
            # Relative, for Optuna adds up by how much constraints are broken: parameters would outweigh seconds.
            trial.set_constraint(name, value / study.constraints[name] - 1)
        trial.set_user_attr(name, value)


def feasible(trial: FrozenTrial) -> bool:
    """True unless a trial is beyond a constraint."""
    return all(excess <= 0 for excess in trial.constraints.values())


def beyond(study: Study, trial: FrozenTrial) -> str:
    """Which constraints a trial breaks, in words; empty when it keeps to all of them."""
    return ", ".join(
        f"{name} {_figure(limit * (1 + trial.constraints[name]))} above {_figure(limit)}"
        for name, limit in study.constraints.items()
        if trial.constraints.get(name, 0) > 0
    )


def shown(name: str, value: float) -> str:
    """A value as a table shows it."""
    if name == OBJECTIVE:
        return f"{value:.4f}"
    return _figure(value / 1e9 if name == "operations" else value)


def in_words(study: Study) -> str:
    """What the study looks for, such as ``val Dice up, parameters down``."""
    return ", ".join(f"{SHORT[name]} {'up' if OBJECTIVES[name] == 'maximize' else 'down'}" for name in study.objectives)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _quiet_seconds(trial: FrozenTrial, records: Records) -> float:
    """Seconds of all epochs, were each as quick as the quickest one that did the same work.

    The first epoch makes views that later trials only read, and neighbours on the machine slow down others: neither says anything of the
    configuration. An epoch that is the only one of its kind counts as it was.
    """
    alike: dict[tuple[bool, bool], list[float]] = {}
    for epoch in range(1, trial.user_attrs["epochs"] + 1):
        metrics = records[epoch].metrics
        alike.setdefault((OBJECTIVE in metrics, "val_hd95" in metrics), []).append(metrics["epoch_seconds"])
    return sum(len(seconds) * min(seconds) for seconds in alike.values())
