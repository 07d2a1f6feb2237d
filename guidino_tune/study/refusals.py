"""Trials that are asked for and not run: each is closed in the study, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from guidino_tune.config import Experiment
from guidino_tune.space.parameters import Values
from guidino_tune.study.journal import sync_to_disk
from guidino_tune.study.objectives import beyond, feasible
from guidino_tune.study.outcomes import REPEATED, REPEATS, TOO_TIGHT, TWICE, UNTRAINED
from guidino_tune.study.trials import untrained

if TYPE_CHECKING:
    from guidino_tune.study.driver import Driver


def repeats(driver: Driver, trial: optuna.Trial, params: Values, name: str) -> bool:
    """Closes a trial whose result is known, or will be; nothing counts it, and no observer is told. Lists are trained as they stand."""
    other = driver.repeats.known.get(name)
    if other is None or driver.space.study.is_list:
        return False
    if text := driver.outcomes.repetition(trial.number, name, params):
        driver.warn(text)
    trial.set_user_attr(REPEATS, other)
    trial.set_user_attr("message", f"has the configuration of trial {other}; not trained again")
    driver.study.tell(trial, state=TrialState.FAIL)
    driver.repeats.in_a_row += 1
    return True


def failed_before(driver: Driver, trial: optuna.Trial, params: Values, experiment: Experiment, name: str) -> str:
    """Closes a trial whose configuration failed too often, and says why; empty for any other."""
    kind = driver.outcomes.repeated(params)
    if kind is None:
        return ""
    message = f"failed so {TWICE} times before ({name}); not tried again"
    for attribute, value in {"failure": kind, "message": message, REPEATED: True}.items():
        trial.set_user_attr(attribute, value)
    driver.study.tell(trial, state=TrialState.FAIL)
    sync_to_disk(driver.study)
    driver.listener(trial.number, experiment, None)
    return f"{kind}: {message}"


def too_much(driver: Driver, trial: optuna.Trial, experiment: Experiment, name: str) -> bool:
    """Closes a trial that is beyond a constraint before it is trained, or trained any further; only the latter counts."""
    if feasible(frozen := driver.frozen(trial)):
        return False
    trial.set_user_attr("message", beyond(driver.space.study, frozen))
    driver.study.tell(trial, state=TrialState.PRUNED)
    sync_to_disk(driver.study)
    driver.repeats.known.setdefault(name, trial.number)
    counts = driver.space.study.is_list or not untrained(frozen)
    driver.remaining -= counts
    driver.untrained += not counts
    if driver.untrained >= UNTRAINED:
        driver.refusal = f"{UNTRAINED} untrained configurations in a row: {beyond(driver.space.study, frozen)}; {TOO_TIGHT}"
    driver.folder.trial(trial.number).tidy()
    driver.listener(trial.number, experiment, None)
    return True
