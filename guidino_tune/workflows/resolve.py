"""What a data set tells of itself goes into the space before it is checked, such as channels and classes of nnU-Net's raw layout."""

from __future__ import annotations

import dataclasses

from guidino_tune.config import Experiment
from guidino_tune.config.data import Data
from guidino_tune.data.cases import Listing
from guidino_tune.data.sources import apply_implied, find_cases
from guidino_tune.space.space import Space


def resolve_data(space: Space) -> Space:
    """The space with what its data set tells (``Listing.implied``) written into its experiments: what is stored of it says it all.

    Raises:
        UserError: The data set is not there, or tells something else than the user.
    """
    known: dict[Data, Listing] = {}

    def resolved(experiment: Experiment) -> Experiment:
        data = experiment.data
        if data.kind != "folder":  # the layouts of all others say nothing
            return experiment
        if data not in known:
            known[data] = find_cases(data)
        data_set = apply_implied(data, known[data])
        if data_set == data:
            return experiment
        return Experiment.from_dict(
            {**experiment.to_dict(), "data": data_set}, source=f"{space.source}, with what the data set tells of itself"
        )

    recipes = {name: resolved(recipe) for name, recipe in space.recipes.items()}
    base = resolved(space.base)
    return space if base == space.base and recipes == space.recipes else dataclasses.replace(space, base=base, recipes=recipes)
