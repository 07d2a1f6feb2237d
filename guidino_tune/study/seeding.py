"""The best configurations of earlier studies, also of other data sets, as first trials of a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Parameter, Scalar, Values, get_path, has_path
from guidino_tune.space.space import RECIPE, Space
from guidino_tune.study.outcomes import as_key
from guidino_tune.study.store import StoredStudy, stored_study
from guidino_tune.study.trials import ranking

MOST = 5
"""Configurations that are taken from each study, at most."""

SEEDED = "seeded_from"
"""Attribute of a study: the folders of those whose best configurations it has queued; and of a trial: where its configuration is from."""


class Seed(NamedTuple):
    """Values to be tried first, and where they are from, such as ``trial 3 of 'kvasir'``."""

    values: Values
    origin: str


class Seeds(NamedTuple):
    """What earlier studies give a new one: their folders, configurations in the order in which they are tried, and notes for the user."""

    folders: list[str]
    trials: list[Seed]
    notes: list[str]


def find_seeds(space: Space, earlier: Sequence[str | Path], storage: str | None = None) -> Seeds:
    """The best distinct configurations of earlier studies whose values lie in this space, one of each study in turn.

    Args:
        space: Where they are to be tried. Its parameters take their values from the whole experiment of the earlier trial, searched there
            or not; what that did not have is left to the sampler.
        earlier: Names or folders of studies.
        storage: Database URL of their trials; by default the journal in their folders.

    Raises:
        UserError: There is no such study; or this one tries nothing but its list.
    """
    if earlier and space.study.is_list:
        raise UserError("a list runs nothing but its trials", where="start_from", todo="leave it out, or take another sampler")
    return choose_seeds(space, [stored_study(name, storage) for name in earlier])


def choose_seeds(
    space: Space, studies: Sequence[StoredStudy], most: int = MOST, order: Callable[[optuna.Study], Sequence[FrozenTrial]] = ranking
) -> Seeds:
    """What ``find_seeds`` finds, of studies that are open, on the disk or not.

    Args:
        space: Where they are to be tried.
        studies: The earlier ones.
        most: Configurations of each.
        order: Puts those of one study in the order in which they are taken.
    """
    found, notes = list[list[Seed]](), list[str]()
    for stored in studies:
        seeds, outside = _taken(space, stored, most, order(stored.study))
        found.append(seeds)
        name, beyond = stored.space.study.name, f"; left out: {'; '.join(outside)}" if outside else ""
        notes.append(f"{len(seeds)} first trials are the best of study {name!r} that lie in this space{beyond}")
    in_turns = [seed for turn in zip_longest(*found) for seed in turn if seed]
    distinct = {as_key(seed.values): seed for seed in reversed(in_turns)}
    return Seeds([str(s.folder.path) for s in studies], [s for s in in_turns if distinct[as_key(s.values)] is s], notes)


def queue_seeds(study: optuna.Study, seeds: Seeds) -> None:
    """Queues them behind the study's own first trials; nothing of a study from which some were queued before."""
    known = study.user_attrs.get(SEEDED, [])
    if set(seeds.folders) <= set(known):
        return
    for values, origin in seeds.trials:
        study.enqueue_trial(dict(values), user_attrs={SEEDED: origin}, skip_if_exists=True)
    study.set_user_attr(SEEDED, sorted({*known, *seeds.folders}))


def _taken(space: Space, stored: StoredStudy, most: int, order: Sequence[FrozenTrial]) -> tuple[list[Seed], list[str]]:
    """The first distinct configurations inside the space, and why ones before the last of these are not, for the first few."""
    found, outside = dict[object, Seed](), list[str]()
    for trial in order:
        try:
            values = _carried(space, stored.space, trial.params)
        except UserError as error:
            outside.append(f"trial {trial.number}: {error.what}")
            continue
        found.setdefault(as_key(values), Seed(values, f"trial {trial.number} of {stored.space.study.name!r}"))
        if len(found) == most:
            break
    more = [f"{len(outside) - 3} more"] if len(outside) > 3 else []
    return list(found.values()), outside[:3] + more


def _carried(space: Space, former: Space, params: Values) -> Values:
    """The values that the space's parameters have in a configuration of another space.

    Raises:
        UserError: One lies outside; or together they make no valid experiment here.
    """
    experiment, open_paths = former.experiment(params).to_dict(), set[str]()

    def choose(path: str, parameter: Parameter) -> Scalar:
        if path != RECIPE and not has_path(experiment, path):
            open_paths.add(path)
            return parameter.ends[0]
        value: Scalar = params.get(RECIPE) if path == RECIPE else get_path(experiment, path)
        if not parameter.contains(value):
            raise UserError(f"{path} = {value} lies outside {parameter.describe()}")
        return int(value) if parameter.type == "int" else value  # type: ignore[arg-type]

    values, _ = space.walk(choose)
    carried = {path: value for path, value in values.items() if path not in open_paths}
    space.experiment(carried)
    return carried
