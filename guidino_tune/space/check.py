"""Checks of a space that cost nothing: every value is valid, every parameter does something, every first trial lies inside."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.config.experiment import KNOWN
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.errors import UserError, nearest
from guidino_tune.space.parameters import Parameter, Scalar, Values, get_path, leaf_paths
from guidino_tune.space.space import Space

DRAWS = 48
"""Random experiments around which each parameter is varied; enough to meet conditions on conditions."""

NUMBER = "guide.tokenbook.num_prototypes"

SHARED = {path: about.shared for path, about in KNOWN.items() if about.shared}
"""What all trials of a study have in common, so that they can be compared; it is made once, and a trial's own value would be ignored."""


def check_space(space: Space, *, begun: bool = False) -> list[str]:
    """Raises when the space could cost a user a night.

    Args:
        space: What is to be searched.
        begun: It has a study, which an earlier version may have let begin: a parameter that does not do what it seems to is only noted.

    Returns:
        What was only noted; and what is possible but seldom meant.

    Raises:
        UserError: A parameter is what all trials share; an end of a range or a choice makes no valid experiment; a parameter is never
            active or changes nothing, everywhere or where a condition should exclude it; it stands above one that decides about it; a
            first trial has an unknown path, a value outside the space, or values that make no valid experiment.
    """
    _check_order(space)
    mistakes = list(_mistakes(space))
    if mistakes and not begun:
        raise mistakes[0]
    for number, trial in enumerate(space.first_trials):
        for path, value in trial.items():
            where = f"{space.source}, first_trials[{number}].{path}"
            if path not in space.parameters:
                raise UserError(f"is not searched; {nearest(path, space.parameters)}", where=where, todo="put it into `experiment`")
            if not space.parameters[path].contains(value):
                raise UserError(f"{value!r} lies outside {space.parameters[path].describe()}", where=where, todo="widen the range")
        asked, _ = space.walk(lambda path, parameter, trial=trial: trial.get(path, parameter.ends[0]))  # type: ignore[misc]
        _build(space, asked, f"first_trials[{number}]")
    _check_objectives(space)
    if space.study.min_epochs > space.base.training.epochs:
        raise UserError(
            f"min_epochs {space.study.min_epochs} is above training.epochs {space.base.training.epochs}", where=f"{space.source}, study"
        )
    return [*(f"{mistake.where}: {mistake.what}" for mistake in mistakes), *_remarks(space)]


def _remarks(space: Space) -> Iterator[str]:
    """What is possible and has an effect, though perhaps not the one that is meant."""
    drawn = [(values, space.experiment(values)) for values, _ in _draws(space)]
    books = [one.guide.tokenbook for values, one in drawn if NUMBER in values and isinstance(one.guide, DINOGuide)]
    if linear := sorted({book.aggregation for book in books} - {"softmax"}):
        yield (
            f"{space.source}, space.{NUMBER}: with aggregation {' and '.join(linear)} the prototypes act as one vector, however many there "
            "are; search their number with `when: {guide.tokenbook.aggregation: softmax}`"
        )
    if any(isinstance(one.guide, DINOGuide) and one.data.normalisation != "imagenet" for _, one in drawn):
        yield (
            f"{space.source}, data.normalisation: 'zscore' shows the DINO backbone other values than those it was trained on; "
            "with a guide 'imagenet' is meant"
        )


def _mistakes(space: Space) -> Iterator[UserError]:
    """Parameters that do not do what they seem to; the worst ones first."""
    for path in space.parameters:
        if path in SHARED:
            yield UserError(
                f"cannot be searched: {SHARED[path]} must be the same in all trials, or they could not be compared",
                where=f"{space.source}, space.{path}",
                todo="set it in `experiment`, and start a study for each value",
            )
    if "training.precision" in space.parameters and "auto" in space.parameters["training.precision"].choices:
        yield UserError(
            "'auto' would be another precision on another node, so that its trials could not be compared",
            where=f"{space.source}, space.training.precision",
            todo="search fp32 and bf16, or set training.precision=auto for one precision that all nodes have",
        )
    yield from _unlike_recipes(space)
    alive, equal = _effects(space)
    for path in space.parameters:
        if path not in alive:
            yield UserError(
                f"has no effect: {_why_idle(space, path)}",
                where=f"{space.source}, space.{path}",
                todo="correct the path or its condition, or remove the parameter",
            )
    for path, same in equal.items():
        if path in alive and not space.study.is_list:
            a, b, place = same
            yield UserError(
                f"has no effect where {place}: there {a!r} and {b!r} are the same experiment, which would be trained twice"
                if place
                else f"{a!r} and {b!r} are the same experiment, which would be trained twice",
                where=f"{space.source}, space.{path}",
                todo="search it only where it has an effect, with a condition `when:`" if place else "leave one of them out",
            )


