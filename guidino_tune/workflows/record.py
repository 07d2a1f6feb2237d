"""Recording of learning curves: random configurations trained whole, and some of them once more with another seed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from rich.console import Console

from guidino_tune.errors import UserError
from guidino_tune.simulation.curves import Curve, CurveTable, from_study, read_table, write_table
from guidino_tune.space.space import Space, override
from guidino_tune.study.outcomes import as_key
from guidino_tune.study.store import folder_of, load_study, stored_study
from guidino_tune.study.trials import finished
from guidino_tune.workflows.listed import with_seed
from guidino_tune.workflows.search import run_search


def record_curves(
    space: Space, configurations: int, output: Path, *, repeat: int = 0, console: Console | None = None
) -> tuple[CurveTable, bool]:
    """Searches at random without a pruner, validating each epoch, and writes the curves as a table.

    The same call goes on: with its studies, ``NAME-record`` and ``NAME-record-repeat`` for the second seeds, and, where these are not in
    this home, with the table itself, so that several machines can record one after the other.

    Args:
        space: What to record.
        configurations: In all.
        output: The table.
        repeat: How many configurations get a second seed.
        console: See ``run_search``.

    Returns:
        The table, and whether all of it is there; what is there is written also when a search ends early.

    Raises:
        UserError: The table holds curves of another space; see also ``run_search`` and ``from_study``.
    """
    if repeat and "training.seed" in space.parameters:
        raise UserError("searches the seed of the training, so a second seed is another configuration", where="training.seed",
                        todo="take it out of the space, or record without --repeat")  # fmt: skip
    name = f"{space.study.name}-record"
    studies = [study for study in (name, f"{name}-repeat") if folder_of(study).definition.exists()]
    others = _from_elsewhere(output, space, studies)
    seeds = Counter(as_key(curve.parameters) for curve in others)
    settings = {"study.sampler": "random", "study.pruner": "none", "study.validate_every": 1, "study.objectives": ["val_dice"]}
    # Draws follow from the seed, and what a table holds is not drawn again.
    seed = stored_study(name).space.study.seed if name in studies else space.study.seed + len(seeds)
    drawn = override(space, {**settings, "study.name": name, "study.seed": seed, "study.trials": max(1, configurations - len(seeds))})
    if seed != space.study.seed:
        drawn = dataclasses.replace(drawn, first_trials=())
    complete = True
    if configurations > len(seeds):
        complete = not run_search(drawn, console=console).ended
        studies = [name, *studies[1:]]
    if complete and (repeat := repeat - sum(count > 1 for count in seeds.values())) > 0 and studies:
        first = [dict(trial.params) for trial in finished(load_study(folder_of(name)))[:repeat]]
        recipes = {key: with_seed(made, made.training.seed + 1) for key, made in space.recipes.items()}
        base = with_seed(space.base, space.base.training.seed + 1)
        again = dataclasses.replace(drawn, base=base, recipes=recipes, first_trials=tuple(first))
        again = override(again, {"study.name": f"{name}-repeat", "study.sampler": "listed"})
        complete = not run_search(again, console=console).ended
        studies = [name, f"{name}-repeat"]
    table = from_study(*studies, space=portable(space)).joined(others) if studies else read_table(output)
    write_table(table, output)
    return table, complete


def portable(space: Space) -> Space:
    """The space without the place of its images, which is another one elsewhere."""
    base, *recipes = (
        dataclasses.replace(made, data=dataclasses.replace(made.data, root=None)) for made in (space.base, *space.recipes.values())
    )
    return dataclasses.replace(space, base=base, recipes=dict(zip(space.recipes, recipes, strict=True)))


def _from_elsewhere(output: Path, space: Space, studies: list[str]) -> list[Curve]:
    """The curves of a table that were not trained in this home."""
    if not output.exists():
        return []
    kept, wanted = read_table(output), portable(space)
    if any(getattr(kept.space, part) != getattr(wanted, part) for part in ("base", "parameters", "recipes")):
        raise UserError("holds curves of another space", where=str(output), todo="record into another file, or the space of that table")
    here = {(as_key(c.parameters), c.seed) for c in (from_study(*studies, space=space).curves if studies else ())}
    return [curve for curve in kept.curves if (as_key(curve.parameters), curve.seed) not in here]
