"""A tree-structured Parzen estimator over a space with conditions (Bergstra et al. 2011), all parameters of a trial together (BOHB)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from guidino_tune.space.parameters import Parameter, Scalar, Values
from guidino_tune.space.space import RECIPE, Space

CANDIDATES = 24
"""Configurations drawn like the good ones, of which the one is proposed that is most like them and least like the others."""

WIDTH = 0.2
"""Of the kernel around a number, in units of its range, were there one trial and no other parameter."""

REMEMBERED = 10_000
"""Combinations of values, of parameters that others depend on, of which it is remembered what they make active."""

TINY = 1e-300
"""A density below which a kernel counts as having none."""


class Places:
    """Configurations of a space as rows of numbers, one column for each parameter.

    A number stands at its place in the range, from 0 to 1 in the parameter's own scale; a choice is its index; NaN: not active.

    Args:
        space: Whose parameters these are.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.columns = {path: column for column, path in enumerate(space.parameters)}
        self.choices = np.array([len(parameter.choices) for parameter in space.parameters.values()])
        self._edges = {path: _edges(parameter) for path, parameter in space.parameters.items() if parameter.type != "choice"}
        named = {path for parameter in space.parameters.values() for path in parameter.when or ()}
        # Kinds and recipes decide which paths there are.
        self._deciding = [path for path in self.columns if path in named or path == RECIPE or path.endswith(".kind")]
        self._active: dict[tuple[Scalar, ...], np.ndarray] = {}

    def row(self, values: Mapping[str, Scalar]) -> np.ndarray:
        """The row of these values; what the space does not allow (any more) is left out, as if it were not active."""
        row = np.full(len(self.columns), np.nan)
        for path, value in values.items():
            if (parameter := self.space.parameters.get(path)) is None:
                continue
            if parameter.type == "choice":
                row[self.columns[path]] = next((n for n, choice in enumerate(parameter.choices) if _same(value, choice)), np.nan)
            elif isinstance(value, int | float):
                low, high = self._edges[path]
                at = math.log(value) if parameter.log and value > 0 else value
                row[self.columns[path]] = min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5
        return row

    def value(self, path: str, place: float) -> Scalar:
        """The value of a parameter at a place."""
        parameter = self.space.parameters[path]
        if parameter.type == "choice":
            return parameter.choices[int(place)]
        (low, high), (first, last) = self._edges[path], parameter.limits
        at = low + place * (high - low)
        at = math.exp(at) if parameter.log else at
        if step := _step(parameter):
            at = first + round((at - first) / step) * step
        at = min(max(at, first), last)
        return int(at) if parameter.type == "int" else float(at)

    def values(self, row: np.ndarray) -> Values:
        """The value of every parameter, also of those that the other values make inactive."""
        return {path: self.value(path, row[column]) for path, column in self.columns.items()}

    def active(self, row: np.ndarray) -> np.ndarray:
        """The row with NaN for what its other values make inactive."""
        key = tuple(self.value(path, row[self.columns[path]]) for path in self._deciding)
        if (active := self._active.get(key)) is None:
            values, _ = self.space.walk(lambda path, _: self.value(path, row[self.columns[path]]))
            active = np.array([path in values for path in self.columns])
            if len(self._active) < REMEMBERED:
                self._active[key] = active
        return np.where(active, row, np.nan)


