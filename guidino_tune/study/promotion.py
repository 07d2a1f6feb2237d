"""Trials that wait at a rung until they are among its best: halving whose early decisions are not final (ASHA, Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.config import Study
from guidino_tune.space.parameters import Values
from guidino_tune.study import optuna_private
from guidino_tune.study.trials import counted_at

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
        return BASELINE not in trial.user_attrs and trial.number not in _best(counted_at(study, trial.last_step or 0), self.settings, 0)


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
    """

    def __init__(self, study: optuna.Study, settings: Study, trials: dict[int, FrozenTrial]) -> None:
        self.study, self.settings, self.trials = study, settings, trials

    def best(self, least: int = 0) -> FrozenTrial | None:
        """The best trial that may leave the highest rung that any may leave; ``None`` where all are to wait.

        Args:
            least: How many may leave each rung though few came to it: 1 when no other trials are to come.
        """
        for rung in sorted({trial.last_step or 0 for trial in self.trials.values()}, reverse=True):
            for number in _best(counted_at(self.study, rung), self.settings, least):
                if number in self.trials and self.trials[number].last_step == rung:
                    return self.trials[number]
        return None

    def promote(self, least: int) -> FrozenTrial | None:
        """Takes the trial that is to go on out, see ``best``; the study knows of it before it runs."""
        found = self.best(least)
        if found:
            optuna_private.running_trial(self.study, found).set_user_attr(DECISION, [found.last_step, False])
            del self.trials[found.number]
        return found


def _best(values: dict[int, float], settings: Study, least: int) -> list[int]:
    return sorted(values, key=lambda number: (-values[number], number))[: max(least, len(values) // settings.reduction_factor)]
