"""``predict --watch``: a folder into which images come is segmented as they come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

from guidino_tune.data.files import slice_of
from guidino_tune.errors import UserError
from guidino_tune.workflows.predict import TrainedModel
from guidino_tune.workflows.predict_folder import predict_folder
from guidino_tune.workflows.prediction_extras import file_name, make_extras
from guidino_tune.workflows.prediction_files import NoImages, by_channels, find_images, image_of

Stamp = tuple[int, int]
"""Size in bytes and time of the last change."""


def watch_folder(
    model: TrainedModel,
    images: Path,
    output: Path,
    *,
    every: float = 2.0,
    told: Callable[[int, list[str]], None],
    tell: Callable[[str], None],
    goes_on: Callable[[], bool] = lambda: True,
    extras: Mapping[str, Any] = MappingProxyType({}),
    **how: Any,
) -> None:
    """Segments what is in a folder, and then what comes or changes, until it is interrupted.

    A file is taken when it is as it was at the look before: one that is still being written waits. An image of several files is taken
    when all of them are. What cannot be read is told once, and tried again when it changes.

    Table and objects are written anew after each round: an image that changed has new rows in the place of the old ones, and one that was
    moved away keeps its rows until the next start. At the start, those of an earlier run are kept of images that are still there.

    Args:
        model: Of ``load_model``.
        images: The folder, with its sub-folders; it may be empty.
        output: As of ``predict_folder``.
        every: Seconds between two looks.
        told: Given after each round how many masks were written, and a message for each image that could not be read.
        tell: As of ``predict_folder``.
        goes_on: Asked before each look.
        extras: As of ``predict_folder``.
        how: More options of ``predict_folder``.

    Raises:
        UserError: It is no folder, or none any more; or as ``predict_folder``.
    """
    if not images.is_dir():
        raise UserError("is no folder that could be watched", where=str(images), todo="name a folder, or leave --watch out")
    depths = len(model.rules.intensity.depths)
    more = make_extras(model.class_names, output, extras)
    if more:
        more.read_back(_file_names(images, output, depths))
    seen: dict[Path, Stamp] = {}
    done: dict[Path, Stamp] = {}
    while goes_on():
        now = _stamps(images, output)
        settled = {file for file, stamp in now.items() if seen.get(file) == stamp}
        ready = {file for file in settled if done.get(file) != now[file]}
        if depths > 1:
            ready = _whole(ready, settled, now)
        seen = now
        if ready:
            with contextlib.suppress(NoImages):  # moved away meanwhile
                told(*predict_folder(model, images, output, only=ready, tell=tell, extras=more or {}, **how))
            done |= {file: now[file] for file in ready}
        time.sleep(every)  # also after a round: a file that has rested for no longer than that may still be written


def _file_names(images: Path, output: Path, depths: int) -> set[str]:
    """What the images that are there are called in table and objects."""
    try:
        names, _ = by_channels(find_images(images, output).names, depths)
    except NoImages:  # none yet
        return set()
    return {file_name(files[0], name) for files, name in names.items()}


def _whole(ready: Set[Path], settled: Set[Path], now: Collection[Path]) -> set[Path]:
    """Files that are ready, with the others of their images; without images of which one is still being written."""
    meant, moving = {image_of(file) for file in ready}, {image_of(file) for file in now if file not in settled}
    return {file for file in now if image_of(file) in meant - moving}


def _stamps(images: Path, output: Path) -> dict[Path, Stamp]:
    """Of every image in the folder; a slice of a volume has that of its file."""
    try:
        names = find_images(images, output).names
    except NoImages:  # none yet
        return {}
    found = {}
    for file in names:
        try:
            status = slice_of(file)[0].stat()
        except OSError:  # moved away meanwhile
            continue
        found[file] = (status.st_size, status.st_mtime_ns)
    return found
