"""Values of a space as numbers, for models of it."""

from __future__ import annotations

import math

import numpy as np

from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space


def encode(space: Space, values: Values) -> np.ndarray:
    """Values as numbers in [0, 1] in the space's own scale, a place for each choice; -1 where a parameter is not active."""
    row: list[float] = []
    for path, parameter in space.parameters.items():
        value = values.get(path)
        if parameter.type == "choice":
            row += [float(value == choice) if path in values else -1.0 for choice in parameter.choices]
        elif path not in values:
            row.append(-1.0)
        else:
            low, high = parameter.limits
            at, low, high = (math.log(x) for x in (float(value), low, high)) if parameter.log else (float(value), low, high)  # type: ignore[arg-type]
            row.append((at - low) / (high - low) if high > low else 0.0)
    return np.array(row)


def columns(space: Space) -> dict[str, list[int]]:
    """The places of each parameter in what ``encode`` gives."""
    found: dict[str, list[int]] = {}
    at = 0
    for path, parameter in space.parameters.items():
        width = len(parameter.choices) if parameter.type == "choice" else 1
        found[path] = list(range(at, at + width))
        at += width
    return found
