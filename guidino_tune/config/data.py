"""The section ``data`` of an experiment: which files are segmented, how they are read, divided, resized and augmented."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from pydantic.dataclasses import dataclass

from guidino_tune.config.fields import PATCH, STRICT, About, Count, Fraction, Index, Number, PathText, whole

if TYPE_CHECKING:
    from guidino_tune.config.experiment import Experiment

INSTANCES = "instances"
"""What ``data.masks`` begins with where masks number their objects: 1 to N in each image, and all of them are foreground."""

BACKGROUND = "background"
"""The name in ``data.labels`` of what is no class."""

IGNORED = 255
"""In decoded masks: a pixel that counts neither in the loss nor in a score."""

Colour = tuple[int, int, int]
"""Red, green, blue: 0 to 255."""


CLASS_COLOURS: tuple[Colour, ...] = (
    (255, 165, 0), (0, 200, 255), (255, 45, 210), (150, 255, 60), (150, 110, 255), (255, 255, 90), (0, 150, 110), (255, 90, 90),
    (60, 110, 255), (200, 150, 110),
)  # fmt: skip
"""In which classes 1, 2, ... are drawn; they begin again after the last."""


class Labels(dict[str, tuple[int | Colour, ...]]):
    """Class name -> the values and colours that stand for it in the files; not to be changed, and so it can be hashed."""

    def __eq__(self, other: object) -> bool:
        # Their order numbers the classes.
        return isinstance(other, dict) and dict(self) == dict(other) and (not isinstance(other, Labels) or list(self) == list(other))

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def _labels(given: Any) -> Any:
    """Takes a value (``{lesion: 255}``), a colour (``{lesion: [255, 0, 0]}``), or a list of them (``{lesion: [1, 2]}``)."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        raise ValueError("names of classes with their values or colours are needed, such as {lesion: [255, 0, 0]}")
    found = Labels()
    for name, values in given.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{name!r} is no name of a class")
        several = list(values) if isinstance(values, list | tuple) else [values]
        if len(several) == 3 and all(isinstance(value, int) for value in several):
            several = [several]  # three numbers are a colour
        found[name] = tuple(_label(name, value) for value in several)
        if not found[name]:
            raise ValueError(f"{name}: no value is given")
    known = [value for values in found.values() for value in values]
    twice = next((value for value in known if known.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} stands for two classes")
    if not set(found) - {BACKGROUND}:
        raise ValueError("names the background only")
    return found


def _labels_once(given: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """What was read once stays: read again, three values would be a colour."""
    return given if isinstance(given, Labels) else _labels(check(given))


def _label(name: str, value: Any) -> int | Colour:
    if isinstance(value, list | tuple):
        if len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value):
            return (value[0], value[1], value[2]) if len(set(value)) > 1 else value[0]  # a grey is a value
        raise ValueError(f"{name}: {list(value)} is no colour of three numbers from 0 to 255")
    if type(value) is not int:
        raise ValueError(f"{name}: {value!r} is no whole number and no colour")
    return value


def _window(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError("the first number must be below the second")
    return value


Window = Annotated[tuple[float, float], AfterValidator(_window)]
"""Values of a file that become black and white."""


def _shows_no_view_twice(experiment: Experiment) -> bool:
    """No view of a case is shown twice, or all of them are the same."""
    training, data = experiment.training, experiment.data
    passes = training.epochs if training.steps_per_epoch == "cases" else math.inf  # else it depends on the cases
    return data.augmentation == "none" or (data.view_cycle or 0) >= passes


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Data:
    """What is segmented: a source of cases, how they are read, split, resized and augmented.

    Attributes:
        kind: The layout of the files under ``root`` (``folder`` finds out by itself; ``demo`` makes its own images).
        root: Folder of the data set, or of kind ``folder`` a CSV or JSON lines file that lists its cases; ``None`` looks in the place where
            ``prepare`` puts it. Columns of such a file: ``image``, ``mask`` (paths from the file's own folder; several are separated by
            ``;``: the channels of an image, masks to be united), and if wanted ``group`` (stays together), ``split`` (``train``,
            ``validation`` or ``test``; a line without is left out where others say ``train``), ``stratum`` (a class of cases, of which
            each part gets its share) and ``id`` (the name of the case; else its path).
        images: Of kind ``folder``: folder or pattern of the images under ``root``, such as ``*/images/*.tif``; ``None`` finds them.
        masks: The same for the masks. ``instances`` or ``instances:PATTERN``: masks number their objects, and all of them are foreground.
        group: What keeps cases together (a patient): a regular expression on the path below ``root``, whose first group (or whole match)
            is the name, or a column of the table. ``None``: what the layout tells.
        labels: Class name -> value, colour ``[r, g, b]``, or a list of these, as they stand in the mask files; ``background`` may be named
            too. The classes are numbered in this order, and named so in every table. ``None``: found by the rule of the data set.
        ignore_label: A value in the masks that is no class: such pixels are left out of loss, guide target and scores.
        image_size: Side of the square that images are resized to, or of the patches, in pixels; a multiple of 16.
        num_classes: Foreground classes. 1: masks are binary. More: masks are label maps of 0 (background) to ``num_classes``. With
            ``labels`` it follows from them.
        channels: Of an image as the network sees it. 3: colours, or grey three times. Another number: that many channels, from one file or
            from several.
        window: Values that become black and white in images deeper than 8 bits: ``[low, high]``, or one such pair per channel,
            ``percentiles`` (0.5 and 99.5 of the training images, measured once), or ``file`` (as a DICOM file asks). ``None``: images of 8
            bits as they are, ``percentiles`` for all others.
        resize: ``squash`` makes images square; ``pad`` keeps their aspect ratio and leaves out of loss and scores what it adds.
        mask_resize: ``area``: a pixel of a smaller mask is foreground where half of its area is; ``nearest``: where its centre is.
        view: ``image``: training sees whole images, resized; ``patch``: windows of ``image_size`` at the images' own scale.
        patch_foreground: Chance that a patch is drawn around a pixel of the foreground (nnU-Net: 1/3).
        normalisation: ``imagenet`` (mean and deviation of ImageNet, with which DINO backbones were trained) or ``zscore`` (of each image
            and channel, as nnU-Net does). The backbone sees what the segmenter sees.
        augmentation: ``nnunet`` (nnU-Net's set) or ``none``.
        bad_cases: What a corrupt or mismatched image does: stop with a message, or be left out and named.
        validation_fraction: Share of the cases held out for validation where no split is published.
        test_fraction: Share of the cases sealed as test where no test split is published.
        split_seed: Seed of those two choices.
        folds: Cross-validation: the cases that are not for the test are divided into so many parts, of which ``fold`` is for validation.
        fold: From 0.
        stratify: What is drawn for validation has as much of each class, and of small and large foregrounds, as the rest.
        group_duplicates: Compare all images before the split is drawn, and keep copies and near-copies in one part of it. What a published
            split divides is not moved: of such copies training and validation lose theirs.
        max_train_cases: Use only this many training cases (seeded choice); ``None`` uses all.
        max_validation_cases: The same for validation.
        view_cycle: Augmentations per case: pass ``e`` over the cases shows the views of pass ``e % view_cycle``, in an order of its own,
            so that a long training needs no more of them on disk. ``None``: new ones in every pass.
    """

    kind: Annotated[Literal["kvasir", "isic2017", "tn3k", "folder", "demo"], About(shared="the images")]
    root: Annotated[PathText | None, About(idle=lambda e: True, only_how="where the images lie")] = None
    images: Annotated[PathText | None, About(before=None, shared="the images")] = None
    masks: Annotated[PathText | None, About(before=None, shared="the masks")] = None
    group: Annotated[str | None, About(before=None, shared="the split")] = None
    labels: Annotated[dict[str, Any] | None, WrapValidator(_labels_once), About(before=None, shared="the classes")] = None
    ignore_label: Annotated[
        Annotated[int, Field(ge=-32768, le=65535), Number] | None,
        About(before=None, shared="the classes", memory=lambda value: value is not None),
    ] = None
    image_size: Annotated[int, Field(ge=2 * PATCH, le=4096, multiple_of=PATCH), Number, About(memory=whole, heading="image size")] = 256
    num_classes: Annotated[int, Field(ge=1, le=254), Number, About(before=1, shared="the classes", memory=whole)] = 1
    channels: Annotated[int, Field(ge=1, le=64), Number, About(before=3, memory=whole)] = 3
    window: Annotated[Literal["percentiles", "file"] | Window | tuple[Window, ...] | None, About(before=None)] = None
    resize: Annotated[Literal["squash", "pad"], About(before="squash", memory=lambda value: value == "pad")] = "squash"
    mask_resize: Annotated[Literal["area", "nearest"], About(before="nearest")] = "area"
    view: Annotated[Literal["image", "patch"], About(before="image")] = "image"
    patch_foreground: Annotated[Fraction, About(idle=lambda e: e.data.view == "image")] = 0.33
    normalisation: Annotated[Literal["imagenet", "zscore"], About(before="imagenet")] = "imagenet"
    augmentation: Literal["nnunet", "none"] = "nnunet"
    bad_cases: Annotated[Literal["error", "skip"], About(only_how="what a damaged image does")] = "error"
    validation_fraction: Annotated[Fraction, About(shared="the split")] = 0.1
    test_fraction: Annotated[Fraction, About(shared="the split")] = 0.1
    split_seed: Annotated[Index, About(shared="the split")] = 0
    folds: Annotated[Annotated[int, Field(ge=2, le=100), Number] | None, About(before=None, shared="the split")] = None
    fold: Annotated[Index, About(before=0, shared="the split")] = 0
    stratify: Annotated[bool, About(before=False, shared="the split")] = True
    group_duplicates: Annotated[bool, About(before=False, shared="the split")] = False
    max_train_cases: Count | None = None
    max_validation_cases: Annotated[Count | None, About(shared="the validation cases")] = None
    view_cycle: Annotated[Count | None, About(before=None, idle=_shows_no_view_twice)] = None

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if self.labels is not None:
            count = len(self.class_names)
            if self.num_classes not in (1, count):
                raise ValueError(f"num_classes: {self.num_classes}, but labels names {count}: {', '.join(self.class_names)}")
            object.__setattr__(self, "num_classes", count)
            if self.ignore_label is not None and any(self.ignore_label in values for values in self.labels.values()):
                raise ValueError(f"ignore_label: {self.ignore_label} is a value of labels too")
            if self.instances:
                raise ValueError("masks: objects that are numbered are all foreground; labels has no meaning there")
        if self.instances and self.num_classes > 1:
            raise ValueError("masks: objects that are numbered are all foreground; num_classes must be 1")
        if self.kind != "folder" and (self.images or self.mask_pattern):
            raise ValueError(f"images, masks: data.kind {self.kind!r} has a layout of its own; they are for kind 'folder'")
        if self.fold and self.fold >= (self.folds or 1):
            raise ValueError(f"fold: {self.fold} is none of {self.folds or 1} folds, which count from 0")
        if self.view == "patch" and self.resize == "pad":
            raise ValueError("resize: patches are cut from images at their own scale; nothing is resized there")
        several = isinstance(self.window, tuple) and isinstance(self.window[0], tuple)
        if several and len(self.window or ()) != self.channels:
            raise ValueError(f"window: {len(self.window or ())} pairs for {self.channels} channels")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the foreground classes 1, 2, ...: as ``labels`` names them, else ``class 1``, or ``foreground`` of a single one."""
        if self.labels is not None:
            return tuple(name for name in self.labels if name != BACKGROUND)
        return ("foreground",) if self.num_classes == 1 else tuple(f"class {number}" for number in range(1, self.num_classes + 1))

    @property
    def class_colours(self) -> tuple[Colour, ...]:
        """Of the foreground classes 1, 2, ...: the first colour that ``labels`` gives a class, else one of ``CLASS_COLOURS``."""
        given = self.labels or {}
        found = []
        for number, name in enumerate(self.class_names):
            own = next((value for value in given.get(name, ()) if isinstance(value, tuple)), None)
            found.append(own or CLASS_COLOURS[number % len(CLASS_COLOURS)])
        return tuple(found)

    @property
    def class_keys(self) -> tuple[str, ...]:
        """``class_names`` as scores are named in tables and in MLflow, such as ``nucleus`` in ``dice_nucleus``: letters, digits and ``_``.

        Names that are one so written, or the end of another score's name, give ``class_1`` and so on.
        """
        keys = tuple(re.sub(r"\W+", "_", name).strip("_").lower() for name in self.class_names)
        clear = len(set(keys)) == len(keys) and all(keys) and "percent" not in keys
        return keys if clear else tuple(f"class_{number}" for number in range(1, len(keys) + 1))

    @property
    def instances(self) -> bool:
        """True when masks number their objects."""
        return self.masks is not None and self.masks.partition(":")[0] == INSTANCES

    @property
    def mask_pattern(self) -> str | None:
        """Folder or pattern of the masks; ``None`` where they are to be found."""
        return (self.masks.partition(":")[2] or None) if self.masks and self.instances else self.masks

    @property
    def has_ignored(self) -> bool:
        """True when decoded masks may hold ``IGNORED``."""
        return self.ignore_label is not None or self.resize == "pad"
