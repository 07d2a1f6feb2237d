"""Initial weights that follow from a seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU generator starts from ``seed``; afterwards it goes on where it was before.

    Only the CPU generator is touched: ``torch.manual_seed`` would reseed every GPU as well and leave it so.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
