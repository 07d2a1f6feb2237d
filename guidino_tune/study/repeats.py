"""Configurations that a study knows: training is deterministic, so what has a result, or runs, is not trained again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.study import optuna_private
from guidino_tune.study.outcomes import Key, Outcomes, as_key
from guidino_tune.study.trials import EXHAUSTED, counts_as_finished

REDRAWS = 3
"""Proposals in a row that repeat a known configuration; then the next one is drawn from the space at random, until it is a new one."""

DRAFTS = 1000
"""Configurations drawn at random, all of them known, after which a space counts as exhausted."""


class Repeats:
    """The configurations of a study that have a result or run, by the hash of their experiment.

    Args:
        trials: Those stored so far.

    Attributes:
        in_a_row: Proposals that were repetitions, since the last trial that was started.
        pool: What there is to be drawn at random; empty: all that the space allows.
    """

    def __init__(self, trials: Iterable[FrozenTrial]) -> None:
        self.in_a_row = 0
        self.pool: Sequence[Values] = ()
        self.known: dict[str, int] = {}
        for trial in trials:
            if "hash" in trial.user_attrs and (trial.state == TrialState.RUNNING or counts_as_finished(trial)):
                self.known.setdefault(trial.user_attrs["hash"], trial.number)

    def started(self, number: int, name: str) -> None:
        """A trial runs an experiment with this hash."""
        self.known.setdefault(name, number)
        self.in_a_row = 0

    def closed(self, trial: FrozenTrial) -> None:
        """A trial ended; without a result its configuration is free again."""
        name = trial.user_attrs["hash"]
        if not counts_as_finished(trial) and self.known.get(name) == trial.number:
            del self.known[name]

    def exhausted(self, study: optuna.Study, outcomes: Outcomes) -> str:
        """Keeps in the study that ``draw`` finds nothing, unless a later run tries failed configurations again; says so in words."""
        if outcomes.hopeless <= Outcomes(study.get_trials(deepcopy=False), 0).hopeless:
            study.set_user_attr(EXHAUSTED, True)
        known = len(self.known)
        return f"the space is exhausted: {DRAFTS:,} draws gave nothing but the {known} configuration(s) tried; the search ends with them"

    def draw(self, study: optuna.Study, space: Space, outcomes: Outcomes) -> optuna.Trial | None:
        """Adds a trial to the study that is drawn at random and not known, nor failed too often; ``None``: none was found."""
        begun = len(study.get_trials(deepcopy=False))
        seed = (space.study.seed + begun) % 2**32
        lottery = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        for values in random.Random(seed).sample(self.pool, len(self.pool)):
            lottery.enqueue_trial(values)
        seen: set[Key] = set()
        for _ in range(len(self.pool) or DRAFTS):
            trial = lottery.ask()
            values = suggest(space, trial)
            if as_key(trial.params) in seen:
                continue
            seen.add(as_key(trial.params))
            if not outcomes.repeated(trial.params) and space.experiment(values).hash not in self.known:
                study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions))
                return optuna_private.running_trial(study, study.get_trials(deepcopy=False)[begun])
        return None
