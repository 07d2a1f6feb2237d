"""How sure a search is: whether early epochs tell the end, what decides the Dice at each rung, and what more trials would gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 200
"""Of the trials, for an interval of 95 %."""

SHUFFLES = 3
"""Of each parameter, for each bootstrap sample."""

FEWEST = 10
"""Trials below which nothing is said."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % bootstrap interval over the trials.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
        trials: That it is from.
    """

    value: float
    low: float
    high: float
    trials: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _interval(statistic: Any, *columns: np.ndarray, resamples: int = RESAMPLES) -> Estimate:
    random, n = np.random.default_rng(0), len(columns[0])
    drawn = [statistic(*(column[at] for column in columns)) for at in random.integers(n, size=(resamples, n))]
    return _estimate(float(statistic(*columns)), drawn, n)


def _estimate(value: float, drawn: Sequence[float], trials: int) -> Estimate:
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), trials)


def rung_agreement(curves: Sequence[Mapping[int, float]], rungs: Sequence[int]) -> dict[int, Estimate]:
    """Kendall's tau-b between the best Dice until each rung and at the end: 1 where the order is the same, 0 where it says nothing.

    Only trials that came to the end can be compared. A pruner has chosen these by the very order that is asked for, so among all trials
    the agreement is higher.

    Args:
        curves: Validation Dice by epoch of each trial, the best so far.
        rungs: Epochs, ascending; the last is the end.

    Returns:
        By rung, without the last; empty with fewer than ``FEWEST`` trials that came to the end.
    """
    from scipy.stats import kendalltau

    whole = [curve for curve in curves if set(rungs) <= curve.keys()]
    if len(whole) < FEWEST:
        return {}
    end = np.array([curve[rungs[-1]] for curve in whole])
    return {
        rung: _interval(lambda a, b: kendalltau(a, b, method="asymptotic").statistic, np.array([c[rung] for c in whole]), end)
        for rung in rungs[:-1]
    }


def importance(inputs: np.ndarray, groups: Mapping[str, Sequence[int]], dice: np.ndarray, *, resamples: int = 20) -> dict[str, Estimate]:
    """The share of the Dice's variance that is no longer predicted once a group of columns is shuffled.

    Extremely randomised trees learn from a bootstrap sample of the trials and predict those that are not in it (Breiman, 2001, permutation
    importance on held-out cases), so that what was learned by heart counts for nothing. A conditional parameter is shuffled among the
    trials that have it, marked by a number other than -1.

    Args:
        inputs: (trials, columns), as ``space.encoding.encode`` gives them.
        groups: Columns of each parameter.
        dice: (trials,).
        resamples: Bootstrap samples.

    Returns:
        By parameter, most important first: of 1, the variance; empty with fewer than ``FEWEST`` trials, or where the prediction is no
        better than the mean.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    if len(dice) < FEWEST or np.ptp(dice) == 0:
        return {}
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in groups}
    errors = []
    for sample in range(resamples):
        chosen = random.integers(len(dice), size=len(dice))
        held = np.setdiff1d(np.arange(len(dice)), chosen)
        variance = float(np.mean((dice[held] - dice[chosen].mean()) ** 2))
        if variance == 0:
            continue
        forest = ExtraTreesRegressor(n_estimators=40, min_samples_leaf=2, random_state=sample, n_jobs=1).fit(inputs[chosen], dice[chosen])
        error = float(np.mean((forest.predict(inputs[held]) - dice[held]) ** 2))
        errors.append(error / variance)
        shuffled = np.tile(inputs[held], (len(groups), SHUFFLES, 1, 1))
        for at, columns in enumerate(map(np.array, groups.values())):
            has = np.flatnonzero(inputs[held][:, columns[0]] != -1)
            for copy in shuffled[at]:
                copy[np.ix_(has, columns)] = inputs[held][np.ix_(random.permutation(has), columns)]
        missed = (forest.predict(shuffled.reshape(-1, inputs.shape[1])).reshape(shuffled.shape[:3]) - dice[held]) ** 2
        for name, worse in zip(groups, missed.mean((1, 2)) - error, strict=True):
            found[name].append(float(worse) / variance)
    if not errors or np.mean(errors) >= 1:
        return {}
    shares = {name: _estimate(float(np.mean(values)), values, len(dice)) for name, values in found.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1].value))


def expected_gain(dice: Sequence[float], more: int) -> Estimate | None:
    """By how much the best Dice would rise with ``more`` trials like those there are: its growth over the last doubling, continued.

    The mean best of ``k`` of ``n`` trials, in any order, is known exactly from order statistics, and for light tails it grows with the
    logarithm of ``k`` (Gnedenko, 1943). A search that learns may gain more, one that has converged less.

    Args:
        dice: Best Dice of each trial.
        more: Further trials.

    Returns:
        ``None`` with fewer than ``FEWEST`` trials.
    """
    if len(dice) < FEWEST:
        return None

    def gain(values: np.ndarray) -> float:
        n, half = len(values), len(values) // 2
        return float((values.max() - mean_best(values, half)) / math.log(n / half) * math.log((n + more) / n))

    return _interval(gain, np.asarray(dice, dtype=float))


def mean_best(values: np.ndarray, k: int) -> float:
    """Expected largest of ``k`` values drawn without replacement."""
    n = len(values)
    # The largest of k is the one at place p (from 0, ascending) in C(p, k - 1) of C(n, k) cases; from the top down by ratios.
    places = np.arange(n - 1, k - 1, -1)
    weights = k / n * np.cumprod(np.concatenate([[1.0], (places - k + 1) / places]))
    return float(weights @ np.sort(values)[::-1][: len(weights)])
