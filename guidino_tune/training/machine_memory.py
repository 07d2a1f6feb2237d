"""How glibc keeps the memory of a process that trains on a CPU."""

from __future__ import annotations

import ctypes
import sys

KEPT, LESS = 1 << 30, 32 << 20
"""Bytes: blocks up to this size come from memory that the process keeps, and so much of it may be free before it is given back. Older
versions of glibc take no more than the smaller number for the first of the two."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, see its manual page


def keep_freed_memory() -> bool:
    """Lets the process keep what a step frees for the next step; gives whether the C library takes such orders (glibc does).

    By itself glibc gives every large tensor back to the system when it is freed, and the system clears each page of the next one: of the
    CPU time of a training step that is 2 to 12 %. The most memory that a process takes stays the same; between two trials it is given
    back by ``give_back``.
    """
    library = _glibc()
    if not library:
        return False
    taken = library.mallopt(_MMAP_THRESHOLD, KEPT) or library.mallopt(_MMAP_THRESHOLD, LESS)
    return bool(taken and library.mallopt(_TRIM_THRESHOLD, KEPT))


def give_back() -> None:
    """Gives the free memory of this process back to the system, where the C library can."""
    if library := _glibc():
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
