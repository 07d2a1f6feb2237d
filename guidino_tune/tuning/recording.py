"""From the study to its observers: tracking snapshots of trials, and the best configuration as a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import __version__, paths
from guidino_tune.config import Experiment
from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space, read_space
from guidino_tune.tracking.snapshots import StudySnapshot, TrialSnapshot, flatten
from guidino_tune.tracking.snapshots import TrialState as TrackedState
from guidino_tune.training.folder import write_text
from guidino_tune.training.measured import cases_file, read_measured
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.tuning.study import StudyFolder, best_value, load_study, ranking, stored_trial
from guidino_tune.tuning.tally import Tally

STATES: dict[TrialState, TrackedState] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


class Recorder:
    """Hands every change of the study to the tracker, and keeps ``best.yaml`` beside the study up to date.

    Args:
        study: The study.
        space: What it searches.
        folder: Where it lives.
        tracker: Takes snapshots; never blocks and never raises.
        snapshot: Of the whole study, with its data set.
    """

    def __init__(self, study: optuna.Study, space: Space, folder: StudyFolder, tracker: Any, snapshot: StudySnapshot) -> None:
        self.study, self.space, self.folder, self.tracker, self.snapshot = study, space, folder, tracker, snapshot
        self._tally = Tally(study)
        self._histories: dict[int, list[EpochRecord]] = {}
        self._fixed: dict[int, dict[str, Any]] = {}
        self._exported: int | None = None

    def sync(self) -> None:
        """Hands over every trial there is: what an earlier run could not send is sent now. Nobody runs a trial at that moment."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state != TrialState.WAITING:
                state: TrackedState | None = "interrupted" if trial.state == TrialState.RUNNING else None
                self._update(trial, self.folder.trial(trial.number).history(), state=state)
        self.refresh()

    def changed(self, number: int, experiment: Experiment, record: EpochRecord | None) -> None:
        """One trial started, finished an epoch, or ended."""
        history = self._histories.get(number)
        if history is None:
            history = self._histories[number] = self.folder.trial(number).history()
        # Epochs come in order, and the file may be ahead of them: the trial's process writes before it tells.
        if record is not None and (not history or record.epoch > history[-1].epoch):
            history.append(record)
        trial = stored_trial(self.study, number)
        self._tally.take(trial)
        self._update(trial, tuple(history), experiment)
        if trial.state.is_finished():
            del self._histories[number]
            self._fixed.pop(number, None)
            self.refresh()

    def refresh(self) -> None:
        """Writes ``best.yaml`` when another trial is the best, and brings the parent run up to date."""
        best = self._tally.best
        metrics = {f"trials_{name}": float(self._tally.states[state]) for state, name in STATES.items()}
        artifacts = [self.folder.definition, *sorted(self.folder.reports.glob("*.*"))]
        if best:
            if best.number != self._exported:
                write_text(self.folder.best, export_yaml(self.study, self.space, self.folder, best))
                self._exported = best.number
            artifacts.append(self.folder.best)
            metrics |= {"best_val_dice": float(best.value or 0.0), "best_trial": float(best.number)}
        self.snapshot = dataclasses.replace(self.snapshot, artifacts=tuple(artifacts), metrics={**self.snapshot.metrics, **metrics})
        self.tracker.update_study(self.snapshot)

    def interrupted(self) -> None:
        """Marks trials that the study still counts as running: nobody runs them now."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING:
                self._update(trial, self.folder.trial(trial.number).history(), state="interrupted")

    def _update(self, trial: FrozenTrial, history: Any, experiment: Experiment | None = None, state: TrackedState | None = None) -> None:
        ended = trial.state.is_finished()
        place = self.folder.trial(trial.number)
        measured = read_measured(place) if ended else []
        tested = measured[-1] if measured else None
        failure = trial.user_attrs.get("failure")
        fixed = self._fixed.get(trial.number)
        if fixed is None:
            experiment = experiment or self.space.experiment(trial.params)
            fixed = {
                "name": experiment.name,
                "params": flatten(experiment.to_dict()),
                "searched": trial.params,
                "tags": {"experiment_hash": experiment.hash},
                "started": trial.datetime_start.timestamp() if trial.datetime_start else None,
            }
            if trial.number in self._histories:
                self._fixed[trial.number] = fixed
        self.tracker.update(
            TrialSnapshot(
                number=trial.number,
                state=state or STATES[trial.state],
                reason=f"{failure}: {trial.user_attrs.get('message', '')}" if failure else "",
                history=history,
                results={"test_cases": tested.cases, **{f"test_{k}": v for k, v in tested.scores.items()}} if tested else {},
                pictures=tuple(sorted(place.pictures.glob("*.png"))) if ended else (),
                artifacts=(cases_file(place, tested),) if tested else (),
                finished=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
                **fixed | ({"tags": fixed["tags"] | {"test_protocol": tested.protocol}} if tested else {}),
            )
        )


def export_yaml(study: optuna.Study, space: Space, folder: StudyFolder, trial: FrozenTrial) -> str:
    """The experiment of a trial with where it comes from, as YAML that ``retrain`` takes."""
    experiment = space.experiment(trial.params)
    provenance: Mapping[str, Any] = {
        "study": study.study_name,
        "study_folder": str(folder.path),
        "trial": trial.number,
        "state": trial.state.name,
        "val_dice": best_value(trial),
        "epochs_trained": max(trial.intermediate_values, default=0),
        "searched": dict(trial.params),
        "split": str(folder.split),
        "experiment_hash": experiment.hash,
        "guidino_tune": __version__,
    }
    return (
        f"# {experiment.name}: trial {trial.number} of study {study.study_name!r}. Retrain it with: guidino-tune retrain FILE\n"
        + yaml.safe_dump({"provenance": dict(provenance), "experiment": experiment.to_dict()}, sort_keys=False)
    )


def export_trial(name: str, number: int | None, storage: str | None = None) -> tuple[str, str]:
    """A trial of a study by its name, as YAML, with a line that says which one it is.

    Args:
        name: Of the study.
        number: Of the trial; ``None`` takes the best that ran its whole budget.
        storage: Database URL of the study; by default the file in its folder.

    Raises:
        UserError: No such study or trial, or none that ran its whole budget.
    """
    folder = StudyFolder(paths.studies() / name)
    study = load_study(folder, storage)
    space = read_space(read_yaml(folder.definition), source=str(folder.definition))
    trials = {t.number: t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING}
    ranked = ranking(study)
    if number is None and not ranked:
        raise UserError(
            f"no trial of {len(trials)} has run its whole budget yet", where=str(folder.path), todo="wait, or name one with --trial"
        )
    if number is not None and number not in trials:
        known = f"0 to {max(trials)}" if trials else "none yet"
        raise UserError(f"no trial {number}", where=str(folder.path), todo=f"trials: {known}")
    trial = ranked[0] if number is None else trials[number]
    value = best_value(trial)
    score = "no result" if value is None else f"validation Dice {value:.4f}"
    line = f"trial {trial.number}: {trial.user_attrs.get('name', '')}, {trial.state.name.lower()}, {score}"
    return export_yaml(study, space, folder, trial), line
