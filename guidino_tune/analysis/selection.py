"""Which models to average: greedy forward selection on validation cases, and what it gains on cases that had no part in it.

Caruana et al., *Ensemble selection from libraries of models*, ICML 2004: beginning with the best model, the one whose addition to the mean
gives the best score is added again and again, the same ones too, which gives weights; the best of the means on the way is taken.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from guidino_tune.analysis.statistics import interval

Members = tuple[int, ...]
"""Numbers of models, in ascending order; one that is named twice counts twice."""

Dice = Callable[[Members], np.ndarray]
"""Of the mean of these models: (N,), of each case."""

HALVES = 10
"""Times that the cases are divided into two halves."""


@dataclass(frozen=True, slots=True)
class Step:
    """The members so far, and their mean Dice on the cases of the selection."""

    members: Members
    dice: float


@dataclass(frozen=True, slots=True)
class Gain:
    """What a way to choose models gains over the best single one: mean Dice, and its interval of 95 %."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def greedy(dice: Dice, candidates: int, most: int, cases: np.ndarray) -> list[Step]:
    """The way of a greedy selection.

    Args:
        dice: Scores a mean.
        candidates: Number of models, from 0.
        most: Different members at most, from 1; there are twice as many steps.
        cases: The cases on which is selected: their places.

    Returns:
        Every step; of equals the models with the least numbers.
    """
    steps: list[Step] = []
    chosen: list[int] = []
    for _ in range(2 * most):
        allowed = range(candidates) if len(set(chosen)) < most else sorted(set(chosen))
        tried = [(float(dice(tuple(sorted([*chosen, number])))[cases].mean()), -number) for number in allowed]
        best, number = max(tried)
        chosen.append(-number)
        steps.append(Step(tuple(sorted(chosen)), best))
    return steps


def best_of(steps: Sequence[Step]) -> Step:
    """The best step, the first of equals: fewer members are cheaper."""
    return max(steps, key=lambda step: step.dice)


def weights_of(members: Members) -> dict[int, int]:
    """How often each member is named."""
    return dict(sorted(Counter(members).items()))


def ranked(dice: Dice, candidates: int, cases: np.ndarray) -> list[int]:
    """The models, the best alone first."""
    alone = [float(dice((number,))[cases].mean()) for number in range(candidates)]
    return sorted(range(candidates), key=lambda number: (-alone[number], number))


def held_out(dice: Dice, candidates: int, most: int, groups: np.ndarray, *, halves: int = HALVES, seed: int = 0) -> dict[str, Gain]:
    """What a selection gains on cases that had no part in it: chosen on one half of the cases, scored on the other, and the other way.

    Args:
        dice: Scores a mean.
        candidates: Number of models.
        most: Different members at most.
        groups: (N,), the group of each case: what is independent. Whole groups are drawn.
        halves: How often the cases are divided anew.
        seed: Of the drawing.

    Returns:
        By way: ``greedy``, and ``best``, the plain mean of the ``most`` best, each against the best alone that was chosen on the same half.
        The interval is a bootstrap over groups. Empty where there are fewer than four groups.
    """
    names = np.unique(groups)
    if len(names) < 4:
        return {}
    gained = {name: np.zeros((halves, len(groups))) for name in ("greedy", "best")}
    for number, (chosen_on, scored) in _halves(names, groups, halves, seed):
        order = ranked(dice, candidates, chosen_on)
        alone = dice((order[0],))[scored]
        step = best_of(greedy(dice, candidates, most, chosen_on))
        gained["greedy"][number, scored] = dice(step.members)[scored] - alone
        gained["best"][number, scored] = dice(tuple(sorted(order[:most])))[scored] - alone
    found = {}
    for name, values in gained.items():
        mean = values.mean(0)
        low, high = interval(mean, groups)
        found[name] = Gain(math.fsum(mean) / len(mean), low, high)
    return found


def _halves(names: np.ndarray, groups: np.ndarray, halves: int, seed: int) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(seed)
    for number in range(halves):
        drawn = rng.permutation(names)[: len(names) // 2]
        inside = np.isin(groups, drawn)
        one, other = np.flatnonzero(inside), np.flatnonzero(~inside)
        yield number, (one, other)
        yield number, (other, one)
