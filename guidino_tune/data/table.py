"""Decoded cases in one Arrow file that all processes of a node map into memory: each image is decoded and resized once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from guidino_tune.data.cases import Case
from guidino_tune.data.decoding import Bytes, read_case_and_digest
from guidino_tune.data.locking import locked
from guidino_tune.errors import UserError

FORMAT = 1
"""Raised whenever the file's layout or the way of decoding or resizing changes: old files are then passed over."""

_THREADS = 4  # Pillow decodes without the interpreter lock; more threads gain little and hold more large images at once
_BATCH_BYTES = 32 * 2**20

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all)."""


class CaseTable:
    """Cases of one size, in the order of their ids. Nothing is read before it is asked for; arrays are read-only views of the file.

    Args:
        path: A file that ``build_table`` wrote.
        rows: Only these rows; by default every case that could be decoded.

    Raises:
        pyarrow.ArrowInvalid: The file is none of ours or not whole.
    """

    def __init__(self, path: Path, rows: Sequence[int] | None = None) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = json.loads((reader.schema.metadata or {}).get(b"guidino_tune", b"{}"))
        if metadata.get("format") != FORMAT:
            raise pa.ArrowInvalid(f"{path} is no table of format {FORMAT}")
        self.path = path
        self.size: int = metadata["size"]
        self.num_classes: int = metadata.get("num_classes", 1)
        columns = reader.schema.names
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        small = pa.Table.from_batches(batches).select([name for name in columns if name not in ("image", "mask")])
        self._columns: dict[str, list[Any]] = small.to_pydict()
        self._images: list[Bytes] = [_pixels(batch.column(columns.index("image")), (self.size, self.size, 3)) for batch in batches]
        self._masks: list[Bytes] = [_pixels(batch.column(columns.index("mask")), (self.size, self.size)) for batch in batches]
        self._rows_per_batch = len(self._images[0])
        problems = self._columns["problem"]
        self.skipped: tuple[str, ...] = tuple(text for text in problems if text)
        self._rows = tuple(rows) if rows is not None else tuple(row for row, text in enumerate(problems) if not text)

    def __reduce__(self) -> tuple[Any, ...]:
        return CaseTable, (self.path, self._rows)  # another process maps the same file

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Case ids, in the order of the rows."""
        return tuple(self._columns["id"][row] for row in self._rows)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Case id -> index ``i`` of ``image(i)`` and ``mask(i)``."""
        return {name: index for index, name in enumerate(self.ids)}

    def image(self, i: int) -> Bytes:
        """The resized image: uint8 (S, S, 3), RGB, a read-only view."""
        batch, row = divmod(self._rows[i], self._rows_per_batch)
        view: Bytes = self._images[batch][row]
        return view

    def mask(self, i: int) -> Bytes:
        """The resized mask: uint8 (S, S) of 0 to ``num_classes``, a read-only view."""
        batch, row = divmod(self._rows[i], self._rows_per_batch)
        view: Bytes = self._masks[batch][row]
        return view

    def original_size(self, i: int) -> tuple[int, int]:
        """Height and width in the file, in pixels."""
        row = self._rows[i]
        return self._columns["height"][row], self._columns["width"][row]

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits of the ids, the files' contents, size and number of classes: equal wherever the data are equal."""
        digest = hashlib.sha256(_form(self.size, self.num_classes))
        for name, content in sorted((self._columns["id"][row], self._columns["digest"][row]) for row in self._rows):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()

    def subset(self, ids: Iterable[str]) -> CaseTable:
        """A view of these cases, in the given order.

        Raises:
            KeyError: An id is not in the table.
        """
        return CaseTable(self.path, [self._rows[self.positions[name]] for name in ids])


