"""One intensity rule for all images of a data set: which values of the files become black and white.

A rule per file would change what a value means from image to image: a brighter pixel anywhere would darken all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from guidino_tune.config.data import Data
from guidino_tune.data.cases import stable_hash
from guidino_tune.data.raw import Raw
from guidino_tune.data.reading import is_deep, read_raw
from guidino_tune.data.windowing import EIGHT_BITS, PERCENTILES, Depth, Files, IntensityRule, Span, apply, decode_image, is_grey
from guidino_tune.errors import UserError

__all__ = ["EIGHT_BITS", "IntensityRule", "apply", "decode_image", "measure_intensity"]

MOST_IMAGES = 256
"""Images that are measured, drawn the same way in every process."""

MOST_PIXELS = 16_384
"""Pixels of each that are measured."""

_FEW = 16  # images of 8 bits that are opened to tell what they are
_FAINT = 1 / 16  # of the window: an image with less is hardly seen
_THREADS = 4


def measure_intensity(images: Sequence[Files], data: Data) -> IntensityRule:
    """Finds the rule of a data set from its training images.

    Files that cannot be read do not count here: whoever decodes them all names them.

    Args:
        images: The files of each training image; ``[case.images for case in cases]``.
        data: Its ``window``, ``channels``.

    Raises:
        UserError: Files of 8 bits and deeper ones are mixed and ``data.window`` does not say what to do, no file can be read, or nothing
            in them is a number.
    """
    images = sorted(images, key=lambda files: [str(path) for path in files])  # slices of one volume follow each other
    deep, errors = _depths(images)
    readable = [files for files, depth in zip(images, deep, strict=True) if depth is not None]
    if not readable:
        raise errors[0]
    depths = _depth_of_each_file([files for files in deep if files is not None], readable, data)
    if set(depths) == {"8"}:
        raws = _read(_drawn(readable, _FEW))
        notes = _notes(raws, data)
        if data.window is not None:
            notes += ("data.window changes nothing: all training images have 8 bits, which are taken as they are",)
        return IntensityRule("8-bit", (), depths, _form(raws), notes)
    chosen = _drawn([files for files, depth in zip(images, deep, strict=True) if depth is not None and any(depth)], MOST_IMAGES)
    raws = _read(chosen)
    form, notes = _form(raws), _notes(raws, data)
    if data.window == "file":
        return IntensityRule("file", (), depths, form, notes)
    if isinstance(data.window, tuple):
        windows = tuple((float(low), float(high)) for low, high in _pairs(data.window))
        _check_window(windows, raws, chosen)
        return IntensityRule("window", windows, depths, form, notes)
    windows = tuple(_percentiles(raws, index, chosen) for index in range(len(depths)))
    notes += _other_scales(raws, windows, chosen)
    if data.window is None and any(raw.window for image in raws for raw in image):
        notes += ("files ask for a window of their own (DICOM), which is not used; data.window=file uses it",)
    return IntensityRule("percentiles", windows, depths, form, notes)


def _drawn(images: Sequence[Files], most: int) -> list[Files]:
    """Draws at most so many images by their names, the same in every process and on every machine. Their order stays."""
    order = sorted(range(len(images)), key=lambda i: stable_hash(*(f"{path.parent.name}/{path.name}" for path in images[i])))
    return [images[i] for i in sorted(order[:most])]


def _depths(images: Sequence[Files]) -> tuple[list[tuple[bool, ...] | None], list[UserError]]:
    """Whether the files of each image are deeper than 8 bits; ``None`` for an image that cannot be read. And the errors."""

    def look(files: Files) -> tuple[bool, ...] | UserError:
        try:
            return tuple(is_deep(path) for path in files)
        except UserError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(look, images))
    return [None if isinstance(one, UserError) else one for one in found], [one for one in found if isinstance(one, UserError)]


def _depth_of_each_file(deep: list[tuple[bool, ...]], images: Sequence[Files], data: Data) -> tuple[Depth, ...]:
    count = Counter(len(files) for files in images).most_common(1)[0][0]
    depths: list[Depth] = []
    for index in range(count):
        parted: dict[bool, list[str]] = {False: [], True: []}
        for files, depth in zip(images, deep, strict=True):
            if len(files) > index:
                parted[depth[index]].append(files[index].name)
        if parted[False] and parted[True] and data.window is None:
            raise UserError(
                f"{len(parted[False])} training images have 8 bits (such as {min(parted[False])}), and {len(parted[True])} are deeper "
                f"(such as {min(parted[True])}): what is black and white in the one is not known in the other",
                where=str(images[0][0].parent),
                todo="save all of them in one depth, or set data.window to [low, high], the values of the deeper ones that become black "
                "and white, or to percentiles: images of 8 bits are then taken as they are",
            )
        depths.append("both" if parted[False] and parted[True] else "deep" if parted[True] else "8")
    return tuple(depths)


def _read(images: list[Files]) -> list[tuple[Raw, ...]]:
    """Reads the images. Those that cannot be read are removed from the list."""

    def read(files: Files) -> tuple[Raw, ...] | UserError:
        try:
            return tuple(_thinned(read_raw(path)) for path in files)
        except UserError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(read, images))
    raws = [one for one in found if not isinstance(one, UserError)]
    images[:] = [files for files, one in zip(images, found, strict=True) if not isinstance(one, UserError)]
    if not raws:
        raise next(one for one in found if isinstance(one, UserError))
    return raws


def _thinned(raw: Raw) -> Raw:
    """At most ``MOST_PIXELS`` of its pixels, as (N, 1, C), spread evenly (by the golden ratio, so that no pattern is met in step).

    Transparent pixels, which become black whatever they are, are left out.
    """
    values = raw.values.reshape(-1, raw.channels)
    if raw.alpha is not None:
        values = values[raw.alpha.reshape(-1) > 0]
    if len(values) > MOST_PIXELS:
        values = values[(np.arange(MOST_PIXELS) * 0.6180339887498949 % 1 * len(values)).astype(np.int64)]
    return Raw(values[:, None], raw.white, window=raw.window)


def _percentiles(images: list[tuple[Raw, ...]], index: int, files: Sequence[Files]) -> Span:
    raws = [raws[index] for raws in images if len(raws) > index and raws[index].deep]
    if not raws:
        return 0.0, 255.0
    values = np.concatenate([raw.values.reshape(-1).astype(np.float64) for raw in raws])
    values = values[np.isfinite(values)]
    if not values.size:
        raise UserError(
            "no training image holds a number: all of them are NaN or infinite", where=str(files[0][index]), todo="save the images again"
        )
    low, high = np.percentile(values, PERCENTILES).tolist()
    if not low < high:  # nearly all of it is one value
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1)


def _other_scales(images: list[tuple[Raw, ...]], windows: tuple[Span, ...], files: Sequence[Files]) -> tuple[str, ...]:
    """A note on images with hardly any contrast in this window, such as fractions among numbers up to 255."""
    faint: dict[str, Span] = {}
    for raws, paths in zip(images, files, strict=False):
        for raw, path, (low, high) in zip(raws, paths, windows, strict=False):
            finite = raw.values[np.isfinite(raw.values)]
            if raw.deep and finite.size:
                least, most = np.percentile(finite.astype(np.float64), PERCENTILES).tolist()
                if least < most and most - least < _FAINT * (high - low):
                    faint[path.name] = (least, most)
    if not faint:
        return ()
    name, (least, most) = min(faint.items())
    return (
        f"{len(faint)} of {len(images)} measured images use less than a sixteenth of the grey levels, such as {name} ({least:.6g} to "
        f"{most:.6g}): look whether they are on another scale than the others, and save all on one",
    )


def _pairs(window: Span | tuple[Span, ...]) -> tuple[Span, ...]:
    return tuple(pair for pair in window if isinstance(pair, tuple)) or (window,)  # type: ignore[return-value]


def _check_window(windows: tuple[Span, ...], images: list[tuple[Raw, ...]], files: Sequence[Files]) -> None:
    """Refuses a window in which nothing lies."""
    values = np.concatenate([raw.values.reshape(-1).astype(np.float64) for raws in images for raw in raws if raw.deep])
    values = values[np.isfinite(values)]
    if not any(((low < values) & (values < high)).any() for low, high in windows):
        found = f"they hold {values.min():.6g} to {values.max():.6g}" if values.size else "they hold no number"
        raise UserError(
            f"data.window is {', '.join(f'{low:g} to {high:g}' for low, high in windows)}, and no pixel of the training images lies "
            f"within: {found}",
            where=str(files[0][0].parent),
            todo="set data.window to values that the files hold, or leave it out: percentiles are then measured",
        )


def _form(images: list[tuple[Raw, ...]]) -> str:
    """What most images hold, such as ``16 bits, 1 channel``."""

    def words(raw: Raw) -> str:
        kind = {"f": ", fractions", "i": " with sign"}.get(raw.values.dtype.kind, "")
        bits = raw.values.dtype.itemsize * 8
        return f"{bits} bits{kind}, {raw.channels} channel{'s' if raw.channels > 1 else ''}"

    def form_of(raws: tuple[Raw, ...]) -> str:
        files = [words(raw) for raw in raws]
        return f"{len(files)} files of {files[0]} each" if len(set(files)) == 1 < len(files) else " and ".join(files)

    return Counter(form_of(raws) for raws in images).most_common(1)[0][0]


def _notes(images: list[tuple[Raw, ...]], data: Data) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if data.channels == 1 and any(len(raws) == 1 and raws[0].channels == 3 and not is_grey(raws[0].values) for raws in images):
        notes += ("images in colours become grey (their luminance), for data.channels is 1",)
    kinds = Counter(raw.values.dtype.name for raws in images for raw in raws if raw.deep)
    if len(kinds) > 1:
        counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        notes += (f"image files hold numbers of several types ({counts}), to which one rule is applied",)
    return notes
