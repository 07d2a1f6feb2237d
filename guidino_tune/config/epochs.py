"""How many optimiser steps an epoch has: a pass over the cases is too short a one where there are few of them."""

from __future__ import annotations

from typing import Literal

LEAST_STEPS = 50
"""Steps of an epoch where nothing is said and every case once would be fewer."""

Steps = int | Literal["cases"] | None
"""What ``training.steps_per_epoch`` may be."""


def batches_per_pass(num_cases: int, batch_size: int, workers: int = 1) -> int:
    """Batches in which every case is seen once.

    One worker keeps a last batch that is not full, unless it would hold a single case, which batch normalisation cannot learn from;
    several workers leave it out.
    """
    full, rest = divmod(num_cases, batch_size)
    return full + int(workers == 1 and rest >= 2)


def steps_per_epoch(wanted: Steps, batches: int) -> int:
    """Optimiser steps of an epoch.

    Args:
        wanted: A number; ``cases``: one pass; ``None``: one pass, but at least ``LEAST_STEPS``.
        batches: Of a pass.
    """
    if wanted == "cases":
        return batches
    return max(LEAST_STEPS, batches) if wanted is None else wanted
