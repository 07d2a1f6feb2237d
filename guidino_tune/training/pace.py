"""How often a run writes checkpoints: where a file server is slow, not after every epoch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

SHARE = 0.1
"""Of the time of a run that may be spent on checkpoints which only spare training after a crash."""

MOMENT = 0.5
"""Seconds of writing after which the next one is always allowed: where a checkpoint is quick, every epoch is saved."""

SOON = 10.0
"""Seconds before the end of a time budget from which every epoch is saved: the epoch that is told after it is the last of this run."""


class Pace:
    """Measures what checkpoints cost.

    Args:
        time_left: Seconds from now at which the time budget ends.
    """

    def __init__(self, time_left: float = math.inf) -> None:
        self._spent, self._since = 0.0, time.monotonic()
        self._end = self._since + time_left

    def allows(self) -> bool:
        """Whether one more would keep within the share, if it took as long as the last one; the first one always does.

        So is one near the end of the time budget: whoever ends the run then may end its process.
        """
        if time.monotonic() > self._end - SOON:
            return True
        return self._spent <= MOMENT or self._spent <= SHARE * (time.monotonic() - self._since + self._spent)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around the writing of one."""
        begun = time.monotonic()
        yield
        self._since = time.monotonic()
        self._spent = self._since - begun
