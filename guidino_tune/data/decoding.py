"""Image files into arrays: RGB images, and masks or label maps, whatever their mode and depth, or a message that names the file."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from guidino_tune.data.cases import Case
from guidino_tune.errors import UserError

MAX_PIXELS = 80_000_000
"""Larger images are refused: a small file may unpack to fill the memory (Pillow itself only warns from 89 million)."""

_MAX_LABEL = 15  # masks that hold no more than 0 to this are numbers of classes, not grey levels

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

_LABELS = ("1", "L", "P", *_DEEP[:-1])  # modes that can hold a label map: one whole number per pixel

_JPEG = b"\xff\xd8\xff"  # how such a file begins

_KINDS = {"RGB": "in colours (RGB)", "RGBA": "in colours (RGBA)", "LA": "grey with transparency", "F": "of fractions (floating point)"}

Bytes = NDArray[np.uint8]


class _TooLarge(Exception):
    """More than ``MAX_PIXELS``."""


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


def read_mask(path: Path, num_classes: int = 1) -> Bytes:
    """Decodes a mask (``num_classes`` 1) or a label map (more).

    A mask is thresholded at half of its value range, so that JPEG ringing around black stays background. The range is 255 for eight bits
    and 65535 for sixteen; a mask that holds nothing but 0 and 1 is taken as it is. RGB becomes luminance; in a palette with colours, entry
    0 is background and every other entry is foreground.

    The values of a label map are taken as they are: grey values of any depth, or the indices of a palette whatever its colours.

    Args:
        path: Of the file.
        num_classes: Foreground classes.

    Returns:
        uint8 of shape (H, W) with values 0 to ``num_classes``.

    Raises:
        UserError: The file is missing, broken, cut short or too large; a mask holds class numbers above 1; a label map holds a value that
            is no class, or is of a kind that cannot hold labels (colours, fractions, JPEG).
    """
    return _mask(_bytes(path), path, num_classes)


def read_case(case: Case, num_classes: int = 1) -> tuple[Bytes, Bytes]:
    """Decodes the image, uint8 (H, W, 3), and the mask, uint8 (H, W) of 0 to ``num_classes``.

    Raises:
        UserError: As ``read_image`` and ``read_mask``, or the two differ in size.
    """
    image, mask, _ = read_case_and_digest(case, num_classes)
    return image, mask


def read_case_and_digest(case: Case, num_classes: int = 1) -> tuple[Bytes, Bytes, bytes]:
    """As ``read_case``, with the SHA-256 (32 bytes) of the two files' contents, from one read of each."""
    image_file, mask_file = _bytes(case.image), _bytes(case.mask)
    image, mask = _image(image_file, case.image), _mask(mask_file, case.mask, num_classes)
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
            raise _TooLarge(f"{picture.width}x{picture.height}")
        picture.load()  # decodes all of it: a file cut short fails here
        return ImageOps.exif_transpose(picture)
    except (_TooLarge, Image.DecompressionBombError) as error:
        raise UserError(
            f"is too large: {error} pixels, and {MAX_PIXELS:,} is the most" if isinstance(error, _TooLarge) else f"is too large: {error}",
            where=str(path),
            todo="make it and its mask smaller (training resizes both to data.image_size anyway), or set data.bad_cases=skip",
        ) from None
    except Exception as error:  # of damaged bytes Pillow's decoders raise whatever comes: IndexError, struct.error, zlib.error, ...
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise UserError(f"cannot be decoded: {reason}", where=str(path), todo="restore the file, or set data.bad_cases=skip") from None


def _image(data: bytes, path: Path) -> Bytes:
    picture = _open(data, path)
    if picture.mode in _DEEP:
        with np.errstate(invalid="ignore"):  # of what is no number, which becomes black
            values = np.asarray(picture, dtype=np.float64)
        largest = float(values.max(initial=0))
        ranges = (1.0,) if picture.mode == "F" else (255.0, 4095.0, 65535.0, largest)
        top = next((top for top in ranges if largest <= top), ranges[-1])
        grey = np.clip(np.nan_to_num(values) / top * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(_converted(picture, "RGB", path))


def _mask(data: bytes, path: Path, num_classes: int) -> Bytes:
    picture = _open(data, path)
    return _binary(picture, path) if num_classes == 1 else _labels(picture, path, num_classes, jpeg=data.startswith(_JPEG))


def _labels(picture: Image.Image, path: Path, num_classes: int, *, jpeg: bool) -> Bytes:
    wrong = ""
    if jpeg:
        wrong = "a JPEG cannot hold labels: its compression changes values along every border"
    elif picture.mode not in _LABELS:
        wrong = f"a label map holds one whole number per pixel, and this file is {_KINDS.get(picture.mode, picture.mode)}"
    else:
        values = np.asarray(picture)
        for value in (int(values.max(initial=0)), int(values.min(initial=0))):
            if not 0 <= value <= num_classes:
                wrong = f"holds the value {value}, but with data.num_classes={num_classes} labels are 0 to {num_classes}"
                break
    if wrong:
        raise UserError(
            wrong,
            where=str(path),
            todo="write label maps as grey or palette PNG or TIFF (0: background; JPEG would blur the labels), "
            "set data.num_classes to the largest label (1 for binary masks), or set data.bad_cases=skip",
        )
    return values.astype(np.uint8)


def _binary(picture: Image.Image, path: Path) -> Bytes:
    if picture.mode == "P" and "transparency" not in picture.info:
        indices = np.asarray(picture)
        palette = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        if (palette != palette[:, :1]).any():
            return (indices > 0).astype(np.uint8)
    values = np.asarray(picture if picture.mode in _DEEP else _converted(picture, "L", path))
    largest = float(values.max(initial=0))
    if 1 < largest <= _MAX_LABEL and picture.mode != "F":
        raise UserError(
            f"holds class numbers up to {largest:.0f}, but data.num_classes is 1 (binary masks)",
            where=str(path),
            todo=f"set data.num_classes={largest:.0f} to tell the classes apart, write masks with 0 for background and 255 for foreground, "
            "or set data.bad_cases=skip",
        )
    if largest <= 1:
        top = 1.0
    elif largest <= 255:
        top = 255.0
    else:
        top = max(65535.0, largest)
    return (values > top / 2).astype(np.uint8)


def _converted(picture: Image.Image, mode: str, path: Path) -> Image.Image:
    try:
        return _without_alpha(picture).convert(mode)
    except ValueError as error:  # such as LAB, in which a TIFF may be
        raise UserError(f"is in colours that cannot be read: {error}", where=str(path), todo="save it in grey or RGB") from None


def _without_alpha(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture
