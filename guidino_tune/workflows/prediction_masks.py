"""In which format each mask is written, and under which name: PNG, or the format and geometry of its image (NIfTI, DICOM)."""

from __future__ import annotations

import contextlib
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
    wholes: dict[Path, Path | None] = {}
    for files, name in names.items():
        image, number = slice_of(files[0])
        kind = _kind(image, wanted)
        if kind == "png":
            planned[name] = Target(kind, png(name), image)
        elif kind == "dicom":
            planned[name] = Target(kind, name.with_name(f"{name.name}{DICOM_END}"), image)
        else:
            if image not in wholes:  # asked once: each time opens the file
                wholes[image] = _whole_name(image, number, name, counts[image])
            whole = wholes[image]
            file = name.with_name(f"{(whole or name).name}{NIFTI_END}")
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

    Raises:
        UserError: The header of the image cannot be copied.
    """
    path = folder / target.file
    if target.kind != "png":
        write_bytes(path, _with_header(target, masks, classes, made_by))
    else:
        levels = Image.fromarray(masks[0] * np.uint8(255) if len(classes) == 2 else masks[0])
        save_png(levels, path, mark_of(levels))


def _whole_name(image: Path, number: int | None, name: Path, slices: int) -> Path | None:
    """What the mask of a whole volume is called, by one of its slices; ``None`` where not all slices are meant."""
    if number is None:
        return name
    with contextlib.suppress(UserError):  # it was moved away meanwhile: that is told when it is read
        if volume_slices(image) != slices:
            return None
    return name.with_name(name.name.rpartition("#")[0])


def _with_header(target: Target, masks: Sequence[np.ndarray], classes: Sequence[str], made_by: str) -> bytes:
    try:
        if target.kind == "nifti":
            return nifti_mask(target.image, masks, target.first)
        return dicom_mask(target.image, masks[0], classes, made_by)
    except Exception as error:  # the image was moved away, or its header is damaged: then libraries raise whatever comes
        reason = getattr(error, "strerror", None) or getattr(error, "what", None) or str(error) or type(error).__name__
        what = f"has no mask as {_NAMES[target.kind]}, which needs its header: {reason}"
        raise UserError(what, where=str(target.image), todo="choose --masks-as png, or repair the header") from None


def _kind(image: Path, wanted: str) -> str:
    own = "nifti" if ending(image) in VOLUMES else "dicom" if ending(image) in DICOM else "png"
    if wanted in ("png", "auto"):
        return own if wanted == "auto" else wanted
    if own != wanted:
        what = f"is no {_NAMES[wanted]} file, and a mask of that format takes its place and size from the header of its image"
        raise UserError(what, where=str(image), todo="choose --masks-as auto, which gives each mask the format of its image, or png")
    return wanted
