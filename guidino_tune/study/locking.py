"""One process at a time on a study: a lock on its folder that ends with its holder, however that ends, and a lease in its database."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO

import optuna

from guidino_tune.data import locking
from guidino_tune.errors import UserError
from guidino_tune.study.lease import Lease

_INSTANT = 0.5
"""Seconds to wait in any case: who only asks for the holder of a lock has it for an instant."""

BEAT = 10.0
"""Seconds between two signs of life of a holder."""


class Hold(ExitStack):
    """A study that this process holds until it is closed, or this process ends.

    While it holds it, the file's time is renewed: whoever finds it locked by another machine sees whether that one lives.

    Args:
        path: A file in the study's folder, made if missing.
        work: What is done under the lock, such as ``search``, for the message to who comes second.
        todo: What that person can do.

    Raises:
        UserError: Another process has the lock, or the file system keeps none.
    """

    def __init__(self, path: Path, work: str, todo: str) -> None:
        super().__init__()
        self._path, self._about, self._place = path, (work, todo), place(path.parent)
        self._lease: Lease | None = None
        self._ended, self._lost = threading.Event(), ""
        self._signed = locking.sign(self.enter_context(_locked(path, work, todo)))
        self.callback(self._ended.set)
        threading.Thread(target=self._beat, name="guidino-tune-lock", daemon=True).start()

    def lease(self, study: optuna.Study) -> None:
        """Holds the study itself too, where another machine may reach it.

        Raises:
            UserError: Another process holds it.
        """
        self._lease = Lease(study, locking.process(), self._place, *self._about)
        self.enter_context(closing(self._lease))

    @property
    def taken(self) -> str:
        """Who took the study over meanwhile; empty while it is held."""
        return self._lost or (self._lease.taken if self._lease else "")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            # The file server may be away. One that did not hear of this machine for long gives its locks to others.
            with contextlib.suppress(OSError):
                with self._path.open(encoding="utf-8") as file:
                    # A disk that was full took a part of what was signed, or nothing: that is no sign of another.
                    if not self._signed.startswith(file.read()):
                        self._lost = locking.holder_of(file)
                        return
                os.utime(self._path)


def _locked(path: Path, work: str, todo: str) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    begun, first, told = time.monotonic(), 0, False
    while True:
        # Opened again for each try: a network file system tells its time and content anew.
        file = path.open("a+", encoding="utf-8")
        held = locking.attempt(file)
        if held == "alone":
            return file
        with file:
            who, here, beat = locking.holder_of(file), locking.is_here(file), os.fstat(file.fileno()).st_mtime_ns
        if held == "perhaps not alone":
            raise UserError(
                "this file system keeps no locks, so two searches could not be told apart",
                where=str(path.parent),
                todo="choose another folder as GUIDINO_TUNE_HOME, or mount it with locks",
            )
        first, waited = first or beat, time.monotonic() - begun
        if waited > _INSTANT and (here or beat != first):
            raise UserError(f"another {work} works on this study ({who})", where=str(path.parent), todo=todo)
        if waited > locking.PATIENCE:
            raise UserError(
                f"{who} gave no sign of life for {waited:.0f} s, and its lock is not free",
                where=str(path),
                todo="see to it that nothing runs there, and run this again; a file server that keeps the lock for longer is outwitted if "
                "you remove this file",
            )
        if waited > _INSTANT and not told:
            told = True
            locking.tell_wait(path, who, locking.PATIENCE)
        time.sleep(0.02 if waited < _INSTANT else 0.5)


def place(folder: Path) -> str:
    """A folder on this machine, as no other machine names it."""
    return f"{os.uname().nodename}:{folder}"


def holder(path: Path) -> str:
    """Who holds a file, as ``Hold`` has noted it; empty when nobody does, or nobody can. Asked without writing."""
    try:
        with path.open(encoding="utf-8") as file:
            return locking.holder_of(file) if locking.attempt(file, shared=True) == "no" else ""
    except FileNotFoundError:
        return ""


def held_since(path: Path) -> float | None:
    """When whoever holds a file took it, by its machine's clock; ``None`` where that is not known."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8") as file:
        return locking.held_since(file)
    return None
