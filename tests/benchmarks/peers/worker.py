"""Other libraries' searches over recorded curves, on the same virtual clock and with the same workers as ``guidino_tune.simulation``."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from guidino_tune.analysis.searches import Search
from guidino_tune.simulation.executor import after_comparison
from guidino_tune.simulation.sources import Source
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to train: these values, from the epoch after ``trained`` on."""

    key: str
    values: Values
    trained: int = 0


class Peer(Protocol):
    """One search. Dice is maximised; epochs count from 1."""

    def ask(self) -> Job | None:
        """A new configuration, or one that was paused; ``None`` when the search waits for running ones."""
        ...

    def report(self, key: str, epoch: int, dice: float) -> bool:
        """Takes an epoch in; False when the training ends or pauses here."""
        ...

    def fail(self, key: str) -> None:
        """The training diverged."""
        ...


def run_peer(peer: Peer, name: str, source: Source, space: Space, *, workers: int, epochs: int) -> Search:
    """Trains until the budget is used up; what leads is chosen as in ``simulation.executor``."""
    length, seed = space.base.training.epochs, space.study.seed
    clock, trained, turn, ended, failed = 0.0, 0, 0, 0, 0
    queue: list[tuple[float, int, Job, int]] = []
    configurations: dict[str, Values] = {}
    best: dict[str, float] = {}
    lead, leads, whole = (False, -1.0), [], set[str]()

    def push(job: Job, epoch: int) -> None:
        nonlocal turn
        seconds = source.curve(job.values, seed).seconds
        usual = float(np.nanmean(seconds)) if np.isfinite(seconds).any() else 1.0
        turn += 1
        heapq.heappush(queue, (clock + usual, turn, job, epoch))

    while trained < epochs:
        while len(queue) < workers and (job := peer.ask()):
            configurations[job.key] = job.values
            push(job, job.trained + 1)
        if not queue:
            break
        clock, _, job, epoch = heapq.heappop(queue)
        trained += 1
        dice = source.curve(job.values, seed).filled()
        if epoch > len(dice):
            failed, ended = failed + 1, ended + 1
            peer.fail(job.key)
            continue
        best[job.key] = max(best.get(job.key, -1.0), float(dice[epoch - 1]))
        if epoch == length:
            whole.add(job.key)
        if (candidate := (epoch == length, best[job.key])) > lead:
            lead = candidate
            leads.append((trained, clock, source.best - source.quality(job.values)))
        if peer.report(job.key, epoch, float(dice[epoch - 1])) and epoch < length:
            push(job, epoch + 1)
        else:
            ended += 1
    at, when, regrets = (tuple(column) for column in zip(*leads, strict=True)) if leads else ((), (), ())
    chosen = after_comparison(source, [configurations[key] for key in sorted(whole, key=lambda key: -best[key])], space)
    compared = source.best - chosen if chosen is not None else regrets[-1] if regrets else source.best
    return Search(name, workers, seed, at, when, regrets, len(configurations), failed / max(1, ended), trained, clock, compared)
