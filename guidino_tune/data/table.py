"""Decoded cases in one Arrow file that all processes of a node map into memory: each image is decoded and resized once."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from guidino_tune.config.data import IGNORED, Data
from guidino_tune.data.cases import Case, stable_hash
from guidino_tune.data.checksums import SOUND, checksum, seal_of
from guidino_tune.data.decoding import read_case_and_digest
from guidino_tune.data.files import slice_of
from guidino_tune.data.labels import Mask
from guidino_tune.data.locking import locked
from guidino_tune.data.rules import Rules
from guidino_tune.errors import UserError
from guidino_tune.framing import Array, cut, frame, place, place_mask, round_trip_dice

log = logging.getLogger(__name__)

FORMAT = 3
"""Raised whenever the file's layout or the way of decoding or resizing changes: old files are then passed over."""

_THREADS = 4  # Pillow decodes without the interpreter lock; more threads gain little and hold more large images at once
_BATCH_BYTES = 32 * 2**20
_NATIVE = 4  # cases of a batch that keeps their own size
_CEILINGS = 60  # cases of which it is measured what resizing takes from their mask

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all)."""


class CaseTable:
    """Decoded cases, in the order of their ids. Nothing is read before it is asked for; arrays are read-only views of the file.

    Args:
        path: A file that ``build_table`` wrote.
        rows: Only these rows; by default every case that could be decoded.

    Attributes:
        size: Side of the images in pixels; of native ones that of the patches.
        native: Images and masks have the size of their files (``data.view`` ``patch``).

    Raises:
        pyarrow.ArrowInvalid: The file is none of ours or not whole.
    """

    def __init__(self, path: Path, rows: Sequence[int] | None = None) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        form = json.loads((reader.schema.metadata or {}).get(b"guidino_tune", b"{}"))
        if form.get("format") != FORMAT:
            raise pa.ArrowInvalid(f"{path} is no table of format {FORMAT}")
        self.path, self._form = path, form
        self.size: int = form["image_size"]
        self.num_classes: int = form["num_classes"]
        self.channels: int = form["channels"]
        self.native: bool = form["view"] == "patch"
        columns = reader.schema.names
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        small = pa.Table.from_batches(batches).select([name for name in columns if name not in ("image", "mask")])
        small.validate(full=True)  # of a damaged file, or it may be read beyond its end
        self._columns: dict[str, list[Any]] = small.to_pydict()
        self._images, self._masks = (_Pixels([batch.column(columns.index(name)) for batch in batches]) for name in ("image", "mask"))
        problems = self._columns["problem"]
        self.skipped: tuple[str, ...] = tuple(text for text in problems if text)
        self._rows = tuple(rows) if rows is not None else tuple(row for row, text in enumerate(problems) if not text)

    @property
    def rows(self) -> tuple[int, ...]:
        """Of the file at ``path``; both together make the same table in another process."""
        return self._rows

    def __reduce__(self) -> tuple[Any, ...]:
        return CaseTable, (self.path, self._rows)

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

    def image(self, i: int) -> Array:
        """The image: uint8, or uint16 of which 65535 is white; (S, S, C), or (H, W, C) of a native one; a read-only view."""
        row = self._rows[i]
        kind = np.uint16 if self._columns["deep"][row] else np.uint8
        return self._images[row].view(kind).reshape(*self._shape(row), self.channels)

    def mask(self, i: int) -> Mask:
        """The mask: uint8 (S, S), or (H, W) of a native one; 0 to ``num_classes``, and ``IGNORED``; a read-only view."""
        row = self._rows[i]
        return self._masks[row].reshape(self._shape(row))

    def original_size(self, i: int) -> tuple[int, int]:
        """Height and width in the file, in pixels."""
        row = self._rows[i]
        return self._columns["height"][row], self._columns["width"][row]

    @cached_property
    def foreground(self) -> Array:
        """Share of foreground in each mask (N,), float64."""
        return np.array([self._columns["foreground"][row] for row in self._rows])

    def check(self, ids: Sequence[str]) -> None:
        """Compares every case with the checksum that it was written with; to a file, this is to read it once.

        Args:
            ids: Of all its cases, also of those that could not be decoded, in the order of the rows.

        Raises:
            ValueError: The file is not as it was written.
        """
        if self._columns["id"] != list(ids):
            raise ValueError("it holds other cases")
        form = json.dumps(self._form)
        for row, written in enumerate(self._columns["checksum"]):
            values = {name: column[row] for name, column in self._columns.items()}
            if _checksum(values, form, self._images[row], self._masks[row]) != written:
                raise ValueError(f"case {ids[row]} is not as it was written")

    @property
    def ceiling(self) -> float:
        """Mean Dice, at their own size, of masks that went through ``size``, to themselves: no network scores higher (a sample of cases).

        NaN where nothing was resized.
        """
        known = [value for row in self._rows if not np.isnan(value := self._columns["ceiling"][row])]
        return float(np.mean(known)) if known else float("nan")

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits of the ids, the files' contents and how they were read and resized: equal wherever the data are equal."""
        digest = hashlib.sha256(json.dumps(self._form, sort_keys=True).encode())
        for name, content in sorted((self._columns["id"][row], self._columns["digest"][row]) for row in self._rows):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()

    def subset(self, ids: Iterable[str]) -> CaseTable:
        """A view of these cases, in the given order.

        Raises:
            KeyError: An id is not in the table.
        """
        return CaseTable(self.path, [self._rows[self.positions[name]] for name in ids])

    def _shape(self, row: int) -> tuple[int, int]:
        return (self._columns["height"][row], self._columns["width"][row]) if self.native else (self.size, self.size)


