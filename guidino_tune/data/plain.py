"""Files that are little more than numbers: PGM and PPM (Netpbm), and NumPy's ``.npy``."""

from __future__ import annotations

import io
import re

import numpy as np

from guidino_tune.data.raw import Raw, Refused, Values, check_size, several

NETPBM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
NUMPY = b"\x93NUMPY"

_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])"
_HEADERS = {more: re.compile(rb"P[1-6]" + (_SPACE + rb"+(\d{1,9})") * (3 if more else 2) + _SPACE) for more in (False, True)}
_FEW = 4  # times as long as the channels' axis must the others be


def read_netpbm(content: bytes) -> Raw:
    """Decodes PBM, PGM and PPM, binary or written out, of up to 16 bits. Pillow would scale them to the whole of 8 or 16 bits.

    In a bitmap (PBM) 1 is ink: it is turned, so that 0 is black as everywhere else.
    """
    kind = int(content[1:2])
    head = _HEADERS[kind not in (1, 4)].match(content)
    if head is None:
        raise Refused("cannot be decoded: its header is no one of PBM, PGM or PPM")
    width, height, *rest = (int(number) for number in head.groups())
    white = rest[0] if rest else 1
    if not 0 < white < 65536:
        raise Refused(f"cannot be decoded: its largest number would be {white}")
    count = 3 if kind in (3, 6) else 1
    check_size(width, height, count * (2 if white > 255 else 1))
    body = content[head.end() :]
    number = width * height * count
    if kind > 3:
        values, rest_of_it = _binary(body, kind, width, height, number, white)
    else:
        values, rest_of_it = _written(body, kind, number), b""
    if len(values) < number:
        raise Refused(f"is cut short: {len(values)} of {number} numbers are there")
    if rest_of_it.lstrip()[:2] in NETPBM:
        raise several(1 + len(re.findall(rb"P[1-6]\s", rest_of_it)), "pictures or more")
    values = values[:number].reshape(height, width, count)
    if values.max(initial=0) > white:
        raise Refused(f"cannot be decoded: it holds {values.max()}, and says that {white} is its largest number")
    return Raw((1 - values if kind in (1, 4) else values).astype(np.uint16 if white > 255 else np.uint8), white)


def _binary(body: bytes, kind: int, width: int, height: int, number: int, white: int) -> tuple[Values, bytes]:
    if kind == 4:
        row = (width + 7) // 8
        bits = np.frombuffer(body[: row * height], np.uint8)
        whole = len(bits) // row
        return np.unpackbits(bits[: whole * row].reshape(whole, row), axis=1)[:, :width].reshape(-1), body[row * height :]
    kind_of_number = np.dtype(">u2" if white > 255 else "u1")
    length = min(len(body) // kind_of_number.itemsize, number) * kind_of_number.itemsize
    return np.frombuffer(body[:length], kind_of_number), body[length:]


def _written(body: bytes, kind: int, number: int) -> Values:
    body = re.sub(rb"#[^\r\n]*", b" ", body)
    if kind == 1:  # in which numbers need no space between them
        values = np.frombuffer(body.translate(None, b" \t\r\n\v\f")[:number], np.uint8).astype(np.int64) - ord("0")
    else:
        words = body.split()[:number]
        if any(len(word) > 5 or not word.isdigit() for word in words):
            raise Refused("cannot be decoded: what should be a number is none")
        values = np.array([int(word) for word in words], np.int64)
    if (values < 0).any():
        raise Refused("cannot be decoded: what should be a number is none")
    return values


def read_numpy(content: bytes) -> Raw:
    """Decodes ``.npy``: (H, W), (H, W, C) or (C, H, W), of real numbers.

    The channels are the first or the last axis, whichever is the shorter one, and it must be less than a quarter of the two others: a
    file in which that does not hold could be either, and is refused.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise Refused(f"cannot be decoded: its format {version} is not known")
    shape, _, kind = read(file)
    if kind.kind not in "buif":
        raise Refused(f"holds {kind}, which are no real numbers", "save real numbers without pickle: np.save(path, array)")
    if len(shape) not in (2, 3):
        raise Refused(f"has the shape {shape}, and an image is (H, W), (H, W, C) or (C, H, W)", "save one image per file")
    axis = _channels_axis(shape)
    height, width = (size for index, size in enumerate(shape) if index != axis)
    check_size(width, height, kind.itemsize * (shape[axis] if axis is not None else 1))
    values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    values = values[..., None] if axis is None else np.moveaxis(values, axis, -1)
    values = values.astype(np.uint8 if kind.kind == "b" else kind.newbyteorder("="), copy=False)
    white = 1 if kind.kind == "b" else int(np.iinfo(values.dtype).max) if kind.kind == "u" else 0
    return Raw(np.ascontiguousarray(values), white)


def _channels_axis(shape: tuple[int, ...]) -> int | None:
    if len(shape) == 2:
        return None
    for axis, others in ((2, (shape[0], shape[1])), (0, (shape[1], shape[2]))):
        if 0 < shape[axis] * _FEW < min(others):
            return axis
    raise Refused(
        f"has the shape {shape}, in which the axis of the channels is not known",
        "save it as (H, W, C) or (C, H, W) with C less than a quarter of H and W, or as a PNG or TIFF",
    )
