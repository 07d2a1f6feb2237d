"""The precision in which the trials of a study train: settled once, when it begins, so that their scores can be compared.

With ``training.precision=auto`` each process would take what its own node computes quickly. So a study that begins puts what all nodes
have in common in the place of ``auto``: it stands in the study's definition, in each trial's experiment, and in what is exported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from guidino_tune.config import Experiment
from guidino_tune.space.space import Space

AUTO = "auto"

KNOWN = {"precision": ("fp32", "bf16", "fp16"), "compile": ("none", "default", "cuda-graphs")}
"""What a study's definition may have in the place of ``auto``, by the field of ``training``."""

SETTLED = "precision"
"""Attribute of a study: what was put in the place of ``auto``."""

UNSETTLED = (
    "this study was begun when nobody settled its precision (training.precision is auto): each trial trains in what its own node computes "
    "quickly, so that those of different nodes may differ; for one precision start another study with another study.name"
)


def is_open(space: Space) -> bool:
    """Whether a trial's precision may depend on its node."""
    return any(experiment.training.precision == AUTO for experiment in (space.base, *space.recipes.values()))


def with_precision(space: Space, precision: str) -> Space:
    """The space with this in the place of ``auto``."""
    return _with(space, lambda name: precision)


def as_defined(space: Space, definition: Mapping[str, Any]) -> Space:
    """The space with the precisions of a study's definition, and its ways to compile, where the space leaves them to ``auto``."""

    def of(field: str) -> Callable[[str | None], str]:
        def stored(name: str | None) -> str:
            found = definition.get("experiment") if name is None else (definition.get("recipes") or {}).get(name)
            return str(((found or {}).get("training") or {}).get(field, AUTO))

        return stored

    return _with(_with(space, of("precision")), of("compile"), "compile")


def _with(space: Space, of: Callable[[str | None], str], field: str = "precision") -> Space:
    def replaced(experiment: Experiment, name: str | None) -> Experiment:
        training = experiment.training
        if getattr(training, field) != AUTO or (settled := of(name)) not in KNOWN[field]:
            return experiment
        return dataclasses.replace(experiment, training=dataclasses.replace(training, **{field: settled}))  # type: ignore[arg-type]

    recipes = {name: replaced(recipe, name) for name, recipe in space.recipes.items()}
    return dataclasses.replace(space, base=replaced(space.base, None), recipes=recipes)