class _Pixels:
    """A column of bytes over all batches; each row is a view of the mapped file."""

    def __init__(self, columns: Sequence[Any]) -> None:
        self._per_batch = len(columns[0])
        self._parts: list[tuple[Array, Array]] = []
        for column in columns:
            _, offsets, content = column.buffers()
            starts = np.frombuffer(offsets, np.int64, len(column) + 1, column.offset * 8)
            self._parts.append((starts, np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)))

    def __getitem__(self, row: int) -> Array:
        batch, index = divmod(row, self._per_batch)
        starts, content = self._parts[batch]
        view: Array = content[starts[index] : starts[index + 1]]
        return view


def build_table(cases: Iterable[Case], data: Data, rules: Rules, folder: Path, progress: Progress | None = None) -> CaseTable:
    """Opens the table of these cases, building it first if it is not in ``folder``.

    The file's name is a hash of every file's path, length and time of change, the rules, and the settings of ``data`` that count here:
    looking at contents instead would read gigabytes before every trial. The contents are hashed while they are decoded, and that is what
    ``fingerprint`` tells, so it is the same on every machine. Processes that want the same table at once wait for the first (where the
    file system has no locks, they build it twice, with the same result); it appears under its name only when it is whole.

    Args:
        cases: At least one.
        data: How images are resized (bilinear, antialiased) and masks with them. ``bad_cases``: ``error`` raises for the first case that
            cannot be decoded, ``skip`` leaves it out and lists it in ``skipped``.
        rules: How files are read.
        folder: The cache; made if missing.
        progress: Told how many cases are done, while building.

    Raises:
        UserError: A case cannot be decoded, or none can, or the cache cannot be written.
    """
    cases = sorted(cases, key=lambda case: case.id)
    if not cases:
        raise UserError("there are no cases to decode", where="data")
    form = {
        "format": FORMAT,
        **{name: getattr(data, name) for name in ("image_size", "num_classes", "channels", "resize", "mask_resize", "view")},
        "rules": rules.key,
    }
    path = folder / f"cases-{data.image_size}-{_key(cases, form)}.arrow"
    ids = [case.id for case in cases]
    table = _opened(path, ids)
    if table is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock"), patience=math.inf) as held:
                table = _opened(path, ids)
                if table is None:
                    if held == "alone":  # then whoever left these was killed
                        for leftover in folder.glob(f".{path.name}.*.tmp"):
                            leftover.unlink(missing_ok=True)
                    _write(cases, data, rules, form, path, progress)
                    table = CaseTable(path)
        except OSError as error:
            todo = "free some space there" if error.errno == errno.ENOSPC else "make it writable"
            raise UserError(
                f"cannot write the cache of decoded cases: {error.strerror or error}",
                where=str(folder),
                todo=f"{todo}, or set GUIDINO_TUNE_HOME to another place",
            ) from None
    if table.skipped and data.bad_cases == "error":
        raise UserError(table.skipped[0], todo="restore the file, or set data.bad_cases=skip")
    if not len(table):
        raise UserError(f"none of {len(cases)} cases can be decoded; the first: {table.skipped[0]}", todo="check data.root")
    return table


def _key(cases: list[Case], form: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(form, sort_keys=True).encode())
    for case in cases:
        for path in (*case.images, *case.masks):
            try:
                stat = slice_of(path)[0].stat()
                state = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                state = "missing"  # decoding tells it in full
            digest.update(f"\0{case.id}\0{path.absolute()}\0{state}".encode())
    return digest.hexdigest()[:32]


