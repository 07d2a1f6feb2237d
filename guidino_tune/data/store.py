"""Arrays that one process of a node makes and all of them read: Arrow files, mapped into memory, in a folder of limited size."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from guidino_tune.data.locking import locked

log = logging.getLogger(__name__)

# Torch would warn that arrays of a mapped file must not be written to; nobody does, and each process would print it.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Arrays = Mapping[str, np.ndarray]
"""By name; each of N rows."""

FORMAT = 1
"""Raised whenever the layout of the files changes."""

_LOCKS = 256  # files for all chunks of a kind together: two chunks that share one merely wait for each other
_STALE = 600.0  # seconds after which an unfinished file has lost its writer
_DEFAULT = 200 * 10**9  # bytes at most, where nobody has said how many
_ALLOWANCE = 1 / 128  # of the budget: what a process may write before it looks again at what the others have written


class ChunkStore:
    """A folder of chunks that several processes fill and read at once.

    A chunk is named ``KIND-KEY/GROUP/NUMBER``, where the key says all that its content depends on, so that a chunk never changes. It is
    made by the first who asks for it while the others wait, appears under its name only when it is whole, and is made again where it was
    damaged or removed. When the budget is used up, the groups that were not used for longest are removed. When nothing can be written
    (the disk is full, the folder is read-only), chunks are made without being kept: slower, with the same content.

    Args:
        folder: Of all studies of this node; made if missing.
        budget: Bytes that the files may take; each process may exceed it by a 128th. ``None``: half of what the disk has for them, at
            most 200 GB.

    Attributes:
        made: Chunks that this object made.
        problem: Why chunks are not kept any more, in words; empty while they are.
    """

    def __init__(self, folder: Path, budget: int | None = None) -> None:
        self.folder = folder
        self.made = 0
        self.problem = ""
        self._budget, self._allowance = budget, 0

    def get(self, name: str, make: Callable[[], Arrays], *, wait: bool = True) -> Arrays | None:
        """The chunk of that name; read-only arrays.

        Args:
            name: As above; parts of a path.
            make: Makes it where it is missing. It may ask for chunks of another kind, never for one of the same.
            wait: For another process that is making it at this moment; else ``None`` is returned then, and where chunks are not kept.

        Raises:
            Exception: What ``make`` raises; nothing is kept then.
        """
        path = self.folder / f"{name}.arrow"
        found = _read(path)
        if found is not None:
            return found
        with contextlib.ExitStack() as stack:
            try:
                if self.problem:
                    return self._make(make) if wait else None
                (self.folder / "locks").mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(self._lock(name), wait=wait))
            except OSError as error:
                self._give_up(error)
                return self._make(make)
            if held == "no":
                return None
            found = _read(path)
            if found is None:
                found = self._make(make)
                self._keep(path, found)
            return found

    def use(self, group: str) -> None:
        """Notes that the chunks of ``KIND-KEY/GROUP`` are in use now: they are the last to be removed."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / group)

    def _make(self, make: Callable[[], Arrays]) -> Arrays:
        self.made += 1
        # As a file gives them back: in another memory order the same numbers would be added up in another order.
        return {name: np.ascontiguousarray(array) for name, array in make().items()}

    def _lock(self, name: str) -> Path:
        kind = name.partition("-")[0]  # a chunk made out of one of another kind holds two locks: they must not be the same
        return self.folder / "locks" / f"{kind}-{zlib.crc32(name.encode()) % _LOCKS:02x}"

    def _keep(self, path: Path, arrays: Arrays) -> None:
        if self.problem:
            return
        temporary = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            if not self._room(sum(array.nbytes for array in arrays.values()), path.parent):
                return
            _write(temporary, arrays)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, path)
        except OSError as error:
            self._give_up(error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        todo = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        self.problem = (
            f"shared views cannot be kept in {self.folder} ({error.strerror or error}); trials make their own, which is slower and changes "
            f"no result: {todo}, or set resources.views_folder"
        )
        log.warning("%s", self.problem)

    def _room(self, size: int, group: Path) -> bool:
        """Makes room for ``size`` bytes in a group; False when there is none."""
        if size > self._allowance:
            with locked(self.folder / "locks" / "room"):
                self._allowance = self._evict(size, group)
        if size > self._allowance:
            if not self.problem:
                self.problem = (
                    f"the views of one epoch do not fit into the space for them in {self.folder}; trials make their own, which is slower "
                    "and changes no result: raise resources.views_gigabytes"
                )
                log.warning("%s", self.problem)
            return False
        self._allowance -= size
        return True

    def _evict(self, size: int, keep: Path) -> int:
        """Removes the groups that were not used for longest until there is room for ``size`` bytes; gives what may be written now."""
        groups: list[tuple[float, int, Path]] = []
        for kind in os.scandir(self.folder):
            if kind.name.endswith(".tmp"):
                if time.time() - kind.stat().st_mtime > _STALE:
                    Path(kind.path).unlink(missing_ok=True)
            elif kind.is_dir() and kind.name != "locks":
                for group in os.scandir(kind.path):
                    size = sum(file.stat().st_size for file in os.scandir(group.path))
                    groups.append((group.stat().st_mtime, size, Path(group.path)))
        used = sum(bytes_ for _, bytes_, _ in groups)
        budget = min(_DEFAULT, (shutil.disk_usage(self.folder).free + used) // 2) if self._budget is None else self._budget
        free, wanted = budget - used, max(size, int(budget * _ALLOWANCE))
        for _, bytes_, path in sorted(groups):
            if free >= wanted:
                break
            if path != keep:
                # Whoever has mapped these files keeps reading them; whoever has not makes them again.
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()  # when it was the last
                free += bytes_
        return min(free, wanted)


def _write(path: Path, arrays: Arrays) -> None:
    columns, forms = [], {}
    for name, array in arrays.items():
        width = array.nbytes // len(array)
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)]))
        forms[name] = {"dtype": array.dtype.str, "shape": array.shape}
    metadata = {"guidino_tune": json.dumps({"format": FORMAT, "arrays": forms})}
    batch = pa.record_batch(columns, names=list(arrays))
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, batch.schema.with_metadata(metadata)) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> Arrays | None:
    """The arrays of a file, mapped; ``None`` when there is none, or none that is whole."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        form = json.loads((reader.schema.metadata or {})[b"guidino_tune"])
        if form["format"] != FORMAT:
            return None
        batch = reader.get_batch(0)
        return {
            name: np.frombuffer(column.buffers()[1], dtype=of["dtype"]).reshape(of["shape"])
            for (name, of), column in zip(form["arrays"].items(), batch.columns, strict=True)
        }
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError):
        return None
