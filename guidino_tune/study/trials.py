"""What the trials of a study are: finished or left running, ranked, on the front, and how many are still to come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space
from guidino_tune.study.fronts import on_front
from guidino_tune.study.objectives import COUNTED, feasible
from guidino_tune.study.outcomes import REPEATED, REPEATS, Outcomes, as_key
from guidino_tune.study.standings import Changes, Standings
from guidino_tune.training.failures import INFEASIBLE

EXHAUSTED = "exhausted"
"""Attribute of a study: every configuration of its space has a result, or failed for good, so that no run will find another."""


ENDED_EARLY = "ended_early"
"""Attribute of a study: how many trials it was to have when ``study.stop`` ended it, after how many without a better one, and how many had
begun."""


def unfinished(listed: Sequence[Values], trials: Sequence[FrozenTrial]) -> list[Values]:
    """The listed sets of values that none of these trials has."""
    known = {as_key(trial.params) for trial in trials}
    return [values for values in listed if as_key(values) not in known]


def remaining(study: optuna.Study, space: Space, outcomes: Outcomes | None = None) -> int:
    """How many trials are still to be finished; listed ones that failed twice the same way are not, nor are any of an exhausted space.

    Of a study that ended early those that had begun are.

    Args:
        study: The study.
        space: What it searches.
        outcomes: Of the run that asks; ``None`` asks for a run to come.
    """
    if space.study.is_list:
        lost = (outcomes or Outcomes(study.get_trials(deepcopy=False), 0)).hopeless
        return sum(as_key(values) not in lost for values in unfinished(space.first_trials, finished(study)))
    if study.user_attrs.get(EXHAUSTED):
        return 0
    if ended_early(study, space):
        return len(orphans(study, space))
    return max(0, space.study.trials - sum(not untrained(trial) for trial in finished(study)))


def ended_early(study: optuna.Study, space: Space) -> bool:
    """True when ``study.stop`` ended the study, and neither it nor ``study.trials`` has been raised since."""
    at = study.user_attrs.get(ENDED_EARLY) if space.study.patience else None
    return bool(at and space.study.trials <= at["trials"] and (space.study.patience or 0) <= at["patience"])


def without_result(study: optuna.Study, space: Space) -> list[str]:
    """A line for each listed set of values whose trials all failed through no fault of theirs, with the last reason."""
    if not space.study.is_list:
        return []
    failed = {as_key(t.params): t for t in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))}
    tried = [(values, failed[as_key(values)]) for values in unfinished(space.first_trials, finished(study)) if as_key(values) in failed]
    return [f"no result: {dict(values)} ({t.user_attrs.get('failure')}: {t.user_attrs.get('message', '')[:200]})" for values, t in tried]


def orphans(study: optuna.Study, space: Space) -> list[FrozenTrial]:
    """Trials that a dead driver left running; of a list only those that are asked for now."""
    running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
    if space.study.is_list:
        # One whose driver died while it got its values has some of them, or none.
        return [t for t in running if any(t.params.items() <= values.items() for values in space.first_trials)]
    return running


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that gave a result; see ``counts_as_finished``."""
    return [t for t in study.get_trials(deepcopy=False) if counts_as_finished(t)]


def counts_as_finished(trial: FrozenTrial) -> bool:
    """True when it is complete, stopped early, or infeasible. One that failed for another reason is made up for by a new one.

    So is one that was not run because its values had failed twice before.
    """
    if trial.state == TrialState.FAIL:
        return trial.user_attrs.get("failure") in INFEASIBLE and REPEATED not in trial.user_attrs
    return trial.state.is_finished()


def tried(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that began, without those that were not run because they repeat another."""
    return [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING and REPEATS not in t.user_attrs]


def untrained(trial: FrozenTrial) -> bool:
    """True when it was beyond a constraint before it was trained: a result for a list, and no trial of a search."""
    return any(trial.constraints.get(name, 0) > 0 for name in COUNTED)


def counted_at(study: optuna.Study, epoch: int) -> Standings:
    """What each trial that came to this epoch had there, see ``value_at``; without those that failed. What it was once it stays."""
    return counted_at_epochs(study, (epoch,))[epoch]


def counted_at_epochs(study: optuna.Study, epochs: Iterable[int]) -> dict[int, Standings]:
    """The same for several epochs, with one look at the study: a database is asked for all trials that have not ended."""
    changes, known = _COUNTED.setdefault(study, (Changes(), {}))
    trials, changed = changes.look(study)
    for number in changed:
        for at, standings in known.items():
            _count(standings, number, trials[number], at)
    for epoch in set(epochs) - known.keys():
        known[epoch] = Standings()
        for number in range(len(trials)):
            _count(known[epoch], number, trials[number], epoch)
    return known


def _count(standings: Standings, number: int, trial: FrozenTrial, epoch: int) -> None:
    if trial.state == TrialState.FAIL:
        standings.put(number, None)
    elif number not in standings.values:
        standings.put(number, value_at(trial, epoch))


_COUNTED: WeakKeyDictionary[optuna.Study, tuple[Changes, dict[int, Standings]]] = WeakKeyDictionary()
"""By study and epoch: it is asked for with every trial."""


def value_at(trial: FrozenTrial, epoch: int) -> float | None:
    """A trial's best validation Dice until this epoch, what it would give if it ended there; ``None`` where it did not come so far.

    It tells the order at the end better than the Dice of the epoch itself does, see ``docs/searching.md``.
    """
    told = trial.intermediate_values
    return max(dice for at, dice in told.items() if at <= epoch) if epoch in told else None


def best_value(trial: FrozenTrial) -> float | None:
    """The trial's best validation Dice at any epoch."""
    return max(trial.intermediate_values.values(), default=None)


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ran their whole budget within the constraints, best Dice first; one stopped early is never ranked before them."""
    return sorted(filter(feasible, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))), key=rank)


def front(study: optuna.Study) -> list[FrozenTrial]:
    """The Pareto front of a study with several objectives, best Dice first: no trial is better in one and as good in all others.

    Only trials that ran their whole budget within the constraints count; a study with one objective has no front.
    """
    if len(study.directions) < 2:
        return []
    # ``study.best_trials`` finds the same, and copies all trials first: it is asked for with every trial that ends.
    whole = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if feasible(trial)]
    signs = [1 if direction == StudyDirection.MINIMIZE else -1 for direction in study.directions]
    points = np.array([trial.values for trial in whole], float).reshape(-1, len(signs)) * signs
    return sorted(compress(whole, on_front(points)), key=rank)


def rank(trial: FrozenTrial) -> tuple[float, ...]:
    """What complete trials are sorted by: Dice, best first, then other objectives, which are all minimised, then the number."""
    several = trial.values if len(trial.values) > 1 else []
    return -float((best_value(trial) if several else trial.value) or 0.0), *several, trial.number
