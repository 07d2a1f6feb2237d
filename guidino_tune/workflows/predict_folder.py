"""The masks of a folder of images, with overlays and whatever else was asked for."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from guidino_tune.analysis.pictures import overlay, save_png
from guidino_tune.data.decoding import read_image
from guidino_tune.data.predicted import MASKS, OVERLAYS
from guidino_tune.data.raw import MAX_PIXELS, at_most
from guidino_tune.errors import UserError, about
from guidino_tune.framing import Array, viewable
from guidino_tune.inference import ImagePrediction
from guidino_tune.workflows.predict import TrainedModel
from guidino_tune.workflows.prediction_extras import Extras, Measured, make_extras
from guidino_tune.workflows.prediction_files import by_channels, check_output, find_images, mark_of, png
from guidino_tune.workflows.prediction_masks import Target, plan_masks, write_mask
from guidino_tune.workflows.prediction_memory import AUTOMATIC, LEAST, Room, free_memory
from guidino_tune.workflows.prediction_workers import automatic_workers, in_order

LOOKED_AT = 4096
"""Pixels of the longer side that an overlay is drawn from, where an image is larger than ``MAX_PIXELS``."""


@dataclass(slots=True)
class _Work:
    """One image on its way.

    Attributes:
        files: Of the image.
        name: Of its mask.
        pixels: Once they are read.
        found: Once the network has seen them.
        masks: Those that its file of masks holds, when it is complete.
        problems: Why there is no mask.
        alone: It is too large to be read or written beside others.
        written: Its mask is one file more.
        measured: For table and objects.
    """

    files: tuple[Path, ...]
    name: Path
    pixels: Array | None = None
    found: ImagePrediction | None = None
    masks: list[np.ndarray] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    alone: bool = False
    written: bool = False
    measured: Measured | None = None


def predict_folder(
    model: TrainedModel,
    images: Path,
    output: Path,
    *,
    threshold: float = 0.5,
    overlays: bool = True,
    extras: Mapping[str, Any] | Extras = MappingProxyType({}),
    masks_as: str = "png",
    workers: int | None = None,
    memory: int | None = None,
    only: Container[Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[int, list[str]]:
    """Segments each image and writes its mask (the image's own size) and an overlay.

    A mask is 0 and 255, so that it can be looked at. For several classes it holds the labels 0 (background) to ``num_classes``, as the
    masks that the model was trained with: values that a reader does not have to guess. As NIfTI or DICOM it always holds labels.

    The network sees one image after the other: in a batch some of its numbers would have other last digits. Images are read and results
    are written beside it. What is written does not depend on the number of threads.

    Args:
        model: Of ``load_model``.
        images: A folder with its sub-folders, or one image.
        output: Gets ``masks`` and ``overlays``. What an earlier call wrote there is replaced, and nothing else.
        threshold: Of the probability; for binary masks only.
        overlays: Whether to draw them.
        extras: See ``prediction_extras.make_extras``; or those to which this call adds.
        masks_as: See ``prediction_masks.FORMATS``.
        workers: Threads that read and write; 1 for none; ``None``: ``automatic_workers``.
        memory: Bytes that images may take together; ``None``: half of what is free (``AUTOMATIC``, ``LEAST``).
        only: Images that are meant; ``None``: all.
        progress: Told (done, in all).
        tell: Told what was passed over, what is named otherwise than its image, and what was replaced.

    Returns:
        How many files of masks were written, and a message for each image that could not be read.

    Raises:
        UserError: No images, a threshold that does not fit, a network that gives NaN for an image, an image that is not of the format
            of masks that was asked for, or ``output`` holds what would be replaced and is not of ``predict``.
    """
    tell = tell or (lambda _: None)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our own limit of size is that of the memory
    found = find_images(images, output)
    meant = {file: name for file, name in found.names.items() if only is None or file in only}
    names, failed = by_channels(meant, len(model.rules.intensity.depths))
    targets = plan_masks(names, masks_as)
    earlier = check_output(output, names.values(), overlays=overlays, masks=[target.file for target in targets.values()])
    more = extras if isinstance(extras, Extras) else make_extras(model.class_names, output, extras)
    if more:
        more.check(names.values())
    for note in found.notes:
        tell(note)
    threads = min(automatic_workers() if workers is None else workers, max(1, len(names)))  # one image has all of the memory
    made_by = f"{model.experiment.hash} {model.protocol} {threshold} {dict(model.provenance)}"
    run = _Run(model, output, threshold, overlays, more, targets, _room(model, more, threads, memory), made_by)
    tasks = [_Work(files, name) for files, name in names.items()]
    done = replaced = 0
    if progress and tasks:
        progress(0, len(tasks))
    with contextlib.closing(in_order(tasks, run.read, run.segment, run.write, threads)) as finished:
        for number, work in enumerate(finished, 1):
            done += work.written
            replaced += work.written and targets[work.name].file in earlier
            failed += work.problems
            if more and work.measured:
                more.put(work.measured)
            if progress and number < len(tasks):
                progress(number, len(tasks))
    for file in more.finish() if more else ():
        tell(f"written: {file}")
    if replaced:
        tell(f"{replaced} masks of an earlier run were replaced" if replaced > 1 else "a mask of an earlier run was replaced")
    return done, failed


def _room(model: TrainedModel, extras: Extras | None, workers: int, memory: int | None) -> Room:
    data, rules = model.experiment.data, model.rules
    bound = max(int(AUTOMATIC * free_memory()), LEAST) if memory is None else memory
    more = extras is not None or model.protocol.largest_component == "always"
    return Room(bound, workers, data.channels, 1 if rules.intensity.kind == "8-bit" else 2, data.num_classes, more)


@dataclass(slots=True)
class _Run:
    """What all images of a call share, and the three steps of each."""

    model: TrainedModel
    output: Path
    threshold: float
    overlays: bool
    extras: Extras | None
    targets: Mapping[Path, Target]
    room: Room
    made_by: str
    _slices: dict[Path, list[np.ndarray | None]] = field(default_factory=dict)

    def read(self, work: _Work) -> _Work:
        """In any thread: decodes it, unless it is too large to be there beside others."""
        with at_most(self.room.beside, self.room.why) as limit:
            self._decode(work)
        if limit.exceeded and self.room.alone > self.room.beside:
            work.problems, work.alone = [], True
        return work

    def segment(self, work: _Work) -> _Work:
        """One after the other: what the network says of it."""
        if work.alone:
            with at_most(self.room.alone, self.room.why):
                self._decode(work)
        if work.pixels is not None:
            with about(str(work.files[0])):
                if self.room.holds(work.pixels.shape[0] * work.pixels.shape[1]):
                    work.found = self.model.segment(work.pixels, self.threshold)
                else:
                    wanted = self.extras is not None
                    work.found = self.model.segment_tiles(work.pixels, self.threshold, folder=self._folder(), probabilities=wanted)
        self._collect(work)
        return self._finish(work) if work.alone else work

    def write(self, work: _Work) -> _Work:
        """In any thread: writes what was found."""
        return work if work.alone else self._finish(work)

    def _decode(self, work: _Work) -> None:
        try:
            work.pixels = read_image(work.files, self.model.rules)
        except UserError as error:
            # What to do about it in training does not help here; but a package that is not installed does.
            todo = f" ({error.todo})" if error.todo.startswith("pip install") else ""
            work.problems = [f"{error.where or work.files[0]}: {error.what}{todo}"]

    def _collect(self, work: _Work) -> None:
        """Gives the last slice of a volume the masks of all of them."""
        target = self.targets[work.name]
        mask = None if work.found is None else work.found.mask
        masks = self._slices.setdefault(target.file, [])
        masks.append(mask)
        if len(masks) < target.slices:
            return
        del self._slices[target.file]
        work.masks = [mask for mask in masks if mask is not None]
        if len(work.masks) < len(masks):
            if work.masks:
                missing = len(masks) - len(work.masks)
                work.problems.append(f"{target.image}: {missing} of its {len(masks)} slices have no mask, so that none is written")
            work.masks = []

    def _finish(self, work: _Work) -> _Work:
        found, pixels = work.found, work.pixels
        if work.masks:
            try:
                write_mask(self.targets[work.name], self.output / MASKS, work.masks, self.model.class_names, self.made_by)
                work.written = True
            except UserError as error:
                work.problems.append(f"{error.where}: {error.what}")
        if found is not None and pixels is not None:
            if self.extras:
                work.measured = self.extras.measure(work.files[0], work.name, found)
            if self.overlays:
                step = -(-max(found.mask.shape) // LOOKED_AT) if found.mask.size > MAX_PIXELS else 1
                drawn, mask, names = viewable(pixels[::step, ::step]), found.mask[::step, ::step], self.model.experiment.data.class_names
                picture = overlay(np.ascontiguousarray(drawn), None, found.guide, mask, title=work.name.name, names=names)
                save_png(picture, self.output / OVERLAYS / png(work.name), mark_of(picture))
        work.pixels, work.found, work.masks = None, None, []
        return work

    def _folder(self) -> Path:
        """For the maps of a large image: where there is room for its masks."""
        self.output.mkdir(parents=True, exist_ok=True)
        return self.output
