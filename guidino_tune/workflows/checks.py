"""What can be known before anything is written or trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError, storage_error
from guidino_tune.models import check_backbone, check_segmenter
from guidino_tune.space.check import check_space, examples
from guidino_tune.space.space import Space
from guidino_tune.study.store import StudyFolder, check_same_search

ROOM = 2**24
"""Bytes that must be free before a search starts: enough for a study's own files and a few small checkpoints."""


def check_search(space: Space, folder: StudyFolder) -> list[str]:
    """Everything that can be known before anything is written or trained.

    Returns:
        Notes for the user.

    Raises:
        UserError: The space has a mistake, the study's folder cannot be written, weights cannot be loaded, the data set is not there, or
            the folder holds another search.
    """
    notes = check_space(space, begun=folder.definition.exists())
    check_storage(folder.path)
    notes += check_models(space)
    check_workers(space.base, space.resources.workers)
    find_cases(space.base.data)
    check_same_search(space, folder)
    return notes


def check_storage(folder: Path) -> None:
    """There is room for a study in this folder, or where it will be made; leaves nothing behind.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(ROOM))
            file.flush()
    except OSError as error:
        error.filename = str(there)
        raise storage_error(error) or error from None


def check_workers(experiment: Experiment, workers: int) -> None:
    """The images of a batch can be shared out evenly.

    Raises:
        UserError: They cannot.
    """
    if experiment.training.batch_size % workers:
        raise UserError(
            f"a batch of {experiment.training.batch_size} images cannot be shared out to {workers} workers",
            where="resources.workers",
            todo="make training.batch_size a multiple of the workers",
        )


def check_models(space: Space) -> list[str]:
    """Every guide backbone that a trial may use can be loaded, and every segmenter built on it.

    Returns:
        Notes for the user.

    Raises:
        UserError: Which one cannot, why, and what else to do.
    """
    guides: dict[tuple[Any, ...], DINOGuide] = {}
    segmenters: dict[tuple[Any, ...], Experiment] = {}
    for experiment in examples(space):
        guide = experiment.guide
        backbone = ""
        if isinstance(guide, DINOGuide):
            backbone = guide.backbone
            guides[backbone, guide.weights, guide.sha256] = guide
        segmenters[experiment.segmenter, backbone, experiment.data.image_size, experiment.data.channels] = experiment
    for guide in guides.values():
        check_backbone(guide)
    return list(dict.fromkeys(filter(None, map(check_segmenter, segmenters.values()))))
