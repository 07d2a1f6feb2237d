"""SMAC's multi-fidelity facade: a random forest with Hyperband. A configuration that is asked for again goes on from its checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from ConfigSpace import Categorical, ConfigurationSpace, Float, Integer
from smac import MultiFidelityFacade, Scenario
from smac.runhistory.dataclasses import TrialInfo, TrialValue
from smac.runhistory.enumerations import StatusType
from worker import Job

from guidino_tune.space.parameters import Parameter, Values
from guidino_tune.space.space import Space


def _hyperparameter(path: str, parameter: Parameter) -> Any:
    if parameter.type == "choice":
        return Categorical(path, [str(number) for number in range(len(parameter.choices))])
    return (Float if parameter.type == "float" else Integer)(path, parameter.limits, log=parameter.log)


class Smac:
    """Every parameter is always there for SMAC; those that are not active count for nothing. Its first draws are a Sobol design."""

    def __init__(self, space: Space, seed: int, workers: int) -> None:
        self.space, self.length = space, space.base.training.epochs
        configurations = ConfigurationSpace(space=[_hyperparameter(*item) for item in space.parameters.items()], seed=seed)
        self.folder = tempfile.mkdtemp()
        scenario = Scenario(
            configurations,
            deterministic=True,
            n_trials=100_000,
            min_budget=1,
            max_budget=self.length,
            seed=seed,
            output_directory=self.folder,
        )
        design = MultiFidelityFacade.get_initial_design(scenario, n_configs=10)
        self.facade = MultiFidelityFacade(scenario, lambda config, seed, budget: 0.0, initial_design=design, logging_level=False)
        self.asked: dict[str, TrialInfo] = {}
        self.keys: dict[Any, str] = {}
        self.trained: dict[str, int] = {}

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self) -> Job | None:
        try:
            info = self.facade.ask()
        except StopIteration:
            return None
        key = self.keys.setdefault(info.config, str(len(self.keys)))
        self.asked[key] = info
        return Job(key, self.space.walk(lambda path, p: self._value(info.config[path], p))[0], self.trained.get(key, 0))

    def _encoded(self, values: Values) -> Values:
        return {
            path: str(parameter.choices.index(values[path])) if parameter.type == "choice" else values[path]
            for path, parameter in self.space.parameters.items()
        }

    @staticmethod
    def _value(value: Any, parameter: Parameter) -> Any:
        if parameter.type == "choice":
            return parameter.choices[int(value)]
        return int(value) if parameter.type == "int" else float(value)

    def report(self, key: str, epoch: int, dice: float) -> bool:
        self.trained[key] = epoch
        if epoch < min(self.length, round(self.asked[key].budget)):
            return True
        self.facade.tell(self.asked.pop(key), TrialValue(cost=1 - dice), save=False)
        return False

    def fail(self, key: str) -> None:
        self.facade.tell(self.asked.pop(key), TrialValue(cost=1.0, status=StatusType.CRASHED), save=False)
