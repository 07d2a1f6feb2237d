"""Searches on a virtual clock that are looked at on their way: what was told then, and how long they really took."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from guidino_tune.config import Experiment
from guidino_tune.simulation.curves import COMPLETE, Curve
from guidino_tune.simulation.executor import simulate
from guidino_tune.simulation.sources import Source
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space
from guidino_tune.study.driver import Driver
from guidino_tune.study.tally import Tally
from guidino_tune.study.time_left import Left, TimeLeft
from guidino_tune.study.trials import remaining
from guidino_tune.training.reporter import EpochRecord


@dataclass
class Look:
    """What was told at one moment: by us, and by the time so far for each trial that is done."""

    now: float
    left: Left | None
    simplest: float | None


class Watch:
    """Makes the driver of a simulated search, and looks at it at some moments."""

    def __init__(self, moments: Sequence[float] = (), told: Space | None = None) -> None:
        self.moments, self.now, self.looks, self.told = list(moments), 0.0, list[Look](), told

    def driver(self, study: optuna.Study, space: Space, folder: Any, _: Any, settings: Any) -> Driver:
        self.study, self.space, self.left, tally = study, space, TimeLeft(study, self.told or space), Tally(study)

        def listener(number: int, experiment: Experiment, record: EpochRecord | None) -> None:
            if record is not None:
                self.now = record.time
                self.left.trained(number, self.now)
            elif number in self.made.experiments:
                self.left.started(number, (experiment.name, experiment.data.image_size), self.now)
            else:
                self.left.ended(number)
                tally.take(self.made.frozen_by_number(number))
            while self.moments and self.now >= self.moments[0]:
                self.moments.pop(0)
                total = tally.done + remaining(study, space)
                simplest = self.now / tally.done * (total - tally.done) if tally.done else None
                state = self.left.state(self.now)
                self.looks.append(Look(self.now, state.left() if state else None, simplest))

        self.made = _Named(study, space, folder, listener, settings)
        return self.made


class _Named(Driver):
    def frozen_by_number(self, number: int) -> Any:
        from guidino_tune.study.optuna_private import stored_trial

        return stored_trial(self.study, number)


def replay(
    space: Space, source: Source, *, trials: int, workers: int, shares: Sequence[float], told: Space | None = None
) -> tuple[float, list[Look]]:
    """Seconds of a whole search, and what was told after these shares of it; ``told``: what it is told to be instead."""
    last = Watch()
    simulate(space, source, workers=workers, epochs=10**9, trials=trials, make_driver=last.driver)
    seen = Watch([share * last.now for share in shares], told)
    simulate(space, source, workers=workers, epochs=10**9, trials=trials, make_driver=seen.driver)
    assert seen.now == last.now
    return last.now, seen.looks


class Known:
    """Curves by a rule, so that the truth is known beforehand."""

    note, best = "by a rule", 1.0
    known: Sequence[Values] = ()

    def __init__(self, seconds: Callable[[Values], float], epochs: int, worse: str = "") -> None:
        self.seconds, self.epochs, self.worse = seconds, epochs, worse

    def curve(self, values: Values, seed: int) -> Curve:
        top = 0.2 + 0.6 * (zlib.crc32(repr(sorted(values.items())).encode()) % 997) / 997
        top *= 0.5 if values["segmenter.kind"] == self.worse else 1.0
        dice = top * (1 - np.exp(-np.arange(1, self.epochs + 1) / 5))
        return Curve(-1, seed, values, dice, np.full(self.epochs, self.seconds(values)), COMPLETE)

    def quality(self, values: Values) -> float:
        return 0.5

    def first(self, trials: Sequence[Values], seed: int) -> Sequence[Values]:
        return trials

    def sampler(self, inner: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
        return inner
