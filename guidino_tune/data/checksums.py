"""Checksums of arrays in mapped files: storage that loses a page or flips a bit is noticed where it is read, not in a score."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

_BLOCK = 4096  # bytes that are added up before their sums are checked: three times as fast as to copy them

Seal = tuple[str, int, int, int]
"""Path, inode, time and size of a file: the same as long as nobody writes to it."""

SOUND: set[Seal] = set()
"""Files whose content this process has found to be as it was written, so that each is read for this once."""


def seal_of(path: Path) -> Seal:
    """The file's seal now.

    Raises:
        OSError: It is not there.
    """
    status = path.stat()
    return str(path), status.st_ino, status.st_mtime_ns, status.st_size


def checksum(array: np.ndarray, start: int = 0) -> int:
    """CRC-32 of the sums of blocks: another value wherever a bit has flipped, or a page was lost.

    Args:
        array: In C order.
        start: Checksum of what comes before it.
    """
    data = array.reshape(-1).view(np.uint8)
    whole = len(data) // _BLOCK * _BLOCK
    sums = data[:whole].view(np.uint64).reshape(-1, _BLOCK // 8).sum(1)
    return zlib.crc32(data[whole:].tobytes(), zlib.crc32(sums.tobytes(), start))
