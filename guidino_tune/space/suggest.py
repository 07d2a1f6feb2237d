"""A space in Optuna's define-by-run terms."""

from __future__ import annotations

import optuna

from guidino_tune.space.parameters import Parameter, Scalar, Values
from guidino_tune.space.space import Space


def distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """What Optuna keeps of a parameter with each of its values."""
    if parameter.type == "choice":
        return optuna.distributions.CategoricalDistribution(parameter.choices)
    low, high = parameter.limits
    if parameter.type == "int":
        return optuna.distributions.IntDistribution(low, high, log=parameter.log, step=int(parameter.step or 1))
    return optuna.distributions.FloatDistribution(low, high, log=parameter.log, step=parameter.step)


def suggest(space: Space, trial: optuna.Trial) -> Values:
    """Asks the study's sampler for every parameter that is active, in order.

    The same trial asked again gives the same values, so a trial that a dead driver left running is continued as it was.
    """

    def ask(path: str, parameter: Parameter) -> Scalar:
        value: Scalar
        if parameter.type == "choice":
            value = trial.suggest_categorical(path, parameter.choices)
            return value
        low, high = parameter.limits
        if parameter.type == "int":
            return trial.suggest_int(path, low, high, log=parameter.log, step=int(parameter.step or 1))
        return trial.suggest_float(path, low, high, log=parameter.log, step=parameter.step)

    values, _ = space.walk(ask)
    return values
