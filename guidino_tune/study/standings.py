"""Where the trials of a study stand, kept up to date by what has changed: a question costs about the same however many there are."""

from __future__ import annotations

import bisect
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.study import optuna_private

T = TypeVar("T", int, tuple[float, int], tuple[float, ...])


class Changes:
    """Which trials of a study have changed since the last look.

    A journal tells it. Other storages replace a stored trial when it changes, and never write into it: another object is another state.
    """

    def __init__(self) -> None:
        self._before: list[FrozenTrial] = []
        self._known = self._mark = 0

    def look(self, study: optuna.Study) -> tuple[Mapping[int, FrozenTrial] | Sequence[FrozenTrial], Iterable[int]]:
        """All trials by number, and the numbers of those that are new or other than before, in order."""
        if (told := optuna_private.changes(study, self._mark)) is not None:
            trials, changed, self._mark = told
            new, self._known = range(self._known, len(trials)), len(trials)
            return trials, sorted({*changed, *new})
        listed, before = study.get_trials(deepcopy=False), self._before
        self._before = listed
        return listed, [*compress(range(len(before)), map(operator.is_not, listed, before)), *range(len(before), len(listed))]


class Ordered(list[T]):
    """A list that stays sorted; nothing is in it twice."""

    def put(self, item: T) -> None:
        """Adds an item, unless it is there."""
        at = bisect.bisect_left(self, item)
        if at == len(self) or self[at] != item:
            self.insert(at, item)

    def drop(self, item: T) -> None:
        """Takes an item out, if it is there."""
        at = bisect.bisect_left(self, item)
        if at < len(self) and self[at] == item:
            del self[at]


class Standings:
    """The values with which trials are compared at one epoch, best first.

    Attributes:
        values: By number of the trial.
        order: Of (minus the value, number): the best first, of equal ones the older first.
    """

    def __init__(self) -> None:
        self.values: dict[int, float] = {}
        self.order: Ordered[tuple[float, int]] = Ordered()

    def put(self, number: int, value: float | None) -> None:
        """Takes in what a trial has; ``None``: nothing, or nothing any more."""
        before = self.values.get(number)
        if before == value:
            return
        if before is not None:
            self.order.drop((-before, number))
            del self.values[number]
        if value is not None:
            self.order.put((-value, number))
            self.values[number] = value

    def leads(self, number: int, most: int) -> bool:
        """Whether a trial is among so many of the best."""
        value = self.values.get(number)
        return value is not None and bisect.bisect_left(self.order, (-value, number)) < most
