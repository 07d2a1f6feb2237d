"""Arrays that one process of a node makes and all of them read: Arrow files, mapped into memory, in a folder of limited size."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from guidino_tune.data.checksums import SOUND, checksum, seal_of
from guidino_tune.data.locking import Held, locked
from guidino_tune.data.room import READERS, Room, remove

log = logging.getLogger(__name__)

# Torch would warn that arrays of a mapped file must not be written to; nobody does, and each process would print it.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Arrays = Mapping[str, np.ndarray]
"""By name; each of N rows."""

FORMAT = 2
"""Raised whenever the layout of the files changes."""

_PAUSE = 300.0  # seconds after which it is tried again whether chunks can be kept
_LOCKS = 256  # files for all chunks of a kind together: two chunks that share one merely wait for each other
CHUNK_PATIENCE = 600.0  # seconds to wait for whoever makes a chunk; then it is made twice, which costs time alone


class ChunkStore:
    """A folder of chunks that several processes fill and read at once.

    A chunk is named ``KIND-KEY/GROUP/NUMBER``, where the key says all that its content depends on, so that a chunk never changes. It is
    made by the first who asks for it while the others wait, appears under its name only when it is whole, and is made again where it was
    damaged or removed. When the budget is used up, groups are removed: first of kinds that nobody uses now, those that were not used for
    longest; then those that fewest trainings have read, unless they were used a moment ago; of those that were made ahead, and that nobody
    has read yet, the farthest pass. When nothing can be written (the disk is full, the folder is read-only), chunks are made without being
    kept, and some minutes later it is tried again.

    Args:
        folder: Of all studies of this node; made if missing. What it holds besides chunks is left alone.
        budget: Bytes that the files may take; each process may exceed it by a 128th. ``None``: half of what the disk has for them, at
            most 200 GB.
        makers: Processes of the node that may fill it ahead of the trials, see ``makers``.

    Attributes:
        made: Chunks that this object made.
    """

    def __init__(self, folder: Path, budget: int | None = None, *, makers: int = 0) -> None:
        self.folder = folder
        self.made = 0
        self.makers, self.budget = makers, budget
        self._problem, self._again = "", 0.0
        self._room = Room(folder, budget)

    @property
    def problem(self) -> str:
        """Why chunks are not kept at present, in words; empty while they are."""
        return self._problem if time.monotonic() < self._again else ""

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
            held: Held = "no"
            if not self.problem:
                try:
                    (self.folder / "locks").mkdir(parents=True, exist_ok=True)
                    held = stack.enter_context(locked(self._lock(name), patience=CHUNK_PATIENCE if wait else 0.0))
                except OSError as error:
                    self._give_up(error)
            if self.problem:
                return self._make(make) if wait else None
            if held == "no" and not wait:
                return None
            found = _read(path)
            if found is None:
                found = self._make(make)
                self._keep(path, found)
            return found

    def names(self, group: str) -> set[str]:
        """Of the chunks of a group, without opening them: one may still prove damaged, and is then made again."""
        with contextlib.suppress(OSError):
            return {name.removesuffix(".arrow") for name in os.listdir(self.folder / group) if name.endswith(".arrow")}
        return set()

    def has_room(self, group: str, nearer: Iterable[str], *, ahead: bool = True) -> bool:
        """Whether a chunk that is made before it is needed could be kept; makes room for it, but not out of what is wanted before it.

        Args:
            group: As above, of the chunk.
            nearer: Groups of its kind that its training needs earlier.
            ahead: Nor out of what other trainings want more.
        """
        keep = [self.folder / name for name in (group, *nearer)]
        try:
            size = max((file.stat().st_size for path in keep for file in path.glob("*.arrow")), default=0)
            return self._room.allows(size, keep, ahead=ahead)
        except OSError:
            return True  # whoever writes the chunk says what is wrong

    def use(self, group: str, *, begun: bool = False) -> None:
        """Notes that the chunks of ``KIND-KEY/GROUP`` are in use now: they are the last to be removed.

        Args:
            group: As above.
            begun: By a training that has not read it before: it counts among its readers.
        """
        with contextlib.suppress(OSError):
            if begun:
                with open(self.folder / group / READERS, "ab") as file:
                    file.write(b".")  # one byte each, which no two writers lose
            os.utime(self.folder / group)

    def remove(self, group: str) -> None:
        """Removes a group, which may be made again; whoever has mapped its files keeps reading them."""
        with contextlib.suppress(OSError):
            remove(self.folder / group)

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
            size = sum(array.nbytes for array in arrays.values())
            if not self._room.allows(size, [path.parent]):
                self._pause(
                    f"the views of one epoch do not fit into the space for them in {self.folder}; trials make their own, which is slower "
                    "and changes no result: raise resources.views_gigabytes"
                )
                return
            self._room.spend(size)
            _write(temporary, arrays)
            for attempt in range(10):
                # Another process that makes room may remove the group between the two.
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, path)
                    return
                time.sleep(0.01 * attempt)
        except OSError as error:
            self._give_up(error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        todo = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        self._pause(
            f"shared views cannot be kept in {self.folder} ({error.strerror or error}); trials make their own, which is slower and changes "
            f"no result: {todo}, or set resources.views_folder"
        )

    def _pause(self, problem: str) -> None:
        if not self.problem:
            log.warning("%s", problem)
        self._problem, self._again = problem, time.monotonic() + _PAUSE


def _write(path: Path, arrays: Arrays) -> None:
    columns, forms = [], dict[str, dict[str, Any]]()
    for name, array in arrays.items():
        width = array.nbytes // len(array)
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)]))
        forms[name] = {"dtype": array.dtype.str, "shape": array.shape, "checksum": checksum(array)}
    metadata = {"guidino_tune": json.dumps({"format": FORMAT, "arrays": forms})}
    batch = pa.record_batch(columns, names=list(arrays))
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, batch.schema.with_metadata(metadata)) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> Arrays | None:
    """The arrays of a file, mapped; ``None`` when there is none, or none that is whole and as it was written.

    The content is read for this once in a process, when the file is first opened; whoever opens a chunk needs it in memory anyway.
    """
    try:
        seal = seal_of(path)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        form = json.loads((reader.schema.metadata or {})[b"guidino_tune"])
        if form["format"] != FORMAT:
            return None
        batch = reader.get_batch(0)
        found = {
            name: np.frombuffer(column.buffers()[1], dtype=of["dtype"]).reshape(of["shape"])
            for (name, of), column in zip(form["arrays"].items(), batch.columns, strict=True)
        }
        if seal not in SOUND:
            if any(checksum(array) != form["arrays"][name]["checksum"] for name, array in found.items()):
                log.warning("%s is damaged, and made again", path)
                return None
            SOUND.add(seal)
        return found
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError):
        return None
