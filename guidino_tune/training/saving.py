"""Checkpoints are written beside the training, by a thread of the run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

MOMENT = 0.1
"""Seconds that a checkpoint on its way is waited for before another one, which is worth no more, is left out."""


class Saver:
    """Writes one checkpoint at a time.

    Attributes:
        failed: Whether one could not be written; what is written after it might hide that its best weights are missing.
    """

    def __init__(self) -> None:
        self.failed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._writing is not None and not self._writing.done()

    def is_free(self) -> bool:
        """Whether nothing is being written, now or a moment later: a quick disk loses no checkpoint because its thread came late."""
        return self._writing is None or not wait([self._writing], MOMENT).not_done

    def begin(self, write: Callable[[], None]) -> None:
        """Lets the thread write, once the one before is done; see ``finish``."""
        self.finish()
        self._writing = self._thread.submit(write)

    def check(self) -> None:
        """Raises, without waiting, what the last writing raised."""
        if not self.busy:
            self.finish()

    def finish(self) -> None:
        """Waits until what was begun is written.

        Raises:
            BaseException: What the writing raised, once.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except BaseException:
            self.failed = True
            raise

    def close(self) -> None:
        """Ends the thread once it has written."""
        self._thread.shutdown()
