"""What ``predict`` writes beside masks: probabilities, a table of areas, and objects in the form of COCO."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from guidino_tune.analysis.pictures import save_png
from guidino_tune.errors import UserError
from guidino_tune.inference import ImagePrediction
from guidino_tune.training.folder import write_text
from guidino_tune.workflows.prediction_files import is_own, mark_of, png
from guidino_tune.workflows.prediction_objects import as_coco, components

PROBABILITIES = "probabilities"
"""Folder beside the masks."""

COLUMNS = ("image", "width", "height", "label", "class", "pixels", "share", "objects", "largest", "mean_probability")

_NUMBERS = ("label", "pixels", "share", "objects", "largest", "mean_probability")

MADE_BY = "guidino-tune predict"


@dataclass(slots=True)
class Measured:
    """What one image gave.

    Attributes:
        image: Its ``file_name``, ``width`` and ``height``, as in COCO's files.
        rows: Of the table, one for each class.
        objects: Annotations in the form of COCO, without numbers.
    """

    image: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)


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
    _found: dict[str, Measured] = field(default_factory=dict)

    @property
    def measures(self) -> bool:
        """Whether objects and areas are wanted."""
        return self.table is not None or self.objects is not None

    def check(self, names: Iterable[Path]) -> None:
        """Refuses to replace what ``predict`` did not write. Nothing is changed.

        Raises:
            UserError: Names the file.
        """
        if self.table is not None and self.table == self.objects:
            raise UserError("are one file", where=f"--csv, --polygons {self.table}", todo="give each a name of its own")
        foreign = [file for file in self._pictures(names) if os.path.lexists(file) and not is_own(file)] if self.probabilities else []
        foreign += [file for file in self._files() if os.path.lexists(file) and not _is_ours(file)]
        if foreign:
            raise UserError(
                "predict did not write this file, and would replace it; nothing was changed",
                where=str(foreign[0]),
                todo="choose another name, or move it away",
            )

    def measure(self, image: Path, name: Path, found: ImagePrediction) -> Measured:
        """What an image gave; its probabilities are written. Nothing is kept, so that several threads may do it.

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
        measured = Measured({"file_name": file_name(image, name), "width": width, "height": height})
        if not self.measures:
            return measured
        for label, title in enumerate(self.classes[1:], 1):
            inside = found.mask == label
            parts = components(inside)
            pixels = int(inside.sum())
            mean = float(found.probabilities[label][inside].mean()) if pixels else 0.0
            values = (measured.image["file_name"], width, height, label, title, pixels, round(pixels / inside.size, 6), len(parts))
            largest = max((int(part.sum()) for _, part in parts), default=0)
            measured.rows.append(dict(zip(COLUMNS, (*values, largest, round(mean, 6)), strict=True)))
            if self.objects is not None:
                for box, part in parts:
                    score = float(found.probabilities[label][box][part].mean())
                    measured.objects.append({"category_id": label, "score": round(score, 6)} | as_coco(box, part, (height, width)))
        return measured

    def put(self, measured: Measured) -> None:
        """Keeps what an image gave, in the place of what it gave before."""
        self._found[measured.image["file_name"]] = measured

    def read_back(self, there: Container[str]) -> None:
        """Keeps what an earlier run wrote of these images.

        Args:
            there: As ``file_name`` gives them.

        Raises:
            UserError: A file is not of ``predict``, or damaged.
        """
        self.check(())
        found: dict[str, Measured] = {}
        for file, read in ((self.table, _read_table), (self.objects, _read_objects)):
            if file is None or not file.exists():
                continue
            try:
                for name, measured in read(file).items():
                    kept = found.setdefault(name, Measured(measured.image))
                    kept.rows += measured.rows
                    kept.objects += measured.objects
            except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
                raise UserError(f"cannot be read back: {error}", where=str(file), todo="move it away, or restore it") from None
        self._found |= {name: measured for name, measured in found.items() if name in there}

    def finish(self) -> list[Path]:
        """Writes table and objects, in the order of the images' names; returns what was written."""
        every = [self._found[name] for name in sorted(self._found, key=_place)]
        if self.table is not None:
            text = io.StringIO()
            # Python 3.11 quotes the characters of its own line ends only, and every reader takes another one for an end, too.
            plain, quoted = (csv.DictWriter(text, COLUMNS, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
            plain.writeheader()
            for row in (row for measured in every for row in measured.rows):
                (quoted if "\r" in row["image"] else plain).writerow(row)
            write_text(self.table, text.getvalue())
        if self.objects is not None:
            images = [{"id": number, **measured.image} for number, measured in enumerate(every, 1)]
            found = [{"image_id": number, **one} for number, measured in enumerate(every, 1) for one in measured.objects]
            annotations = [{"id": number, **one} for number, one in enumerate(found, 1)]
            categories = [{"id": label, "name": name} for label, name in enumerate(self.classes) if label]
            values = {"info": {"description": MADE_BY}, "images": images, "categories": categories, "annotations": annotations}
            write_text(self.objects, json.dumps(values) + "\n")
        return self._files()

    def _files(self) -> list[Path]:
        return [file for file in (self.table, self.objects) if file is not None]

    def _pictures(self, names: Iterable[Path]) -> Iterator[Path]:
        labels = range(1, len(self.classes))
        for name in names:
            for label in labels:
                yield self.output / PROBABILITIES / png(name if len(labels) == 1 else name.with_name(f"{name.name}.{label}"))


def file_name(image: Path, name: Path) -> str:
    """What an image is called in table and objects: relative to the folder of images, with its ending.

    Args:
        image: Its file.
        name: Of its mask, as ``find_images`` gives it.
    """
    return name.parent.joinpath(image.name).as_posix()


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


def _place(name: str) -> list[tuple[bool, str]]:
    """Sorts as folders are walked: what lies in a folder before what lies in its sub-folders."""
    path = PurePosixPath(name)
    return [*((True, part) for part in path.parent.parts), (False, path.name)]


def _read_table(file: Path) -> dict[str, Measured]:
    """Strictly: what would be lost, or would stand in a wrong column, when the table is written again is an error.

    Raises:
        ValueError: Names the line.
    """
    found: dict[str, Measured] = {}
    with open(file, encoding="utf-8", newline="") as stream:
        lines = csv.reader(stream, strict=True)
        if (head := tuple(next(lines, ()))) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(head)}, and those of predict {', '.join(COLUMNS)}")
        for values in filter(None, lines):  # a program may have left an empty last line
            try:
                row = dict(zip(COLUMNS, values, strict=True))
                size = {name: int(row[name]) for name in ("width", "height")}
                for name in _NUMBERS:
                    float(row[name])
            except ValueError:
                raise ValueError(f"line {lines.line_num} is damaged") from None
            found.setdefault(row["image"], Measured({"file_name": row["image"], **size})).rows.append(row)
    return found


def _read_objects(file: Path) -> dict[str, Measured]:
    values = json.loads(file.read_text(encoding="utf-8"))
    by_number = {image.pop("id"): Measured(image) for image in values["images"]}
    for one in values["annotations"]:
        del one["id"]
        by_number[one.pop("image_id")].objects.append(one)
    return {measured.image["file_name"]: measured for measured in by_number.values()}


def _is_ours(file: Path) -> bool:
    """Whether it begins as ``Extras.finish`` begins; a note or a script that only speaks of the command is a person's."""
    try:
        with open(file, encoding="utf-8") as stream:
            begin = stream.read(200)
    except (OSError, UnicodeDecodeError):
        return False
    return not file.is_symlink() and begin.startswith((",".join(COLUMNS), json.dumps({"info": {"description": MADE_BY}})[:-1]))
