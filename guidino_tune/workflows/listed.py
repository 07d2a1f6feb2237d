"""Trainings outside a search, such as seeds and folds, as the listed trials of a study: each to its last epoch, side by side.

Who drives them, and what follows from a failure, is as in a search. What is known of a training lies in its folder: one that is whole is
not listed, and one that was interrupted goes on from its checkpoint. So the study of each call is kept in memory only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import Progress, TextColumn

from guidino_tune.config import Experiment, Resources, Study
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.errors import UserError
from guidino_tune.running.cluster import has_others
from guidino_tune.running.connection import connected
from guidino_tune.running.elastic import plan_when_possible
from guidino_tune.running.hardware import roomier
from guidino_tune.running.measuring import measure_models
from guidino_tune.space.parameters import Parameter
from guidino_tune.space.space import RECIPE, Space
from guidino_tune.study.driver import INTERRUPTED, Driver
from guidino_tune.study.listed import ListedSampler
from guidino_tune.study.optuna_private import stored_trial
from guidino_tune.study.store import StudyFolder
from guidino_tune.training.failures import INFEASIBLE, POLICIES, as_kind
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.training.measured import Measured
from guidino_tune.training.reporter import EpochRecord

INFEASIBLE_FILE = "infeasible.json"
"""In the folder of a training that diverged: it would again. Memory that was short today may be there tomorrow."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training: its name for a person, what is trained, where, and on which split."""

    label: str
    experiment: Experiment
    folder: TrialFolder
    split_file: Path

    @property
    def finished(self) -> bool:
        """True when all epochs are done and the best weights are there."""
        return len(self.folder.history()) >= self.experiment.training.epochs and self.folder.best.exists()

    @property
    def best(self) -> float:
        """The objective at its best epoch."""
        return max(record.metrics[OBJECTIVE] for record in self.folder.history() if OBJECTIVE in record.metrics)

    @property
    def diverged(self) -> str:
        """How it diverged, in an earlier call or in this one; empty where it did not."""
        file = self.folder.path / INFEASIBLE_FILE
        values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known = values.get("failure") == "diverged"
        return f"diverged: {values['message']}; to train it all the same, remove {file}" if known else ""


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """The same experiment with another seed of its training."""
    return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, seed=seed))


def train_all(trainings: Sequence[Training], home: Path, resources: Resources, console: Console) -> dict[str, str]:
    """Trains what is not trained yet; the same call continues what was interrupted.

    Args:
        trainings: With labels of their own.
        home: Folder of all of them.
        resources: Of one training.
        console: For progress.

    Returns:
        By label, why a training has no result through its configuration: it diverged, or lacked memory.

    Raises:
        UserError: A training stopped for another reason.
        KeyboardInterrupt: It was interrupted.
    """
    short: dict[str, str] = {}
    todo = [t for t in trainings if not t.finished and not t.diverged]
    if todo:
        console.print(f"{len(trainings) - len(todo)} of {len(trainings)} trainings are done", highlight=False)
        listed = TrainingList(todo, home, resources, console)
        with connected():
            listed.run()
        short = listed.short_of_memory()
    for training in trainings:
        if training.label not in short:
            training.folder.tidy()
    return short | {t.label: t.diverged for t in trainings if t.diverged}


