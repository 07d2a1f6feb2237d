"""In which format each mask is written, and under which name: PNG, or the format and geometry of its image (NIfTI, DICOM)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from guidino_tune.analysis.pictures import save_png
from guidino_tune.data.files import DICOM, VOLUMES, ending, slice_of
from guidino_tune.data.predicted import DICOM as DICOM_END
from guidino_tune.data.predicted import NIFTI as NIFTI_END
from guidino_tune.data.reading import volume_slices
from guidino_tune.errors import UserError
from guidino_tune.training.folder import write_bytes
from guidino_tune.workflows.prediction_files import mark_of, png
from guidino_tune.workflows.prediction_volumes import check_package, dicom_mask, nifti_mask

FORMATS = ("png", "auto", "nifti", "dicom")
"""``auto`` is NIfTI for NIfTI files, DICOM for DICOM files, and PNG for all others."""

_NAMES = {"nifti": "NIfTI", "dicom": "DICOM"}


class Target(NamedTuple):
    """A file of a mask, or of the masks of all slices of a volume.

    Attributes:
        kind: ``png``, ``nifti`` or ``dicom``.
        file: Below the folder of masks.
        image: From whose header the geometry is taken; a volume itself, without the number of a slice.
        slices: How many masks the file holds.
        first: Number of the slice that is meant, where a NIfTI file does not hold all slices of its volume.
    """

    kind: str
    file: Path
    image: Path
    slices: int = 1
    first: int | None = None


def plan_masks(names: Mapping[tuple[Path, ...], Path], wanted: str = "png") -> dict[Path, Target]:
    """By name of an image where its mask goes; slices of one volume go into one NIfTI file if all of them are there.

    Args:
        names: As ``by_channels`` gives them.
        wanted: One of ``FORMATS``.

    Raises:
        UserError: There is no such format, its package is not installed, or an image is not of the format that was asked for.
    """
    if wanted not in FORMATS:
        raise UserError(f"there is no format {wanted!r} of masks", where="--masks-as", todo=f"choose {', '.join(FORMATS)}")
    if wanted in _NAMES:
        check_package(wanted)
    counts = Counter(slice_of(files[0])[0] for files in names)
    planned: dict[Path, Target] = {}
    taken: dict[Path, Path] = {}
    for files, name in names.items():
        image, number = slice_of(files[0])
        kind = _kind(image, wanted)
        if kind == "png":
            planned[name] = Target(kind, png(name), image)
        elif kind == "dicom":
            planned[name] = Target(kind, name.with_name(f"{name.name}{DICOM_END}"), image)
        else:
            whole = number is None or counts[image] == volume_slices(image)
            file = name.with_name(f"{name.name if number is None or not whole else name.name.rpartition('#')[0]}{NIFTI_END}")
            if taken.setdefault(file, image) != image:  # a volume and a 2D image that differ only in their ending
                file = name.with_name(f"{image.name}{NIFTI_END}")
            planned[name] = Target(kind, file, image, counts[image] if whole else 1, None if whole else number)
    return planned


def write_mask(target: Target, folder: Path, masks: Sequence[np.ndarray], classes: Sequence[str], made_by: str) -> None:
    """Writes a mask whole or not at all.

    Args:
        target: As planned.
        folder: Of masks.
        masks: Labels (H, W) of each slice.
        classes: Names by label. A PNG of one class has 0 and 255, every other file the labels.
        made_by: See ``dicom_mask``.
    """
    path = folder / target.file
    if target.kind == "nifti":
        write_bytes(path, nifti_mask(target.image, masks, target.first))
    elif target.kind == "dicom":
        write_bytes(path, dicom_mask(target.image, masks[0], classes, made_by))
    else:
        levels = Image.fromarray(masks[0] * np.uint8(255) if len(classes) == 2 else masks[0])
        save_png(levels, path, mark_of(levels))


def _kind(image: Path, wanted: str) -> str:
    own = "nifti" if ending(image) in VOLUMES else "dicom" if ending(image) in DICOM else "png"
    if wanted in ("png", "auto"):
        return own if wanted == "auto" else wanted
    if own != wanted:
        what = f"is no {_NAMES[wanted]} file, and a mask of that format takes its place and size from the header of its image"
        raise UserError(what, where=str(image), todo="choose --masks-as auto, which gives each mask the format of its image, or png")
    return wanted
