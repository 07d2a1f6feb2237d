"""One persisted Optuna study behind Ray Tune: a searcher that asks and tells, a scheduler that reports and prunes.

Stock ``OptunaSearch`` keeps a second state and tells trials that were stopped early as complete. Here the study is the only state: Tune
merely runs what the study says, so a driver that dies can be started again with the same command.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from guidino_tune.config import Experiment
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.training.failures import FAILURE, FailureKind, as_kind, death_kind
from guidino_tune.training.loop import OBJECTIVE
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.tuning.journal import sync_to_disk
from guidino_tune.tuning.objectives import MEASURED, beyond, feasible, note_counted, note_measured, values
from guidino_tune.tuning.outcomes import INTERRUPTION, REFUSALS, REPEATED, TWICE, Outcomes
from guidino_tune.tuning.study import (
    LISTED,
    ListedSampler,
    StudyFolder,
    counts_as_finished,
    is_stopped,
    orphans,
    remaining,
    rungs,
    validated_epochs,
)


class Bridge:
    """The study as Tune sees it.

    Args:
        study: Where everything is decided and kept.
        space: What is searched.
        folder: Of the study.
        listener: Told of a trial's number, its experiment and its new epoch (``None`` when its state changed).
        settings: What every trial's process must know beside its experiment.
        deadline: Time of the monotonic clock after which trials are left running in the study, to be continued by the next run.
        warn: Told what a user should know of the machines, such as a full disk; each text once.

    Attributes:
        remaining: Trials that are still to give a result; those that failed otherwise are made up for.
        orphans: Trials to go on with: left by a dead driver, or by a machine that was lost.
        unwritable: Set when the study could not be written, as on a full disk; nothing more is asked, reported or told.
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
        self._close_stopped()
        self.orphans = orphans(study, space)
        self.remaining = remaining(study, space)
        self.running: dict[str, optuna.Trial] = {}
        self.experiments: dict[int, Experiment] = {}
        self.seen: dict[int, set[int]] = {}
        self.records: dict[int, dict[int, EpochRecord]] = {}
        self.reasons: dict[int, tuple[FailureKind, str]] = {}
        self.last_words: dict[str, str] = {}
        self.outcomes = Outcomes(study.get_trials(deepcopy=False), settings.get("max_failures", 0))
        if isinstance(study.sampler, ListedSampler):
            study.sampler.outcomes = self.outcomes
        self.unwritable: Exception | None = None
        self.refusal = ""
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
        return time.monotonic() > self.deadline

    def stored(self, action: Callable[[], Any], otherwise: Any) -> Any:
        """Does what writes into the study, until something cannot be written: Tune would take the error for the trial's, and try again.

        Args:
            action: What to do; its result is given back.
            otherwise: The result when it was not done, or only in part: trials stay running in the study, to be continued.
        """
        if self.unwritable is None:
            try:
                return action()
            except (OSError, optuna.exceptions.StorageInternalError) as error:
                self.unwritable = error
        return otherwise

    @property
    def given_up(self) -> str:
        """Why no more trials are started, in words; empty otherwise. See ``guidino_tune.tuning.outcomes`` for the rules.

        What was said once holds: Tune asks no more, though a trial that still ran may succeed.
        """
        self.refusal = self.refusal or self.outcomes.given_up
        return self.refusal

    @property
    def waits(self) -> bool:
        """True while running trials suffice; one of them may yet have to be made up for, or to go on elsewhere."""
        return bool(self.running) and len(self.running) >= self.remaining

    def ask(self, tune_id: str) -> dict[str, Any] | None:
        """The next trial: one that a dead driver or machine left running, else a new one; ``None`` when there shall be no more."""
        refusals = 0
        while refusals < REFUSALS:
            if self.orphans:
                frozen = self.orphans.pop(0)
                trial = optuna.Trial(self.study, frozen._trial_id)
                reported = dict(frozen.intermediate_values)
                if frozen.user_attrs.get(INTERRUPTION):
                    trial.set_user_attr(INTERRUPTION, "")
            else:
                trial, reported = self.study.ask(), {}
            experiment = self.space.experiment(suggest(self.space, trial))
            trial.set_user_attr("name", experiment.name)
            trial.set_user_attr("hash", experiment.hash)
            trial.set_user_attr("epochs", experiment.training.epochs)
            note_counted(self.space.study, trial, experiment)
            refused = self._refused(trial, experiment)
            if not refused and not self._too_much(trial, experiment):
                return self._started(tune_id, trial, experiment, reported)
            refusals += bool(refused)
            if self.remaining <= 0:
                return None
        self.refusal = f"the sampler proposed {REFUSALS} configurations in a row that had failed before, the last one: {refused}"
        return None

    def _refused(self, trial: optuna.Trial, experiment: Experiment) -> str:
        """Closes a trial that must not be run, and says why; empty for any other."""
        kind = self.outcomes.repeated(trial.params)
        if kind is None:
            return ""
        message = f"failed so {TWICE} times before ({experiment.hash}); not tried again"
        trial.set_user_attr("failure", kind)
        trial.set_user_attr("message", message)
        trial.set_user_attr(REPEATED, True)
        self.study.tell(trial, state=TrialState.FAIL)
        sync_to_disk(self.study)
        self.listener(trial.number, experiment, None)
        return f"{kind}: {message}"

    def _too_much(self, trial: optuna.Trial, experiment: Experiment) -> bool:
        """Closes a trial that is beyond a constraint before it is trained, or trained any further; it counts as finished."""
        if feasible(frozen := self.frozen(trial)):
            return False
        trial.set_user_attr("message", beyond(self.space.study, frozen))
        self.study.tell(trial, state=TrialState.PRUNED)
        sync_to_disk(self.study)
        self.remaining -= 1
        self.folder.trial(trial.number).tidy()
        self.listener(trial.number, experiment, None)
        return True

    def _started(self, tune_id: str, trial: optuna.Trial, experiment: Experiment, reported: Mapping[int, float]) -> dict[str, Any]:
        number = trial.number
        if text := self.outcomes.repetition(number, experiment.hash, trial.params):
            self.warn(text)
        sync_to_disk(self.study)  # its folder must not outlive what the study knows of it
        self.running[tune_id], self.experiments[number], self.seen[number] = trial, experiment, set(reported)
        self.listener(number, experiment, None)
        return {
            **self.settings,
            "number": number,
            "experiment": experiment.to_dict(),
            "reported": max(reported, default=0),
            "short_of_memory": self.outcomes.is_short_of_memory(number),
            "validated": validated_epochs(self.space.study, experiment.training.epochs),
            "rungs": rungs(self.space.study, experiment.training.epochs),
            "measure": any(name in self.space.study.constraints for name in MEASURED),
            "folder": str(self.folder.trial(number).path),
        }

    def report(self, tune_id: str, result: Mapping[str, Any]) -> bool:
        """Takes one or several epochs in, oldest first; returns False when the trial shall stop."""
        trial = self.running[tune_id]
        if "failure" in result:
            self.reasons[trial.number] = as_kind(result["failure"]), result["message"]
            return False
        note = result.get("note", "")
        if note not in self.warned:
            self.warned.add(note)
            self.warn(note)
        number, epochs = trial.number, self.experiments[trial.number].training.epochs
        validated, last = False, 0
        for told in json.loads(result["records"]):
            record = EpochRecord.from_dict(told)
            last = record.epoch
            self.records.setdefault(number, {})[last] = record
            # A trial that was continued tells epochs again that the study may know already.
            if last in self.seen[number]:
                continue
            note_measured(self.space.study, trial, record.metrics)
            objective = record.metrics.get(OBJECTIVE)
            if objective is not None:
                if not math.isfinite(objective):
                    self.reasons[number] = ("diverged", f"{OBJECTIVE} is not finite in epoch {last}")
                    return False
                self._report(trial, objective, last)
                validated = True
            self.seen[number].add(last)
            self.outcomes.progressed(number, last)
            self.listener(number, self.experiments[number], record)
        if last >= epochs or self.expired:
            return False
        if self.space.study.constraints and not feasible(self.frozen(trial)):
            return False
        return not (validated and len(self.study.directions) == 1 and trial.should_prune())

    def _report(self, trial: optuna.Trial, objective: float, epoch: int) -> None:
        if len(self.study.directions) == 1:
            trial.report(objective, epoch)
        else:
            # Optuna has no rule to prune by several objectives, and refuses the report; the study is to know its epochs all the same.
            self.study._storage.set_trial_intermediate_value(trial._trial_id, epoch, objective)

    def died(self, tune_id: str, text: str) -> None:
        """Remembers what Ray says of the end of a trial's process, until the trial is closed."""
        self.last_words[tune_id] = text

    def tell(self, tune_id: str, *, crashed: bool) -> None:
        """Closes a trial with what really happened to it, or keeps it to go on."""
        trial = self.running.pop(tune_id, None)
        text = self.last_words.pop(tune_id, "")
        if trial is None:
            return
        number = trial.number
        if crashed and number not in self.reasons and (known := self._known_failure(number)):
            self.reasons[number] = known
        reason = self.reasons.get(number)
        # A worker group tells its end as a result, after as many attempts as are allowed; only the loss of machines is no failure.
        if (crashed and reason is None) or (reason and reason[0] == "preempted"):
            kind, message, goes_on = self.outcomes.ended(number, *(reason or (death_kind(text), text)))
            if goes_on:
                self.reasons.pop(number, None)
                self._keep(trial, kind, message)
                return
            self.reasons[number] = kind, message
        stored = self.frozen(trial)
        epochs, results = stored.intermediate_values, list[float]()
        if number not in self.reasons and max(epochs, default=0) >= self.experiments[number].training.epochs:
            results = self._results(stored)
        if number in self.reasons:
            kind, message = self.reasons[number]
            if kind == "diverged":
                shutil.rmtree(self.folder.trial(number).best, ignore_errors=True)  # no model to be exported by mistake
            trial.set_user_attr("failure", kind)
            trial.set_user_attr("message", message[:2000])
            self.study.tell(trial, state=TrialState.FAIL)
        elif not feasible(stored):
            trial.set_user_attr("message", beyond(self.space.study, stored))
            self.study.tell(trial, state=TrialState.PRUNED)
        elif results:
            self.study.tell(trial, results)
        elif self.expired:
            return  # stays RUNNING in the study: the next run goes on with it
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        sync_to_disk(self.study)
        closed = self.frozen(trial)
        self.outcomes.closed(closed)
        lost = self.space.study.sampler == LISTED and self.outcomes.repeated(closed.params)
        if counts_as_finished(closed) or lost:
            self.remaining -= 1
        # The workers of a Ray Train trial end a little later than this; their folders are tidied after the search.
        if self.settings["executor"] == "actor":
            self.folder.trial(number).tidy()
        self.listener(number, self.experiments.pop(number), None)
        self.seen.pop(number)
        self.records.pop(number, None)

    def _results(self, trial: FrozenTrial) -> list[float]:
        """The values of a trial that told its last epoch; empty, with a reason, when the study wants more than its epochs can tell."""
        records = {record.epoch: record for record in self.folder.trial(trial.number).history()} if len(self.study.directions) > 1 else {}
        try:
            return values(self.space.study, trial, records | self.records.get(trial.number, {}), self.space.resources.workers)
        except KeyError as error:
            self.reasons[trial.number] = "environment", f"its history.jsonl is not whole: {error} is missing"
            return []

    def _known_failure(self, number: int) -> tuple[FailureKind, str] | None:
        """What a process wrote of its failure before it ended."""
        file = self.folder.trial(number).path / FAILURE
        if not file.exists():
            return None
        known = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return as_kind(known["failure"]), known["message"]

    def _keep(self, trial: optuna.Trial, kind: str, message: str) -> None:
        """Leaves a trial running in the study, to be handed out again with the next question."""
        number = trial.number
        trial.set_user_attr(INTERRUPTION, f"{kind}: {message}"[:2000])
        sync_to_disk(self.study)
        self.orphans.append(self.frozen(trial))
        self.warn(f"trial {number} was interrupted and goes on from its checkpoint ({kind}: {message[:300]})")
        self.listener(number, self.experiments.pop(number), None)
        self.seen.pop(number)
        self.records.pop(number, None)

    def _close_stopped(self) -> None:
        """Closes trials whose driver died between the decision to stop them and its record: they are not to train another epoch."""
        for frozen in orphans(self.study, self.space):
            if is_stopped(self.study, self.space.study, frozen):
                self.study.tell(optuna.Trial(self.study, frozen._trial_id), state=TrialState.PRUNED)
                sync_to_disk(self.study)
                self.folder.trial(frozen.number).tidy()
                self.listener(frozen.number, self.space.experiment(frozen.params), None)

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
        return self.bridge.stored(lambda: self._next(trial_id), Searcher.FINISHED)

    def _next(self, trial_id: str) -> Any:
        bridge = self.bridge
        if bridge.expired or bridge.given_up:
            return Searcher.FINISHED
        if bridge.waits:
            return None  # Tune asks again
        return (bridge.ask(trial_id) if bridge.remaining > 0 else None) or Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler reports: it must know the answer."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See ``Searcher.on_trial_complete``."""
        self.bridge.stored(lambda: self.bridge.tell(trial_id, crashed=error), None)

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
        go_on = self.bridge.stored(lambda: self.bridge.report(trial.trial_id, result), False)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """See ``TrialScheduler.on_trial_error``; the searcher, which closes the trial, is not told what happened."""
        self.bridge.died(trial.trial_id, last_error(trial))


def last_error(trial: TuneTrial) -> str:
    """What Ray said of the last failure of a Tune trial; empty when it left no file."""
    file = trial.error_file
    text = Path(file).read_text(encoding="utf-8", errors="replace") if file and Path(file).exists() else ""
    return text.rpartition("Failure # ")[2].partition("\n")[2]
