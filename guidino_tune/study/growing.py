"""A study whose space grows: wider ranges, more choices, new parameters. Its earlier trials stay, and are told in terms of the new space.

Optuna keeps with each value what it was drawn from. It refuses a choice among others in one study, and TPE draws together only what was
drawn together, from the first ranges. So all trials are written once more, with the ranges of today, into a journal that then takes the
place of the former one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Parameter, Scalar, get_path, has_path
from guidino_tune.space.space import RECIPE, Space
from guidino_tune.space.suggest import distribution
from guidino_tune.study.journal import open_journal, sync_to_disk
from guidino_tune.study.objectives import directions
from guidino_tune.study.trials import ENDED_EARLY, EXHAUSTED

OTHERWISE = "or start another study with another study.name from {name} (start_from): it tries the best configurations of this one first"
"""What works for any other change."""


def growth(old: Space, new: Space) -> dict[str, str]:
    """The parameters of a space that contain what they were before, or are new, each with a line for the user.

    Raises:
        UserError: The value that earlier trials had of a new parameter lies outside it.
    """
    return {path: line for path, parameter in new.parameters.items() if (line := _line(path, old.parameters.get(path), parameter, old))}


def _line(path: str, before: Parameter | None, now: Parameter, old: Space) -> str:
    if before is None:
        base = old.base.to_dict()
        if not has_path(base, path) or path == RECIPE:
            return ""
        _check_inside(path, get_path(base, path), now, old.study.name)
        return (
            f"{path} is searched now ({now.describe()}); earlier trials count with the value that they had, such as {get_path(base, path)}"
        )
    if before == now or (before.type, before.log, before.when) != (now.type, now.log, now.when) or not _contains(now, before):
        return ""
    return f"{path} is searched in {now.describe()} now, in {before.describe()} before"


def _contains(now: Parameter, before: Parameter) -> bool:
    if now.type == "choice":
        return len(now.choices) > len(before.choices) and {*map(repr, before.choices)} <= {*map(repr, now.choices)}
    return now.step == before.step and all(map(now.contains, before.ends))


def _check_inside(path: str, value: Scalar, parameter: Parameter, name: str) -> None:
    if not parameter.contains(value):
        raise UserError(
            f"earlier trials of this study have {path} = {value}, which lies outside {parameter.describe()}",
            where=f"space.{path}",
            todo=f"let it contain that value, {OTHERWISE.format(name=name)}",
        )


def grow(study: optuna.Study, old: Space, new: Space, journal: Path) -> None:
    """Replaces the journal of a study by one in which all trials, with their numbers and attributes, have the ranges of the new space.

    A crash leaves the one or the other.

    Raises:
        UserError: A trial had a value that lies outside, or would be another experiment in the new space.
    """
    trials = [_told_again(trial, old, new) for trial in study.get_trials(deepcopy=False)]
    draft = journal.with_name(f"{journal.name}.grown")
    draft.write_bytes(b"")  # of a run that was killed here
    again = optuna.create_study(study_name=study.study_name, storage=open_journal(draft), directions=directions(new.study))
    known = study.user_attrs
    known.pop(EXHAUSTED, None)
    if ENDED_EARLY in known:
        known[ENDED_EARLY]["trials"] = 0  # there is more to be found now
    for name, value in known.items():
        again.set_user_attr(name, value)
    again.set_user_attr("definition", new.to_dict())
    again.add_trials(trials)
    sync_to_disk(again)
    os.replace(draft, journal)


def _told_again(trial: FrozenTrial, old: Space, new: Space) -> FrozenTrial:
    def choose(path: str, parameter: Parameter) -> Scalar:
        value: Scalar = trial.params[path] if path in trial.params else get_path(experiment.to_dict(), path)
        _check_inside(path, value, parameter, old.study.name)
        return value

    # What was only queued, or was being asked for when its driver died, gets the rest of its values from the sampler.
    params = trial.params
    if trial.state.is_finished() or "hash" in trial.user_attrs:
        experiment = old.experiment(trial.params)
        params, _ = new.walk(choose)
        if new.experiment(params).hash != experiment.hash:
            raise UserError(
                f"trial {trial.number} would be another experiment in this space; it could not be compared with new ones",
                where=new.source,
                todo=f"repeat the first search to continue the study, {OTHERWISE.format(name=old.study.name)}",
            )
    told = optuna.trial.create_trial(
        state=trial.state, values=trial.values, params=params, distributions=dict(_distributions(params, new)),
        user_attrs=trial.user_attrs, system_attrs=trial.system_attrs, intermediate_values=trial.intermediate_values,
    )  # fmt: skip
    told.datetime_start, told.datetime_complete = trial.datetime_start, trial.datetime_complete
    return told


def _distributions(params: dict[str, Scalar], space: Space) -> Iterator[tuple[str, optuna.distributions.BaseDistribution]]:
    return ((path, distribution(space.parameters[path])) for path in params)
