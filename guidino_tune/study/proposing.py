"""What samplers share that propose all values of a trial at once."""

from __future__ import annotations

import abc
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from guidino_tune.space.parameters import Scalar, Values


class WholeSampler(optuna.samplers.BaseSampler, abc.ABC):
    """Proposes a whole configuration when the first value of a trial is asked for, and gives the others from it."""

    def __init__(self) -> None:
        self._proposed: tuple[int, Values] = -1, {}

    @abc.abstractmethod
    def propose(self, study: optuna.Study, trial: FrozenTrial) -> Values:
        """Values for a trial, by path; what is left out is asked of ``missing``."""

    def missing(self, study: optuna.Study, trial: FrozenTrial, path: str, distribution: BaseDistribution) -> Scalar:
        """A value that was not proposed.

        Raises:
            KeyError: There is none, unless a sampler says otherwise.
        """
        raise KeyError(path)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Optuna is not to draw anything together."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """See ``infer_relative_search_space``."""
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """See ``BaseSampler``."""
        if self._proposed[0] != trial.number:
            self._proposed = trial.number, self.propose(study, trial)
        values = self._proposed[1]
        return values[param_name] if param_name in values else self.missing(study, trial, param_name, param_distribution)
