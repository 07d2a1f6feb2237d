"""How a study stands, counted along as its trials change: no question looks at all of them."""

from __future__ import annotations

from collections import Counter

import optuna
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.study.objectives import feasible
from guidino_tune.study.outcomes import REPEATS
from guidino_tune.study.promotion import is_waiting
from guidino_tune.study.trials import counts_as_finished, rank, untrained


class Tally:
    """Counts of a study.

    Args:
        study: Its trials so far are counted; later changes are handed to ``take``.

    Attributes:
        states: How many trials are in each state.
        waiting: Those that wait at a rung, by number; in ``states`` they run.
        done: How many gave a result, and were trained for it.
        failures: How many failed, by kind.
        epochs: How many epochs the finished ones were trained.
        beyond: How many were ended because they broke a constraint; in ``states`` they are pruned.
        best: The first of the ranking, or ``None``.
        latest: When a trial started or ended last, in Unix seconds; 0 before the first one.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.states: Counter[TrialState] = Counter()
        self.waiting: set[int] = set()
        self.done = 0
        self.failures: Counter[str] = Counter()
        self.epochs = 0
        self.beyond = 0
        self.best: FrozenTrial | None = None
        self.latest = 0.0
        self._known: dict[int, TrialState] = {}
        for trial in study.get_trials(deepcopy=False):
            self.take(trial)

    def take(self, trial: FrozenTrial) -> bool:
        """Counts a trial as it is now; False when its state was known already, or it repeats another."""
        waits = trial.state == TrialState.RUNNING and is_waiting(trial)
        (self.waiting.add if waits else self.waiting.discard)(trial.number)
        before = self._known.get(trial.number)
        if before == trial.state or REPEATS in trial.user_attrs:
            return False
        if before is not None:
            self.states[before] -= 1
        self._known[trial.number] = trial.state
        self.states[trial.state] += 1
        self.latest = max(self.latest, *(at.timestamp() for at in (trial.datetime_start, trial.datetime_complete) if at), 0.0)
        if trial.state.is_finished():
            self.done += counts_as_finished(trial) and not untrained(trial)
            if trial.state == TrialState.FAIL:
                self.failures[str(trial.user_attrs.get("failure", "unknown"))] += 1
            self.epochs += max(trial.intermediate_values, default=0)
            self.beyond += trial.state == TrialState.PRUNED and not feasible(trial)
            if trial.state == TrialState.COMPLETE and feasible(trial) and (self.best is None or rank(trial) < rank(self.best)):
                self.best = trial
        return True
