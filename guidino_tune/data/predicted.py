"""What ``predict`` wrote, and how it is known: predictions and their overlays are no truth, and no images to train on."""

from __future__ import annotations

from pathlib import Path

MASKS, OVERLAYS = "masks", "overlays"
"""Folders of an output of ``predict``."""

MARK = "guidino_tune predict"
"""Key of the text in each PNG that ``predict`` writes; its value is the digest of the pixels, so that one that was edited is known too."""


def mark_in(file: Path) -> str | None:
    """The digest in a file of ``predict``; ``None`` in any other. Only the header is read."""
    if file.suffix != ".png":
        return None
    from PIL import Image  # to list a data set needs no decoder

    try:
        with Image.open(file) as picture:
            return picture.info.get(MARK)
    except Exception:  # damaged: Pillow's decoders raise whatever comes
        return None
