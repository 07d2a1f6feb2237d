"""When a trial is compared with others and stopped early: pruners, rungs, validated epochs, and the stopping rule."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

import optuna
from optuna.trial import FrozenTrial

from guidino_tune import targets
from guidino_tune.config import Study
from guidino_tune.errors import UserError
from guidino_tune.study import optuna_private
from guidino_tune.study.promotion import DECISION, PromotionPruner
from guidino_tune.study.trials import value_at


class AshaPruner(optuna.pruners.SuccessiveHalvingPruner):
    """Optuna's, but like promotion it compares the best Dice so far and not that of the epoch of a rung alone, see ``value_at``."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """See ``BasePruner``."""
        if (last := trial.last_step) is not None:
            trial = copy.copy(trial)
            trial.intermediate_values = {**trial.intermediate_values, last: value_at(trial, last) or 0.0}
        return super().prune(study, trial)


PRUNERS: dict[str, Callable[[Study], optuna.pruners.BasePruner]] = {
    "asha": lambda s: AshaPruner(min_resource=s.min_epochs, reduction_factor=s.reduction_factor),
    "promotion": PromotionPruner,
    "auto": lambda s: PromotionPruner(s) if s.waits else optuna.pruners.NopPruner(),
    "none": lambda s: optuna.pruners.NopPruner(),
}


def make_pruner(settings: Study) -> optuna.pruners.BasePruner:
    """The pruner of a study: one of ``PRUNERS``, or whatever its target gives.

    Raises:
        UserError: That is no pruner, or fails; see ``targets.load``.
    """
    if settings.pruner in PRUNERS:
        return PRUNERS[settings.pruner](settings)
    with targets.blaming(settings.pruner, "study.pruner"):
        made = targets.load(settings.pruner, "study.pruner")(**settings.pruner_options)
    if isinstance(made, optuna.pruners.BasePruner):
        return made
    raise UserError(f"gives a {type(made).__name__}, no Optuna pruner", where=f"study.pruner={settings.pruner}", todo="return a pruner")


VALIDATIONS = 20
"""About how often a trial is validated over its whole budget, unless ``study.validate_every`` says otherwise."""


def validated_epochs(study: Study, epochs: int) -> tuple[int, ...]:
    """The epochs, from 1, that a trial validates: the pruner's rungs, the last epoch, and those that ``study.validate_every`` asks for.

    Args:
        study: Its settings.
        epochs: Budget of the trial.

    Returns:
        In ascending order; a rung is an epoch at which the trial may be stopped, and only a validated epoch can be compared.
    """
    every = study.validate_every or max(1, epochs // VALIDATIONS)
    return tuple(sorted({*range(every, epochs + 1, every), *(_halvings(study, epochs) if study.has_rungs else ()), epochs}))


def rungs(study: Study, epochs: int) -> tuple[int, ...]:
    """The epochs, from 1, after which a trial of ``epochs`` epochs may end: those at which trials are compared, and the last.

    A pruner that is not one of ``PRUNERS`` may have any rule, and is asked at every validation.
    """
    if study.pruner not in PRUNERS:
        return tuple(epoch for epoch in validated_epochs(study, epochs) if epoch >= study.min_epochs or epoch == epochs)
    return (*(_halvings(study, epochs) if study.has_rungs else ()), epochs)


def planned_epochs(study: Study, epochs: int, trials: int) -> int:
    """About how many epochs all trials train together where they wait at rungs: at each, one in so many goes on.

    Args:
        study: Its settings.
        epochs: Budget of a trial.
        trials: In all; of a list as many as it has, whatever ``study.trials`` says.
    """
    spans = itertools.pairwise((0, *rungs(study, epochs)))
    counts = [trials, *(trials // study.reduction_factor**passed + 1 for passed in range(1, epochs))]
    return sum(min(count, trials) * (end - begun) for count, (begun, end) in zip(counts, spans, strict=False))


def _halvings(study: Study, epochs: int) -> Iterator[int]:
    rung = study.min_epochs
    while rung < epochs:
        yield rung
        rung *= study.reduction_factor


def ends(trial: optuna.Trial, settings: Study, reported: Sequence[int], epochs: int) -> bool:
    """Compares a trial that has newly reported these of its ``epochs``, and keeps in the study what was decided at a rung.

    Without a rung among them there is nothing to decide, and the pruner, which looks at all trials, is not asked.
    """
    passed = set(reported).intersection(rungs(settings, epochs))
    ended = bool(passed) and _prunes(trial)
    if reported[-1] in passed:
        trial.set_user_attr(DECISION, [reported[-1], ended])
    return ended


def _prunes(trial: optuna.Trial) -> bool:
    if len(trial.study.directions) == 1:
        return trial.should_prune()
    # Optuna refuses to ask with several objectives; promotion compares by Dice, which is reported all the same.
    return trial.study.pruner.prune(trial.study, optuna_private.stored_trial(trial.study, trial.number))


def is_stopped(study: optuna.Study, settings: Study, trial: FrozenTrial) -> bool:
    """True when a running trial is to end, or to wait, at its newest epoch, which a driver that died could not say, or not record.

    A trial is compared once: what a rung decided stands. Optuna's pruner notes that a trial has passed a rung before it compares, and
    does not compare a second time; so a trial whose driver died between both is compared, and decided, here.
    """
    last, epochs = trial.last_step, trial.user_attrs.get("epochs", 0)
    if last not in rungs(settings, epochs)[:-1]:
        return False
    decided, ended = trial.user_attrs.get(DECISION, (0, False))
    if decided == last:
        return bool(ended)
    key = f"completed_rung_{rungs(settings, epochs).index(last)}"
    if settings.pruner not in PRUNERS or key not in trial.system_attrs:
        ended = study.pruner.prune(study, trial)
    else:
        values = sorted(t.system_attrs[key] for t in study.get_trials(deepcopy=False) if key in t.system_attrs)
        ended = trial.system_attrs[key] < values[-max(1, len(values) // settings.reduction_factor)]
    optuna_private.running_trial(study, trial).set_user_attr(DECISION, [last, bool(ended)])
    return bool(ended)
