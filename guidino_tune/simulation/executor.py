"""W workers on a virtual clock: they run the trials of the real driver over recorded curves."""

from __future__ import annotations

import dataclasses
import heapq
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna

from guidino_tune.config.study import OBJECTIVE
from guidino_tune.simulation.curves import Curve
from guidino_tune.simulation.sources import Source
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space
from guidino_tune.study.driver import Driver
from guidino_tune.study.journal import open_journal
from guidino_tune.study.objectives import directions
from guidino_tune.study.promotion import queue_first
from guidino_tune.study.pruners import make_pruner
from guidino_tune.study.samplers import make_sampler
from guidino_tune.study.store import StudyFolder
from guidino_tune.study.trials import ranking, tried
from guidino_tune.training.failures import as_kind
from guidino_tune.training.reporter import EpochRecord

NOWHERE = Path(os.devnull) / "simulated"
"""Folder of a study that keeps nothing on the disk."""


FINALISTS, SEEDS = 3, 3
"""What ``compare`` does by default: so many of the best trials, so many trainings of each."""

COMPARED = 2**31
"""Seeds from here on are those of comparisons; the first training of one has the search's own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Simulated:
    """How one simulated search went.

    Attributes:
        epochs: Epochs trained so far, of all trials together, each time that another configuration became the leading one.
        seconds: Of the virtual clock, likewise.
        qualities: Of that configuration, trained whole, on average over its luck. It is the best complete trial by its own Dice; before
            there is one, the trial with the best Dice so far.
        trials: That began.
        diverged: Share of them that failed through their configuration.
        total_epochs: That were trained.
        total_seconds: Of the virtual clock, at the end.
        worker_seconds: That the workers spent on epochs.
        compared: Quality of the configuration that ``compare`` would choose then, see ``after_comparison``; where it could not, of the
            leading one.
    """

    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    qualities: tuple[float, ...]
    trials: int
    diverged: float
    total_epochs: int
    total_seconds: float
    worker_seconds: float
    compared: float


@dataclasses.dataclass(slots=True)
class _Training:
    """What runs on a worker: the seconds and records to come, their curve, its values, and the best Dice so far."""

    records: Iterator[tuple[float, EpochRecord | None]]
    curve: Curve
    values: Values
    best: float


def new_study(
    space: Space, source: Source, sampler: optuna.samplers.BaseSampler | None = None, journal: Path | None = None
) -> optuna.Study:
    """A study with the sampler and pruner of the space, and its first trials queued, as ``store.open_study`` makes one; in memory or in a
    new ``journal``."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        inner = sampler or make_sampler(space)
    study = optuna.create_study(
        study_name=space.study.name, storage=open_journal(journal) if journal else None, directions=directions(space.study),
        sampler=source.sampler(inner), pruner=make_pruner(space.study),
    )  # fmt: skip
    queue_first(study, source.first(space.first_trials, space.study.seed))
    return study


def after_comparison(source: Source, ranked: Sequence[Values], space: Space) -> float | None:
    """Quality of what ``compare`` would choose: of the best trials and the first of the first trials the one with the best mean Dice.

    Each is trained with three seeds, of which the first is that of the search, as there, and is left out where one of these fails.

    Args:
        source: Of the curves.
        ranked: Values of the trials that came to their end, best first.
        space: With the seed of the study.

    Returns:
        ``None`` where there is nothing to compare.
    """
    seed = space.study.seed
    seeds = [seed, *range(COMPARED + SEEDS * seed, COMPARED + SEEDS * (seed + 1) - 1)]
    found = list[tuple[float, float]]()
    for values in (*ranked[:FINALISTS], *source.first(space.first_trials[:1], seed)) if ranked else ():
        curves = [source.curve(values, number) for number in seeds]
        if not any(curve.failed for curve in curves):
            found.append((float(np.mean([curve.filled().max() for curve in curves])), source.quality(values)))
    return max(found)[1] if found else None


def as_records(curve: Curve, asked: dict[str, object], epochs: int) -> Iterator[tuple[float, EpochRecord | None]]:
    """Seconds and record of each epoch to come; the record is ``None`` where the training fails."""
    dice, validated = curve.filled().tolist(), set(asked["validated"])  # type: ignore[call-overload]
    timed = np.isfinite(curve.seconds)
    usual = float(curve.seconds[timed].mean()) if timed.any() else 1.0
    spent = np.where(timed, curve.seconds, usual).tolist()
    for epoch in range(int(asked["reported"]) + 1, epochs + 1):  # type: ignore[call-overload]
        if epoch > len(dice):
            yield usual, None
            return
        yield spent[epoch - 1], EpochRecord(epoch, {OBJECTIVE: dice[epoch - 1]} if epoch in validated else {}, 0.0)


