"""Many searches simulated over recorded curves: which sampler and pruner would have been the best."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from guidino_tune import simulation
from guidino_tune.analysis.searches import Search, csv_text, draw, markdown
from guidino_tune.errors import UserError
from guidino_tune.simulation.curves import STOPPED, CurveTable, from_study, read_table
from guidino_tune.simulation.executor import Simulated, simulate
from guidino_tune.simulation.sources import Rows, Source, Surrogate
from guidino_tune.space.space import Space, override
from guidino_tune.training.folder import write_text

REFERENCE = "random+asha"
"""Whose quality at the end the others have to reach."""

SHIPPED = Path(simulation.__file__).parent
"""Where the tables lie that come with the package; their ``README.md`` says what they are and are not."""

Curves = Literal["auto", "exact", "surrogate"]
Task = tuple[str, int, int]
_SHARED: list[tuple[dict[str, Space], Source, int, float]] = []
"""In a process that simulates: what all its searches share."""


def open_table(name: str) -> CurveTable:
    """A table by its file (``.parquet``), or one of ``SHIPPED`` such as ``recorded/kvasir``; or the curves of a study.

    Raises:
        UserError: There is no such table or study; see ``read_table`` and ``from_study``.
    """
    file = SHIPPED / f"{name}.parquet"
    return read_table(file if file.is_file() else Path(name)) if file.is_file() or name.endswith(".parquet") else from_study(name)


def as_search(method: str, workers: int, seed: int, found: Simulated, best: float) -> Search:
    """What is compared of a simulated search, whose source's best quality is ``best``."""
    regrets = tuple(best - quality for quality in found.qualities)
    rest = found.trials, found.diverged, found.total_epochs, found.total_seconds, best - found.compared
    return Search(method, workers, seed, found.epochs, found.seconds, regrets, *rest)


def simulate_searches(
    name: str,
    methods: Sequence[str],
    *,
    console: Console,
    output: Path,
    seeds: int = 50,
    workers: Sequence[int] = (1, 4, 16),
    epochs: int | None = None,
    curves: Curves = "auto",
    losses: float = 0.0,
    luck: float = 1.0,
    first_trials: bool = True,
    jobs: int = 1,
) -> list[Search]:
    """Simulates every method with every number of workers and seed; writes ``simulation.md``, ``.csv`` and ``.png``.

    Args:
        name: A table, or a study by name or path; see ``open_table``.
        methods: Each ``SAMPLER+PRUNER`` as in ``study.sampler`` and ``study.pruner``; behind it other settings of the study where they
            differ from the table's, as in ``tpe+promotion/min_epochs=3/reduction_factor=2``.
        console: For progress and the table.
        output: Folder of the three files.
        seeds: Studies of each method, from seed 0.
        workers: Numbers of workers.
        epochs: Budget of a search, of all its trials together; ``None``: twenty whole trainings.
        curves: ``exact`` rows, the ``surrogate``, or ``auto``: exact where no curve was stopped early and ``luck`` is 1.
        losses: Of a worker's machine, in an hour.
        luck: Of a seed, in units of what was recorded; only a surrogate's can differ from 1.
        first_trials: ``False`` leaves out the space's, as where nothing is known beforehand.
        jobs: Processes.

    Raises:
        UserError: No such table or study, or it cannot be simulated; an unknown sampler or pruner.
    """
    table = open_table(name)
    if not first_trials:
        table = dataclasses.replace(table, space=dataclasses.replace(table.space, first_trials=()))
    spaces = {method: _space(table, method) for method in methods}
    source = _source(table, curves, luck)
    budget = epochs or 20 * table.epochs
    console.print(f"{len(table.curves)} curves of {table.epochs} epochs: {source.note}", highlight=False, soft_wrap=True)
    tasks = [(method, count, seed) for method in methods for count in workers for seed in range(seeds)]
    started, last = time.monotonic(), time.monotonic()
    found: list[tuple[Task, Simulated]] = []
    runs: Iterable[tuple[Task, Simulated]]
    with contextlib.ExitStack() as stack:
        if jobs > 1:
            processes = multiprocessing.get_context("spawn").Pool(jobs, _prepare, (spaces, source, budget, losses))
            runs = stack.enter_context(processes).imap_unordered(_run, tasks)
        else:
            _prepare(spaces, source, budget, losses)
            runs = map(_run, tasks)
        for done in runs:
            found.append(done)
            if time.monotonic() - last > 10:
                last = time.monotonic()
                console.print(f"{len(found)} of {len(tasks)} searches simulated, {last - started:.0f} s", highlight=False)
    spent, hours = time.monotonic() - started, sum(s.worker_seconds for _, s in found) / 3600
    best = max(source.best, *(q for _, s in found for q in (*s.qualities, s.compared)))
    order = {task: place for place, task in enumerate(tasks)}
    searches = [as_search(*task, s, best) for task, s in sorted(found, key=lambda item: order[item[0]]) if s.qualities]
    if not searches:
        raise UserError("no simulated search had a result within its budget", where=f"--epochs {budget}", todo="allow more epochs")
    origin = ", ".join(f"{key} {value}" for key, value in table.origin.items())
    remarks = [
        f"curves: {name} ({origin}); {source.note}",
        f"{seeds} seeds of {budget} epochs each; regret: best known Dice {best:.4f} minus the mean of the leading one over its luck",
        *([] if first_trials else ["without the space's first trials"]),
        *([f"luck of a seed: {luck:g} of what was recorded"] if luck != 1 else []),
        f"{hours:,.3g} worker-hours simulated in {spent:.0f} s by {jobs} process(es): {hours / spent:,.2g} in a second",
    ]
    page = markdown(searches, REFERENCE, remarks, "simulation.png")
    output.mkdir(parents=True, exist_ok=True)
    draw(searches, output / "simulation.png")
    write_text(output / "simulation.csv", csv_text(searches))
    write_text(output / "simulation.md", page)
    console.print(page, highlight=False)
    console.print(f"written: {output / 'simulation.md'}, .csv and .png", highlight=False, soft_wrap=True)
    return searches


def _space(table: CurveTable, method: str) -> Space:
    names, *settings = method.split("/")
    sampler, plus, pruner = names.partition("+")
    space = override(table.space, {"study.sampler": sampler, "study.pruner": pruner}) if plus else None
    if space is None or space.study.is_list:
        raise UserError(f"{method!r} is no method", where="--methods", todo="write SAMPLER+PRUNER, such as tpe+asha or random+none")
    return override(space, [f"study.{setting}" for setting in settings])


def _source(table: CurveTable, curves: Curves, luck: float) -> Source:
    exact = curves == "exact" or (curves == "auto" and luck == 1 and all(c.state != STOPPED for c in table.curves))
    if exact and luck != 1:
        raise UserError("recorded curves are played as they are", where=f"--luck {luck:g}", todo="leave out --curves exact")
    return Rows(table) if exact else Surrogate(table, luck)


def _prepare(spaces: dict[str, Space], source: Source, budget: int, losses: float) -> None:
    _SHARED[:] = [(spaces, source, budget, losses)]


def _run(task: Task) -> tuple[Task, Simulated]:
    (spaces, source, budget, losses), (method, workers, seed) = _SHARED[0], task
    space = override(spaces[method], {"study.seed": seed})
    return task, simulate(space, source, workers=workers, epochs=budget, losses=losses)[0]
