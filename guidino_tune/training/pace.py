"""How often a run writes checkpoints: where a file server is slow, not after every epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

SHARE = 0.1
"""Of the time of a run that may be spent on checkpoints which only spare training after a crash."""

MOMENT = 0.5
"""Seconds of writing that are never worth a thought: an epoch has at least fifty steps."""


class Pace:
    """Measures what checkpoints cost."""

    def __init__(self) -> None:
        self._spent, self._since = 0.0, time.monotonic()

    def allows(self) -> bool:
        """Whether one more would keep within the share, if it took as long as the last one; the first one always does."""
        return self._spent <= MOMENT or self._spent <= SHARE * (time.monotonic() - self._since + self._spent)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around the writing of one."""
        begun = time.monotonic()
        yield
        self._since = time.monotonic()
        self._spent = self._since - begun
