"""Samplers that go through configurations one by one: a list, and all of a finite space."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Parameter, Scalar, Values
from guidino_tune.space.space import Space
from guidino_tune.study.outcomes import Outcomes, as_key
from guidino_tune.study.proposing import WholeSampler
from guidino_tune.study.trials import counts_as_finished, unfinished


class ListedSampler(WholeSampler):
    """Gives every listed set of values to one trial: those without a result first that were tried least often.

    A set that failed twice the same way is not given again, see ``guidino_tune.study.outcomes``.

    Args:
        listed: Values by path; all have the same paths.

    Attributes:
        outcomes: Of the run that asks; ``None`` counts those of earlier runs.
    """

    def __init__(self, listed: Sequence[Values]) -> None:
        super().__init__()
        self.listed = listed
        self.outcomes: Outcomes | None = None

    def propose(self, study: optuna.Study, trial: FrozenTrial) -> Values:
        """See ``WholeSampler``."""
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        lost = (self.outcomes or Outcomes(others, 0)).hopeless
        open_sets = [
            values
            for values in unfinished(self.listed, [t for t in others if t.state == TrialState.RUNNING or counts_as_finished(t)])
            # A driver may have died between two values of a set.
            if as_key(values) not in lost and trial.params.items() <= values.items()
        ]
        if not open_sets:
            raise RuntimeError("every listed trial has its result or runs; nothing is left to ask for")
        tried = Counter(as_key(t.params) for t in others)
        return min(open_sets, key=lambda values: tried[as_key(values)])


class GridSampler(WholeSampler):
    """Gives every configuration of a finite space to one trial, in order; one that failed is given a second time.

    Args:
        space: Of choices, whole numbers and steps.

    Raises:
        UserError: A parameter has no end of values.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._space = space
        self._values: dict[str, Sequence[Scalar]] = {}
        for path, parameter in space.parameters.items():
            if parameter.type == "float" and parameter.step is None and parameter.low != parameter.high:
                raise UserError("a grid needs choices, whole numbers or a step", where=path, todo="give it a step, or another sampler")
            self._values[path] = parameter.choices if parameter.type == "choice" else _steps(parameter)

    def _configurations(self) -> Iterator[Values]:
        places: list[int] | None = []
        while places is not None:
            sizes = list[int]()
            yield self._space.walk(functools.partial(self._choose, places, sizes))[0]
            places = _after([*places, *[0] * (len(sizes) - len(places))], sizes)

    def _choose(self, places: Sequence[int], sizes: list[int], path: str, parameter: Parameter) -> Scalar:
        at, values = len(sizes), self._values[path]
        sizes.append(len(values))
        return values[places[at] if at < len(places) else 0]

    def propose(self, study: optuna.Study, trial: FrozenTrial) -> Values:
        """See ``WholeSampler``; nothing when all have run."""
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        known = {as_key(t.params) for t in others if t.state == TrialState.RUNNING or counts_as_finished(t)}
        known |= {key for key, count in Counter(as_key(t.params) for t in others).items() if count > 1}
        # A driver may have died between two values of a configuration.
        return next((v for v in self._configurations() if as_key(v) not in known and trial.params.items() <= v.items()), {})

    def missing(self, study: optuna.Study, trial: FrozenTrial, path: str, distribution: BaseDistribution) -> Scalar:
        """The first value: of a repetition, from which the driver sees that the space is exhausted."""
        return self._values[path][0]


def _after(places: list[int], sizes: Sequence[int]) -> list[int] | None:
    """The next places in order, the last one counted on first; ``None`` after the last."""
    while places and places[-1] + 1 == sizes[len(places) - 1]:
        places.pop()
    return [*places[:-1], places[-1] + 1] if places else None


def _steps(parameter: Parameter) -> Sequence[Scalar]:
    low, high = parameter.limits
    step = parameter.step or (1 if parameter.type == "int" else 0)
    count = round((high - low) / step) + 1 if step else 1
    return [type(low)(low + n * step) for n in range(count)]
