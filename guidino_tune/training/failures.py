"""What went wrong in a training run, as one of a few kinds that decide what happens next."""

from __future__ import annotations

from typing import Literal

import torch

from guidino_tune.errors import UserError

FailureKind = Literal["diverged", "out-of-memory", "bad data", "bug"]


class Diverged(Exception):
    """The loss is no longer a finite number: the configuration is infeasible, and the study is told so."""


def failure_kind(error: BaseException) -> FailureKind:
    """Sorts an exception from the loop. A process that dies (preemption, a killed worker) never gets here: Ray continues it."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "out-of-memory"
    return "bad data" if isinstance(error, UserError) else "bug"