class Density:
    """A mixture: a kernel around each row, and one over the whole space, which keeps every configuration possible.

    Where a row has no value for a parameter, because it is not active there, its kernel takes that of all rows which have one. So the
    mixture is a density over configurations of any branch of the space, and no branch needs a model of its own.

    Args:
        rows: (trials, parameters), see ``Places``.
        choices: Number of choices of each parameter; 0 for a number.
    """

    def __init__(self, rows: np.ndarray, choices: np.ndarray) -> None:
        self.rows, self.choices = rows, choices
        count, parameters = rows.shape
        # Scott's rule; but never so narrow that what is drawn only repeats what is known.
        self.width = max(WIDTH * max(count, 1) ** (-1 / (parameters + 4)), 1 / min(100, 1 + count))

    def draw(self, number: int, random: np.random.Generator) -> np.ndarray:
        """So many rows, with a value for every parameter, active or not."""
        count, parameters = self.rows.shape
        kernels = random.integers(count + 1, size=number)  # the last one is that over the whole space
        drawn = np.empty((number, parameters))
        for column, choices in enumerate(self.choices):
            known = [*np.flatnonzero(~np.isnan(self.rows[:, column])), count]
            lacking = np.isin(kernels, known, invert=True)
            taken = kernels.copy()
            taken[lacking] = random.choice(known, size=int(lacking.sum()))
            centres, free = np.append(self.rows[:, column], 0.0)[taken], taken == count
            if choices:
                # The weight of a whole choice is spread over all by the kernel over the whole space, once for all rows.
                free |= random.random(number) < self._spread(choices)
                drawn[:, column] = np.where(free, random.integers(choices, size=number), centres)
            else:
                near = np.abs(centres + self.width * random.standard_normal(number)) % 2
                drawn[:, column] = np.where(free, random.random(number), np.where(near > 1, 2 - near, near))
        return drawn

    def _spread(self, choices: int) -> float:
        even = choices / (len(self.rows) + 1)
        return even / (1 + even)

    def logarithm(self, rows: np.ndarray) -> np.ndarray:
        """Logarithm of the density at each of (candidates, parameters) rows; NaN is not active."""
        count = len(self.rows)
        total = np.zeros((len(rows), count + 1))
        for column, choices in enumerate(self.choices):
            active = ~np.isnan(rows[:, column])
            known = ~np.isnan(self.rows[:, column])
            if not active.any():
                continue
            at, centres = rows[active, column][:, None], self.rows[known, column][None]
            if choices:
                spread = self._spread(choices)
                kernels, whole = spread / choices + (1 - spread) * (at == centres), 1 / choices
            else:
                # Reflected at both ends, so that no mass is lost there.
                kernels = sum(np.exp(-0.5 * ((at - mirrored) / self.width) ** 2) for mirrored in (centres, -centres, 2 - centres))
                kernels, whole = kernels / (self.width * math.sqrt(2 * math.pi)), 1.0
            every = np.empty((len(at), count + 1))
            every[:, :count] = ((kernels.sum(1) + whole) / (known.sum() + 1))[:, None]
            every[:, :count][:, known] = kernels
            every[:, count] = whole
            total[active] += np.log(np.maximum(every, TINY))
        highest = total.max(1)
        found: np.ndarray = highest + np.log(np.exp(total - highest[:, None]).mean(1))
        return found


def propose(places: Places, good: Sequence[np.ndarray], bad: Sequence[np.ndarray], random: np.random.Generator) -> Values:
    """The candidate with the highest ratio of the density of good trials to that of bad ones, which is that of expected improvement.

    Args:
        places: Of the space.
        good: Rows of good trials.
        bad: Rows of the others, and of those that run.
        random: What the draws come from.

    Returns:
        A value for each parameter, also for those that the other values make inactive.
    """
    shape = -1, len(places.columns)
    like, unlike = (Density(np.reshape(rows, shape), places.choices) for rows in (good, bad))
    drawn = like.draw(CANDIDATES, random)
    shown = np.array([places.active(row) for row in drawn])
    best = drawn[int((like.logarithm(shown) - unlike.logarithm(shown)).argmax())]
    return places.values(best)


def _step(parameter: Parameter) -> float:
    return float(parameter.step or (parameter.type == "int"))


def _edges(parameter: Parameter) -> tuple[float, float]:
    """Ends of the range with half a step beyond, in its own scale: so the first and the last value are drawn as often as others."""
    low, high = (float(end) for end in parameter.limits)
    half = _step(parameter) / 2
    low, high = low - half, high + half
    return (math.log(low), math.log(high)) if parameter.log else (low, high)


def _same(value: Scalar, choice: Scalar) -> bool:
    return value == choice and isinstance(value, bool) is isinstance(choice, bool)
