"""Locks between processes, of one machine or of several, that end with their holder.

A kernel frees the lock of a process that died, however it died. Of a machine that died the file server keeps it for a while.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

log = logging.getLogger(__name__)

Held = Literal["alone", "perhaps not alone", "no"]

SERVER_LEASE = 90.0
"""Seconds for which a file server (NFS 4, unless it is set otherwise) keeps the locks of a machine that no longer answers."""

PATIENCE = SERVER_LEASE + 30.0
"""Seconds to wait for a lock: after them its holder lives."""

TELL = 3.0
"""Seconds of waiting after which people are told."""

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""How the kernel says that another process has a lock."""


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return os.uname().nodename


MACHINE = _machine()
"""This machine since it was started: containers of it have its kernel, which frees their locks, and host names of their own."""


@contextlib.contextmanager
def locked(file: Path, *, patience: float = 0.0) -> Iterator[Held]:
    """Holds a lock on a file, which is made if missing, names its holder, and stays.

    Threads of one process exclude each other as processes do.

    Args:
        file: Its folder must exist.
        patience: Seconds to wait for whoever has the lock.

    Yields:
        ``alone``: the lock is ours. ``perhaps not alone``: this file system keeps no locks. ``no``: somebody else still has it.

    Raises:
        OSError: The file cannot be made.
    """
    with open(file, "a+", encoding="utf-8") as opened:
        held = wait_for(opened, file, patience, lambda: holder_of(opened))
        if held == "alone":
            sign(opened)
        yield held


def wait_for(opened: IO[Any], file: Path, patience: float, holder: Callable[[], str] = lambda: "another process") -> Held:
    """The answer of ``attempt``, with patience and a word to who waits.

    Args:
        opened: The open file.
        file: Its path, to be told.
        patience: Seconds to wait for whoever has the lock.
        holder: Gives who that is, in words.
    """
    begun, told = time.monotonic(), False
    while (held := attempt(opened)) == "no" and (waited := time.monotonic() - begun) < patience:
        if waited > TELL and not told:
            told = True
            tell_wait(file, holder(), patience)
        time.sleep(min(0.5, max(0.001, waited / 10)))
    return held


def attempt(opened: IO[Any], *, shared: bool = False) -> Held:
    """Takes the lock of an open file, if it is free; closing the file frees it."""
    try:
        import fcntl

        fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        return "no" if getattr(error, "errno", None) in _HELD else "perhaps not alone"
    return "alone"


def tell_wait(file: Path, holder: str, patience: float) -> None:
    """Says who is waited for, and how long."""
    long = f", for {patience:.0f} s at most" if patience < float("inf") else ""
    log.warning("%s is held by %s; it is waited for%s", file, holder, long)


def sign(opened: IO[str]) -> str:
    """Writes into a file, whose lock this process has, who has it, and since when; gives what was to be written."""
    text = f"{process()}\n{MACHINE}\n{time.time():.0f}\n"
    with contextlib.suppress(OSError):  # as on a full disk: the lock holds without the note, or with a part of it
        opened.truncate(0)
        os.write(opened.fileno(), text.encode())  # past the buffer, which would be tried again, and fail, when the file is closed
    return text


def process() -> str:
    """This process, in words."""
    return f"process {os.getpid()} on {os.uname().nodename}"


def holder_of(opened: IO[str]) -> str:
    """Who signed a file last, in words."""
    opened.seek(0)
    return opened.readline().strip() or "an unknown process"


def held_since(opened: IO[str]) -> float | None:
    """When the file was signed, by the clock of the machine that has it; ``None`` where that is not in it."""
    opened.seek(0)
    found = opened.read().split("\n")[2:3]
    return float(found[0]) if found and found[0].isdecimal() else None


def is_here(opened: IO[str]) -> bool:
    """Whether the process that signed a file is one of this machine: its lock would be free if it had died."""
    opened.seek(0)
    return opened.read().split("\n")[1:2] == [MACHINE]
