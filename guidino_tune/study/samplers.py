"""Samplers whose draws for a trial follow from seed, trial and earlier results; TPE over what trials had at one rung."""

from __future__ import annotations

import heapq
import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import targets
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Scalar, Values
from guidino_tune.space.space import Space
from guidino_tune.study import optuna_private
from guidino_tune.study.listed import GridSampler, ListedSampler
from guidino_tune.study.objectives import directions
from guidino_tune.study.proposing import WholeSampler
from guidino_tune.study.pruners import rungs
from guidino_tune.study.tpe import Density, Places, propose
from guidino_tune.study.trials import counts_as_finished, value_at

BEST, LATEST = 25, 100
"""Trials that are modelled, however many there are: the best at the rung, the latest there, and as many of the latest that ended before.
The density of all would cost time in proportion to their number."""

RUNNING = 50
"""Running trials without a result that are modelled, the newest: they keep TPE from proposing once more what it has just proposed. All are
taken for bad ones, so many of them would drown what is known of the others."""

GOOD = 0.15
"""Share of the trials at the rung that TPE takes for good ones."""

FADING = 20
"""Trials after which half of a prior sampler's proposals are the model's."""

SEEN = 5
"""How often a prior sampler's density counts each first trial: the more, the nearer to them it draws."""

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


class TPESampler(WholeSampler):
    """TPE over what trials had at one rung, the highest that enough of them have come to, as BOHB does (Falkner et al. 2018).

    Optuna's own puts complete trials before those that were stopped, and these by how far they came, so that the first trials of a study,
    which nothing stopped, are its good ones. Here every trial that came to the rung counts with its value there, whatever became of it.
    Those that ended before it, diverged or are beyond a constraint are bad; running ones that have not come so far are taken for bad until
    they do, so that workers spread out. With several objectives complete trials are compared, first front first.

    A draw follows from the seed, the trial's number and the trials before it: no random state is remembered.

    Args:
        space: With the settings of the study: its rungs, and how many trials are enough (``startup_trials``).
        seed: Of the study.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        self._seed, self._startup = seed, space.study.startup_trials
        self._rungs = (WHOLE, *reversed(rungs(space.study, space.longest)[:-1])) if len(space.study.objectives) == 1 else (WHOLE,)
        self._random, self._places = RepeatingRandomSampler(seed), Places(space)
        self._signs = [1 if direction == "minimize" else -1 for direction in directions(space.study)]
        self._constrained = bool(space.study.constraints)
        self._values: dict[int, dict[int, Sequence[float]]] = {rung: {} for rung in self._rungs}
        self._seen, self._lower, self._beyond = set[int](), list[int](), dict[int, float]()
        self._rows: dict[int, np.ndarray] = {}

    def propose(self, study: optuna.Study, trial: FrozenTrial) -> Values:
        """See ``WholeSampler``; nothing while too few trials have a result."""
        good, bad = ([self._row(t) for t in some] for some in self.split(study, trial.number))
        return propose(self._places, good, bad, np.random.default_rng([self._seed, trial.number])) if good else {}

    def missing(self, study: optuna.Study, trial: FrozenTrial, path: str, distribution: BaseDistribution) -> Scalar:
        """A value at random."""
        value: Scalar = self._random.sample_independent(study, trial, path, distribution)
        return value

    def split(self, study: optuna.Study, number: int) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """The good and the bad trials that are modelled for the trial of this number; none while too few have a result."""
        trials = study.get_trials(deepcopy=False)
        running = self._take_in(trials, number)
        sound = {n: t for n, t in running.items() if not self._excess(t)}
        for rung in self._rungs:
            values = self._values[rung] | {n: v for n, t in sound.items() if (v := _value(t, rung)) is not None}
            order = _ranked(values, self._signs)
            if rung == self._rungs[-1] and len(order) < self._startup:
                # Where hardly a trial keeps the constraints, it is also those that are least beyond them that are good ones.
                order += sorted(self._beyond, key=lambda n: (self._beyond[n], n))
            if len(order) < self._startup:
                continue
            good = order[: min(math.ceil(GOOD * len(order)), BEST)]
            known = values.keys() | good
            begun, fresh = ([n for n, t in running.items() if bool(t.intermediate_values) is some] for some in (True, False))
            before = [n for n in (*self._lower, *begun) if n not in known]
            bad = heapq.nlargest(LATEST, values.keys() - good) + heapq.nlargest(LATEST, before) + heapq.nlargest(RUNNING, fresh)
            return [trials[n] for n in good], [trials[n] for n in sorted(bad)]
        return [], []

    def _take_in(self, trials: Sequence[FrozenTrial], number: int) -> dict[int, FrozenTrial]:
        """Remembers what has ended since the last time; returns those that run, by number, without the one of this number."""
        running = {}
        for n, trial in enumerate(trials):
            if n in self._seen or n == number:
                continue
            if trial.state == TrialState.RUNNING:
                running[n] = trial
            elif trial.state.is_finished():
                self._seen.add(n)
                if counts_as_finished(trial):
                    self._remember(trial)
        return running

    def _remember(self, trial: FrozenTrial) -> None:
        n, excess = trial.number, self._excess(trial)
        if trial.state == TrialState.FAIL or excess:
            self._lower.append(n)
            self._beyond |= {n: excess} if trial.state != TrialState.FAIL else {}
            return
        for rung, known in self._values.items():
            if (value := _value(trial, rung)) is not None:
                known[n] = value
        if trial.state != TrialState.COMPLETE:  # one that is complete without coming to a rung had a smaller budget
            self._lower.append(n)

    def _excess(self, trial: FrozenTrial) -> float:
        return sum(value for value in trial.constraints.values() if value > 0) if self._constrained else 0.0

    def _row(self, trial: FrozenTrial) -> np.ndarray:
        if (row := self._rows.get(trial.number)) is None:
            row = self._places.row(trial.params)
            # Of one that has told nothing yet, a driver that died may not have drawn every value.
            if trial.number in self._seen or trial.intermediate_values:
                self._rows[trial.number] = row
        return row


class PriorSampler(TPESampler):
    """TPE with a prior that fades: some proposals are near the space's first trials, such as a paper's settings.

    Of proposal n one in ``1 + n / FADING`` is. In a space without first trials it is TPE. The idea is PriorBand's (Mallik et al. 2023).
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self._first = np.array([self._places.row(values) for values in space.first_trials for _ in range(SEEN)])

    def propose(self, study: optuna.Study, trial: FrozenTrial) -> Values:
        """See ``WholeSampler``."""
        random = np.random.default_rng([self._seed, trial.number, FADING])
        if not len(self._first) or random.random() * (FADING + trial.number) > FADING:
            return super().propose(study, trial)
        return self._places.values(Density(self._first, self._places.choices).draw(1, random)[0])


