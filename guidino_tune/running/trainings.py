"""Trainings outside a search: each to its last epoch, side by side on the cluster, continued where they were interrupted."""

from __future__ import annotations

import dataclasses
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TaskID, TextColumn

from guidino_tune.config import Experiment, Resources
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.errors import UserError
from guidino_tune.running.cluster import Plan
from guidino_tune.running.leftovers import Leftovers
from guidino_tune.stopping import stop_signals
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import EpochRecord


@dataclass(frozen=True, slots=True)
class Training:
    """One training to be run: its name for a person, what is trained, where, and on which split, if not on that of all others."""

    label: str
    experiment: Experiment
    folder: TrialFolder
    split_file: Path | None = None

    @property
    def finished(self) -> bool:
        """True when all epochs are done and the best weights are there."""
        return len(self.folder.history()) >= self.experiment.training.epochs and self.folder.best.exists()


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """The same experiment with another seed of its training."""
    return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, seed=seed))


def train_side_by_side(
    trainings: Sequence[Training], split_file: Path, ray_folder: Path, resources: Resources, booked: Plan, console: Console
) -> dict[str, tuple[str, str]]:
    """Runs trainings, each to its last epoch; one that was interrupted goes on from its checkpoint.

    Args:
        trainings: With labels of their own.
        split_file: The split of those that name none.
        ray_folder: For Ray's files; removed at the end.
        resources: Of one training.
        booked: From ``cluster.plan``; a cluster is connected.
        console: For progress.

    Returns:
        Kind and message of each failure, by label.
    """
    from ray import tune

    from guidino_tune.running.executors import process_settings, trainable

    settings = process_settings(booked, resources, split_file=split_file, ray_folder=ray_folder)
    configs = [
        {
            **settings, "number": number, "label": t.label, "experiment": t.experiment.to_dict(), "reported": 0,
            "folder": str(t.folder.path), "split_file": str(t.split_file or split_file),
        }
        for number, t in enumerate(trainings)
    ]  # fmt: skip
    searcher = _Trainings(configs, console)
    tuner = tune.Tuner(
        trainable(booked),
        tune_config=tune.TuneConfig(
            search_alg=searcher, num_samples=len(configs), max_concurrent_trials=booked.concurrent, reuse_actors=booked.executor == "actor"
        ),
        run_config=tune.RunConfig(
            name=f"run-{uuid.uuid4().hex[:12]}",
            storage_path=str(ray_folder),
            stop=_ended if booked.executor == "actor" else None,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
        ),
    )
    # Tune leaves a handler behind, which would take the next Ctrl-C for a request to Tune.
    with searcher, Leftovers(booked.executor), stop_signals():
        tuner.fit()
    shutil.rmtree(ray_folder, ignore_errors=True)
    return searcher.failures


def _ended(trial_id: str, result: Mapping[str, Any]) -> bool:
    """A worker group ends by itself; an actor takes one step after the other until it is told to stop."""
    return "failure" in result or bool(result["epoch"] >= result["config"]["experiment"]["training"]["epochs"])


def check_finished(trainings: Sequence[Training]) -> None:
    """Every training has all its epochs.

    Raises:
        UserError: One has not.
    """
    for training in trainings:
        if not training.finished:
            epochs = len(training.folder.history())
            raise UserError(
                f"{training.label} stopped after {epochs} of {training.experiment.training.epochs} epochs",
                where=str(training.folder.path),
                todo="see traceback.txt there if there is one; the same command continues it",
            )


class _Trainings(Searcher):
    """Hands Tune one training after the other, and shows how far each is."""

    def __init__(self, configs: Sequence[dict[str, Any]], console: Console) -> None:
        super().__init__()
        self.waiting, self.console = list(configs), console
        self.labels: dict[str, str] = {}
        self.epochs: dict[str, int] = {}
        self.failures: dict[str, tuple[str, str]] = {}
        self.told: dict[str, int] = {}
        self.bars = RichProgress(*RichProgress.get_default_columns(), TextColumn("{task.fields[score]}"), console=console, transient=True)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> None:
        if self.console.is_terminal:
            self.bars.start()

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Trainings:
        return self

    def suggest(self, trial_id: str) -> Any:
        if not self.waiting:
            return Searcher.FINISHED
        config = self.waiting.pop(0)
        label = self.labels[trial_id] = config["label"]
        self.epochs[label] = config["experiment"]["training"]["epochs"]
        self.tasks[trial_id] = self.bars.add_task(label, total=self.epochs[label], score="")
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        label = self.labels[trial_id]
        if "records" not in result:
            self.failures[label] = (result["failure"], result["message"])
            self.console.print(f"{label} failed: {result['failure']}: {result['message']}", style="red")
            return
        epochs = self.epochs[label]
        for record in (EpochRecord.from_dict(values) for values in json.loads(result["records"])):
            self.bars.update(self.tasks[trial_id], completed=record.epoch)
            if OBJECTIVE not in record.metrics:
                continue
            score = f"val Dice {record.metrics[OBJECTIVE]:.4f}"
            self.bars.update(self.tasks[trial_id], score=score)
            # Without a terminal, ten lines a training tell enough.
            due = record.epoch >= self.told.get(label, 0) + epochs // 10 or record.epoch == epochs
            if due and not self.console.is_terminal:
                self.told[label] = record.epoch
                self.console.print(f"{label}: epoch {record.epoch}/{epochs}, {score}", highlight=False)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.bars.update(self.tasks[trial_id], visible=False)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: each training's folder is its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see ``save``."""
