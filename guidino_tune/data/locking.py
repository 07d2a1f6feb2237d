"""Locks between the processes of a node that die with their holder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Held = Literal["alone", "perhaps not alone", "no"]


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[Held]:
    """Holds a lock on a file, which is made if missing and stays.

    Threads of one process exclude each other as processes do. The kernel frees the lock when its holder dies, however it dies.

    Args:
        file: Its folder must exist.
        wait: For whoever has the lock; else it gives ``no`` then.

    Yields:
        ``alone``: the lock is ours. ``perhaps not alone``: this file system keeps no locks. ``no``: somebody else has it.

    Raises:
        OSError: The file cannot be made.
    """
    with open(file, "a") as opened:
        held: Held = "alone"
        try:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = "no"
        except (ImportError, OSError):
            held = "perhaps not alone"
        yield held
