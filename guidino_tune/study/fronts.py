"""The first Pareto front of many points."""

from __future__ import annotations

import numpy as np


def on_front(points: np.ndarray) -> np.ndarray:
    """Which points are on the front: none is lower in one coordinate and as low in all others.

    It costs as much as there are points, times those on the front.

    Args:
        points: (number, coordinates), all minimised; equal ones are on the front together.

    Returns:
        (number,), booleans.
    """
    distinct, place = np.unique(points, axis=0, return_inverse=True)  # in order: the first one left is dominated by none
    first, left = np.zeros(len(distinct), bool), np.arange(len(distinct))
    while len(left):
        first[left[0]] = True
        left = left[(distinct[left] < distinct[left[0]]).any(1)]
    return first[place.reshape(-1)]