def _unlike_recipes(space: Space) -> Iterator[UserError]:
    """Recipes have in common what all trials share."""
    experiments = {name: recipe.to_dict() for name, recipe in space.recipes.items()}
    for name, experiment in experiments.items():
        for path, what in SHARED.items():
            (first, other), value = next(iter(experiments.items())), get_path(experiment, path)
            if value != get_path(other, path):
                yield UserError(
                    f"{value!r} here and {get_path(other, path)!r} in recipe {first!r}: {what} must be the same in all trials",
                    where=f"{space.source}, recipes.{name}.{path}",
                    todo="give all recipes the same value, and start a study for each",
                )


def _check_objectives(space: Space) -> None:
    """With several objectives trials are compared early by their Dice alone, which must then be the first of them."""
    study = space.study
    by_dice = study.waits and study.objectives[0] == OBJECTIVE
    if len(study.objectives) > 1 and study.pruner not in ("none", "auto") and not by_dice:
        raise UserError(
            f"{len(study.objectives)} objectives ({', '.join(study.objectives)}) and pruner {study.pruner!r} do not go together: early on, "
            "no trial is worse than another one in all of them",
            where=f"{space.source}, study.pruner",
            todo=f"stop none (study.pruner: none); or by Dice alone (study.pruner: promotion, with {OBJECTIVE} as the first objective); or "
            "keep one objective, and bound the others by study.constraints",
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
        notes=(*space.notes, *(f"without effect with what is set, not searched: {p}" for p in idle)),
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
            notes.append(f"impossible with what is set, not searched: {path} = {', '.join(map(str, lost))}")
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
    """Paths that are never active, or whose ends always give the same effective experiment, or the same results in another way.

    Raises:
        UserError: Some values make no valid experiment; names the parameter.
    """
    alive, _ = _effects(space)
    return [path for path in space.parameters if path not in alive]


def _effects(space: Space) -> tuple[set[str], dict[str, tuple[Scalar, Scalar, str]]]:
    """Which parameters change what is computed somewhere, and which do not change the experiment everywhere.

    Returns:
        Paths; and by path two of its ends or choices that give the same experiment in some draw, with where that is in words.
    """
    alive: set[str] = set()
    pairs: dict[str, tuple[Scalar, Scalar]] = {}
    found: dict[str, tuple[list[Values], list[Values]]] = {}
    for drawn, _ in _draws(space):
        _build(space, drawn)
        for path in drawn:
            ends = space.parameters[path].ends
            made = [_with(space, drawn, path, end) for end in ends] if len(ends) > 1 else []
            if not made or (path not in alive and len({_computed(experiment) for experiment in made}) > 1):
                alive.add(path)
            first: dict[str, Scalar] = {}
            hashes = [experiment.hash for experiment in made]
            same = [(first[one], end) for one, end in zip(hashes, ends, strict=bool(made)) if first.setdefault(one, end) != end]
            found.setdefault(path, ([], []))[bool(same)].append(drawn)
            if same:
                pairs.setdefault(path, same[0])
    return alive, {path: (*pair, _where(path, *found[path])) for path, pair in pairs.items()}


def _where(path: str, unlike: Sequence[Values], like: Sequence[Values]) -> str:
    """What the second draws have in common and the first ones have not, in words; else one of the second ones; empty for any draw."""
    if not unlike:
        return ""
    for other in like[0]:
        inside, outside = ({values.get(other, ...) for values in draws} for draws in (like, unlike))
        if other != path and not inside & outside and ... not in inside and len(inside) <= len(like) / 2:
            return f"{other} is {' or '.join(sorted(map(str, inside)))}"
    return ", ".join(f"{p} is {value}" for p, value in like[0].items() if p != path)


def _computed(experiment: Experiment) -> str:
    """Equal for experiments that compute the same, fast or slow."""
    values: dict[str, Any] = experiment.effective()
    for section, _, name in (path.partition(".") for path, about in KNOWN.items() if about.only_how):
        values[section].pop(name, None)
    return json.dumps(values, sort_keys=True)


def examples(space: Space) -> list[Experiment]:
    """Experiments that the space may give: of a list every one, else some hundred random ones, every first trial and every choice.

    Raises:
        UserError: Some values make no valid experiment; names the parameter.
    """
    if space.study.is_list:
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
    """The drawn experiment with one other value; parameters that become active through it keep the value of the base experiment.

    Where the two do not fit each other, as ``guide.train: lora`` and no rank, they take their first value.
    """

    def choose(p: str, parameter: Parameter) -> Scalar:
        return value if p == path else drawn.get(p, parameter.ends[0])

    values, _ = space.walk(choose)
    try:
        return space.experiment({p: v for p, v in values.items() if p in drawn})
    except UserError:
        return _build(space, values)


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
    if path in KNOWN and KNOWN[path].only_how:
        return f"it is {KNOWN[path].only_how} and changes no result"
    if any(path in values for values, _ in draws):
        return "its value changes nothing in the experiment"
    return f"its condition is never met ({parameter.describe()})"
