"""Syne Tune's asynchronous multi-fidelity methods. It has no conditional parameters: those that are not active count for nothing."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

from syne_tune import config_space as cs
from syne_tune.backend.trial_status import Trial
from syne_tune.optimizer import baselines
from worker import Job

from guidino_tune.space.parameters import Parameter
from guidino_tune.space.space import Space


def _domain(parameter: Parameter) -> Any:
    if parameter.type == "choice":
        return cs.choice(list(parameter.choices))
    low, high = parameter.limits
    kinds = {("float", False): cs.uniform, ("float", True): cs.loguniform, ("int", False): cs.randint, ("int", True): cs.lograndint}
    return kinds[parameter.type, parameter.log](low, high)


class SynePeer:
    """One of the package's own schedulers with its defaults, from epoch 1 on."""

    method: str

    def __init__(self, space: Space, seed: int, workers: int) -> None:
        self.space, self.length = space, space.base.training.epochs
        domains = {path: _domain(parameter) for path, parameter in space.parameters.items()}
        # A point has to be whole: what is not active in it is the first choice or the lower end.
        first = [
            {path: values.get(path, parameter.ends[0]) for path, parameter in space.parameters.items()} for values in space.first_trials
        ]
        self.scheduler = getattr(baselines, self.method)(
            domains, metric="dice", time_attr="epoch", max_t=self.length, do_minimize=False, random_seed=seed, points_to_evaluate=first
        )
        self.trials: dict[str, Trial] = {}
        self.numbers = itertools.count()

    def ask(self) -> Job | None:
        suggestion = self.scheduler.suggest()
        if suggestion is None:
            return None
        assert suggestion.spawn_new_trial_id
        number = next(self.numbers)
        trial = Trial(number, suggestion.config, datetime.datetime.now())  # its type
        self.trials[str(number)] = trial
        self.scheduler.on_trial_add(trial)
        return Job(str(number), self.space.walk(lambda path, _: trial.config[path])[0])

    def report(self, key: str, epoch: int, dice: float) -> bool:
        trial, result = self.trials[key], {"dice": dice, "epoch": epoch}
        decision = self.scheduler.on_trial_result(trial, result)
        if epoch >= self.length:
            self.scheduler.on_trial_complete(trial, result)
        elif decision != "CONTINUE":
            self.scheduler.on_trial_remove(trial)
        return decision == "CONTINUE"

    def fail(self, key: str) -> None:
        self.scheduler.on_trial_error(self.trials[key])


class Asha(SynePeer):
    """ASHA, stopping type, random configurations (Li et al., 2020)."""

    method = "ASHA"


class Bohb(SynePeer):
    """Kernel densities at the highest rung with enough trials (Falkner et al., 2018)."""

    method = "BOHB"


class AshaBore(SynePeer):
    """A classifier of good and bad trials at each rung (Tiao et al., 2021)."""

    method = "ASHABORE"


class AshaCqr(SynePeer):
    """Conformal quantile regression at each rung (Salinas et al., 2023)."""

    method = "ASHACQR"
