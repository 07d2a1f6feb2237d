"""Patches at the images' own scale, as nnU-Net trains (Isensee et al., Nature Methods 2021, supplement 4)."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor
from torch.nn import functional

from guidino_tune.config.data import IGNORED

MARGIN = 1.5
"""Side of what is cut out for an augmentation, as a multiple of the patch: rotating and shrinking shows what lies beside it."""


def cut_patch(
    image: Tensor, mask: Tensor, size: int, foreground: float, rng: np.random.Generator, *, margin: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draws a window.

    With the given chance its centre is a pixel of the foreground (of a class drawn first, each as likely as the others that are there),
    else the window lies anywhere in the image. Of an image that is smaller than the window all is taken.

    Args:
        image: (C, H, W), normalised.
        mask: (1, H, W).
        size: Side of the patch.
        foreground: Chance, from 0 to 1.
        rng: Two equal ones draw the same window.
        margin: The window has ``size * margin`` pixels a side, with the patch in its middle.

    Returns:
        (C, L, L) and (1, L, L) with L ``ceil(size * margin)``; beyond the image zeros (its mean colour, and background).
    """
    height, width = mask.shape[1:]
    at = _on_foreground(mask, rng) if rng.random() < foreground else None
    if at is None:
        at = _anywhere(height, size, rng), _anywhere(width, size, rng)
    else:  # so that no more lies beyond the image than must
        at = _within(at[0], height, size), _within(at[1], width, size)
    side = math.ceil(size * margin)
    top, left = at[0] - side // 2, at[1] - side // 2
    pads = [max(0, -left), max(0, left + side - width), max(0, -top), max(0, top + side - height)]
    rows, columns = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    return functional.pad(image[:, rows, columns], pads), functional.pad(mask[:, rows, columns], pads)


def _on_foreground(mask: Tensor, rng: np.random.Generator) -> tuple[int, int] | None:
    labels = mask[0].numpy()
    present = [value for value in np.unique(labels) if value not in (0, IGNORED)]
    if not present:
        return None
    rows, columns = np.nonzero(labels == present[rng.integers(len(present))])
    index = rng.integers(len(rows))
    return int(rows[index]), int(columns[index])


def centre(maps: Tensor, size: int) -> Tensor:
    """The patch in the middle of what ``cut_patch`` gave with a margin: (..., L, L) to (..., size, size)."""
    start = maps.shape[-1] // 2 - size // 2
    return maps[..., start : start + size, start : start + size]


def _anywhere(side: int, size: int, rng: np.random.Generator) -> int:
    """The middle of a window that lies within the image, or of the image where it is smaller."""
    return side // 2 if side <= size else size // 2 + int(rng.integers(side - size + 1))


def _within(place: int, side: int, size: int) -> int:
    return side // 2 if side <= size else min(max(place, size // 2), side - size + size // 2)
