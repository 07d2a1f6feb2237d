"""How much room chunks have in a folder, and what is removed to make more."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guidino_tune.data.locking import PATIENCE, locked

_Rank = tuple[bool, bool, int, int, float]  # of a group: what is least wanted has the least

# What is ours in the folder, which may hold other things: nothing else is counted or removed.
_KIND = re.compile("(views|tokens)-[0-9a-f]+")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")

_STALE = 600.0  # seconds after which an unfinished file has lost its writer
_DEFAULT = 200 * 10**9  # bytes at most, where nobody has said how many
_LEFT = 900.0  # seconds without any use of a kind after which no training is taken to need it
_MOMENT = 120.0  # seconds: what was read since then is what trainings are at
READERS = "readers"
"""In a group's folder: a byte for each training that has read it."""

_ALLOWANCE = 1 / 128  # of the budget: what a process may write before it looks again at what the others have written


class Room:
    """What may still be written; several processes write into one folder, of which each looks now and then at what all have written.

    Args:
        folder: Of the chunks.
        budget: Bytes that the files may take; ``None``: see ``budget_of``.
    """

    def __init__(self, folder: Path, budget: int | None) -> None:
        self._folder, self._budget = folder, budget
        self._allowance = 0

    def spend(self, size: int) -> None:
        """Notes that so many bytes are written, which ``allows`` has allowed."""
        self._allowance -= size

    def allows(self, size: int, keep: Sequence[Path], *, ahead: bool = False) -> bool:
        """Whether ``size`` bytes may be written, if need be after others made room for them; see ``_evict``."""
        if size > self._allowance:
            with locked(self._folder / "locks" / "room", patience=PATIENCE) as held:
                self._allowance = self._evict(size, keep if held == "alone" else (), ahead=ahead)
        return size <= self._allowance

    def _evict(self, size: int, keep: Sequence[Path], *, ahead: bool) -> int:
        """Removes the groups that are least wanted until there is room for ``size`` bytes; gives what may be written now.

        Args:
            size: Of the chunk that is to be kept.
            keep: Its group, and others that stay; empty: remove nothing, others may be at it.
            ahead: It is for later: what is wanted more than its group stays too.
        """
        groups = self._groups()
        used = sum(group.size for _, group in groups)
        budget = budget_of(self._budget, shutil.disk_usage(self._folder).free, used)
        free, wanted = budget - used, max(size, int(budget * _ALLOWANCE))
        for rank, group in groups:
            if free >= wanted or not keep or (ahead and rank >= (True, True, 0, -_pass_of(keep[0]))):
                break
            if group.path not in keep:
                remove(group.path)
                free += group.size
        return max(0, min(free, wanted))

    def _groups(self) -> list[tuple[_Rank, _Group]]:
        """All groups and how much they are wanted, the least first; removes what dead writers left."""
        groups = []
        for entry in self._folder.iterdir():
            # Others write and remove at the same time: what is gone is no group any more.
            with contextlib.suppress(FileNotFoundError):
                if _TEMPORARY.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _STALE:
                    entry.unlink()
                elif _KIND.fullmatch(entry.name):
                    for path in entry.iterdir():
                        with contextlib.suppress(FileNotFoundError):
                            files = [file.stat().st_size for file in path.glob("*.arrow")]
                            read = path / READERS
                            readers = read.stat().st_size if read.exists() else 0
                            groups.append(_Group(path.stat().st_mtime, sum(files), readers, path))
        now = time.time()
        kinds = {kind: max(group.used for group in groups if group.path.parent == kind) for kind in {group.path.parent for group in groups}}

        def wanted(group: _Group) -> _Rank:
            needed = now - kinds[group.path.parent] < _LEFT
            fresh = now - group.used < (_MOMENT if group.readers else _LEFT)  # what nobody has read yet was made for the next epoch
            farthest = -_pass_of(group.path) if fresh and not group.readers else 0
            return needed, fresh, group.readers if needed else 0, farthest, group.used

        return sorted(((wanted(group), group) for group in groups), key=lambda found: found[0])


def budget_of(asked: int | None, free: int, used: int = 0) -> int:
    """Bytes that the files may take: as many as were asked for, else half of what the disk has for them, at most 200 GB."""
    return min(_DEFAULT, (free + used) // 2) if asked is None else asked


@dataclass(frozen=True, slots=True)
class _Group:
    """When it was used last (Unix seconds), its bytes, and by how many trainings it was read."""

    used: float
    size: int
    readers: int
    path: Path


def _pass_of(group: Path) -> int:
    """Counted from 1, so far as a group is one; 0: it is wanted from the first epoch on."""
    return int(group.name) + 1 if group.name.isdecimal() else 0


def remove(group: Path) -> None:
    """Removes a group, and the folder of its kind if it was the last one."""
    for file in group.glob("*.arrow"):
        file.unlink(missing_ok=True)
    (group / READERS).unlink(missing_ok=True)
    for emptied in (group, group.parent):
        with contextlib.suppress(OSError):
            emptied.rmdir()
