"""Samplers whose draws for a trial follow from seed, trial and earlier results; TPE over what trials had at one rung."""

from __future__ import annotations

import copy
import inspect
import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import targets
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space
from guidino_tune.study import optuna_private
from guidino_tune.study.outcomes import Outcomes, as_key
from guidino_tune.study.pruners import rungs
from guidino_tune.study.trials import counts_as_finished, unfinished

BEST, LATEST = 25, 100
"""Trials that are modelled, however many there are: the best at the rung, the latest there, and as many of the latest that ended before.
The density of all would cost time in proportion to their number."""

RUNNING = 50
"""Running trials without a result that are modelled, the newest: they keep TPE from proposing once more what it has just proposed. All are
taken for bad ones, so many of them would drown what is known of the others."""

OPTIONS: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}
"""Of Optuna's TPE: parameters are modelled together, those of one condition apart, and running trials are taken for bad ones."""

GOOD = 0.15
"""Share of the trials at the rung that TPE takes for good ones."""

WHOLE = 0
"""The rung of complete trials, whose value is that of their best epoch."""


def _seeds(seed: int, trial: FrozenTrial, name: str) -> list[int]:
    """What the random numbers for one draw start from: a study that was closed and opened again goes on as if it had not been."""
    # The zero was the upper half of a seed once; without it every study would draw anew.
    return [seed, 0, trial.number, zlib.crc32(name.encode())]


