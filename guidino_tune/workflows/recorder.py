"""From the study to its observers: tracking snapshots of trials, and the best configuration as a file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import __version__
from guidino_tune.analysis import pareto
from guidino_tune.config import Experiment
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.space.space import Space
from guidino_tune.study.objectives import MEASURED, as_dict, beyond
from guidino_tune.study.optuna_private import stored_trial
from guidino_tune.study.outcomes import INTERRUPTION, REPEATS
from guidino_tune.study.store import StudyFolder
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import best_value, front, ranking
from guidino_tune.tracking.notes import NOTE
from guidino_tune.tracking.snapshots import EndedTrial, StudySnapshot, TrialSnapshot, flatten
from guidino_tune.tracking.snapshots import TrialState as TrackedState
from guidino_tune.training.folder import write_text
from guidino_tune.training.measured import cases_file, read_measured
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.export import export_yaml
from guidino_tune.workflows.notes import TrialNotes, study_note

STATES: dict[TrialState, TrackedState] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


NOTES = "notes"
"""In the keys of ended trials since they have descriptions, which MLflow lacks of those that ended before."""

PARETO = "guidino.pareto"
"""Tag of the run of a complete trial in a study with several objectives: whether it is on the front now."""

LABELS = {"val_dice": "validation Dice", "val_hd95": "validation HD95 (pixels)", "seconds": "seconds of training x workers",
          "parameters": "parameters", "operations": "operations per image"}  # fmt: skip
"""Of the axes of the front."""


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
        self._exported: tuple[int, set[int]] | None = None
        self._front: set[int] = set()
        self._notes = TrialNotes(study, space, folder)

    def sync(self) -> None:
        """Hands over every trial and the study: what an earlier run could not send is sent now. Nobody runs a trial at that moment."""
        self.hand_over()
        self.describe()
        self.refresh()

    def hand_over(self) -> None:
        """Hands over every trial there is, and writes nothing."""
        self._front = {t.number for t in front(self.study)}
        for trial in self.study.get_trials(deepcopy=False):
            if _is_known(trial) and trial.state.is_finished():
                self.tracker.update_ended(self._ended(trial))
            elif _is_known(trial):
                self.tracker.update(self._snapshot(trial, state="interrupted"))

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
        snapshot = self._snapshot(trial, tuple(history), experiment)
        if not trial.state.is_finished():
            self.tracker.update(snapshot)
        else:
            self.tracker.update(snapshot, self._ended(trial))
            del self._histories[number]
            self._fixed.pop(number, None)
            self.refresh()

    def describe(self) -> None:
        """Writes the note of the study's run anew: with another best trial, and when a search begins or ends."""
        self.snapshot = dataclasses.replace(
            self.snapshot, tags={**self.snapshot.tags, NOTE: study_note(self.study, self.space, self.folder)}
        )

    def refresh(self) -> None:
        """Writes ``best.yaml`` when another trial is the best, and brings the parent run and the runs on the front up to date."""
        now = {t.number for t in front(self.study)}
        left_or_joined, self._front = now ^ self._front, now
        for number in sorted(left_or_joined):
            self.tracker.update_ended(self._ended(stored_trial(self.study, number)))
        best = self._tally.best
        metrics = {f"trials_{name}": float(self._tally.states[state]) for state, name in STATES.items()}
        if best:
            if (best.number, now) != self._exported:
                write_text(self.folder.best, export_yaml(self.study, self.space, self.folder, best))
                self._exported = best.number, now
                self.describe()
            metrics |= {"best_val_dice": best_value(best) or 0.0, "best_trial": float(best.number)}
        self.snapshot = dataclasses.replace(
            self.snapshot,
            artifacts=study_files(self.folder),
            metrics={**self.snapshot.metrics, **metrics},
            step=sum(number for state, number in self._tally.states.items() if state.is_finished()),
            time=max(self.snapshot.time, self._tally.latest),
        )
        self.tracker.update_study(self.snapshot)

    def conclude(self) -> None:
        """At the end of a search."""
        self.describe()
        self.draw_front()
        self.refresh()

    def draw_front(self) -> None:
        """Writes ``reports/pareto.csv`` and ``pareto.png``, where there are several objectives and trials to show."""
        names = self.space.study.objectives
        trials = ranking(self.study) if len(names) > 1 else []
        if not trials:
            return
        on_front = {t.number for t in front(self.study)}
        order = [OBJECTIVE, *(name for name in names if name != OBJECTIVE)]
        points = []
        for t in trials:
            found = dict(zip(names, t.values, strict=True))
            points.append(pareto.Point(t.number, t.user_attrs.get("name", ""), {n: found[n] for n in order}, t.number in on_front))
        write_text(self.folder.reports / "pareto.csv", pareto.csv_text(points))
        pareto.draw(points, {n: LABELS[n] for n in order}, self.folder.reports / "pareto.png", f"Study {self.study.study_name}")
        self.refresh()

    def interrupted(self) -> None:
        """Marks trials that the study still counts as running: nobody runs them now."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING and _is_known(trial):
                self.tracker.update(self._snapshot(trial, state="interrupted"))

    def _ended(self, trial: FrozenTrial) -> EndedTrial:
        """A trial that has ended; what may still change of it makes its key: what is measured, its pictures, its place on the front."""
        place = self.folder.trial(trial.number)
        times = [file.stat().st_mtime_ns if file.exists() else 0 for file in (place.test_file, place.pictures)]
        key = f"{__version__} {NOTES} {times[0]} {times[1]} {trial.number in self._front}"
        return EndedTrial(trial.number, key, functools.partial(self._snapshot, trial))

    def _snapshot(
        self,
        trial: FrozenTrial,
        history: Sequence[EpochRecord] | None = None,
        experiment: Experiment | None = None,
        state: TrackedState | None = None,
    ) -> TrialSnapshot:
        ended = trial.state.is_finished()
        place = self.folder.trial(trial.number)
        history = place.history() if history is None else history
        measured = read_measured(place) if ended else []
        tested = measured[-1] if measured else None
        failure = trial.user_attrs.get("failure")
        reason = f"{failure}: {trial.user_attrs.get('message', '')}" if failure else beyond(self.space.study, trial) if ended else ""
        waits = "" if ended else trial.user_attrs.get(INTERRUPTION, "")  # to go on, as after the loss of its machine
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
        # What a trial measured of itself is among the metrics of its first epoch.
        results = {k: v for k, v in as_dict(self.space.study, trial).items() if ended and k not in MEASURED}
        if tested:
            results |= {"test_cases": tested.cases, **{f"test_{k}": v for k, v in tested.scores.items()}}
        tags = fixed["tags"] | ({"test_protocol": tested.protocol} if tested else {})
        if len(self.space.study.objectives) > 1 and trial.state == TrialState.COMPLETE:
            tags |= {PARETO: str(trial.number in self._front).lower()}
        if ended:
            tags |= {NOTE: self._notes.of(trial)}
        return TrialSnapshot(
            number=trial.number,
            state=state or ("interrupted" if waits else STATES[trial.state]),
            reason=reason or waits,
            history=history,
            results=results,
            pictures=tuple(sorted(place.pictures.glob("*.png"))) if ended else (),
            artifacts=(cases_file(place, tested),) if tested else (),
            # Never before its start, whatever the clock did meanwhile: MLflow sorts by duration.
            finished=max(trial.datetime_complete, trial.datetime_start or trial.datetime_complete).timestamp()
            if trial.datetime_complete
            else None,
            measured=place.test_file.stat().st_mtime if tested else None,
            **fixed | {"tags": tags},
        )


def _is_known(trial: FrozenTrial) -> bool:
    """False for a trial whose driver died before it had all its parameters, for what is sent is not taken back; and for a repetition."""
    return REPEATS not in trial.user_attrs and (trial.state.is_finished() or "hash" in trial.user_attrs)


def study_files(folder: StudyFolder) -> tuple[Path, ...]:
    """What the study's own run gets: its definition, reports, best configuration and split, as far as they are there."""
    reports = sorted(file for file in folder.reports.glob("*.*") if not file.name.startswith("."))
    return tuple(file for file in (folder.definition, *reports, folder.best, folder.split) if file.is_file())