def simulate(
    space: Space,
    source: Source,
    *,
    workers: int,
    epochs: int,
    losses: float = 0.0,
    trials: int | None = None,
    sampler: Callable[[Space, int], optuna.samplers.BaseSampler] | None = None,
    journal: Path | None = None,
    make_driver: Callable[..., Driver] = Driver,
) -> tuple[Simulated, optuna.Study]:
    """Searches until so many epochs were trained, or so many trials. The same arguments give the same study.

    Args:
        space: With sampler, pruner and seed of the study.
        source: Of the curves.
        workers: Trials side by side.
        epochs: Budget, of all trials together.
        losses: How often a worker's machine is lost in an hour, on average. The epoch is lost, and the trial goes on elsewhere.
        trials: Number of trials; ``None``: no limit.
        sampler: In place of the space's; made from the space and the seed.
        journal: Where the study is kept; ``None``: in memory.
        make_driver: Makes the driver, such as one that is watched.
    """
    settings = dataclasses.replace(space.study, trials=trials or epochs, objectives=(OBJECTIVE,), constraints={}, time_budget=None)
    space = dataclasses.replace(space, study=settings)
    seed, length = settings.seed, space.base.training.epochs
    study = new_study(space, source, sampler(space, seed) if sampler else None, journal)
    # Nothing is on the disk: as with Ray Train, folders are not tidied when a trial ends.
    driver = make_driver(study, space, StudyFolder(NOWHERE), lambda number, experiment, record: None, {"executor": "train"})
    driver.repeats.pool = source.known
    random = np.random.default_rng(seed)
    clock, spent, trained, turn, failed = 0.0, 0.0, 0, 0, 0
    queue: list[tuple[float, int, str, EpochRecord | None, bool]] = []
    running: dict[str, _Training] = {}
    lead: tuple[bool, float] = (False, -1.0)
    leads: list[tuple[int, float, float]] = []

    def start(key: str) -> None:
        nonlocal turn, spent
        seconds, record = next(running[key].records)
        lost = bool(losses) and random.random() < -np.expm1(-losses * seconds / 3600)
        seconds *= random.random() if lost else 1.0
        turn, spent = turn + 1, spent + seconds
        heapq.heappush(queue, (clock + seconds, turn, key, record, lost))

    def end(key: str, kind: str = "") -> None:
        nonlocal failed
        state = running.pop(key).curve.state
        if kind:
            driver.fail(key, as_kind(kind), "the machine was lost" if kind == "preempted" else f"recorded as {state}")
        driver.tell(key, crashed=bool(kind))
        failed += bool(kind and kind != "preempted")

    while trained < epochs:
        while len(running) < workers and driver.remaining > 0 and not driver.waits and not driver.given_up:
            key = str(turn)
            asked = driver.ask(key)
            if asked is None:
                break
            known = driver.frozen(driver.running[key])
            curve = source.curve(known.params, seed)
            best = max(known.intermediate_values.values(), default=-1.0)
            running[key] = _Training(as_records(curve, asked, length), curve, known.params, best)
            start(key)
        if not queue:
            break
        clock, _, key, record, lost = heapq.heappop(queue)
        if lost:
            end(key, "preempted")
            continue
        trained += 1
        if record is None:
            end(key, running[key].curve.state)
            continue
        training, dice = running[key], record.metrics.get(OBJECTIVE)
        record = dataclasses.replace(record, time=clock)
        goes_on = driver.report(key, [record])
        if dice is not None:
            training.best = max(training.best, dice)
            candidate = (record.epoch == length, training.best)
            if candidate > lead:
                lead = candidate
                leads.append((trained, clock, source.quality(training.values)))
        if goes_on:
            start(key)
        else:
            end(key)
    began = len(tried(study))
    at, when, qualities = tuple(x[0] for x in leads), tuple(x[1] for x in leads), tuple(x[2] for x in leads)
    compared = after_comparison(source, [trial.params for trial in ranking(study)], space)
    compared = compared if compared is not None else qualities[-1] if qualities else 0.0
    return Simulated(at, when, qualities, began, failed / max(1, began), trained, clock, spent, compared), study
