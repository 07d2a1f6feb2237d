"""Files on a server that may lose its thread for a moment: what was asked of it is asked again, from the opening of the file on."""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

STALE = (errno.ESTALE,)
"""The file was replaced on the server, or the server was started anew: opened again, it is there."""

AWAY = (*STALE, errno.ETIMEDOUT)
"""What a server or its network gives, and no disk."""

PASSING = (*AWAY, errno.EIO)
"""What is tried again. ``EIO`` may be a broken disk, and is also what a connection to the server gives when it breaks."""

PAUSES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds between the tries."""


def outlast(path: Path, action: Callable[[], T], passing: Collection[int] = PASSING) -> T:
    """The result of ``action``, which opens what it needs, and may be done twice.

    Args:
        path: What it works on, for the message.
        action: What to do.
        passing: Errors after which it is tried again.

    Raises:
        OSError: Any other error, and the last of these: with the file, and how often it was tried.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except Exception as error:
            number = os_error(error)
            if number not in passing:
                raise
            if pause is None:
                said = f"{error.strerror or error}, in each of {len(PAUSES) + 1} tries" if isinstance(error, OSError) else str(error)
                raise OSError(number, said, str(path)) from error
            log.warning("%s: %s; tried again", path, error)
            time.sleep(pause)
    raise AssertionError


def os_error(error: BaseException) -> int | None:
    """The number of an error of the system, also of one that a library gives in words only; ``None`` of any other."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None
