"""Image files into arrays: RGB images and binary masks, whatever their mode and depth, or a message that names the file."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from guidino_tune.data.cases import Case
from guidino_tune.errors import UserError

MAX_PIXELS = 80_000_000
"""Larger images are refused: a small file may unpack to fill the memory (Pillow itself only warns from 89 million)."""

_MAX_LABEL = 15  # masks that hold no more than 0 to this are numbers of classes, not grey levels

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)  # what Pillow raises

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

Bytes = NDArray[np.uint8]


def read_image(path: Path) -> Bytes:
    """Decodes an image.

    EXIF orientation is applied, grey is repeated to three channels, transparent pixels become black, and more than eight bits are scaled
    down: integers from the smallest of 8, 12 and 16 bits that holds the image (so that 12-bit data in a 16-bit file is not black), floats
    from [0, 1].

    Returns:
        uint8 of shape (H, W, 3), RGB.

    Raises:
        UserError: The file is missing, broken, cut short or too large.
    """
    return _image(_bytes(path), path)


def read_mask(path: Path) -> Bytes:
    """Decodes a mask and thresholds it at half of its value range, so that JPEG ringing around black stays background.

    The range is 255 for eight bits and 65535 for sixteen; a mask that holds nothing but 0 and 1 is taken as it is. RGB becomes luminance;
    in a palette with colours, entry 0 is background and every other entry is foreground.

    Returns:
        uint8 of shape (H, W) with values 0 and 1.

    Raises:
        UserError: The file is missing, broken, cut short or too large, or holds class numbers above 1.
    """
    return _mask(_bytes(path), path)


def read_case(case: Case) -> tuple[Bytes, Bytes]:
    """Decodes the image, uint8 (H, W, 3), and the mask, uint8 (H, W) of 0 and 1.

    Raises:
        UserError: As ``read_image`` and ``read_mask``, or the two differ in size.
    """
    image, mask, _ = read_case_and_digest(case)
    return image, mask


def read_case_and_digest(case: Case) -> tuple[Bytes, Bytes, bytes]:
    """As ``read_case``, with the SHA-256 (32 bytes) of the two files' contents, from one read of each."""
    image_file, mask_file = _bytes(case.image), _bytes(case.mask)
    image, mask = _image(image_file, case.image), _mask(mask_file, case.mask)
    if image.shape[:2] != mask.shape:
        raise UserError(
            f"image and mask differ in size: {case.image.name} is {_size(image)}, {case.mask} is {_size(mask)} pixels",
            where=str(case.image),
            todo="put the right pair there (check their EXIF orientation too), or set data.bad_cases=skip",
        )
    digest = hashlib.sha256(hashlib.sha256(image_file).digest() + hashlib.sha256(mask_file).digest()).digest()
    return image, mask, digest


def _size(array: Bytes) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror or error}", where=str(path), todo="restore the file, or set data.bad_cases=skip"
        ) from None


def _open(data: bytes, path: Path) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width}x{picture.height} pixels are more than {MAX_PIXELS:,}")
        picture.load()  # decodes all of it: a file cut short fails here
        return ImageOps.exif_transpose(picture)
    except _BROKEN as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"cannot be decoded: {reason}", where=str(path), todo="restore the file, or set data.bad_cases=skip") from None


def _image(data: bytes, path: Path) -> Bytes:
    picture = _open(data, path)
    if picture.mode in _DEEP:
        values = np.asarray(picture, dtype=np.float64)
        largest = float(values.max(initial=0))
        ranges = (1.0,) if picture.mode == "F" else (255.0, 4095.0, 65535.0, largest)
        top = next((top for top in ranges if largest <= top), ranges[-1])
        grey = np.clip(np.nan_to_num(values) / top * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(_without_alpha(picture).convert("RGB"))


def _mask(data: bytes, path: Path) -> Bytes:
    picture = _open(data, path)
    if picture.mode == "P" and "transparency" not in picture.info:
        indices = np.asarray(picture)
        palette = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        if (palette != palette[:, :1]).any():
            return (indices > 0).astype(np.uint8)
    values = np.asarray(picture if picture.mode in _DEEP else _without_alpha(picture).convert("L"))
    largest = float(values.max(initial=0))
    if 1 < largest <= _MAX_LABEL and picture.mode != "F":
        raise UserError(
            f"holds class numbers up to {largest:.0f}; a mask is binary",
            where=str(path),
            todo="write masks with 0 for background and 255 for foreground, or set data.bad_cases=skip",
        )
    if largest <= 1:
        top = 1.0
    elif largest <= 255:
        top = 255.0
    else:
        top = max(65535.0, largest)
    return (values > top / 2).astype(np.uint8)


def _without_alpha(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture
