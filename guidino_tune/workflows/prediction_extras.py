"""What ``predict`` writes beside masks: probabilities, a table of areas, and objects in the form of COCO."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guidino_tune.analysis.pictures import save_png
from guidino_tune.errors import UserError
from guidino_tune.inference import ImagePrediction
from guidino_tune.training.folder import write_text
from guidino_tune.workflows.prediction_files import is_own, mark_of, png

PROBABILITIES = "probabilities"
"""Folder beside the masks."""

COLUMNS = ("image", "width", "height", "label", "class", "pixels", "share", "objects", "largest", "mean_probability")

MADE_BY = "guidino-tune predict"


@dataclass(slots=True)
class Extras:
    """Collects what images gave, and writes it.

    Attributes:
        classes: Names by label, background first.
        output: Gets the folder ``PROBABILITIES``.
        probabilities: Write the probability of each class as a PNG of 16 bits, 65535 for 1.
        table: CSV file with a line for each image and class.
        objects: JSON file in the form of COCO's instances.
    """

    classes: tuple[str, ...]
    output: Path
    probabilities: bool = False
    table: Path | None = None
    objects: Path | None = None
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _images: list[dict[str, Any]] = field(default_factory=list)
    _annotations: list[dict[str, Any]] = field(default_factory=list)

    def check(self, names: Iterable[Path]) -> None:
        """Refuses to replace what ``predict`` did not write. Nothing is changed.

        Raises:
            UserError: Names the file.
        """
        if self.table is not None and self.table == self.objects:
            raise UserError("are one file", where=f"--csv, --polygons {self.table}", todo="give each a name of its own")
        foreign = [file for file in self._pictures(names) if os.path.lexists(file) and not is_own(file)] if self.probabilities else []
        foreign += [file for file in (self.table, self.objects) if file is not None and os.path.lexists(file) and not _is_ours(file)]
        if foreign:
            raise UserError(
                "predict did not write this file, and would replace it; nothing was changed",
                where=str(foreign[0]),
                todo="choose another name, or move it away",
            )

    def add(self, image: Path, name: Path, found: ImagePrediction) -> None:
        """What an image gave.

        Args:
            image: Its file.
            name: Of its mask, as ``find_images`` gives it.
            found: What the network says.
        """
        height, width = found.mask.shape
        if self.probabilities:
            for label, file in enumerate(self._pictures([name]), 1):
                picture = Image.fromarray(np.rint(found.probabilities[label].clip(0, 1) * 65535).astype(np.uint16))
                save_png(picture, file, mark_of(picture))
        if self.table is None and self.objects is None:
            return
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": name.parent.joinpath(image.name).as_posix(), "width": width, "height": height})
        for label, title in enumerate(self.classes[1:], 1):
            inside = found.mask == label
            parts = components(inside)
            pixels = int(inside.sum())
            mean = float(found.probabilities[label][inside].mean()) if pixels else 0.0
            values = (self._images[-1]["file_name"], width, height, label, title, pixels, round(pixels / inside.size, 6), len(parts))
            largest = max((int(part.sum()) for _, part in parts), default=0)
            self._rows.append(dict(zip(COLUMNS, (*values, largest, round(mean, 6)), strict=True)))
            if self.objects is not None:
                for box, part in parts:
                    score = float(found.probabilities[label][box][part].mean())
                    self._annotations.append(
                        {"id": len(self._annotations) + 1, "image_id": number, "category_id": label, "score": round(score, 6)}
                        | as_coco(box, part, (height, width))
                    )

    def finish(self) -> list[Path]:
        """Writes table and objects; returns what was written."""
        if self.table is not None:
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
            write_text(self.table, text.getvalue())
        if self.objects is not None:
            categories = [{"id": label, "name": name} for label, name in enumerate(self.classes) if label]
            values = {"info": {"description": MADE_BY}, "images": self._images, "categories": categories, "annotations": self._annotations}
            write_text(self.objects, json.dumps(values) + "\n")
        return [file for file in (self.table, self.objects) if file is not None]

    def _pictures(self, names: Iterable[Path]) -> Iterator[Path]:
        labels = range(1, len(self.classes))
        for name in names:
            for label in labels:
                yield self.output / PROBABILITIES / png(name if len(labels) == 1 else name.with_name(f"{name.name}.{label}"))


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
    """Lengths of runs down the columns of the whole image, of what is outside first."""
    whole = np.zeros(shape, bool)
    whole[box] = part
    line = np.concatenate([[False], whole.ravel(order="F"), [not whole[-1, -1]]])
    starts = np.flatnonzero(line[1:] != line[:-1])
    return [int(length) for length in np.diff(np.concatenate([[0], starts]))]


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


def _is_ours(file: Path) -> bool:
    """Whether it begins as ``Extras.finish`` begins; a note or a script that only speaks of the command is a person's."""
    try:
        with open(file, encoding="utf-8") as stream:
            begin = stream.read(200)
    except (OSError, UnicodeDecodeError):
        return False
    return not file.is_symlink() and begin.startswith((",".join(COLUMNS), json.dumps({"info": {"description": MADE_BY}})[:-1]))


def make_extras(classes: tuple[str, ...], output: Path, options: Mapping[str, Any]) -> Extras | None:
    """Those that were asked for; ``None`` where nothing was.

    Args:
        classes: Names by label.
        output: Of the masks.
        options: ``probabilities``, ``csv`` and ``polygons`` of the command.
    """
    table, objects = (Path(value).expanduser() if (value := options.get(name)) else None for name in ("csv", "polygons"))
    if not (options.get("probabilities") or table or objects):
        return None
    return Extras(classes, output, bool(options.get("probabilities")), table, objects)
