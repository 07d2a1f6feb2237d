"""The objects of a mask: its connected parts, their outlines, and how COCO's files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

Box = tuple[slice, slice]
"""Rows and columns of an image."""


def components(inside: np.ndarray) -> list[tuple[Box, np.ndarray]]:
    """The connected parts (4 neighbours) of a mask (H, W), in reading order: the box around each, and the part within it, bool."""
    from scipy.ndimage import find_objects, label

    numbered, _ = label(inside)
    return [((box[0], box[1]), numbered[box] == number) for number, box in enumerate(find_objects(numbered), 1) if box is not None]


def as_coco(box: Box, part: np.ndarray, shape: tuple[int, int]) -> dict[str, Any]:
    """An object in COCO's words.

    ``segmentation`` holds the outer border as polygons; holes, which COCO's polygons cannot have, are in ``rle`` only: exact, and what
    ``pycocotools.mask.frPyObjects`` takes.

    Args:
        box: Around the object.
        part: The object within it.
        shape: Of the image.
    """
    rows, columns = box
    width, height = columns.stop - columns.start, rows.stop - rows.start
    return {
        "bbox": [columns.start, rows.start, width, height],
        "area": int(part.sum()),
        "iscrowd": 0,
        "segmentation": [[float(x) for point in outline(part, columns.start, rows.start) for x in point]],
        "rle": {"size": list(shape), "counts": run_lengths(box, part, shape)},
    }


def run_lengths(box: Box, part: np.ndarray, shape: tuple[int, int]) -> list[int]:
    """Lengths of runs down the columns of the whole image, of what is outside first; of the image only the box is looked at."""
    rows, columns = box
    height, total = shape[0], shape[0] * shape[1]
    steps = np.diff(part.T.astype(np.int8), axis=1, prepend=0, append=0)  # 1 where a run begins in a column, -1 behind its end
    starts, ends = (
        (columns.start + column) * height + rows.start + row for column, row in (np.nonzero(steps == 1), np.nonzero(steps == -1))
    )
    apart = starts[1:] != ends[:-1]  # a run down to the last row goes on in the first row of the next column
    starts, ends = np.concatenate([starts[:1], starts[1:][apart]]), np.concatenate([ends[:-1][apart], ends[-1:]])
    borders = [0, *np.stack([starts, ends], axis=1).ravel().tolist()]
    return [int(length) for length in np.diff(borders if borders[-1] == total else [*borders, total])]


def outline(part: np.ndarray, left: int, top: int) -> list[tuple[int, int]]:
    """The outer border of a connected part along the edges of its pixels: corners (x, y) in the image, clockwise from the first pixel."""
    padded = np.pad(part, 1)
    row, column = divmod(int(padded.argmax()), padded.shape[1])
    start = x, y = column, row
    dx, dy = 1, 0
    corners = [start]
    while True:
        x, y = x + dx, y + dy
        # The pixels ahead, left and right of the way; the part lies on the right.
        ahead_left = _pixel(padded, x, y, dx, dy, -1)
        ahead_right = _pixel(padded, x, y, dx, dy, 1)
        if not ahead_right:
            turn = (-dy, dx)  # right
        elif ahead_left:
            turn = (dy, -dx)  # left
        else:
            turn = (dx, dy)
        if (x, y) == start and turn == (1, 0):
            break
        if turn != (dx, dy):
            corners.append((x, y))
        dx, dy = turn
    return [(x + left - 1, y + top - 1) for x, y in corners]


def _pixel(padded: np.ndarray, x: int, y: int, dx: int, dy: int, side: int) -> bool:
    """Whether the pixel ahead of a corner, left (-1) or right (1) of the way, is inside."""
    # Right of (dx, dy) is (-dy, dx), for y grows downwards; pixel (i, j) lies right of and below the corner of that number.
    column = x + (dx - side * dy - 1) // 2
    row = y + (dy + side * dx - 1) // 2
    return bool(padded[row, column])
