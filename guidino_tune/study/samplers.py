"""Samplers whose draws for a trial follow from seed, trial and earlier results; TPE over what trials had at one rung."""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
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
from guidino_tune.study.fronts import on_front
from guidino_tune.study.listed import GridSampler, ListedSampler
from guidino_tune.study.objectives import directions
from guidino_tune.study.proposing import WholeSampler
from guidino_tune.study.pruners import rungs
from guidino_tune.study.standings import Changes, Ordered, Standings
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
        self._changes, self._at = Changes(), {rung: _Rung() for rung in self._rungs}
        self._fresh: Ordered[int] = Ordered()
        self._beyond: dict[int, float] = {}
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
        trials, changed = self._changes.look(study)
        for n in changed:
            self._take_in(n, trials[n])
        for rung, at in self._at.items():
            count, spared = len(at.numbers) - (number in at.values), list[int]()
            if rung == self._rungs[-1] and count < self._startup:
                # Where hardly a trial keeps the constraints, it is also those that are least beyond them that are good ones.
                spared = sorted(self._beyond, key=lambda n: (self._beyond[n], n))
            if (count := count + len(spared)) < self._startup:
                continue
            most = min(math.ceil(GOOD * count), BEST)
            good = [*at.best(number, most, self._signs), *spared][:most]
            known = {number, *good}
            bad = _latest(at.numbers, LATEST, known) + _latest(at.before, LATEST, known) + _latest(self._fresh, RUNNING, known)
            return [trials[n] for n in good], [trials[n] for n in sorted(bad)]
        return [], []

    def _take_in(self, n: int, trial: FrozenTrial) -> None:
        """Takes in a trial that has changed."""
        running, begun = trial.state == TrialState.RUNNING, bool(trial.intermediate_values)
        ended = trial.state.is_finished() and counts_as_finished(trial)
        excess = self._excess(trial)
        sound = (running or ended) and trial.state != TrialState.FAIL and not excess
        # One that is complete without coming to a rung had a smaller budget.
        lower = begun if running else ended and (not sound or trial.state != TrialState.COMPLETE)
        for rung, at in self._at.items():
            at.put(n, _value(trial, rung) if sound else None, lower, self._signs)
        (self._fresh.put if running and not begun else self._fresh.drop)(n)
        if ended and excess and trial.state != TrialState.FAIL:
            self._beyond[n] = excess

    def _excess(self, trial: FrozenTrial) -> float:
        return sum(value for value in trial.constraints.values() if value > 0) if self._constrained else 0.0

    def _row(self, trial: FrozenTrial) -> np.ndarray:
        if (row := self._rows.get(trial.number)) is None:
            row = self._places.row(trial.params)
            # Of one that has told nothing yet, a driver that died may not have drawn every value.
            if trial.state.is_finished() or trial.intermediate_values:
                self._rows[trial.number] = row
        return row


class _Rung:
    """The trials that came to a rung, with their values there, and those ``before`` it that count as bad ones; both in order."""

    def __init__(self) -> None:
        self.values: dict[int, Sequence[float]] = {}
        self.numbers: Ordered[int] = Ordered()
        self.before: Ordered[int] = Ordered()
        self._order = Standings()  # of a study with one objective

    def put(self, number: int, values: Sequence[float] | None, lower: bool, signs: Sequence[int]) -> None:
        """Takes in a trial: its values here, if it came so far; else whether it counts as a bad one."""
        if values is None:
            self.values.pop(number, None)
            self.numbers.drop(number)
        else:
            self.values[number] = values
            self.numbers.put(number)
        if len(signs) == 1:
            self._order.put(number, None if values is None else -signs[0] * values[0])
        (self.before.put if lower and values is None else self.before.drop)(number)

    def best(self, without: int, most: int, signs: Sequence[int]) -> list[int]:
        """Numbers of the best trials but one, best first: so many, and perhaps more."""
        if len(signs) == 1:
            return [number for _, number in self._order.order[: most + 1] if number != without]
        return _ranked({n: values for n, values in self.values.items() if n != without}, signs, most)


def _latest(numbers: Sequence[int], most: int, without: Collection[int]) -> list[int]:
    return list(islice((number for number in reversed(numbers) if number not in without), most))


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


def _ranked(values: Mapping[int, Sequence[float]], signs: Sequence[int], most: int) -> list[int]:
    """Numbers of at least so many trials, best first: by the front they are on, and how empty it is around them.

    A value with the sign 1 is minimised, one with -1 maximised. Fronts and crowding are those of NSGA-II (Deb et al. 2002).
    """
    numbers = list(values)
    points = np.array([values[number] for number in numbers], float).reshape(-1, len(signs)) * signs
    order, left = list[int](), np.arange(len(numbers))
    while len(left) and len(order) < most:
        first = on_front(points[left])
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
