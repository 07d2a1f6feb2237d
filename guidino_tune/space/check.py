"""Checks of a space that cost nothing: every value is valid, every parameter does something, every first trial lies inside."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from typing import Any

from guidino_tune.config import Experiment
from guidino_tune.errors import UserError, nearest
from guidino_tune.space.parameters import Parameter, Scalar, Values, leaf_paths
from guidino_tune.space.space import Space

DRAWS = 48
"""Random experiments around which each parameter is varied; enough to meet conditions on conditions."""


def check_space(space: Space) -> None:
    """Raises when the space could cost a user a night.

    Raises:
        UserError: An end of a range or a choice makes no valid experiment; a parameter is never active or changes nothing;
            it stands above one that decides about it; a first trial has an unknown path, a value outside the space, or
            values that make no valid experiment.
    """
    _check_order(space)
    idle = set(idle_parameters(space))
    for path in space.parameters:
        if path in idle:
            raise UserError(
                f"has no effect: {_why_idle(space, path)}",
                where=f"{space.source}, space.{path}",
                todo="correct the path or its condition, or remove the parameter",
            )
    for number, trial in enumerate(space.first_trials):
        for path, value in trial.items():
            where = f"{space.source}, first_trials[{number}].{path}"
            if path not in space.parameters:
                raise UserError(f"is not searched; {nearest(path, space.parameters)}", where=where, todo="put it into `experiment`")
            if not space.parameters[path].contains(value):
                raise UserError(f"{value!r} lies outside {space.parameters[path].describe()}", where=where, todo="widen the range")
        asked, _ = space.walk(lambda path, parameter, trial=trial: trial.get(path, parameter.ends[0]))  # type: ignore[misc]
        _build(space, asked, f"first_trials[{number}]")
    if space.study.min_epochs > space.base.training.epochs:
        raise UserError(
            f"min_epochs {space.study.min_epochs} is above training.epochs {space.base.training.epochs}", where=f"{space.source}, study"
        )


def without_idle(space: Space) -> Space:
    """Drops, with a note, what overrides left without effect (such as LoRA's alpha when the rank was fixed at 0).

    What had no effect before them stays: it is a mistake in the file, which ``check_space`` explains.
    """
    if space.origin is None:
        return space
    origin = space.origin
    space = _without_impossible(space, origin)
    idle = idle_parameters(space)
    mistakes = idle_parameters(origin) if idle else []
    idle = [path for path in idle if path not in mistakes]
    if not idle:
        return space
    first: list[Values] = []
    for trial in space.first_trials:
        kept = {p: v for p, v in trial.items() if p not in idle}
        if kept and kept not in first:  # those that differed only there become one
            first.append(kept)
    return dataclasses.replace(
        space,
        parameters={p: spec for p, spec in space.parameters.items() if p not in idle},
        first_trials=tuple(first),
        notes=(*space.notes, *(f"without effect after --set, not searched: {p}" for p in idle)),
    )


def _without_impossible(space: Space, origin: Space) -> Space:
    """Drops, with a note, choices that no longer make any valid experiment (such as heads on the guide's features when it was removed)."""
    parameters, notes, dropped = dict(space.parameters), [], set[tuple[str, Scalar]]()
    for path, parameter in space.parameters.items():
        lost = [c for c in parameter.choices if not _possible(space, path, c) and _possible(origin, path, c)]
        kept = tuple(c for c in parameter.choices if c not in lost)
        if lost and kept:
            parameters[path] = dataclasses.replace(parameter, choices=kept)
            dropped |= {(path, c) for c in lost}
            notes.append(f"impossible after --set, not searched: {path} = {', '.join(map(str, lost))}")
    first = tuple(trial for trial in space.first_trials if not dropped.intersection(trial.items()))
    return dataclasses.replace(space, parameters=parameters, first_trials=first, notes=(*space.notes, *notes))


def _possible(space: Space, path: str, choice: Scalar) -> bool:
    generator = random.Random(0)
    for _ in range(8):
        values, _ = space.walk(lambda p, parameter: choice if p == path else parameter.draw(generator))
        try:
            _build(space, values)
            return True
        except UserError:
            continue
    return False


def idle_parameters(space: Space) -> list[str]:
    """Paths that are never active, or whose ends always give the same effective experiment.

    Raises:
        UserError: Some values make no valid experiment; names the parameter.
    """
    alive: set[str] = set()
    for drawn, _ in _draws(space):
        _build(space, drawn)
        for path in drawn:
            ends = space.parameters[path].ends
            if len(ends) == 1 or len({_with(space, drawn, path, end).hash for end in ends}) > 1:
                alive.add(path)
    return [path for path in space.parameters if path not in alive]


def examples(space: Space) -> list[Experiment]:
    """Experiments that the space may give: of a list every one, else some hundred random ones, every first trial and every choice.

    Raises:
        UserError: Some values make no valid experiment; names the parameter.
    """
    if space.study.sampler == "listed":
        return [_build(space, values) for values in space.first_trials]
    generator = random.Random(0)
    fixed: list[Values] = [Values() for _ in range(4 * DRAWS)]
    fixed += [dict(trial) for trial in space.first_trials]
    fixed += [{path: choice} for path, parameter in space.parameters.items() if parameter.type == "choice" for choice in parameter.choices]
    drawn = [space.walk(lambda path, parameter, f=f: f.get(path, parameter.draw(generator)))[0] for f in fixed]  # type: ignore[misc]
    return [_build(space, values) for values in drawn]


def _check_order(space: Space) -> None:
    """A condition sees only what is drawn above it, and a new kind discards what was drawn for its section."""
    order = list(space.parameters)
    for place, path in enumerate(order):
        deciding = [*(space.parameters[path].when or {}), f"{path.partition('.')[0]}.kind"]
        for other in deciding:
            if other in order[place + 1 :]:
                raise UserError(
                    f"{other!r} decides about it but is drawn later", where=f"{space.source}, space.{path}", todo=f"move it below {other}"
                )


def _draws(space: Space) -> Iterator[tuple[Values, dict[str, Any]]]:
    """Random values, the same in every call, and the nested experiment mapping that has them."""
    generator = random.Random(0)
    for _ in range(DRAWS):
        yield space.walk(lambda path, parameter: parameter.draw(generator))


def _with(space: Space, drawn: Mapping[str, Scalar], path: str, value: Scalar) -> Experiment:
    """The drawn experiment with one other value; parameters that become active through it keep the value of the base experiment."""

    def choose(p: str, parameter: Parameter) -> Scalar:
        return value if p == path else drawn.get(p, parameter.ends[0])

    values, _ = space.walk(choose)
    return _build(space, {p: v for p, v in values.items() if p in drawn})


def _build(space: Space, values: Mapping[str, Scalar], part: str = "space") -> Experiment:
    """The experiment with these values; where they make none, the message names the parameter that spoils it, not all of them."""
    try:
        return space.experiment(values)
    except UserError as error:
        path = _culprit(space, values)
        raise UserError(
            f"{values[path]!r} makes no valid experiment: {error.what}",
            where=f"{space.source}, {part}.{path}",
            todo="change the value, or search the parameter only where it fits, with `when:`",
        ) from None


def _culprit(space: Space, values: Mapping[str, Scalar]) -> str:
    """The last parameter before which the values above it still made a valid experiment."""
    culprit, valid, above = "", True, Values()
    for path, value in values.items():
        above[path] = value
        try:
            space.experiment(above)
        except UserError:
            culprit, valid = (path if valid else culprit), False
        else:
            valid = True
    return culprit


def _why_idle(space: Space, path: str) -> str:
    parameter, draws = space.parameters[path], list(_draws(space))
    known = {known for _, experiment in draws for known in leaf_paths(experiment)}
    if path not in known:
        return f"no experiment of this space has such a field; {nearest(path, known)}"
    for other in parameter.when or {}:
        if other not in known:
            return f"its condition looks at {other!r}, which no experiment of this space has; {nearest(other, known)}"
    if any(path in values for values, _ in draws):
        return "its value changes nothing in the experiment"
    return f"its condition is never met ({parameter.describe()})"