def build_table(
    cases: Iterable[Case],
    size: int,
    folder: Path,
    on_bad: Literal["error", "skip"] = "error",
    progress: Progress | None = None,
    *,
    num_classes: int = 1,
) -> CaseTable:
    """Opens the table of these cases, building it first if it is not in ``folder``.

    The file's name is a hash of every file's path, length and time of change, the size, the number of classes and the format: looking at
    contents instead would read gigabytes before every trial. The contents are hashed while they are decoded, and that is what
    ``fingerprint`` tells, so it is the same on every machine. Processes that want the same table at once wait for the first (where the
    file system has no locks, they build it twice, with the same result); it appears under its name only when it is whole.

    Args:
        cases: At least one.
        size: Side in pixels; images are resized with bilinear filtering, masks to the nearest pixel, without keeping the aspect.
        folder: The cache; made if missing.
        on_bad: ``error`` raises for the first case that cannot be decoded, ``skip`` leaves it out and lists it in ``skipped``.
        progress: Told how many cases are done, while building.
        num_classes: 1 for binary masks, more for label maps.

    Raises:
        UserError: A case cannot be decoded, or none can, or the cache cannot be written.
    """
    cases = sorted(cases, key=lambda case: case.id)
    if not cases:
        raise UserError("there are no cases to decode", where="data")
    path = folder / f"cases-{size}-{_key(cases, size, num_classes)}.arrow"
    table = _opened(path)
    if table is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")) as held:
                table = _opened(path)
                if table is None:
                    if held == "alone":  # then whoever left these was killed
                        for leftover in folder.glob(f".{path.name}.*.tmp"):
                            leftover.unlink(missing_ok=True)
                    _write(cases, size, num_classes, path, on_bad, progress)
                    table = CaseTable(path)
        except OSError as error:
            todo = "free some space there" if error.errno == errno.ENOSPC else "make it writable"
            raise UserError(
                f"cannot write the cache of decoded cases: {error.strerror or error}",
                where=str(folder),
                todo=f"{todo}, or set GUIDINO_TUNE_HOME to another place",
            ) from None
    if table.skipped and on_bad == "error":
        raise UserError(table.skipped[0], todo="restore the file, or set data.bad_cases=skip")
    if not len(table):
        raise UserError(f"none of {len(cases)} cases can be decoded; the first: {table.skipped[0]}", todo="check data.root")
    return table


def _pixels(column: Any, shape: tuple[int, ...]) -> Bytes:
    count = len(column)
    flat = np.frombuffer(column.buffers()[1], np.uint8, count * int(np.prod(shape)), column.offset * int(np.prod(shape)))
    return flat.reshape(count, *shape)


def _form(size: int, num_classes: int) -> bytes:
    # Binary tables are named and fingerprinted as before there were classes, so that studies of that time go on.
    return f"{FORMAT} {size}{f' {num_classes} classes' if num_classes > 1 else ''}".encode()


def _key(cases: list[Case], size: int, num_classes: int) -> str:
    digest = hashlib.sha256(_form(size, num_classes))
    for case in cases:
        for path in (case.image, case.mask):
            try:
                stat = path.stat()
                state = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                state = "missing"  # decoding tells it in full
            digest.update(f"\0{case.id}\0{path.absolute()}\0{state}".encode())
    return digest.hexdigest()[:32]


def _opened(path: Path) -> CaseTable | None:
    try:
        return CaseTable(path) if path.exists() else None
    except (pa.ArrowInvalid, OSError, ValueError, KeyError):
        return None  # damaged: built again


def _write(cases: list[Case], size: int, num_classes: int, path: Path, on_bad: str, progress: Progress | None) -> None:
    columns = {
        "id": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "digest": pa.binary(32),
        "problem": pa.string(),  # why the case could not be decoded; its pixels are zero
        "image": pa.binary(size * size * 3),
        "mask": pa.binary(size * size),
    }
    form = {"format": FORMAT, "size": size, "num_classes": num_classes}
    schema = pa.schema(list(columns.items()), metadata={"guidino_tune": json.dumps(form)})
    per_batch = max(1, min(64, _BATCH_BYTES // (size * size * 4)))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    done = 0
    try:
        with open(temporary, "wb") as file, ThreadPoolExecutor(_THREADS) as threads:
            with pa.ipc.new_file(file, schema) as writer:
                for start in range(0, len(cases), per_batch):
                    jobs = [threads.submit(_row, case, size, num_classes, on_bad) for case in cases[start : start + per_batch]]
                    rows = []
                    try:
                        for job in jobs:
                            rows.append(job.result())
                            done += 1
                            if progress:
                                progress(done, len(cases))
                    finally:
                        for job in jobs:
                            job.cancel()  # after an error the rest need not be decoded
                    arrays = [pa.array([row[name] for row in rows], kind) for name, kind in columns.items()]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _row(case: Case, size: int, num_classes: int, on_bad: str) -> dict[str, Any]:
    try:
        image, mask, digest = read_case_and_digest(case, num_classes)
    except UserError as error:
        if on_bad != "skip":
            raise
        blank = bytes(size * size * 3)
        text = f"{case.id}: {error.where}: {error.what}"
        return {"id": case.id, "height": 0, "width": 0, "digest": bytes(32), "problem": text, "image": blank, "mask": blank[: size * size]}
    height, width = mask.shape
    picture, shape = Image.fromarray(image), Image.fromarray(mask)
    if (height, width) != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        shape = shape.resize((size, size), Image.Resampling.NEAREST)
    return {
        "id": case.id,
        "height": height,
        "width": width,
        "digest": digest,
        "problem": "",
        "image": picture.tobytes(),
        "mask": shape.tobytes(),
    }