def _opened(path: Path, ids: Sequence[str]) -> CaseTable | None:
    """The table in a file, if it is whole and as it was written; the content is read for this once in a process."""
    if not path.exists():
        return None
    try:
        seal = seal_of(path)
        table = CaseTable(path)
        if seal not in SOUND:
            table.check(ids)
            SOUND.add(seal)
        return table
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        log.warning("%s is damaged, and made again (%s)", path, error)
        return None


_COLUMNS = {
    "id": pa.string(),
    "height": pa.int32(),
    "width": pa.int32(),
    "deep": pa.bool_(),  # two bytes a value
    "digest": pa.binary(32),
    "foreground": pa.float64(),
    "ceiling": pa.float64(),
    "problem": pa.string(),  # why the case could not be decoded; it has no pixels then
    "checksum": pa.uint32(),  # of all the other columns
    "image": pa.large_binary(),
    "mask": pa.large_binary(),
}


def _checksum(row: Mapping[str, Any], form: str, image: Array, mask: Array) -> int:
    """Of a row, and of what the file says of all of them."""
    small = [row["id"], row["height"], row["width"], bool(row["deep"]), row["digest"].hex(), float(row["foreground"]), row["ceiling"]]
    return checksum(mask, checksum(image, zlib.crc32(json.dumps([*small, row["problem"], form]).encode())))


def _write(cases: list[Case], data: Data, rules: Rules, form: dict[str, Any], path: Path, progress: Progress | None) -> None:
    text = json.dumps(form)
    schema = pa.schema(list(_COLUMNS.items()), metadata={"guidino_tune": text})
    per_batch = _NATIVE if data.view == "patch" else max(1, min(64, _BATCH_BYTES // (data.image_size**2 * (data.channels + 1))))
    measured = set(sorted((case.id for case in cases), key=lambda name: (stable_hash("ceiling", name), name))[:_CEILINGS])
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    done = 0
    try:
        with open(temporary, "wb") as file, ThreadPoolExecutor(_THREADS) as threads:
            with pa.ipc.new_file(file, schema) as writer:
                for start in range(0, len(cases), per_batch):
                    part = cases[start : start + per_batch]
                    jobs = [threads.submit(_row, case, data, rules, case.id in measured) for case in part]
                    rows = []
                    try:
                        for job in jobs:
                            row = job.result()
                            image, mask = (np.frombuffer(row[name], np.uint8) for name in ("image", "mask"))
                            rows.append(row | {"checksum": _checksum(row, text, image, mask)})
                            done += 1
                            if progress:
                                progress(done, len(cases))
                    finally:
                        for job in jobs:
                            job.cancel()  # after an error the rest need not be decoded
                    arrays = [_column([row[name] for row in rows], kind) for name, kind in _COLUMNS.items()]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind != pa.large_binary():
        return pa.array(values, kind)
    # Joined once: pa.array would copy the pixels again each time that its buffer grows.
    starts = np.cumsum([0, *map(len, values)], dtype=np.int64)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(starts), pa.py_buffer(b"".join(values))])


def _row(case: Case, data: Data, rules: Rules, measured: bool) -> dict[str, Any]:
    try:
        image, mask, digest = read_case_and_digest(case, rules)
    except UserError as error:
        if data.bad_cases != "skip":
            raise
        text = f"{case.id}: {error.where}: {error.what}"
        blank = dict.fromkeys(("height", "width", "deep", "foreground"), 0) | {"deep": False, "ceiling": float("nan")}
        return {"id": case.id, **blank, "digest": bytes(32), "problem": text, "image": b"", "mask": b""}
    (height, width), size, ceiling = mask.shape, data.image_size, float("nan")
    if data.view == "image":
        full = mask
        image, mask = place(image, size, data.resize), place_mask(mask, size, data.resize, data.mask_resize, data.num_classes)
        if measured and max(height, width) > size and full.any():
            ceiling = round_trip_dice(full, cut(mask, frame(height, width, size, data.resize)), data.num_classes)
    return {
        "id": case.id,
        "height": height,
        "width": width,
        "deep": image.dtype == np.uint16,
        "digest": digest,
        "foreground": float(np.count_nonzero((mask != 0) & (mask != IGNORED))) / mask.size,
        "ceiling": ceiling,
        "problem": "",
        "image": image.tobytes(),
        "mask": mask.tobytes(),
    }
