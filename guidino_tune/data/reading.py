"""Every file of an image or a mask into its numbers, or one message that names the file. No reader is imported before it is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from guidino_tune.data.files import DICOM, VOLUMES, ending, slice_of
from guidino_tune.data.plain import NETPBM, NUMPY, read_netpbm, read_numpy
from guidino_tune.data.rasters import JPEG, JPEG2000, PNG, jpeg_bits, read_jpeg2000, read_picture
from guidino_tune.data.raw import Raw, Refused
from guidino_tune.errors import UserError

DICOM_AT = 128
"""Where ``DICM`` stands in a DICOM file."""

TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""How a TIFF begins; the last two of BigTIFF."""

__all__ = ["Raw", "explained", "is_deep", "lies_otherwise", "read_bytes", "read_raw", "volume_slices"]


def read_bytes(path: Path) -> bytes:
    """The content of a file (of a slice: of its whole volume).

    Raises:
        UserError: It cannot be read.
    """
    try:
        return slice_of(path)[0].read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror or error}", where=str(path), todo="restore the file, or set data.bad_cases=skip"
        ) from None


def read_raw(path: Path, content: bytes | None = None) -> Raw:
    """Decodes one image or mask; what kind of file it is its first bytes tell, not its name.

    Args:
        path: Of the file; ``volume.nii.gz#12`` is slice 12 of a volume.
        content: Of the file, where it has been read already.

    Raises:
        UserError: The file is missing, broken, cut short or too large, holds several pictures, or needs a package that is not installed.
    """
    with explained(str(path)):
        return _decoded(path, content)


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turns whatever decoders raise into a ``UserError`` about this image."""
    try:
        yield
        return
    except Refused as error:
        what, todo = error.what, error.todo
    except UserError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        what, todo = f"is too large: {error}", "make it and its mask smaller, or set data.bad_cases=skip"
    except Exception as error:  # of damaged bytes decoders raise whatever comes: IndexError, struct.error, zlib.error, ...
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        what, todo = f"cannot be decoded: {reason}", "restore the file, or set data.bad_cases=skip"
    raise UserError(what, where=where, todo=todo) from None


def is_deep(path: Path) -> bool:
    """Whether an image has more than 8 bits, a sign or fractions; of the usual formats only the first bytes are read.

    Raises:
        UserError: As ``read_raw``, where these do not tell it.
    """
    file, _ = slice_of(path)
    try:
        if ending(file) in VOLUMES:
            from guidino_tune.data.niftis import nifti_is_deep

            return nifti_is_deep(file)
        with open(path, "rb") as opened:
            head = opened.read(32)
        if head.startswith(PNG) and len(head) > 25:
            return head[24] > 8
        if head.startswith((b"GIF8", b"BM")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            return False
        if head.startswith(JPEG) and (bits := jpeg_bits(path)):
            return bits > 8
        if head.startswith(TIFF):
            from guidino_tune.data.tiffs import tiff_is_deep

            return tiff_is_deep(path)
    except Exception:  # whatever is wrong with it, the next line says it
        pass
    return read_raw(path).deep


def volume_slices(path: Path) -> int:
    """The number of slices of a NIfTI file: 1 of a 2D image. Only its header is read.

    Slices are numbered from 0 along ``niftis.AXIS``, the last axis; ``path#0`` is the first.

    Raises:
        UserError: nibabel is not installed, or the file is broken or has more than three axes.
    """
    from guidino_tune.data.niftis import count_slices

    try:
        return count_slices(path)
    except Refused as error:
        raise UserError(error.what, where=str(path), todo=error.todo) from None


def lies_otherwise(image: Path, mask: Path) -> str:
    """Says how the headers of two NIfTI files differ in orientation; empty where they agree, or where one says nothing.

    Raises:
        UserError: As ``volume_slices``.
    """
    from guidino_tune.data.niftis import orientation

    try:
        one, other = orientation(image), orientation(mask)
    except Refused as error:
        raise UserError(error.what, where=str(image), todo=error.todo) from None
    return f"the axes of {image.name} lead to {one}, those of {mask.name} to {other}" if one and other and one != other else ""


def _decoded(path: Path, content: bytes | None) -> Raw:
    file, number = slice_of(path)
    if ending(file) in VOLUMES:
        from guidino_tune.data.niftis import read_nifti

        return read_nifti(file, read_bytes(path) if content is None and not file.exists() else content, number)
    content = read_bytes(path) if content is None else content
    if content.startswith((JPEG, PNG)):
        return read_picture(content)
    if content.startswith(JPEG2000):
        return read_jpeg2000(content)
    if content.startswith(NETPBM):
        return read_netpbm(content)
    if content.startswith(NUMPY):
        return read_numpy(content)
    if content[DICOM_AT : DICOM_AT + 4] == b"DICM" or ending(file) in DICOM:
        from guidino_tune.data.dicoms import read_dicom

        return read_dicom(content)
    if content.startswith(TIFF):
        from guidino_tune.data.tiffs import read_tiff

        return read_tiff(content)
    return read_picture(content)
