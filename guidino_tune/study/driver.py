"""The driver of a study: it asks for trials, takes in their epochs, and tells their results, whoever runs them.

The study is the only state. Whatever runs the trials (Ray Tune, a simulator, a loop in a test) does what the driver says, so a driver that
dies can be started again with the same command.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.config import Experiment
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.study import optuna_private, refusals
from guidino_tune.study.guarded import Guarded
from guidino_tune.study.journal import sync_to_disk
from guidino_tune.study.kept_weights import KeptWeights
from guidino_tune.study.listed import ListedSampler
from guidino_tune.study.moving import goes_elsewhere
from guidino_tune.study.nodes import MANY, NODE, OTHERS, REST, read_node, shown
from guidino_tune.study.objectives import MEASURED, Count, beyond, feasible, note_counted, note_measured, uncounted, values
from guidino_tune.study.outcomes import INTERRUPTION, REFUSALS, Outcomes
from guidino_tune.study.promotion import Waiting, is_waiting
from guidino_tune.study.pruners import ends, is_stopped, rungs, validated_epochs
from guidino_tune.study.repeats import REDRAWS, Repeats
from guidino_tune.study.stopping import ends_early
from guidino_tune.study.store import StudyFolder
from guidino_tune.study.trials import counts_as_finished, orphans, remaining
from guidino_tune.training.failures import FailureKind, death_kind, noted_failure
from guidino_tune.training.reporter import EpochRecord

INTERRUPTED, OUT_OF_TIME = "Interrupted", "The time budget is used up"
"""Why a run ended before all its trials did; anything else is a failure in words."""


class Driver(Guarded):
    """One run of a study, as whoever runs its trials sees it. A trial that runs has a key, which that runner chooses.

    Args:
        study: Where everything is decided and kept.
        space: What is searched.
        folder: Of the study.
        listener: Told of a trial's number, its experiment and its new epoch (``None`` when its state changed).
        settings: What every trial's process must know beside its experiment; ``max_failures`` counts here too, and a trial of the ``train``
            executor keeps its checkpoints until the search is over.
        deadline: Time of the monotonic clock after which trials are left running in the study, to be continued by the next run.
        warn: Told what a user should know of the machines, such as a full disk; each text once.
        count: Gives what a study with such objectives or constraints knows of a network before it is trained.
        has_others: Whether another node than these could take a trial; ``None``: nothing is tried elsewhere.
        roomier: Where a trial that ran out of memory on a node has more, by Ray's ids; ``None``: such a trial is not tried again.

    Attributes:
        remaining: Trials that are still to give a result; those that failed otherwise are made up for.
        orphans: Trials to go on with: left by a dead driver, or by a machine that was lost.
        waiting: Trials that wait at a rung.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        folder: StudyFolder,
        listener: Callable[[int, Experiment, EpochRecord | None], None],
        settings: Mapping[str, Any] = MappingProxyType({}),
        deadline: float = math.inf,
        warn: Callable[[str], None] = lambda text: None,
        count: Count = uncounted,
        has_others: Callable[..., bool] | None = None,
        roomier: Callable[[str], list[str]] | None = None,
    ) -> None:
        self.study, self.space, self.folder, self.listener = study, space, folder, listener
        self.settings, self.deadline, self.kept = settings, deadline, KeptWeights(study, space.study)
        # They wait, or their driver died between the decision to stop them and its record: they are not to train another epoch now.
        stopped = {t.number: t for t in orphans(study, space) if is_stopped(study, space.study, t)}
        self.waiting = Waiting(study, space.study, stopped)
        if not space.study.waits:
            self._close_waiting()
        self.orphans = [t for t in orphans(study, space) if t.number not in stopped]
        self.remaining = remaining(study, space)
        self.running: dict[str, optuna.Trial] = {}
        self.experiments: dict[int, Experiment] = {}
        self.seen: dict[int, set[int]] = {}
        self.records: dict[int, dict[int, EpochRecord]] = {}
        self.reasons: dict[int, tuple[FailureKind, str]] = {}
        self.last_words: dict[str, str] = {}
        self.unplaced: set[int] = set()
        self.outcomes = Outcomes(study.get_trials(deepcopy=False), settings.get("max_failures", 0))
        self.outcomes.nodes.has_others = has_others or self.outcomes.nodes.has_others
        if isinstance(study.sampler, ListedSampler):
            study.sampler.outcomes = self.outcomes
        self.repeats = Repeats(study.get_trials(deepcopy=False))
        self.exhausted, self.untrained, self.refusal, self._look_again = False, 0, "", 0.0
        self.warn, self.warned, self.count = warn, {""}, count
        self.has_others, self.roomier = has_others, roomier

    @property
    def expired(self) -> bool:
        """True after the deadline."""
        return time.monotonic() > self.deadline

    @property
    def given_up(self) -> str:
        """Why no more trials are started, in words; empty otherwise. See ``guidino_tune.study.outcomes`` for the rules.

        What was said once holds: Tune asks no more, though a trial that still ran may succeed.
        """
        if not self.refusal and self.outcomes.given_up() and time.monotonic() >= self._look_again:
            begun = time.monotonic()
            for trial in self.running.values():
                self._place(trial, heard=False)
            if len(self.unplaced) > MANY:
                self._look_again = time.monotonic() + REST * (time.monotonic() - begun)
            self.refusal = self.outcomes.given_up([trial.number for trial in self.running.values()])
        return self.refusal

    @property
    def ended(self) -> str:
        """Why the run ended before all its trials did; empty when all have."""
        if self.given_up:
            return self.given_up
        if self.exhausted:
            return ""
        if remaining(self.study, self.space, self.outcomes):
            return OUT_OF_TIME if self.expired else INTERRUPTED
        # Of a list: what the next run tries again.
        left = remaining(self.study, self.space)
        return f"{left} listed trials failed twice, and not through their configuration" if left else ""

    @property
    def waits(self) -> bool:
        """True while running trials suffice, or are all that is left; one of them may yet have to be made up for, or to go on elsewhere."""
        return bool(self.running) and self._begun and not self.waiting.best()

    @property
    def _begun(self) -> bool:
        return self.exhausted or len(self.running) + len(self.waiting.trials) >= self.remaining

    def _promote(self) -> bool:
        """Lets the best trial that waits go on, or a new one begin; false when neither is to be. When all have begun and none runs, the
        best of each rung goes on, and then those that still wait are closed."""
        last = self._begun and not self.running
        if found := self.waiting.promote(least=int(last)):
            self.orphans.append(found)
        elif last:
            self.remaining -= len(self.waiting.trials)
            self._close_waiting()
        return bool(found) or not self._begun

    def ask(self, key: str) -> dict[str, Any] | None:
        """The next trial: one that a dead driver or machine left running, else a new one; ``None`` when there shall be no more."""
        failed = 0
        while failed < REFUSALS:
            if self.waiting.trials and not self.orphans and not self._promote():
                return None
            begun = bool(self.orphans) and "hash" in self.orphans[0].user_attrs
            if self.orphans:
                frozen = self.orphans.pop(0)
                trial = optuna_private.running_trial(self.study, frozen)
                reported = dict(frozen.intermediate_values)
                if frozen.user_attrs.get(INTERRUPTION):
                    trial.set_user_attr(INTERRUPTION, "")
            elif self.repeats.in_a_row < REDRAWS:
                trial, reported = self.study.ask(), {}
            elif drawn := self.repeats.draw(self.study, self.space, self.outcomes):
                trial, reported = drawn, {}
            else:
                self.exhausted = True
                if not self.running:
                    self.warn(self.repeats.exhausted(self.study, self.outcomes))
                    if self.waiting.trials:
                        continue
                return None
            experiment = self.space.experiment(params := suggest(self.space, trial))
            name = experiment.hash
            if not begun and refusals.repeats(self, trial, params, name):
                continue
            trial.set_user_attr("name", experiment.name)
            trial.set_user_attr("hash", name)
            trial.set_user_attr("epochs", experiment.training.epochs)
            note_counted(self.space.study, trial, experiment, self.count)
            refused = refusals.failed_before(self, trial, params, experiment, name)
            if not refused and not refusals.too_much(self, trial, experiment, name):
                if text := self.outcomes.repetition(trial.number, name, params):
                    self.warn(text)
                self.repeats.started(trial.number, name)
                return self._started(key, trial, experiment, reported)
            failed += bool(refused)
            if self.remaining <= 0 or self.refusal:
                return None
        self.refusal = f"the sampler proposed {REFUSALS} configurations in a row that had failed before, the last one: {refused}"
        return None

    def _started(self, key: str, trial: optuna.Trial, experiment: Experiment, reported: Mapping[int, float]) -> dict[str, Any]:
        number = trial.number
        sync_to_disk(self.study)  # its folder must not outlive what the study knows of it
        self.untrained = 0
        self.unplaced.add(number)
        self.running[key], self.experiments[number], self.seen[number] = trial, experiment, set(reported)
        self.listener(number, experiment, None)
        return {
            **self.settings,
            "number": number,
            "experiment": experiment.to_dict(),
            "reported": max(reported, default=0),
            "avoided": [node.rpartition(" ")[2] for node in self.outcomes.nodes.avoided_by(number)],
            "only": self.outcomes.nodes.only_for(number),
            "short_of_memory": self.outcomes.is_short_of_memory(number),
            "validated": validated_epochs(self.space.study, experiment.training.epochs),
            "rungs": rungs(self.space.study, experiment.training.epochs),
            "measure": any(name in self.space.study.constraints for name in MEASURED),
            "until": time.time() + self.deadline - time.monotonic(),
            "folder": str(self.folder.trial(number).path),
            "split_file": str(self.folder.split_of(number)),
        }

    def fail(self, key: str, kind: FailureKind, message: str, node: str = "", *, unfit: bool = False) -> None:
        """Remembers how a trial failed, on which node, and whether that is ``unfit``, by its own account, until it is closed."""
        trial = self.running[key]
        self.reasons[trial.number] = kind, message
        if node:
            self.unplaced.discard(trial.number)  # its folder, which the node may not share, may name another one
            if self.outcomes.nodes.placed(trial.number, node):
                trial.set_user_attr(NODE, node)
        if unfit:
            self.outcomes.nodes.unfit(trial.number)

    def report(self, key: str, records: Iterable[EpochRecord], note: str = "") -> bool:
        """Takes one or several epochs in, oldest first.

        Args:
            key: Of the trial.
            records: Its new epochs; those that the study knows already count once.
            note: What a user should know of the trial's machine.

        Returns:
            False when the trial shall stop.
        """
        trial = self.running[key]
        self._place(trial)
        self._warn_once(note)
        number, epochs = trial.number, self.experiments[trial.number].training.epochs
        validated, last = list[int](), 0
        for record in records:
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
                optuna_private.report(trial, objective, last)
                validated.append(last)
            self.seen[number].add(last)
            self.outcomes.progressed(number, last)
            self.listener(number, self.experiments[number], record)
        if last >= epochs or self.expired:
            return False
        if self.space.study.constraints and not feasible(self.frozen(trial)):
            return False
        return not (validated and ends(trial, self.space.study, validated, epochs))

    def _place(self, trial: optuna.Trial, *, heard: bool = True) -> None:
        """Notes on which node a trial is, as its process wrote into its folder before it was ``heard``; once for each start."""
        number = trial.number
        if number in self.unplaced and (node := read_node(self.folder.trial(number).path)) and self.outcomes.nodes.placed(number, node):
            trial.set_user_attr(NODE, node)
        if heard:
            self.unplaced.discard(number)

    def _warn_once(self, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            self.warn(text)

    def died(self, key: str, text: str) -> None:
        """Remembers what is said of the end of a trial's process, until the trial is closed."""
        self.last_words[key] = text

    def tell(self, key: str, *, crashed: bool) -> None:
        """Closes a trial with what really happened to it, or keeps it to go on."""
        trial = self.running.pop(key, None)
        text, self.exhausted = self.last_words.pop(key, ""), False
        if trial is None:
            return
        number = trial.number
        self._place(trial)
        known = noted_failure(self.folder.trial(number).path) if crashed and number not in self.reasons else None
        if known and death_kind(text) != "preempted":  # then it tells what the loss of a machine did to those who were left
            self.reasons[number] = known
        reason = self.reasons.get(number)
        # A worker group tells its end as a result, after as many attempts as are allowed; only the loss of machines is no failure.
        if (crashed and reason is None) or (reason and reason[0] == "preempted"):
            kind, message, goes_on = self.outcomes.ended(number, *(reason or (death_kind(text), text)))
            if goes_on:
                self.reasons.pop(number, None)
                self.keep(trial, kind, message)
                return
            self.reasons[number] = kind, message
        if goes_elsewhere(self, trial):
            return
        stored = self.frozen(trial)
        epochs, results = stored.intermediate_values, list[float]()
        if number not in self.reasons and max(epochs, default=0) >= self.experiments[number].training.epochs:
            results = self._results(stored)
        if number in self.reasons:
            kind, message = self.reasons[number]
            if kind == "diverged":
                self.folder.trial(number).drop_weights()  # no model to be exported by mistake
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
        elif self.space.study.waits and is_waiting(stored):
            self.waiting.add(stored)
            self._put_aside(number)
            return
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        closed = self.frozen(trial)
        self.outcomes.closed(closed)
        self.warn_of_nodes()
        self.repeats.closed(closed)
        if counts_as_finished(closed) or (self.space.study.is_list and self.outcomes.repeated(closed.params)):
            self.remaining -= 1
        self._clear(closed)
        self._put_aside(number)

    def _put_aside(self, number: int) -> None:
        sync_to_disk(self.study)
        self.listener(number, self.experiments.pop(number), None)
        self.seen.pop(number)
        self.records.pop(number, None)
        if ends_early(self.study, self.space):
            self.remaining = len(self.running) + len(self.waiting.trials) + len(self.orphans)

    def _results(self, trial: FrozenTrial) -> list[float]:
        """The values of a trial that told its last epoch; empty, with a reason, when the study wants more than its epochs can tell."""
        records = {record.epoch: record for record in self.folder.trial(trial.number).history()} if len(self.study.directions) > 1 else {}
        try:
            return values(self.space.study, trial, records | self.records.get(trial.number, {}), self.space.resources.workers)
        except KeyError as error:
            self.reasons[trial.number] = "environment", f"its history.jsonl is not whole: {error} is missing"
            return []

    def warn_of_nodes(self) -> None:
        """Says, once, which nodes are avoided."""
        for node in self.outcomes.nodes.avoided:
            self._warn_once(f"node {shown(node)}: one configuration after the other failed there; {OTHERS}")

    def give_back(self, key: str) -> None:
        """Takes a trial back that no process has begun; it is handed out again with the next question, or by the next run."""
        if trial := self.running.pop(key, None):
            self.orphans.append(self.frozen(trial))
            self._put_aside(trial.number)

    def keep(self, trial: optuna.Trial, kind: str, message: str) -> None:
        """Leaves a trial running in the study, to be handed out again with the next question."""
        number = trial.number
        trial.set_user_attr(INTERRUPTION, f"{kind}: {message}"[:2000])
        self.orphans.append(self.frozen(trial))
        self.warn(f"trial {number} was interrupted and goes on from its checkpoint ({kind}: {' '.join(message.split())[:300]})")
        self._put_aside(number)

    def _close_waiting(self) -> None:
        for number, frozen in self.waiting.trials.items():
            self.study.tell(number, state=TrialState.PRUNED)
            sync_to_disk(self.study)
            self._clear(frozen)
            self.listener(number, self.space.experiment(frozen.params), None)
        self.waiting.clear()

    def _clear(self, trial: FrozenTrial) -> None:
        """Removes what an ended trial no longer needs. The workers of a Ray Train trial end later: it is cleared after the search."""
        ends_later = {trial.number} if self.settings.get("executor") == "train" else set()
        for number in self.kept.closed(trial) - ends_later:
            self.folder.trial(number).drop_weights()
        for number in {trial.number} - ends_later:
            self.folder.trial(number).tidy()

    def frozen(self, trial: optuna.Trial) -> FrozenTrial:
        """The stored state of a running trial."""
        return optuna_private.stored_trial(self.study, trial.number)