class TrainingList:
    """Trainings as a study in memory, and what is shown of them: a bar on a terminal, elsewhere ten lines for each.

    Args:
        trainings: At least one; see ``train_all`` for the others.
    """

    def __init__(self, trainings: Sequence[Training], home: Path, resources: Resources, console: Console) -> None:
        self.trainings, self.resources, self.console = {t.label: t for t in trainings}, resources, console
        self.space = Space(
            base=trainings[0].experiment,
            parameters={RECIPE: Parameter(type="choice", choices=tuple(self.trainings))},
            recipes={label: t.experiment for label, t in self.trainings.items()},
            first_trials=tuple({RECIPE: label} for label in self.trainings),
            study=Study(name="trainings", sampler="listed", pruner="none", validate_every=1),
            resources=resources,
            source=str(home),
        )
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            direction="maximize", sampler=ListedSampler(self.space.first_trials), pruner=optuna.pruners.NopPruner()
        )
        self.folder = _Folder(home, self)
        columns = (*Progress.get_default_columns(), TextColumn("{task.fields[score]}"))
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.tasks = {t.label: self.bars.add_task(t.label, total=t.experiment.training.epochs, score="", visible=False) for t in trainings}

    def run(self) -> None:
        """Runs all of them on the connected cluster.

        Raises:
            UserError: Too many failed to go on.
            KeyboardInterrupt: See ``train_all``.
        """
        from guidino_tune.running.process import process_settings
        from guidino_tune.running.tune_adapter import run_trials

        booked = plan_when_possible(self.resources, self._say)
        settings = process_settings(booked, self.resources, ray_folder=self.folder.ray)
        driver = self.driver(settings, partial(has_others, booked=booked), partial(roomier, booked=booked))
        with self.bars:
            run_trials(driver, booked, self._say)
        if driver.error:
            raise driver.error
        if driver.given_up:
            raise UserError(driver.given_up, where=str(self.folder.path), todo="run it again to go on with what is saved")
        if driver.ended == INTERRUPTED:
            self._say(f"{INTERRUPTED}. Nothing is lost: run it again to go on from here.")
            raise KeyboardInterrupt

    def driver(
        self,
        settings: Mapping[str, Any],
        has_others: Callable[..., bool] | None = None,
        more_memory: Callable[[str], list[str]] | None = None,
    ) -> Driver:
        """Who runs the trials asks it; see ``process.process_settings``."""

        def warn(text: str) -> None:
            self._say(f"warning: {text}")

        return Driver(self.study, self.space, self.folder, self._changed, settings, warn=warn, has_others=has_others, roomier=more_memory)

    def short_of_memory(self) -> dict[str, str]:
        """By label, which trainings lacked memory.

        Raises:
            UserError: One stopped for a reason outside its configuration.
        """
        failed = {t.params[RECIPE]: t for t in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))}
        short = {}
        for label, training in self.trainings.items():
            if training.finished or training.diverged:
                continue
            epochs = f"{len(training.folder.history())} of {training.experiment.training.epochs} epochs"
            if label not in failed:
                raise UserError(
                    f"{label} stopped after {epochs}, and its best weights are not there",
                    where=str(training.folder.path),
                    todo="remove this folder, and run it again: it is then trained anew",
                )
            kind, message = _failure(failed[label])
            if kind not in INFEASIBLE:
                todo = f"{POLICIES[kind].todo}; then run it again to continue"
                raise UserError(f"{label} stopped after {epochs}: {kind}: {message}", where=str(training.folder.path), todo=todo)
            short[label] = f"{kind}: {message}; run it again to try once more, as with fewer side by side (resources.concurrent)"
        return short

    def of_trial(self, number: int) -> Training:
        """What a trial trains."""
        return self.trainings[stored_trial(self.study, number).params[RECIPE]]

    def _say(self, text: str, style: str = "yellow") -> None:
        self.console.print(text, style=style, highlight=False, soft_wrap=True)

    def _changed(self, number: int, experiment: Experiment, record: EpochRecord | None) -> None:
        training, trial, epochs = self.of_trial(number), stored_trial(self.study, number), experiment.training.epochs
        task = self.tasks[training.label]
        if record is None:
            self.bars.update(task, visible=not trial.state.is_finished())
            if trial.state == TrialState.FAIL:
                kind, message = _failure(trial)
                self._say(f"{training.label} failed: {kind}: {message}", "red")
                if kind == "diverged":
                    write_text(training.folder.path / INFEASIBLE_FILE, json.dumps({"failure": kind, "message": message}))
            return
        score = f"val Dice {record.metrics[OBJECTIVE]:.4f}" if OBJECTIVE in record.metrics else ""
        self.bars.update(task, completed=record.epoch, score=score)
        if not self.console.is_terminal and (record.epoch % max(1, epochs // 10) == 0 or record.epoch == epochs):
            self.console.print(f"{training.label}: epoch {record.epoch}/{epochs}, {score}", highlight=False)


class _Folder(StudyFolder):
    """A study's, whose trials lie where their trainings do."""

    def __init__(self, path: Path, listed: TrainingList) -> None:
        super().__init__(path)
        self.listed = listed

    def trial(self, number: int) -> TrialFolder:
        return _Kept(self.listed.of_trial(number).folder.path)

    def split_of(self, number: int) -> Path:
        return self.listed.of_trial(number).split_file


class _Kept(TrialFolder):
    """Of a trial whose failure may be put right: the next one goes on from its checkpoint."""

    def tidy(self) -> None:
        pass


def _failure(trial: FrozenTrial) -> tuple[Any, str]:
    return as_kind(trial.user_attrs.get("failure")), str(trial.user_attrs.get("message", ""))


def measure_all(models: Mapping[str, TrialFolder], *about: Any, **how: Any) -> dict[str, Measured]:
    """As ``measuring.measure_models``, but every model must have a result.

    Raises:
        UserError: One has none.
    """
    results, failures = measure_models(models, *about, **how)
    for label, why in failures.items():
        raise UserError(
            f"{label} could not be measured: {why}", where=str(models[label].path), todo="run it again to measure what is missing"
        )
    return results
