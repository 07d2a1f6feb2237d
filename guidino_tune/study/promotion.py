"""Trials that wait at a rung until they are among its best: halving whose early decisions are not final (ASHA, Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.config import Study
from guidino_tune.space.parameters import Values
from guidino_tune.study import optuna_private
from guidino_tune.study.standings import Standings
from guidino_tune.study.trials import counted_at, counted_at_epochs, value_at

DECISION = "decision"
"""Attribute of a trial: the newest epoch at which it was compared, and whether that ended it, or lets it wait. Of a trial that ended,
later peers change nothing; one that waits is noted anew when it is promoted."""


BASELINE = "baseline"
"""Attribute of a trial that runs to its end whatever a rung says."""

BASELINES = 1
"""As many of a space's first trials are baselines: settings of a paper or of one's own, whose result is to be known, and which the search
is to beat; ``compare`` takes the first of them for the default. Each costs a whole trial."""


class PromotionPruner(optuna.pruners.BasePruner):
    """Says of a trial that has come to a rung whether it waits there; the best of the rung and baselines go on at once.

    Args:
        settings: Of the study; of n trials that came to a rung, the best ``n // reduction_factor`` go on.
    """

    def __init__(self, settings: Study) -> None:
        self.settings = settings

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """See ``BasePruner``."""
        counted = counted_at(study, trial.last_step or 0)
        return BASELINE not in trial.user_attrs and not counted.leads(trial.number, _places(counted, self.settings, 0))


def is_waiting(trial: FrozenTrial) -> bool:
    """True when it was told to wait, or to end, at its newest epoch, and has not been promoted since."""
    return bool(trial.user_attrs.get(DECISION) == [trial.last_step, True])


def queue_first(study: optuna.Study, trials: Sequence[Values]) -> None:
    """Queues a space's first trials, each once; the first of them is a baseline."""
    for place, values in enumerate(trials):
        study.enqueue_trial(dict(values), user_attrs={BASELINE: True} if place < BASELINES else None, skip_if_exists=True)


class Waiting:
    """The trials of a study that wait.

    Args:
        study: The study.
        settings: Its settings.
        trials: By number, each at its newest epoch.

    Attributes:
        trials: Those that wait now; ``add``, ``promote`` and ``clear`` change them.
    """

    def __init__(self, study: optuna.Study, settings: Study, trials: dict[int, FrozenTrial]) -> None:
        self.study, self.settings = study, settings
        self.trials: dict[int, FrozenTrial] = {}
        self._rungs: dict[int, Standings] = {}
        for trial in trials.values():
            self.add(trial)

    def add(self, trial: FrozenTrial) -> None:
        """A trial waits at its newest epoch."""
        rung = trial.last_step or 0
        self.trials[trial.number] = trial
        self._rungs.setdefault(rung, Standings()).put(trial.number, value_at(trial, rung))

    def clear(self) -> None:
        """None waits any more."""
        self.trials.clear()
        self._rungs.clear()

    def best(self, least: int = 0) -> FrozenTrial | None:
        """The best trial that may leave the highest rung that any may leave; ``None`` where all are to wait.

        Args:
            least: How many may leave each rung though few came to it: 1 when no other trials are to come.
        """
        rungs = sorted((rung for rung, waiting in self._rungs.items() if waiting.order), reverse=True)
        counted = counted_at_epochs(self.study, rungs) if rungs else {}
        for rung in rungs:
            first = self._rungs[rung].order[0][1]
            if counted[rung].leads(first, _places(counted[rung], self.settings, least)):
                return self.trials[first]
        return None

    def promote(self, least: int) -> FrozenTrial | None:
        """Takes the trial that is to go on out, see ``best``; the study knows of it before it runs."""
        found = self.best(least)
        if found:
            optuna_private.running_trial(self.study, found).set_user_attr(DECISION, [found.last_step, False])
            del self.trials[found.number]
            self._rungs[found.last_step or 0].put(found.number, None)
        return found


def _places(counted: Standings, settings: Study, least: int) -> int:
    """How many of those that came to a rung leave it."""
    return max(least, len(counted.values) // settings.reduction_factor)
