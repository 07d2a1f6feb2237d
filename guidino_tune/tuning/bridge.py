"""One persisted Optuna study behind Ray Tune: a searcher that asks and tells, a scheduler that reports and prunes.

Stock ``OptunaSearch`` keeps a second state and tells trials that were stopped early as complete. Here the study is the only state: Tune
merely runs what the study says, so a driver that dies can be started again with the same command.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from guidino_tune.config import Experiment
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.training.failures import INFEASIBLE
from guidino_tune.training.loop import OBJECTIVE
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.tuning.journal import sync_to_disk
from guidino_tune.tuning.study import StudyFolder, orphans, remaining, rungs, validated_epochs

PATIENCE = 3
"""Trials in a row that fail for reasons outside their configuration (a full disk, missing files, a bug) before a search gives up."""


class Bridge:
    """The study as Tune sees it.

    Args:
        study: Where everything is decided and kept.
        space: What is searched.
        folder: Of the study.
        listener: Told of a trial's number, its experiment and its new epoch (``None`` when its state changed).
        settings: What every trial's process must know beside its experiment.
        deadline: Unix time after which trials are left running in the study, to be continued by the next run.
        warn: Told what a user should know of the machines, such as a full disk; each text once.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        folder: StudyFolder,
        listener: Callable[[int, Experiment, EpochRecord | None], None],
        settings: Mapping[str, Any],
        deadline: float = math.inf,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.study, self.space, self.folder, self.listener = study, space, folder, listener
        self.settings, self.deadline = settings, deadline
        self.orphans = orphans(study, space)
        self.remaining = remaining(study, space)
        self.running: dict[str, optuna.Trial] = {}
        self.experiments: dict[int, Experiment] = {}
        self.seen: dict[int, set[int]] = {}
        self.reasons: dict[int, tuple[str, str]] = {}
        self.broken: list[str] = []
        self.warn, self.warned = warn, {""}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher into a state file that we never read."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Bridge:
        """Itself: there is one study."""
        return self

    @property
    def expired(self) -> bool:
        """True after the deadline."""
        return time.time() > self.deadline

    @property
    def given_up(self) -> str:
        """Why no more trials are started: one after the other failed through no fault of its configuration; empty otherwise."""
        return self.broken[-1] if len(self.broken) >= PATIENCE else ""

    def ask(self, tune_id: str) -> dict[str, Any]:
        """The next trial: one that a dead driver left running, else a new one."""
        if self.orphans:
            frozen = self.orphans.pop(0)
            trial = optuna.Trial(self.study, frozen._trial_id)
            reported = dict(frozen.intermediate_values)
        else:
            trial, reported = self.study.ask(), {}
        experiment = self.space.experiment(suggest(self.space, trial))
        number = trial.number
        trial.set_user_attr("name", experiment.name)
        trial.set_user_attr("hash", experiment.hash)
        trial.set_user_attr("epochs", experiment.training.epochs)
        sync_to_disk(self.study)  # its folder must not outlive what the study knows of it
        self.running[tune_id], self.experiments[number], self.seen[number] = trial, experiment, set(reported)
        self.listener(number, experiment, None)
        return {
            **self.settings,
            "number": number,
            "experiment": experiment.to_dict(),
            "reported": max(reported, default=0),
            "validated": validated_epochs(self.space.study, experiment.training.epochs),
            "rungs": rungs(self.space.study, experiment.training.epochs),
            "folder": str(self.folder.trial(number).path),
        }

    def report(self, tune_id: str, result: Mapping[str, Any]) -> bool:
        """Takes one or several epochs in, oldest first; returns False when the trial shall stop."""
        trial = self.running[tune_id]
        if "failure" in result:
            self.reasons[trial.number] = (result["failure"], result["message"])
            return False
        note = result.get("note", "")
        if note not in self.warned:
            self.warned.add(note)
            self.warn(note)
        number, epochs = trial.number, self.experiments[trial.number].training.epochs
        validated, last = False, 0
        for values in json.loads(result["records"]):
            record = EpochRecord(**values)
            last = record.epoch
            # A trial that was continued tells epochs again that the study may know already.
            if last in self.seen[number]:
                continue
            objective = record.metrics.get(OBJECTIVE)
            if objective is not None:
                if not math.isfinite(objective):
                    self.reasons[number] = ("diverged", f"{OBJECTIVE} is not finite in epoch {last}")
                    return False
                trial.report(objective, last)
                validated = True
            self.seen[number].add(last)
            self.listener(number, self.experiments[number], record)
        if last >= epochs or self.expired:
            return False
        return not (validated and trial.should_prune())

    def tell(self, tune_id: str, *, crashed: bool) -> None:
        """Closes a trial with what really happened to it."""
        trial = self.running.pop(tune_id, None)
        if trial is None:
            return
        number = trial.number
        frozen = self.frozen(trial)
        epochs = frozen.intermediate_values
        if crashed and number not in self.reasons:
            self.reasons[number] = ("crashed", "its process ended more often than resources.max_failures allows")
        if number in self.reasons:
            kind, message = self.reasons[number]
            trial.set_user_attr("failure", kind)
            trial.set_user_attr("message", message[:2000])
            self.study.tell(trial, state=TrialState.FAIL)
            self.broken = [] if kind in INFEASIBLE else [*self.broken, f"{kind}: {message}"]
        elif max(epochs, default=0) >= self.experiments[number].training.epochs:
            self.study.tell(trial, max(epochs.values()))
        elif self.expired:
            return  # stays RUNNING in the study: the next run goes on with it
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        sync_to_disk(self.study)
        if number not in self.reasons:
            self.broken = []
        # The workers of a Ray Train trial end a little later than this; their folders are tidied after the search.
        if self.settings["executor"] == "actor":
            self.folder.trial(number).tidy()
        self.listener(number, self.experiments.pop(number), None)
        self.seen.pop(number)

    def frozen(self, trial: optuna.Trial) -> FrozenTrial:
        """The stored state of a running trial."""
        return self.study._storage.get_trial(trial._trial_id)


class StudySearcher(Searcher):
    """Tune's side of ask and tell."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()  # no metric: a result may be a failure, and the study knows its objective
        self.bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        """See ``Searcher.suggest``."""
        return Searcher.FINISHED if self.bridge.expired or self.bridge.given_up else self.bridge.ask(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler reports: it must know the answer."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See ``Searcher.on_trial_complete``."""
        self.bridge.tell(trial_id, crashed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved with every call."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is opened instead."""


class StudyScheduler(FIFOScheduler):
    """Tune's side of report and should_prune."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """See ``TrialScheduler.on_trial_result``."""
        return TrialScheduler.CONTINUE if self.bridge.report(trial.trial_id, result) else TrialScheduler.STOP
