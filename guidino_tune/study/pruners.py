"""When a trial is compared with others and stopped early: pruners, rungs, validated epochs, and the stopping rule."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.config import Study

PRUNERS: dict[str, Callable[[Study], optuna.pruners.BasePruner]] = {
    "asha": lambda s: optuna.pruners.SuccessiveHalvingPruner(min_resource=s.min_epochs, reduction_factor=s.reduction_factor),
    "none": lambda s: optuna.pruners.NopPruner(),
}


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
    return tuple(sorted({*range(every, epochs + 1, every), *rungs(study, epochs)}))


def rungs(study: Study, epochs: int) -> tuple[int, ...]:
    """The epochs, from 1, after which a trial of ``epochs`` epochs may end: those at which trials are compared, and the last."""
    found, rung = [], study.min_epochs
    while study.pruner == "asha" and rung < epochs:
        found.append(rung)
        rung *= study.reduction_factor
    return (*found, epochs)


def is_stopped(study: optuna.Study, settings: Study, trial: FrozenTrial) -> bool:
    """True when a running trial is to end at its newest epoch, which a driver that died could not say, or not record.

    Optuna's pruner notes that a trial has passed a rung before it compares, and does not compare a second time.
    """
    last, epochs = trial.last_step, trial.user_attrs.get("epochs", 0)
    if last not in rungs(settings, epochs)[:-1]:
        return False
    key = f"completed_rung_{rungs(settings, epochs).index(last)}"
    if key not in trial.system_attrs:
        return study.pruner.prune(study, trial)
    values = sorted(t.system_attrs[key] for t in study.get_trials(deepcopy=False) if key in t.system_attrs)
    return bool(trial.system_attrs[key] < values[-max(1, len(values) // settings.reduction_factor)])
