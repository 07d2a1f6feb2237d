"""Which trials keep the weights of their best epoch: thousands of trials would fill a disk with models that nobody asks for."""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.config import Study
from guidino_tune.study.objectives import feasible
from guidino_tune.study.standings import Ordered
from guidino_tune.study.store import BEGUN_BY
from guidino_tune.study.trials import front, rank


class KeptWeights:
    """The best complete trials of a study, and all on its Pareto front; see ``study.keep_weights``.

    Args:
        study: Its finished trials count from the start.
        settings: How many are kept; of a list all are, and of a study that was begun when all were.
    """

    def __init__(self, study: optuna.Study, settings: Study) -> None:
        self._study, self._most = study, settings.kept_weights if study.user_attrs.get(BEGUN_BY) else None
        self._best: Ordered[tuple[float, ...]] = Ordered()  # ends with the number of the trial
        self._front: set[int] = set()
        for trial in study.get_trials(deepcopy=False) if self._most is not None else ():
            self._take(trial)
        self._front = self._on_front()

    @property
    def numbers(self) -> set[int]:
        """Of the trials whose weights are kept; without meaning where all are."""
        return {int(place[-1]) for place in self._best} | self._front

    def closed(self, trial: FrozenTrial) -> set[int]:
        """Takes a finished trial in; gives the numbers of those whose weights are to be removed now, it may be one of them."""
        if self._most is None:
            return set()
        before = self.numbers | {trial.number}
        self._take(trial)
        self._front = self._on_front()
        return before - self.numbers

    def others(self, trials: Iterable[FrozenTrial]) -> set[int]:
        """Which of these have finished, and keep nothing."""
        if self._most is None:
            return set()
        return {trial.number for trial in trials if trial.state.is_finished()} - self.numbers

    def _take(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE or not feasible(trial):
            return
        self._best.put(rank(trial))
        del self._best[self._most :]

    def _on_front(self) -> set[int]:
        return {trial.number for trial in front(self._study)} if self._most is not None else set()
