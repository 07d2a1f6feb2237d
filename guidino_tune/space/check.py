"""Checks of a space that cost nothing: every value is valid, every parameter does something, every first trial lies inside."""

from __future__ import annotations

import dataclasses
import random

from guidino_tune.config import Experiment
from guidino_tune.errors import UserError, nearest
from guidino_tune.space.parameters import Parameter, Scalar
from guidino_tune.space.space import Space

DRAWS = 48
"""Random experiments around which each parameter is varied; enough to meet conditions on conditions."""


def check_space(space: Space) -> None:
    """Raises when the space could cost a user a night.

    Raises:
        UserError: An end of a range or a choice makes no valid experiment; a parameter is never active or changes nothing;
            a first trial has an unknown path or a value outside the space.
    """
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
    if space.study.min_epochs > space.base.training.epochs:
        raise UserError(
            f"min_epochs {space.study.min_epochs} is above training.epochs {space.base.training.epochs}", where=f"{space.source}, study"
        )


def without_idle(space: Space) -> Space:
    """Drops, with a note, what overrides left without effect (such as LoRA's alpha when the rank was fixed at 0)."""
    idle = idle_parameters(space)
    if not idle:
        return space
    return dataclasses.replace(
        space,
        parameters={p: spec for p, spec in space.parameters.items() if p not in idle},
        first_trials=tuple({p: v for p, v in trial.items() if p not in idle} for trial in space.first_trials),
        notes=(*space.notes, *(f"without effect after --set, not searched: {p}" for p in idle)),
    )


def idle_parameters(space: Space) -> list[str]:
    """Paths that are never active, or whose ends always give the same effective experiment.

    Raises:
        UserError: Some values make no valid experiment.
    """
    generator = random.Random(0)
    alive: set[str] = set()
    for _ in range(DRAWS):
        drawn: dict[str, Scalar] = {}

        def draw(path: str, parameter: Parameter, drawn: dict[str, Scalar] = drawn) -> Scalar:
            drawn[path] = parameter.draw(generator)
            return drawn[path]

        values, _ = space.walk(draw)
        space.experiment(values)
        for path in values:
            if (
                len({_with(space, drawn, path, end).hash for end in space.parameters[path].ends}) > 1
                or len(space.parameters[path].ends) == 1
            ):
                alive.add(path)
    return [path for path in space.parameters if path not in alive]


def _with(space: Space, drawn: dict[str, Scalar], path: str, value: Scalar) -> Experiment:
    """The drawn experiment with one other value; parameters that become active through it take their first end."""
    values, _ = space.walk(lambda p, parameter: value if p == path else drawn.get(p, parameter.ends[0]))
    only = {p: v for p, v in values.items() if p == path or p in drawn}
    return space.experiment(only)


def _why_idle(space: Space, path: str) -> str:
    parameter = space.parameters[path]
    if len(set(map(str, parameter.ends))) > 1 and parameter.when:
        return f"its condition ({parameter.describe()}) is never met, or its value changes nothing in the experiment"
    return "no experiment of this space has such a field, or its value changes nothing"
