"""What ``predict`` wrote, and how it is known: predictions and their overlays are no truth, and no images to train on."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from pathlib import Path

MASKS, OVERLAYS = "masks", "overlays"
"""Folders of an output of ``predict``."""

MARK = "guidino_tune predict"
"""In a PNG the key of a text whose value is the digest of the pixels; in a NIfTI file (``descrip``) and a DICOM file
(``DerivationDescription``) the words before the digest of the file. So one that was edited is known too."""

NIFTI, DICOM = ".nii.gz", ".dcm"
"""Endings of masks that are no PNG."""

UNSIGNED = f"{MARK} {'0' * 40}".encode("ascii")
"""Stands where the mark will be: see ``sign``."""

_SIGNED = re.compile(MARK.encode("ascii") + rb" ([0-9a-f]{40})")
_HEAD = {NIFTI: 540, DICOM: 8192}  # bytes in which the mark lies, when it is there


def mark_in(file: Path) -> str | None:
    """The digest in a file of ``predict``; ``None`` in any other. Only the header is read."""
    end = next((end for end in _HEAD if file.name.endswith(end)), "")
    if end:
        try:
            with gzip.open(file) if end == NIFTI else open(file, "rb") as opened:
                found = _SIGNED.search(opened.read(_HEAD[end]))
        except (OSError, EOFError, zlib.error):  # cut short, or not what its name says
            return None
        return found[1].decode("ascii") if found else None
    if file.suffix != ".png":
        return None
    from PIL import Image  # to list a data set needs no decoder

    try:
        with Image.open(file) as picture:
            return picture.info.get(MARK)
    except Exception:  # damaged: Pillow's decoders raise whatever comes
        return None


def sign(content: bytes) -> bytes:
    """The content of a file, not compressed, in which ``UNSIGNED`` has become the mark."""
    return content.replace(UNSIGNED, f"{MARK} {_digest(content)}".encode("ascii"), 1)


def is_signed(file: Path) -> bool:
    """Whether a NIfTI or DICOM file has the content that ``sign`` gave, and nobody has changed it since."""
    try:
        with gzip.open(file) if file.name.endswith(NIFTI) else open(file, "rb") as opened:
            content = opened.read()
    except (OSError, EOFError, zlib.error):
        return False
    found = _SIGNED.search(content)
    return found is not None and _digest(content.replace(found[0], UNSIGNED, 1)) == found[1].decode("ascii")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:40]
