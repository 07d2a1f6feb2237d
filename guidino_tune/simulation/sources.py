"""Where the curve of a proposed configuration comes from: the nearest recorded one, or a model of all of them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from guidino_tune.errors import UserError
from guidino_tune.simulation.curves import COMPLETE, STOPPED, Curve, CurveTable
from guidino_tune.space.encoding import encode
from guidino_tune.space.parameters import Parameter, Scalar, Values
from guidino_tune.space.suggest import distribution
from guidino_tune.study.outcomes import Key, as_key
from guidino_tune.study.proposing import WholeSampler

ALIKE = 24
"""Recorded trainings of which a simulated one may have the luck."""

SLOPES = 0.1, 1.5
"""Least and most that the best Dice of two configurations may differ by, in units of what was predicted; few curves tell any slope."""


class Source(Protocol):
    """Answers how a training goes."""

    note: str

    def curve(self, values: Values, seed: int) -> Curve:
        """The training of these values with the luck of this seed."""
        ...

    def quality(self, values: Values) -> float:
        """Best Dice of a whole training, on average over its luck."""
        ...

    def first(self, trials: Sequence[Values], seed: int) -> Sequence[Values]:
        """The first trials as this source can answer them."""
        ...

    def sampler(self, inner: BaseSampler) -> BaseSampler:
        """The sampler as this source can answer it."""
        ...

    @property
    def best(self) -> float:
        """Best quality that is known."""
        ...

    @property
    def known(self) -> Sequence[Values]:
        """All that can be answered; empty: any configuration. See ``Repeats.pool``."""
        ...


def luck(values: Values, seed: int) -> np.random.Generator:
    """Random numbers of one training: the same for every method that trains these values in the study of this seed."""
    return np.random.default_rng([seed, zlib.crc32(repr(sorted(values.items())).encode())])


class Rows:
    """The recorded curves themselves, and nothing else: a study over them is one over a finite space.

    A proposal becomes the nearest recorded configuration with the same active parameters. One that a study has not used yet goes before
    one that it has; of several seeds the study's luck takes one. A search ends when it has used them all.

    Args:
        table: Without curves that were stopped early.

    Raises:
        UserError: A curve was stopped early: what would have followed is not known.
    """

    def __init__(self, table: CurveTable) -> None:
        if stopped := sum(c.state == STOPPED or (not c.failed and len(c.dice) < table.epochs) for c in table.curves):
            raise UserError(
                f"{stopped} of {len(table.curves)} curves were stopped before their last epoch, so they cannot be played as they are",
                where="--curves exact", todo="take --curves surrogate, which goes on with them",
            )  # fmt: skip
        self.space = table.space
        groups: dict[Key, list[Curve]] = {}
        for curve in table.curves:
            groups.setdefault(as_key(curve.parameters), []).append(curve)
        self.groups, self.known = groups, [group[0].parameters for group in groups.values()]
        self._keys = list(groups)
        self._encoded = np.array([encode(self.space, values) for values in self.known])
        self._branches = [frozenset(values) for values in self.known]
        self._qualities = {key: float(np.mean([max(c.filled(), default=0.0) for c in group])) for key, group in groups.items()}
        self.best = max((self._qualities[key] for key, group in groups.items() if not any(c.failed for c in group)), default=0.0)
        self.note = f"each proposal is replaced by the nearest of {len(self.known)} recorded configurations with the same active parameters"

    def nearest(self, values: Values, used: Collection[Key] = ()) -> Values:
        """The nearest recorded configuration; only where all of its branch are ``used``, one of them."""
        distance = ((self._encoded - encode(self.space, values)) ** 2).sum(1)
        same = np.array([branch == values.keys() for branch in self._branches])
        free = np.array([key not in used for key in self._keys])
        among = next(some for some in (same & free, same, free, ~free) if some.any())
        return self.known[np.flatnonzero(among)[distance[among].argmin()]]

    def curve(self, values: Values, seed: int) -> Curve:
        """See ``Source``."""
        group = self.groups[as_key(values)]
        return group[luck(values, seed).integers(len(group))]

    def quality(self, values: Values) -> float:
        """See ``Source``: the mean over the recorded seeds."""
        return self._qualities[as_key(values)]

    def first(self, trials: Sequence[Values], seed: int) -> Sequence[Values]:
        """See ``Source``: the nearest rows; what a trial leaves open is drawn at random."""
        generator, found = random.Random(seed), list[Values]()
        for trial in trials:
            whole, _ = self.space.walk(lambda path, parameter, trial=trial: trial[path] if path in trial else parameter.draw(generator))  # type: ignore[misc]
            found.append(self.nearest(whole, {as_key(values) for values in found}))
        return found

    def sampler(self, inner: BaseSampler) -> BaseSampler:
        """See ``Source``."""
        return RowSampler(inner, self)


class RowSampler(WholeSampler):
    """Lets another sampler propose, and gives the trial the nearest recorded configuration: what the study knows is what was run."""

    def __init__(self, inner: BaseSampler, rows: Rows) -> None:
        super().__init__()
        self.inner, self.rows = inner, rows

    def propose(self, study: optuna.Study, trial: FrozenTrial) -> Values:
        """See ``WholeSampler``."""
        together = self.inner.sample_relative(study, trial, self.inner.infer_relative_search_space(study, trial))

        def choose(path: str, parameter: Parameter) -> Scalar:
            value: Scalar = (
                together[path] if path in together else self.inner.sample_independent(study, trial, path, distribution(parameter))
            )
            return value

        used = {as_key(t.params) for t in study.get_trials(deepcopy=False) if t.number != trial.number}
        return self.rows.nearest(self.rows.space.walk(choose)[0], used)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: Any, values: Any) -> None:
        """See ``BaseSampler``."""
        self.inner.after_trial(study, trial, state, values)


class Forest:
    """A fitted forest as arrays, which answers one row at a time many times as fast as scikit-learn does.

    Args:
        fitted: Trees, a regressor's or a classifier's.
    """

    def __init__(self, fitted: Any) -> None:
        trees = [one.tree_ for one in fitted.estimators_]
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])
        self._roots = starts[:-1]
        nodes = np.arange(starts[-1])
        feature, left, right = (np.concatenate([getattr(t, n) for t in trees]) for n in ("feature", "children_left", "children_right"))
        shift = np.repeat(self._roots, np.diff(starts))
        leaf = left < 0
        self._feature, self._threshold = np.where(leaf, 0, feature), np.concatenate([tree.threshold for tree in trees])
        self._next = np.where(leaf, nodes, np.stack([right + shift, left + shift]))  # a leaf leads to itself
        self._values = np.concatenate([tree.value.reshape(tree.node_count, -1) for tree in trees])
        self._depth = max(tree.max_depth for tree in trees)

    def mean(self, row: np.ndarray) -> np.ndarray:
        """The mean of all trees for one row of inputs (float32, as the trees compare it): values, or the chance of each class."""
        at = self._roots
        for _ in range(self._depth):
            at = self._next[(row[self._feature[at]] <= self._threshold[at]).astype(int), at]
        return np.asarray(np.add.accumulate(self._values[at])[-1] / len(at))  # one after the other, as scikit-learn adds


class Surrogate:
    """Extremely randomised trees that give a whole curve, the seconds of an epoch and the chance of a failure for any configuration.

    A curve that was stopped early goes on as the mean of the complete ones does.

    The luck of a seed: a training misses the prediction as a recorded one did that was predicted, unseen, to be about as good; so it is as
    likely to collapse. All misses are scaled, so that two trainings of one configuration differ by as much as recorded repetitions do.
    (Differences of repetitions that are added to any prediction make a Dice of 1 of an easy configuration, where another had collapsed.)

    Args:
        table: At least ten curves, one of them complete.
        scale: Of the luck: 1 as recorded, 0 none. More validation images and longer trainings have less of it.

    Raises:
        UserError: There are fewer.
    """

    known: Sequence[Values] = ()

    def __init__(self, table: CurveTable, scale: float = 1.0) -> None:
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        self.space, self.epochs = table.space, table.epochs
        trained = [c for c in table.curves if not c.failed and len(c.dice)]
        complete = [c.filled() for c in trained if len(c.dice) >= self.epochs]
        if len(trained) < 10 or not complete:
            raise UserError(f"{len(trained)} curves, {len(complete)} of them complete, are too few for a model", where="--curves surrogate",
                            todo="record at least ten, and one that is complete")  # fmt: skip
        mean = np.mean([c[: self.epochs] for c in complete], axis=0)
        curves = np.array([self._continued(c.filled(), mean) for c in trained])
        inputs = np.array([encode(self.space, c.parameters) for c in trained])
        every = np.array([encode(self.space, c.parameters) for c in table.curves])
        kinds = np.array([c.state if c.failed else "" for c in table.curves])
        trees = {"n_estimators": 60, "random_state": 0, "n_jobs": 1}
        groups = np.array([c.configuration for c in trained])
        # No training has a leaf of its own: there its luck would be taken for what its configuration is worth.
        grown = trees | {"min_samples_leaf": 2}
        unseen = _held_out(lambda: ExtraTreesRegressor(**grown), inputs, curves, groups)
        predicted, found = unseen.max(1), curves.max(1)
        # The luck of the trainings that a model has seen is in what it says of others: these differ by less. Their order stays.
        slope = float(np.clip(np.cov(predicted, found)[0, 1] / (predicted.var(ddof=1) or 1.0), *SLOPES))
        self._line = slope, float(found.mean() - slope * predicted.mean())
        self.error = float(np.abs(np.polyval(self._line, predicted) - found).mean())
        spread = float(np.mean(np.abs(found - np.median(found))))
        self._curves = Forest(ExtraTreesRegressor(**grown).fit(inputs, curves))
        known = np.array([np.nanmean(c.seconds) if np.isfinite(c.seconds).any() else np.nan for c in trained])
        known = np.log(np.where(np.isfinite(known), known, np.nanmedian(known) if np.isfinite(known).any() else 1.0).clip(1e-6))
        self._seconds = Forest(ExtraTreesRegressor(**trees).fit(inputs, known))
        self._kinds = sorted(set(kinds))
        several = len(self._kinds) > 1
        self._failures = Forest(ExtraTreesClassifier(**trees, min_samples_leaf=3).fit(every, kinds)) if several else None
        self._lengths = {kind: [len(c.dice) for c in table.curves if c.state == kind] for kind in self._kinds if kind}
        order = predicted.argsort(kind="stable")
        self._predicted, self._found, self._misses = predicted[order], found[order], (curves - unseen)[order]
        first = {group: n for n, group in reversed(list(enumerate(groups)))}
        again = [(first[group], n) for n, group in enumerate(groups) if n != first[group]]
        differences = [abs(found[one] - found[other]) for one, other in again]
        apart = [_mean_difference(self._found[self._alike(predicted[n])]) for _, n in again]
        self._scale = scale * float(np.mean(differences) / (np.mean(apart) or 1.0)) if again else 0.0
        luck_told = (
            f"two trainings of one configuration differ by {np.mean(differences):.4f} from {len(again)} repetitions"
            if again else "no repetitions, so no luck of a seed"
        )  # fmt: skip
        self.note = (
            f"a model of {len(table.curves)} curves: of configurations held out, the final Dice is missed by {self.error:.4f} on average "
            f"(by {spread:.4f} if the median were said of all); {luck_told}"
        )
        self._memory: dict[Any, tuple[np.ndarray, float, np.ndarray]] = {}
        self.best = max(self.quality(c.parameters) for c in trained)

    def _continued(self, curve: np.ndarray, mean: np.ndarray) -> np.ndarray:
        curve = curve[: self.epochs]
        return np.concatenate([curve, np.clip(curve[-1] + mean[len(curve) :] - mean[len(curve) - 1], 0, 1)])

    def _alike(self, predicted: float) -> slice:
        """The recorded trainings beside this best Dice, in the order of what was predicted of them unseen."""
        start = int(np.searchsorted(self._predicted, predicted)) - ALIKE // 2
        start = min(max(start, 0), max(0, len(self._predicted) - ALIKE))
        return slice(start, start + ALIKE)

    def _answer(self, values: Mapping[str, Scalar]) -> tuple[np.ndarray, float, np.ndarray]:
        key = as_key(values)
        if key not in self._memory:
            row = encode(self.space, dict(values)).astype(np.float32)
            chances = self._failures.mean(row) if self._failures else np.ones(1)
            if len(self._memory) > 20_000:
                self._memory.clear()
            self._memory[key] = self._curves.mean(row), float(np.exp(self._seconds.mean(row)[0])), chances / chances.sum()
        return self._memory[key]

    def curve(self, values: Values, seed: int) -> Curve:
        """See ``Source``."""
        dice, seconds, chances = self._answer(values)
        generator = luck(values, seed)
        kind = self._kinds[generator.choice(len(chances), p=chances)]
        alike = self._alike(dice.max())
        number = int(generator.integers(len(self._found[alike])))
        best = self.quality(values) + self._scale * (self._found[alike][number] - self._found[alike].mean())
        dice = dice + self._scale * self._misses[alike][number]
        dice = np.clip(dice + best - dice.max(), 0, 1)
        if kind:
            dice = dice[: min(generator.choice(self._lengths[kind]), self.epochs - 1)]
        return Curve(-1, seed, values, dice, np.full(len(dice), seconds), kind or COMPLETE)

    def quality(self, values: Values) -> float:
        """See ``Source``."""
        return float(np.polyval(self._line, self._answer(values)[0].max()))

    def first(self, trials: Sequence[Values], seed: int) -> Sequence[Values]:
        """See ``Source``: any configuration has an answer."""
        return trials

    def sampler(self, inner: BaseSampler) -> BaseSampler:
        """See ``first``."""
        return inner


def _held_out(make: Callable[[], Any], inputs: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Predictions for each group by a model that has not seen it; of a single group, by one that has."""
    from sklearn.model_selection import GroupKFold

    found = np.empty_like(targets)
    folds = min(5, len(set(groups)))
    everything = np.arange(len(inputs))
    for train, test in GroupKFold(folds).split(inputs, groups=groups) if folds > 1 else [(everything, everything)]:
        found[test] = make().fit(inputs[train], targets[train]).predict(inputs[test])
    return found


def _mean_difference(values: np.ndarray) -> float:
    """Between two of them that are drawn independently."""
    return float(np.abs(values[:, None] - values[None]).mean())
