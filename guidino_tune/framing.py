"""Where an image lies in the square that a network sees, and how images and masks get there: one geometry for tables and inference."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guidino_tune.config.data import IGNORED

Resize = Literal["squash", "pad"]
MaskResize = Literal["area", "nearest"]
Array = NDArray[Any]
Maps = TypeVar("Maps", bound=Any)  # an array or a tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a square that an image fills: ``height`` rows from ``top``, ``width`` columns from ``left``, in pixels of the square."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Of the square."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Of the square."""
        return slice(self.left, self.left + self.width)


def frame(height: int, width: int, size: int, resize: Resize = "squash") -> Frame:
    """Where an image of that height and width lies in a square of ``size`` pixels a side.

    ``squash``: it fills the square. ``pad``: its longer side does, its aspect ratio is kept (to the nearest pixel, and at least one), and
    it is in the middle; of a margin that cannot be split evenly the end gets the extra pixel.
    """
    if resize == "squash":
        return Frame(0, 0, size, size)
    longer = max(height, width)
    # Halves are rounded up: Python's round() would go to the even number.
    rows, columns = (max(1, (2 * side * size + longer) // (2 * longer)) for side in (height, width))
    return Frame((size - rows) // 2, (size - columns) // 2, rows, columns)


def cut(maps: Maps, place: Frame) -> Maps:
    """What of (..., S, S) lies within the frame: (..., height, width), a view. Arrays and tensors."""
    part: Maps = maps[..., place.rows, place.columns]
    return part


def place(image: Array, size: int, resize: Resize = "squash") -> Array:
    """Resizes an image into the square.

    Args:
        image: (H, W, C), uint8 or uint16.
        size: Side of the square.
        resize: See ``frame``. A margin has the mean colour of the (resized) image, which is as little of an edge as can be.

    Returns:
        (S, S, C) of the image's type.
    """
    box = frame(image.shape[0], image.shape[1], size, resize)
    inner = resize_array(image, (box.height, box.width))
    if (box.height, box.width) == (size, size):
        return inner
    square = np.empty((size, size, image.shape[2]), image.dtype)
    square[:] = np.rint(inner.mean(axis=(0, 1), dtype=np.float64)).astype(image.dtype)
    square[box.rows, box.columns] = inner
    return square


def place_mask(mask: Array, size: int, resize: Resize = "squash", how: MaskResize = "area", num_classes: int = 1) -> Array:
    """Resizes a mask into the square; its margin is ``IGNORED``.

    Args:
        mask: uint8 (H, W), 0 to ``num_classes``, and ``IGNORED``.
        size: Side of the square.
        resize: See ``frame``.
        how: See ``shrink_mask``.
        num_classes: Foreground classes.

    Returns:
        uint8 (S, S).
    """
    box = frame(mask.shape[0], mask.shape[1], size, resize)
    square = np.full((size, size), IGNORED, np.uint8)
    square[box.rows, box.columns] = shrink_mask(mask, (box.height, box.width), how, num_classes)
    return square


def resize_array(array: Array, shape: tuple[int, int]) -> Array:
    """Resizes an image with Pillow's bilinear filter, which antialiases where it makes smaller.

    Args:
        array: (H, W, C), uint8 or uint16, any C.
        shape: New height and width.

    Returns:
        (h, w, C) of the same type. Channels are independent of each other (Pillow's own modes of 2 and 4 take the last for transparency).
        uint16 is computed in float32 and rounded, for Pillow has no mode for it that it resizes.
    """
    if array.shape[:2] == shape:
        return array
    target = (shape[1], shape[0])
    if array.dtype == np.uint8:
        if array.shape[2] == 3:
            return np.asarray(Image.fromarray(array).resize(target, Image.Resampling.BILINEAR))
        return _by_channel(array, lambda channel: Image.fromarray(channel), target).astype(np.uint8)
    if array.dtype != np.uint16:
        raise ValueError(f"an image is uint8 or uint16, not {array.dtype}")
    resized = _by_channel(array, lambda channel: Image.fromarray(channel.astype(np.float32)), target)
    return np.clip(np.rint(resized), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def shrink_mask(mask: Array, shape: tuple[int, int], how: MaskResize = "area", num_classes: int = 1) -> Array:
    """Resizes a mask.

    ``area``: each new pixel becomes what has the largest part of its area, to an exact count. Of equal parts the lowest class wins, then
    the background, then ``IGNORED``: a pixel of a binary mask is foreground where at least half of it is. What is thinner than half a new
    pixel is lost. ``nearest``: what lies at its centre. Where nothing becomes smaller the two are the same.

    Args:
        mask: uint8 (H, W), 0 to ``num_classes``, and ``IGNORED``.
        shape: New height and width.
        how: See above.
        num_classes: Foreground classes.

    Returns:
        uint8 (h, w).
    """
    if mask.shape == shape:
        return mask
    if how == "nearest" or (shape[0] >= mask.shape[0] and shape[1] >= mask.shape[1]):
        return np.asarray(Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST))
    present = [value for value in (*range(1, num_classes + 1), 0, IGNORED) if (mask == value).any()]
    if len(present) == 2:
        first, second = np.array(present, np.uint8)
        return np.where(2 * _areas(mask == first, shape) >= mask.size, first, second)
    best, largest = np.full(shape, present[0], np.uint8), np.full(shape, -1, np.int32)
    rest = np.full(shape, mask.size, np.int32)
    for value in present:
        area = _areas(mask == value, shape) if value != present[-1] else rest
        more = area > largest
        best[more], largest[more] = value, area[more]
        rest = rest - area
    return best


def round_trip_dice(mask: Array, shrunk: Array, num_classes: int = 1) -> float:
    """The best Dice at the mask's own size that a network could get which knows ``shrunk`` by heart.

    ``shrunk`` is enlarged as predictions are: bilinear maps of each class, of which the greatest counts (of one class: above 0.5).

    Args:
        mask: uint8 (H, W), 0 to ``num_classes``, and ``IGNORED``, which is left out.
        shrunk: uint8 (h, w), what became of it; of a padded one what ``cut`` gives.
        num_classes: Foreground classes.

    Returns:
        In [0, 1], the mean over the classes; one that is in neither counts 1.
    """
    target, known = (mask.shape[1], mask.shape[0]), mask != IGNORED
    binary = num_classes == 1 and bool(known.all())  # what is not foreground is background then, which saves half of the work
    best, labels = np.full(mask.shape, 0.5 if binary else 0, np.float32), np.zeros(mask.shape, np.uint8)
    for value in range(1 if binary else 0, num_classes + 1):
        share = np.asarray(Image.fromarray((shrunk == value).astype(np.float32)).resize(target, Image.Resampling.BILINEAR))
        labels[share > best] = value
        best = np.maximum(share, best)
    scores = []
    for value in range(1, num_classes + 1):
        found, truth = (labels == value) & known, mask == value
        both = int(found.sum()) + int(truth.sum())
        scores.append(2 * int((found & truth).sum()) / both if both else 1.0)
    return math.fsum(scores) / num_classes


def viewable(image: Array) -> Array:
    """An image of any depth and number of channels as a person can look at it: uint8 (H, W, 3).

    The first three channels are red, green and blue; of two the first is blue too, and a single one is grey.
    """
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    chosen = {1: [0, 0, 0], 2: [0, 1, 0]}.get(image.shape[2], [0, 1, 2])
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., chosen])


def _by_channel(array: Array, picture: Any, target: tuple[int, int]) -> Array:
    channels = [
        picture(np.ascontiguousarray(array[..., index])).resize(target, Image.Resampling.BILINEAR) for index in range(array.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


def _areas(inside: Array, shape: tuple[int, int]) -> Array:
    """Area of True in each of (h, w) cells, int32, in units of 1 / (h * w) of a pixel: whole numbers, so that one half is one half.

    Pillow's box filter takes whole pixels by their centres, which at 584 to 512 is one or two of them. Sparse matrices, for each cell
    sums a few rows and columns only: ten times as fast as differences of cumulative sums.
    """
    columns = _overlaps(inside.shape[1], shape[1]) @ inside.view(np.uint8).T
    areas: Array = _overlaps(inside.shape[0], shape[0]) @ columns.T
    return areas


@functools.lru_cache(64)
def _overlaps(pixels: int, cells: int) -> Any:
    """How much of each cell each pixel of a line covers, in units of 1 / ``cells`` of a pixel: sparse (``cells``, ``pixels``)."""
    # Not at the top: it takes a quarter of a second, and who asks for help shrinks no mask.
    from scipy import sparse

    borders = np.union1d(np.arange(cells + 1, dtype=np.int64) * pixels, np.arange(pixels + 1, dtype=np.int64) * cells)
    starts, lengths = borders[:-1], np.diff(borders).astype(np.int32)
    return sparse.csr_array((lengths, (starts // pixels, starts // cells)), shape=(cells, pixels))
