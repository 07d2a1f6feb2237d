"""Optuna and Ray Tune as their documentation puts them together."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import optuna
from worker import Job

from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest


class OptunaHyperband:
    """Optuna's default sampler (TPE) with its ``HyperbandPruner``."""

    def __init__(self, space: Space, seed: int, workers: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.length = space, space.base.training.epochs
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=self.length, reduction_factor=3)
        self.study = optuna.create_study(
            study_name=f"peer-{seed}", direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner
        )
        for values in space.first_trials:
            self.study.enqueue_trial(dict(values))
        self.running: dict[str, optuna.Trial] = {}

    def ask(self) -> Job:
        trial = self.study.ask()
        values = suggest(self.space, trial)
        self.running[str(trial.number)] = trial
        return Job(str(trial.number), values)

    def report(self, key: str, epoch: int, dice: float) -> bool:
        trial = self.running[key]
        trial.report(dice, epoch)
        if epoch >= self.length:
            self.study.tell(self.running.pop(key), dice)
        elif trial.should_prune():
            self.study.tell(self.running.pop(key), state=optuna.trial.TrialState.PRUNED)
        return key in self.running

    def fail(self, key: str) -> None:
        self.study.tell(self.running.pop(key), state=optuna.trial.TrialState.FAIL)


class RayOptunaAsha:
    """Ray Tune's ``OptunaSearch`` with its ``ASHAScheduler`` at its defaults, the searcher being told every result."""

    def __init__(self, space: Space, seed: int, workers: int) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.length = space.base.training.epochs

        def define(trial: optuna.Trial) -> None:
            suggest(space, trial)

        first = [dict(values) for values in space.first_trials] or None
        self.searcher = OptunaSearch(define, metric="dice", mode="max", seed=seed, points_to_evaluate=first)
        self.scheduler: Any = ASHAScheduler(metric="dice", mode="max", max_t=self.length)
        self.trials: dict[str, SimpleNamespace] = {}
        self.numbers = map(str, itertools.count())

    def ask(self) -> Job:
        key = next(self.numbers)
        values = self.searcher.suggest(key)
        self.trials[key] = SimpleNamespace(trial_id=key, stopping_criterion={})
        self.scheduler.on_trial_add(None, self.trials[key])
        return Job(key, values or {})

    def report(self, key: str, epoch: int, dice: float) -> bool:
        result = {"dice": dice, "training_iteration": epoch}
        goes_on = self.scheduler.on_trial_result(None, self.trials[key], result) == "CONTINUE" and epoch < self.length
        if goes_on:
            self.searcher.on_trial_result(key, result)
        else:
            self.scheduler.on_trial_complete(None, self.trials.pop(key), result)
            self.searcher.on_trial_complete(key, result)
        return goes_on

    def fail(self, key: str) -> None:
        self.scheduler.on_trial_error(None, self.trials.pop(key))
        self.searcher.on_trial_complete(key, None, error=True)
