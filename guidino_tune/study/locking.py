"""One process at a time on a study: a lock on its folder that ends with its holder, however that ends, and a lease in its database."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO

import optuna

from guidino_tune.errors import UserError
from guidino_tune.study.lease import Lease

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""How the kernel says that another process has a lock."""

_PATIENCE = 0.5
"""Seconds to wait for a lock: who only asks for its holder has it for an instant."""


class Hold(ExitStack):
    """A study that this process holds until it is closed, or this process ends.

    Args:
        path: A file in the study's folder, made if missing.
        work: What is done under the lock, such as ``search``, for the message to who comes second.
        todo: What that person can do.

    Raises:
        UserError: Another process has the lock, or the file system keeps none.
    """

    def __init__(self, path: Path, work: str, todo: str) -> None:
        super().__init__()
        self._about, self._place = (work, todo), place(path.parent)
        self._lease: Lease | None = None
        self.enter_context(_locked(path, work, todo))

    def lease(self, study: optuna.Study) -> None:
        """Holds the study itself too, where another machine may reach it.

        Raises:
            UserError: Another process holds it.
        """
        self._lease = Lease(study, _process(), self._place, *self._about)
        self.enter_context(closing(self._lease))

    @property
    def taken(self) -> str:
        """Who took the study over meanwhile; empty while it is held."""
        return self._lease.taken if self._lease else ""


def _locked(path: Path, work: str, todo: str) -> TextIO:
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
                    todo="choose another folder as GUIDINO_TUNE_HOME, or mount it with locks",
                ) from None
            if time.monotonic() > end:
                raise UserError(
                    f"another {work} works on this study ({_note(file)})",
                    where=str(path.parent),
                    todo=todo,
                ) from None
        time.sleep(0.02)
    file.truncate(0)
    file.write(_process())
    file.flush()
    return file


def place(folder: Path) -> str:
    """A folder on this machine, as no other machine names it."""
    return f"{os.uname().nodename}:{folder}"


def _process() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def holder(path: Path) -> str:
    """Who holds a file, as ``Hold`` has noted it; empty when nobody does, or nobody can. Asked without writing."""
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