def _ranked(values: Mapping[int, Sequence[float]], signs: Sequence[int]) -> list[int]:
    """Numbers of trials, best first: by their value, or with several of them by the front they are on and how empty it is around them.

    A value with the sign 1 is minimised, one with -1 maximised. Fronts and crowding are those of NSGA-II (Deb et al. 2002).
    """
    if len(signs) == 1:
        return sorted(values, key=lambda number: (signs[0] * values[number][0], number))
    numbers = list(values)
    points = np.array([values[number] for number in numbers], float).reshape(-1, len(signs)) * signs
    order, left = list[int](), np.arange(len(numbers))
    while len(left):
        some = points[left]
        no_worse = (some[:, None] <= some[None]).all(2)
        first = ~(no_worse & ~no_worse.T).any(0)
        front = left[first]
        crowd = _crowding(points[front])
        order += [numbers[i] for i in front[np.lexsort((front, -crowd))]]
        left = left[~first]
    return order


def _crowding(points: np.ndarray) -> np.ndarray:
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        gaps = np.diff(column[order], prepend=-np.inf, append=np.inf)
        distance[order] += (gaps[:-1] + gaps[1:]) / (np.ptp(column) or 1.0)
    return distance


def _value(trial: FrozenTrial, rung: int) -> Sequence[float] | None:
    if rung == WHOLE:
        return trial.values if trial.state == TrialState.COMPLETE else None
    return None if (value := value_at(trial, rung)) is None else [value]


def _sobol(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    rest = RepeatingRandomSampler(seed)
    return optuna.samplers.QMCSampler(scramble=True, seed=seed, independent_sampler=rest, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[Space, int], optuna.samplers.BaseSampler]] = {
    "auto": TPESampler,
    "tpe": TPESampler,
    "prior": PriorSampler,
    "qmc": _sobol,
    "random": lambda space, seed: RepeatingRandomSampler(seed),
    "grid": lambda space, seed: GridSampler(space),
    "listed": lambda space, seed: ListedSampler(space.first_trials),
}
"""From a space and the seed of the study."""

OPTUNAS = {"gp": "GPSampler", "nsga2": "NSGAIISampler"}
"""Samplers of Optuna by their names here; they are looked up when they are wanted, for one of them imports torch."""


def make_sampler(space: Space, begun: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler of a study: one of ``SAMPLERS`` or ``OPTUNAS``, or whatever its target gives.

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
    seed = (settings.seed + begun) % 2**32
    if settings.sampler in OPTUNAS:
        return getattr(optuna.samplers, OPTUNAS[settings.sampler])(seed=seed)  # type: ignore[no-any-return]
    with targets.blaming(settings.sampler, "study.sampler"):
        found = targets.load(settings.sampler, "study.sampler")
        seeded = {"seed": seed} if "seed" in inspect.signature(found).parameters else {}
        made = found(**{**seeded, **settings.sampler_options})
    if isinstance(made, optuna.samplers.BaseSampler):
        return made
    raise UserError(f"gives a {type(made).__name__}, no Optuna sampler", where=f"study.sampler={settings.sampler}", todo="return a sampler")
