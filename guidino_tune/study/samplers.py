"""Samplers whose draws for a trial follow from seed, trial and earlier results; TPE at a cost that does not grow with the study."""

from __future__ import annotations

import inspect
import math
import zlib
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import targets
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space
from guidino_tune.study import optuna_private
from guidino_tune.study.outcomes import Outcomes, as_key
from guidino_tune.study.trials import counts_as_finished, unfinished

BEST = 25
"""Trials that TPE takes for good ones, at most: the best tenth until there are 250."""

LATEST = 100
"""Finished trials that are modelled besides. Up to so many in all, nothing differs from Optuna's own sampler."""

RUNNING = 50
"""Running trials that are modelled, the newest: they keep TPE from proposing once more what it has just proposed. All are taken for bad
ones (``constant_liar``), so many of them would drown what is known of the others; and each costs about as much as two finished ones.
``tests/benchmarks/asking.py`` tells what a question for a trial costs with and without this bound."""


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


class RecentTPESampler(optuna.samplers.TPESampler):
    """Optuna's TPE over the best, the latest and the running trials of a study instead of all of them.

    TPE compares the density of good trials with that of all others. The good ones are the same as among all trials; of the others, whose
    density is what costs time in proportion to their number, and in which Optuna gives later ones more weight, the latest are a sample.

    What is drawn for a trial follows from the seed, its number and the trials before it: the sampler remembers no random state.

    Args:
        seed: Of the study.
        latest: Finished trials that are modelled besides the best; ``None``: all, as with several objectives, which have no best ones.
        options: Of ``optuna.samplers.TPESampler``.
    """

    def __init__(self, *, seed: int = 0, latest: int | None = LATEST, **options: Any) -> None:
        super().__init__(**options)
        self._seed = seed
        # With fewer than its first random trials in sight it would take every trial for one of those.
        self._startup = options.get("n_startup_trials", 10)
        latest = None if latest is None else max(latest, self._startup)
        self._seen = 0
        self._open: list[int] = []
        self._results = 0
        self._failed: list[FrozenTrial] = []
        self._best: list[tuple[tuple[float, ...], int, FrozenTrial]] = []
        self._latest: deque[FrozenTrial] = deque(maxlen=latest)
        self._window: tuple[int, list[FrozenTrial]] = (-1, [])
        # Optuna's rule for how many are good ones, asked with the size of the study and not with that of the window.
        good = None if latest is None else lambda _: min(math.ceil(self._results / 10), BEST)
        optuna_private.adapt(self, RepeatingRandomSampler(seed), good)

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
        trials = study.get_trials(deepcopy=False)
        asked, self._seen = [*self._open, *range(self._seen, len(trials))], len(trials)
        self._open = [number for number in asked if not trials[number].state.is_finished()]
        new = [trials[n] for n in asked if trials[n].state in (TrialState.COMPLETE, TrialState.PRUNED)]
        failed = (trials[n] for n in asked if trials[n].state == TrialState.FAIL)
        self._failed += [_as_beyond(other) for other in failed if counts_as_finished(other)]
        running = [trials[n] for n in self._open if trials[n].state == TrialState.RUNNING]
        window = {other.number: other for other in running[-RUNNING:]}
        self._results += len(new)
        if self._results >= self._startup:
            new += self._failed
            self._failed = []
        for other in new:
            self._latest.append(other)
            if self._latest.maxlen is not None:
                insort(self._best, (_order(other), other.number, other))
                del self._best[BEST:]
        window |= {other.number: other for other in self._latest} | {number: other for _, number, other in self._best}
        self._window = trial.number, [window[number] for number in sorted(window)]
        return new


def _as_beyond(trial: FrozenTrial) -> FrozenTrial:
    """A failed trial as TPE sees it: farther beyond a constraint than any other. The study's own record stays as it is."""
    shown = optuna.trial.create_trial(
        state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions, constraints={"failed": math.inf}
    )
    shown.number = trial.number
    return shown


def _order(trial: FrozenTrial) -> tuple[float, ...]:
    """As TPE sorts the trials of a study that maximises: complete ones by value, then the others by how far they came, and by value.

    Those beyond a constraint come last, by how far they are.
    """
    excess = sum(value for value in trial.constraints.values() if value > 0)
    if excess > 0:
        return 2.0, excess
    if trial.state == TrialState.COMPLETE:
        return 0.0, -cast("float", trial.value)
    step, value = max(trial.intermediate_values.items(), default=(-1, 0.0))
    return 1.0, -step, -value


SAMPLERS: dict[str, Callable[[Space, int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda space, seed: RecentTPESampler(
        seed=seed,
        n_startup_trials=space.study.startup_trials,
        multivariate=True,
        group=True,
        constant_liar=True,
        latest=LATEST if len(space.study.objectives) == 1 else None,
    ),
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
