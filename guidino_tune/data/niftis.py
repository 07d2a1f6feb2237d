"""NIfTI files through nibabel: the optional extra ``guidino-tune[nifti]``. A 2D image, or one slice of a volume."""

from __future__ import annotations

import gzip
import io
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from guidino_tune.data.raw import Raw, Refused, Values, check_size

AXIS = 2
"""The axis of a volume along which its slices are numbered, from 0: the last one. Files are not turned by their affine: rows of a slice
run along the second axis and its columns along the first, as ITK writes pictures."""

_EXTRA = "pip install 'guidino-tune[nifti]'"
_KEPT = 2  # volumes that were read last, in any case: slices of one follow each other
_KEPT_BYTES = 2**29  # and more of them as long as they take no more: an image of several files has a slice in each
_MAX_VOXELS = 2**30
_ZIPPED, _HEAD = b"\x1f\x8b", 540  # how gzip begins; bytes of the longest header

_volumes: OrderedDict[tuple[str, int, int], tuple[Values, float, float]] = OrderedDict()
_lock = threading.Lock()


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise Refused("is a NIfTI file, and the package that reads them is not installed", _EXTRA) from None
    return nibabel


def read_nifti(path: Path, content: bytes | None, number: int | None) -> Raw:
    """Decodes a 2D image, or slice ``number`` of a volume; the scale of the header (``scl_slope``) is applied.

    Raises:
        Refused: nibabel is not installed, the file is none of NIfTI, has no such slice or more than three axes.
    """
    values, slope, intercept = _volume(path, content)
    shape = _shape(values.shape)
    if len(shape) == 2:
        if number not in (None, 0):
            raise Refused(f"has no slice {number}: it is one image of {shape[0]}x{shape[1]} pixels")
        plane = values.reshape(shape, order="F").T
    else:
        if number is None:
            raise Refused(
                f"is a volume of {shape[AXIS]} slices, and which of them is meant is not known",
                f"name one, from 0 to {shape[AXIS] - 1}, such as {path.name}#{shape[AXIS] // 2}",
            )
        if number >= shape[AXIS]:
            raise Refused(
                f"has no slice {number}: it has {shape[AXIS]}, numbered from 0", "name one that it has, or set data.bad_cases=skip"
            )
        plane = np.take(values.reshape(shape, order="F"), number, axis=AXIS).T
    if (slope, intercept) != (1.0, 0.0):
        plane = (plane.astype(np.float64) * slope + intercept).astype(np.float32)
    plane = np.ascontiguousarray(plane)[..., None]
    return Raw(plane, int(np.iinfo(plane.dtype).max) if plane.dtype.kind == "u" else 0)


def count_slices(path: Path) -> int:
    """Number of slices of a volume, 1 for a 2D image; only the header is read.

    Raises:
        Refused: As ``read_nifti``.
    """
    shape = _shape(header_of(path).get_data_shape())
    return 1 if len(shape) == 2 else int(shape[AXIS])


def header_of(path: Path) -> Any:
    """The header of a file, as nibabel's object; whether it is zipped its first bytes tell, not its name.

    Raises:
        Refused: nibabel is not installed, or the file is none of NIfTI.
    """
    _nibabel()
    try:
        with open(path, "rb") as opened:
            zipped = opened.read(len(_ZIPPED)) == _ZIPPED
        with gzip.open(path) if zipped else open(path, "rb") as opened:
            head = opened.read(_HEAD)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return _header(head)


def orientation(path: Path) -> str:
    """Where the axes of a file lead, by its header, such as ``LPS``; empty where it does not say, or says what programs write without
    knowing (the unit matrix).

    Raises:
        Refused: As ``count_slices``.
    """
    header = header_of(path)
    try:
        affine = header.get_best_affine()
        oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        if not oriented or np.array_equal(affine, np.eye(4)):
            return ""
        return "".join(str(code) for code in _nibabel().aff2axcodes(affine))
    except Exception as error:
        raise Refused(f"cannot be decoded: {error or type(error).__name__}") from None


def nifti_is_deep(path: Path) -> bool:
    """Whether ``read_nifti`` would give more than 8 bits, from the header."""
    header = header_of(path)
    return bool(header.get_data_dtype() != np.uint8 or header.get_slope_inter() not in ((None, None), (1.0, 0.0)))


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without trailing axes of 1; a volume of one slice is a 2D image."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 3 and 1 in shape[:AXIS]:
        raise Refused(
            f"has the shape {'x'.join(map(str, shape))}: its {shape[AXIS]} slices along the last axis would be lines of pixels",
            "save it with the axis of the slices as the last one, or set data.bad_cases=skip",
        )
    if len(shape) not in (2, 3):
        raise Refused(
            f"has the shape {'x'.join(map(str, shape))}, and an image has two axes, a volume three",
            "save each time or channel as a file of its own, or set data.bad_cases=skip",
        )
    return shape


def _volume(path: Path, content: bytes | None) -> tuple[Values, float, float]:
    """The stored numbers, slope and intercept, of the volumes that were read last."""
    state = path.stat()
    key = (str(path), state.st_size, state.st_mtime_ns)
    with _lock:  # those who wait want the same one
        if key in _volumes:
            _volumes.move_to_end(key)
            return _volumes[key]
        found = _read(path.read_bytes() if content is None else content)
        if found[0].ndim > 2:
            _volumes[key] = found
            while len(_volumes) > _KEPT and sum(values.nbytes for values, _, _ in _volumes.values()) > _KEPT_BYTES:
                _volumes.popitem(last=False)
        return found


def _header(head: bytes) -> Any:
    library = _nibabel()
    kind = library.Nifti2Image if head[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else library.Nifti1Image
    if head[344:348] not in (b"n+1\0", b"n+1") and kind is library.Nifti1Image:
        raise Refused("cannot be decoded: it is no NIfTI file of one part (.nii, .nii.gz)")
    size = kind.header_class.template_dtype.itemsize
    if len(head) < size:
        raise Refused("is cut short: its header ends too early")
    return kind.header_class(head[:size], check=False)  # extensions, which follow, are none of our business


def _read(content: bytes) -> tuple[Values, float, float]:
    zipped = content.startswith(_ZIPPED)
    header = _header(gzip.GzipFile(fileobj=io.BytesIO(content)).read(_HEAD) if zipped else content[:_HEAD])
    shape = _shape(header.get_data_shape())
    check_size(shape[0], shape[1], header.get_data_dtype().itemsize)
    if int(np.prod(shape)) > _MAX_VOXELS:
        raise Refused(f"is too large: {'x'.join(map(str, shape))} voxels", "save its slices as files, or set data.bad_cases=skip")
    if header.get_data_dtype().kind not in "uif":
        raise Refused(f"holds {header.get_data_dtype()}, which are no real numbers", "save real numbers")
    offset = int(header.get_data_offset())
    needed = offset + int(np.prod(shape)) * header.get_data_dtype().itemsize
    body = gzip.GzipFile(fileobj=io.BytesIO(content)).read(needed) if zipped else content[:needed]
    if len(body) < needed:
        raise Refused("is cut short: some of its pixels are not there")
    stored = header.get_data_dtype()
    values = np.frombuffer(body, stored, int(np.prod(shape)), offset).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    return values.astype(stored.newbyteorder("="), copy=False), float(1 if slope is None else slope), float(intercept or 0)