class RepeatingRandomSampler(optuna.samplers.RandomSampler):
    """Optuna's random sampler, where a value follows from seed, trial number and the parameter's name alone.

    Args:
        seed: Of the study.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """See ``BaseSampler``."""
        optuna_private.seed(self, _seeds(self._seed, trial, param_name))
        return super().sample_independent(study, trial, param_name, param_distribution)


class RepeatingTPESampler(optuna.samplers.TPESampler):
    """Optuna's TPE, where a draw follows from the seed, the trial's number and the trials before it: no random state is remembered.

    Args:
        seed: Of the study.
        startup: Results before it models; until then it draws at random.
    """

    def __init__(self, seed: int, startup: int) -> None:
        super().__init__(n_startup_trials=startup, **OPTIONS)
        self._seed, self._startup = seed, startup
        self._known: set[int] = set()
        self._ended: list[FrozenTrial] = []
        self._failed: list[FrozenTrial] = []
        self._window: tuple[int, list[FrozenTrial]] = (-1, [])
        optuna_private.adapt(self, RepeatingRandomSampler(seed), None)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See ``BaseSampler``; what was decomposed before is remembered, so only new trials are looked at."""
        return super().infer_relative_search_space(optuna_private.part(study, self._take_in(study, trial)), trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """See ``BaseSampler``."""
        optuna_private.seed(self, _seeds(self._seed, trial, ""))
        return super().sample_relative(optuna_private.part(study, self._modelled(study, trial)), trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """See ``BaseSampler``."""
        optuna_private.seed(self, _seeds(self._seed, trial, param_name))
        return super().sample_independent(optuna_private.part(study, self._modelled(study, trial)), trial, param_name, param_distribution)

    def _modelled(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        if self._window[0] != trial.number:
            self._take_in(study, trial)
        return self._window[1]

    def _take_in(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """Prepares the window for ``trial``; returns the trials that have finished since the last time.

        Trials that diverged or lacked memory are shown as beyond a constraint, so that TPE keeps away from them; none is shown before
        there are as many results as TPE wants of random trials, or the first failure would be taken for the best trial.
        """
        new, running = [], []
        for other in study.get_trials(deepcopy=False):
            if other.state == TrialState.RUNNING:
                running.append(other)
            elif other.number in self._known or other.state == TrialState.WAITING:
                continue
            elif other.state != TrialState.FAIL:
                new.append(other)
            elif counts_as_finished(other):
                self._failed.append(as_beyond(other))
            self._known |= {other.number} if other.state.is_finished() else set()
        if len(self._ended) + len(new) >= self._startup:
            new += self._failed
            self._failed = []
        self._ended += new
        self._window = trial.number, sorted([*self._ended, *running[-RUNNING:]], key=lambda other: other.number)
        return new


def as_beyond(trial: FrozenTrial) -> FrozenTrial:
    """A trial that failed or came too short as TPE sees it: farther beyond a constraint than any other. The study keeps its own record."""
    shown = optuna.trial.create_trial(
        state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions, constraints={"failed": math.inf}
    )
    shown.number = trial.number
    return shown


class RungTPESampler(RepeatingTPESampler):
    """Optuna's TPE over what trials had at one rung, the highest that enough of them have come to, as BOHB does (Falkner et al. 2018).

    Optuna itself puts complete trials before those that were stopped, and these by how far they came, so that the first trials of a study,
    which nothing stopped, are its good ones. Here every trial that came to the rung counts with its value there, whatever became of it.
    Those that ended before it, diverged or are beyond a constraint are bad; running ones that have not come so far are taken for bad until
    they do, so that workers spread out.

    Args:
        space: With the settings of the study: its rungs, and how many trials are enough (``startup_trials``).
        seed: Of the study.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(seed, space.study.startup_trials)
        longest = max(made.training.epochs for made in (space.base, *space.recipes.values()))
        if (searched := space.parameters.get("training.epochs")) is not None:
            longest = max(longest, *(int(end) for end in searched.ends if isinstance(end, int | float)))
        self._rungs = (WHOLE, *reversed(rungs(space.study, longest)[:-1]))
        self._compared = 0
        self._remade: dict[tuple[int, int], FrozenTrial] = {}
        optuna_private.adapt(self, self._random_sampler, lambda _: min(math.ceil(GOOD * self._compared), BEST))

    def _take_in(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """See ``RepeatingTPESampler``."""
        others = [
            t
            for t in study.get_trials(deepcopy=False)
            if t.number != trial.number and (t.state == TrialState.RUNNING or counts_as_finished(t))
        ]
        # What waits at a rung belongs to the space that was drawn from, as what has ended does.
        new = [t for t in others if t.number not in self._known and not _is_fresh(t)]
        self._known |= {t.number for t in new}
        sound = [t for t in others if t.state != TrialState.FAIL and _excess(t) <= 0]
        beyond = [t.number for t in others if t.state.is_finished() and _excess(t) > 0]
        self._window = trial.number, []
        for rung in self._rungs:
            values = {t.number: v for t in sound if (v := _value(t, rung)) is not None}
            enough = len(values) >= self._startup
            # Where hardly a trial keeps the constraints, it is also those that are least beyond them that are good ones.
            if enough or (rung == self._rungs[-1] and len(values) + len(beyond) >= self._startup):
                self._compared = len(values) + (0 if enough else len(beyond))
                # One that is complete without this rung had a smaller budget.
                rest = [t for t in others if t.number not in values and (t.state != TrialState.COMPLETE or _excess(t) > 0)]
                fresh, before = ([t.number for t in rest if _is_fresh(t) is new] for new in (True, False))
                best = sorted(values, key=lambda number: (-values[number], number))[:BEST]
                shown = {*best, *[*values][-LATEST:], *before[-LATEST:], *fresh[-RUNNING:]}
                self._window = trial.number, [self._as_seen(t, rung, values.get(t.number)) for t in others if t.number in shown]
                break
        return [_as_complete(t, 0.0) for t in new]

    def _as_seen(self, trial: FrozenTrial, rung: int, value: float | None) -> FrozenTrial:
        if value is None and (_is_fresh(trial) or _excess(trial) > 0):
            return trial
        key = trial.number, -1 if value is None else rung
        if key not in self._remade:
            self._remade[key] = as_beyond(trial) if value is None else _as_complete(trial, value)
        return self._remade[key]


def _is_fresh(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and not trial.intermediate_values


def _excess(trial: FrozenTrial) -> float:
    return sum(value for value in trial.constraints.values() if value > 0)


def _value(trial: FrozenTrial, rung: int) -> float | None:
    if rung == WHOLE:
        return trial.value if trial.state == TrialState.COMPLETE else None
    return trial.intermediate_values.get(rung)


def _as_complete(trial: FrozenTrial, value: float) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state, shown.value = TrialState.COMPLETE, value
    return shown


def _tpe(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    return RungTPESampler(space, seed) if len(space.study.objectives) == 1 else RepeatingTPESampler(seed, space.study.startup_trials)


def _sobol(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    rest = RepeatingRandomSampler(seed)
    return optuna.samplers.QMCSampler(scramble=True, seed=seed, independent_sampler=rest, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[Space, int], optuna.samplers.BaseSampler]] = {
    "auto": _tpe,
    "tpe": _tpe,
    "qmc": _sobol,
    "random": lambda space, seed: RepeatingRandomSampler(seed),
    "listed": lambda space, seed: ListedSampler(space.first_trials),
}
"""From a space and the seed of the study."""


def make_sampler(space: Space, begun: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler of a study: one of ``SAMPLERS``, or whatever its target gives.

    Args:
        space: With the settings of the study.
        begun: Trials that the study has begun. Unlike ours, another sampler would draw the same again from the same seed when the study
            is continued; so its seed is that of the study and this number together.

    Raises:
        UserError: That is no sampler, or fails; see ``targets.load``.
    """
    settings = space.study
    if settings.sampler in SAMPLERS:
        return SAMPLERS[settings.sampler](space, settings.seed)
    with targets.blaming(settings.sampler, "study.sampler"):
        found = targets.load(settings.sampler, "study.sampler")
        seed = {"seed": (settings.seed + begun) % 2**32} if "seed" in inspect.signature(found).parameters else {}
        made = found(**{**seed, **settings.sampler_options})
    if isinstance(made, optuna.samplers.BaseSampler):
        return made
    raise UserError(f"gives a {type(made).__name__}, no Optuna sampler", where=f"study.sampler={settings.sampler}", todo="return a sampler")


class ListedSampler(optuna.samplers.BaseSampler):
    """Gives every listed set of values to one trial: those without a result first that were tried least often.

    A set that failed twice the same way is not given again, see ``guidino_tune.study.outcomes``.

    Args:
        listed: Values by path; all have the same paths.

    Attributes:
        outcomes: Of the run that asks; ``None`` counts those of earlier runs.
    """

    def __init__(self, listed: Sequence[Values]) -> None:
        self.listed = listed
        self.outcomes: Outcomes | None = None
        self._chosen: dict[int, Values] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, optuna.distributions.BaseDistribution]:
        """Nothing is drawn together."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, optuna.distributions.BaseDistribution]
    ) -> dict[str, Any]:
        """See ``infer_relative_search_space``."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: optuna.distributions.BaseDistribution
    ) -> Any:
        """The value of the set that this trial got."""
        if trial.number not in self._chosen:
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
            self._chosen[trial.number] = min(open_sets, key=lambda values: tried[as_key(values)])
        return self._chosen[trial.number][param_name]
