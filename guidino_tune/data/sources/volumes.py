"""Volumes as their slices: ``volume.nii.gz`` becomes the cases ``volume.nii.gz#0``, ``#1``, ..., one group."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.files import VOLUMES, ending, slice_of
from guidino_tune.errors import UserError, first_names


def sliced(listing: Listing, on_bad: str = "error") -> Listing:
    """The listing with every volume as its slices; images and masks pair by volume and number.

    Args:
        listing: Volumes as cases.
        on_bad: ``skip`` leaves out, with a note, volumes for which this would raise.

    Raises:
        UserError: A volume's header cannot be read, the files of a case lie in different directions, or volumes and images of one slice
            are mixed in a case.
    """
    if not any(_is_volume(case.image) for case in listing.cases):
        return listing
    known = {case.id for case in listing.cases}
    cases: list[Case] = []
    published: dict[str, str] = {}
    volumes = 0
    notes: list[str] = []
    for case in listing.cases:
        try:
            several = _slices(case)
        except UserError as error:
            if on_bad != "skip":
                raise
            notes.append(f"left out {case.id}: {error.what}")
            continue
        volumes += len(several) > 1
        cases += several
        if case.id in listing.published:
            published |= dict.fromkeys((one.id for one in several), listing.published[case.id])
    if volumes:
        notes.insert(0, f"{volumes} volumes are taken as their slices ({len(cases)} cases); no drawn split divides a volume")
    slices = defaultdict(set)
    for one in cases:
        slices[one.id if one.id in known else one.id.rpartition("#")[0]].add(one.id)
    folds = tuple(frozenset().union(*(slices[name] for name in fold)) for fold in listing.folds)
    return replace(listing, cases=tuple(cases), published=published, folds=folds, notes=(*listing.notes[:1], *notes, *listing.notes[1:]))


def _is_volume(path: Path) -> bool:
    return ending(path) in VOLUMES and slice_of(path)[1] is None


def _slices(case: Case) -> list[Case]:
    from guidino_tune.data.reading import lies_otherwise, volume_slices  # it takes a while to import

    if not _is_volume(case.image):
        return [case]
    for path in (*case.more_images, *case.masks):
        if _is_volume(path) and (difference := lies_otherwise(case.image, path)):
            raise UserError(
                f"image and mask are turned against each other: {difference}",
                where=str(path),
                todo="write both with axes of one direction (nibabel.as_closest_canonical of each), or set data.bad_cases=skip",
            )
    number = volume_slices(case.image)
    if number <= 1:
        return [case]
    others = [path for path in (*case.images, *case.masks) if not _is_volume(path)]
    if others:
        raise UserError(
            f"is a volume of {number} slices, but {first_names(path.name for path in others)} is none",
            where=str(case.image),
            todo="give volumes for both, or slices for both (volume.nii.gz#12 in a table)",
        )
    width = len(str(number - 1))

    def at(path: Path, index: int) -> Path:
        return path.with_name(f"{path.name}#{index}")

    return [
        Case(
            id=f"{case.id}#{index:0{width}}",
            image=at(case.image, index),
            mask=at(case.mask, index),
            group=case.group,
            more_images=tuple(at(path, index) for path in case.more_images),
            more_masks=tuple(at(path, index) for path in case.more_masks),
            stratum=case.stratum,
        )
        for index in range(number)
    ]
