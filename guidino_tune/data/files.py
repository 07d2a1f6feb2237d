"""Which files are images: the one list of endings, and the names of slices in a volume."""

from __future__ import annotations

from pathlib import Path

RASTER = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".webp", ".npy")
"""Endings of files with one image each, which need no further package."""

VOLUMES = (".nii", ".nii.gz")
"""Of NIfTI files (``guidino-tune[nifti]``)."""

DICOM = (".dcm", ".dicom")
"""Of DICOM files (``guidino-tune[dicom]``)."""

ENDINGS = (*RASTER, *DICOM, *VOLUMES)
"""All of them, in lower case."""


def ending(path: Path) -> str:
    """The ending by which a file is known, in lower case (``.nii.gz`` is one); empty where it is none of ``ENDINGS``."""
    name = slice_of(path)[0].name.lower()
    return max((end for end in ENDINGS if name.endswith(end)), key=len, default="")


def stem(path: Path) -> str:
    """The name of a file without its ending, and with the number of the slice where there is one."""
    file, number = slice_of(path)
    known = ending(file)
    name = file.name[: len(file.name) - len(known)] if known else file.stem
    return name if number is None else f"{name}#{path.name.rpartition('#')[2]}"


def slice_of(path: Path) -> tuple[Path, int | None]:
    """The file itself, and the number of the slice that is meant (``volume.nii.gz#12``); ``None`` where there is none."""
    name, mark, number = path.name.rpartition("#")
    if mark and number.isdigit() and ending(Path(name)) in VOLUMES:
        return path.with_name(name), int(number)
    return path, None
