"""One process at a time on a study: a lock that ends with its holder, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

from guidino_tune.errors import UserError

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""How the kernel says that another process has a lock."""

_PATIENCE = 0.5
"""Seconds to wait for a lock: who only asks for its holder has it for an instant."""


def hold(path: Path, work: str, todo: str) -> TextIO:
    """Locks a file for this process, and notes in it which one that is.

    Args:
        path: Of the file; made if missing.
        work: What is done under the lock, such as ``search``, for the message to who comes second.
        todo: What that person can do.

    Returns:
        The open file; the lock ends when it is closed.

    Raises:
        UserError: Another process has the lock, or the file system keeps none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in _HELD:
                raise UserError(
                    f"this file system keeps no locks ({error}), so two searches could not be told apart",
                    where=str(path.parent),
                    todo="choose another folder with --home or GUIDINO_TUNE_HOME, or mount it with locks",
                ) from None
            if time.monotonic() > end:
                raise UserError(
                    f"another {work} works on this study ({_note(file)})",
                    where=str(path.parent),
                    todo=todo,
                ) from None
        time.sleep(0.02)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def holder(path: Path) -> str:
    """Who holds a file, as ``hold`` has noted it; empty when nobody does, or nobody can. Asked without writing."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return _note(file) if error.errno in _HELD else ""
    except FileNotFoundError:
        pass
    return ""


def _note(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "its process is unknown"
