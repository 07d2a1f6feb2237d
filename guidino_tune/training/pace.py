"""How often a run writes checkpoints: at validations, or once a minute; where a file server is slow, not even so often."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

SHARE = 0.1
"""Of the time of a run that may be spent on checkpoints which only spare training after a crash."""

MOMENT = 0.5
"""Seconds of writing after which the next one is always allowed: where a checkpoint is quick, every validated epoch is saved."""

MINUTE = 60.0
"""Seconds of training after which an epoch is saved that was not validated."""

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

    @property
    def ending(self) -> bool:
        """Whether the time budget is about to end: whoever ends the run then may end its process."""
        return time.monotonic() > self._end - SOON

    def allows(self, *, validated: bool) -> bool:
        """Whether an epoch that nobody asked for is worth a checkpoint: it would keep within the share, if it took as long as the last one.

        Args:
            validated: Whether the epoch was; others are trained again quickly.
        """
        passed = time.monotonic() - self._since
        if not (validated or passed >= MINUTE):
            return False
        return self._spent <= MOMENT or self._spent <= SHARE * (passed + self._spent)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around the writing of one."""
        begun = time.monotonic()
        yield
        self._since = time.monotonic()
        self._spent = self._since - begun
