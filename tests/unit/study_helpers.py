"""A study with a driver and no executor: a test asks, reports and tells in its place, with made-up results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidino_tune.space.space import Space
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.training.reporter import EpochRecord


def drive(path: Path, space: Space, **options: Any) -> Driver:
    """Opens the study and drives it, as a run of the command does."""
    folder = StudyFolder(path)
    return Driver(open_study(space, folder), space, folder, lambda number, experiment, record: None, {"workers": 1}, **options)


def dice(epoch: int, value: float) -> list[EpochRecord]:
    """One validated epoch."""
    return [EpochRecord(epoch, {"val_dice": value}, 1.7e9 + epoch)]


def run_trial(driver: Driver, values: Sequence[float] = (0.5,) * 4) -> dict[str, Any] | None:
    """One trial from its question to its end; gives what it was asked for, or ``None``."""
    asked = driver.ask("trial")
    if asked:
        for epoch in range(asked["reported"] + 1, len(values) + 1):
            if not driver.report("trial", dice(epoch, values[epoch - 1])):
                break
        driver.tell("trial", crashed=False)
    return asked


def states(driver: Driver) -> list[str]:
    """Of all trials."""
    return [t.state.name for t in driver.study.get_trials(deepcopy=False)]
