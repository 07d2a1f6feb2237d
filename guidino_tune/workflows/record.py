"""Recording of learning curves: random configurations trained whole, and some of them once more with another seed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from guidino_tune.simulation.curves import CurveTable, from_study, write_table
from guidino_tune.space.space import Space, override, read_space
from guidino_tune.study.store import folder_of, load_study
from guidino_tune.study.trials import finished
from guidino_tune.workflows.search import run_search


def record_curves(space: Space, configurations: int, output: Path, *, repeat: int = 0, console: Console | None = None) -> CurveTable | None:
    """Searches at random without a pruner, validating each epoch, and writes the curves as a table. The same call goes on.

    The studies are ``NAME-record`` and, for the second seeds of the first trials, ``NAME-record-repeat``.

    Args:
        space: What to record.
        configurations: In all.
        output: The table.
        repeat: How many configurations get a second seed.
        console: See ``run_search``.

    Returns:
        The table; ``None`` when a search ended before its trials did.

    Raises:
        UserError: See ``run_search`` and ``from_study``.
    """
    name = f"{space.study.name}-record"
    settings = {"study.sampler": "random", "study.pruner": "none", "study.validate_every": 1, "study.objectives": ["val_dice"]}
    drawn = override(space, {**settings, "study.name": name, "study.trials": configurations})
    if run_search(drawn, console=console).ended:
        return None
    names = [name]
    if repeat:
        first = [dict(trial.params) for trial in finished(load_study(folder_of(name)))[:repeat]]
        values = override(drawn, {"training.seed": space.base.training.seed + 1, "study.name": f"{name}-repeat"}).to_dict()
        again = read_space({**values, "first_trials": first, "study": {**values["study"], "sampler": "listed"}}, source=space.source)
        if run_search(again, console=console).ended:
            return None
        names.append(f"{name}-repeat")
    table = from_study(*names, space=space)
    write_table(table, output)
    return table
