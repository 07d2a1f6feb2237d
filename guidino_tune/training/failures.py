"""What went wrong in a training run, as one of a few kinds that decide what happens next."""

from __future__ import annotations

from typing import Literal

import torch

from guidino_tune.errors import UserError

FailureKind = Literal["diverged", "out-of-memory", "bad data", "environment", "bug"]

INFEASIBLE = ("diverged", "out-of-memory")
"""Failures that belong to a configuration, and are a result of the search; the others belong to the machine, the data or the code."""


_MEMORY_SIGNS = ("allocate memory", "out of memory", "alloc_failed")
"""How the CPU's allocator, CUDA and its libraries say it; only torch's own GPU allocator has an exception of its own."""


class Diverged(Exception):
    """The loss is no longer a finite number: the configuration is infeasible, and the study is told so."""


def failure_kind(error: BaseException) -> FailureKind:
    """Sorts an exception from the loop. A process that dies (preemption, a killed worker) never gets here: Ray continues it."""
    if isinstance(error, Diverged):
        return "diverged"
    text = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in _MEMORY_SIGNS):
        return "out-of-memory"
    if isinstance(error, OSError):
        return "environment"
    return "bad data" if isinstance(error, UserError) else "bug"
